"""An ECG on ECG paper, to scale.  Research use only, not a medical device."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .record_ecg import EcgRecord

MM_PER_SECOND = 25.0
MM_PER_MILLIVOLT = 10.0
SECONDS = 10.0  # shown on one sheet
COLUMNS = (("I", "II", "III"), ("aVR", "aVL", "aVF"), ("V1", "V2", "V3"), ("V4", "V5", "V6"))
RHYTHM_LEAD = "II"

MARGIN, HEADER, FOOTER = 10.0, 20.0, 12.0  # mm round the paper
PULSE = 15.0  # mm on the left of the traces, for the calibration pulse
GRID = (("#f7d4d2", 1.0, 0.3), ("#eaa19d", 5.0, 0.6))  # colour, spacing in mm, width in points
INK = "#15171c"


def plot_ecg(
    record: "EcgRecord",
    *,
    title: str | None = None,
    heart_rate: float | None = None,
    start: float = 0.0,
    layout: str = "auto",
) -> "Figure":
    """Ten seconds of an ECG on paper with a 1 mm and 5 mm grid: 25 mm/s and 10 mm/mV when printed at full size.

    Every lead is centred on its median and otherwise unfiltered; NaN are gaps; annotations stand above the lowest
    row.  Save the figure with `figure.savefig("ecg.pdf")`.

    Args:
        record: what to draw.
        title: first line of the header; the record's file name if not given.
        heart_rate: beats per minute, for the header (`rhythm_ecg.heart_rate` measures it).
        start: second at which the sheet begins.
        layout: `"3x4"`, the clinical sheet: four columns of 2.5 s in three rows, and lead II below as rhythm strip;
            `"stacked"`: each lead in its own row, whatever its name; `"auto"`: 3x4 where the sheet can be filled.

    Raises:
        ValueError: for an unknown layout, or a start outside the record.
    """
    from matplotlib.figure import Figure

    if not 0 <= start < record.duration:
        raise ValueError(f"{record.source}: start must be in the record's {record.duration:g} s, not {start:g}")
    if layout == "auto":
        standard = set(record.lead_names) == {lead for column in COLUMNS for lead in column}
        layout = "3x4" if standard and record.duration - start > SECONDS - 0.5 else "stacked"
    if layout == "3x4":
        pitch, column = 35.0, SECONDS / len(COLUMNS)
        rows = [[(leads[i], k * column, (k + 1) * column) for k, leads in enumerate(COLUMNS)] for i in range(3)]
        rows.append([(RHYTHM_LEAD, 0.0, SECONDS)])
    elif layout == "stacked":
        pitch = 25.0 if len(record.lead_names) > 4 else 35.0
        rows = [[(lead, 0.0, SECONDS)] for lead in record.lead_names]
    else:
        raise ValueError(f"layout must be 'auto', '3x4' or 'stacked', not {layout!r}")

    paper = PULSE + SECONDS * MM_PER_SECOND, len(rows) * pitch  # mm
    width, height = paper[0] + 2 * MARGIN, paper[1] + HEADER + FOOTER
    figure = Figure(figsize=(width / 25.4, height / 25.4), facecolor="white")
    place = MARGIN / width, FOOTER / height, paper[0] / width, paper[1] / height
    axes = figure.add_axes(place, xlim=(0, paper[0]), ylim=(0, paper[1]))  # 1 unit = 1 mm of paper
    axes.set_axis_off()
    for colour, spacing, points in GRID:
        style: dict[str, Any] = {"colors": colour, "linewidths": points, "zorder": 0, "clip_on": False}
        axes.vlines(np.arange(0, paper[0] + 0.5, spacing), 0, paper[1], **style)
        axes.hlines(np.arange(0, paper[1] + 0.5, spacing), 0, paper[0], **style)
    for i, row in enumerate(rows):
        _draw_row(axes, record, row, start, baseline=paper[1] - (i + 0.5) * pitch, top=paper[1] - i * pitch)

    _draw_annotations(axes, record, start, pitch)

    shown = min(SECONDS, record.duration - start)
    facts = [f"{start:g} to {start + shown:g} s of {record.duration:g} s", f"{record.sampling_rate:g} Hz"]
    facts += [] if heart_rate is None else [f"{heart_rate:.0f} beats/min"]
    heading = " ".join((Path(record.source).name if title is None else title).split())[:100]
    text: dict[str, Any] = {"color": INK, "parse_math": False, "va": "center"}
    axes.text(0, paper[1] + 13, heading, fontsize=13, fontweight="bold", **text)
    axes.text(0, paper[1] + 6, "     ".join(facts), fontsize=9, **text)
    axes.text(0, -6, "25 mm/s     10 mm/mV     unfiltered, each lead centred on its median", fontsize=8, **text)
    axes.text(paper[0], -6, "Research use only, not a medical device", fontsize=8, ha="right", **text)
    return figure


def _draw_annotations(axes, record: "EcgRecord", start: float, pitch: float) -> None:
    """The symbols of `metadata["annotations"]` above the lowest row, which is ten seconds long in any layout."""
    for time, symbol in record.metadata.get("annotations", ()):
        if 0 <= time - start < SECONDS:
            place = PULSE + (time - start) * MM_PER_SECOND, pitch - 4
            style = {"fontsize": 8, "color": "#1f4e9c", "ha": "center", "va": "top", "parse_math": False}
            axes.text(*place, symbol, gid="annotation", zorder=3, **style)


def _draw_row(axes, record: "EcgRecord", row: list, start: float, baseline: float, top: float) -> None:
    """Calibration pulse (1 mV, 0.2 s) and traces of a row; `baseline` and `top` in mm above the paper's lower edge."""
    pulse = np.array([(3, 0), (5, 0), (5, 1), (10, 1), (10, 0), (12, 0)])  # mm, mV
    pen = {"color": INK, "linewidth": 0.8, "solid_joinstyle": "round", "zorder": 2}
    axes.plot(pulse[:, 0], baseline + pulse[:, 1] * MM_PER_MILLIVOLT, gid="calibration", **pen)
    for lead, begin, end in row:
        left = PULSE + begin * MM_PER_SECOND
        label = {"fontsize": 10, "fontweight": "bold", "color": INK, "va": "top", "zorder": 3, "parse_math": False}
        axes.text(left + 1, top - 2, lead, **label)
        if begin > 0:
            axes.vlines(left, baseline - 3, baseline + 3, colors=INK, linewidths=0.8)
        if lead not in record.lead_names:
            axes.text(left + 1, baseline, "not recorded", fontsize=8, color="#777777", va="center")
            continue
        first, last = (round((start + time) * record.sampling_rate) for time in (begin, end))
        millivolts = record.signal[record.lead_names.index(lead), first:last]
        if np.isnan(millivolts).all():
            axes.text(left + 1, baseline, "no signal", fontsize=8, color="#777777", va="center")
            continue
        seconds = np.arange(first, first + millivolts.size) / record.sampling_rate - start
        height = baseline + (millivolts - np.nanmedian(millivolts)) * MM_PER_MILLIVOLT
        axes.plot(PULSE + seconds * MM_PER_SECOND, height, gid=f"lead {lead}", **pen)
