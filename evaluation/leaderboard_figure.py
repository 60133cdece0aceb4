"""The leaderboard as a picture: a panel a task, a line a protocol, a colour a model.

Filled points are models, hollow ones the same models with random weights; whiskers are 95 % intervals by patient, and
dashed lines what needs no model (the prior, chance).  For research use; not a medical device.
"""

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ecgformers.evaluation.tables import RESEARCH_USE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which people with any colour vision can tell apart, with a shape for each colour.
STYLES = (
    ("#0072B2", "o"),
    ("#D55E00", "s"),
    ("#009E73", "D"),
    ("#CC79A7", "^"),
    ("#E69F00", "v"),
    ("#56B4E9", "P"),
    ("#000000", "X"),
)
BASELINE = "#777777"
WIDTH, COLUMNS = 9.0, 2  # inches; panels side by side
LINE, POINT, FRAME = 0.2, 0.13, 1.0  # inches: between protocols, for each point, around a panel
LABEL_LETTERS = 24


def leaderboard_figure(lines: Sequence[Mapping[str, Any]]) -> "Figure":
    """A figure of some lines of a leaderboard, see `leaderboard.figures_of`; figures without a value are left out."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    panels: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for line in lines:
        panels.setdefault((line["task"] or line["evaluation"], line["figure"]), []).append(line)
    models = list(dict.fromkeys(line["model"] for line in lines if line["model"]))
    styles = {model: STYLES[index % len(STYLES)] for index, model in enumerate(models)}
    columns = min(COLUMNS, len(panels))
    rows = [list(panels.items())[start : start + columns] for start in range(0, len(panels), columns)]
    heights = [FRAME + max(_height(own) for _, own in row) for row in rows]
    figure = Figure((WIDTH, sum(heights) + 0.6), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for row, row_axes in zip(rows, axes, strict=True):
        for axis in row_axes[len(row) :]:
            axis.axis("off")
        for ((title, name), own), axis in zip(row, row_axes, strict=False):
            _draw_panel(axis, own, styles)
            axis.set_title(title, fontsize=10)
            axis.set_xlabel(f"{name}, %", fontsize=9)
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="", label=model)
        for model, (colour, marker) in styles.items()
    ]
    handles += [
        Line2D([], [], color=BASELINE, marker="o", fillstyle="none", linestyle="", label="random weights"),
        Line2D([], [], color=BASELINE, linestyle="--", label="prior or chance"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, fontsize=9, frameon=False)
    figure.supxlabel(f"Whiskers: 95 % intervals by patient. {RESEARCH_USE}", fontsize=8)
    return figure


def _protocols(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The lines of the models, and of those with random weights, by protocol."""
    protocols: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        if line["model"] and line["value"] is not None:
            protocols.setdefault(line["protocol"], []).append(line)
    return protocols


def _height(lines: Sequence[Mapping[str, Any]]) -> float:
    """The height in inches that a panel's points need."""
    return sum(LINE + POINT * max(2, len(points)) for points in _protocols(lines).values())


def _draw_panel(axis: "Axes", lines: Sequence[Mapping[str, Any]], styles: Mapping[str, tuple[str, str]]):
    for value in {line["value"] for line in lines if not line["model"]} - {None}:
        axis.axvline(100 * value, color=BASELINE, linestyle="--", linewidth=1, zorder=0)
    place, ticks = 0.0, {}
    for protocol, points in _protocols(lines).items():
        first = place
        for line in points:
            colour, marker = styles[line["model"]]
            fill = colour if line["is_model"] else "white"
            if line["low"] is not None:
                axis.plot([100 * line["low"], 100 * line["high"]], [place, place], color=colour, linewidth=1.3)
            axis.plot(100 * line["value"], place, marker, color=colour, markerfacecolor=fill, markersize=5.5)
            place += POINT
        ticks[(first + place - POINT) / 2] = textwrap.fill(protocol, LABEL_LETTERS)
        place += LINE + POINT * max(0, 2 - len(points))
    axis.set_yticks(list(ticks), list(ticks.values()))
    axis.set_ylim(place - LINE, -POINT)
    axis.tick_params(labelsize=8)
    axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
