"""Pictures of how sure a model is, and how rightly: risk and coverage, reliability, uncertainty.

For research use; not a medical device.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ecgformers.evaluation.leaderboard_figure import BASELINE, STYLES
from ecgformers.evaluation.tables import RESEARCH_USE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def _figure(title: str, across: str, up: str) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure

    figure = Figure((5.5, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=across, ylabel=up)
    axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(RESEARCH_USE, fontsize=7)
    return figure, axes


def risk_coverage_figure(title: str, risk: str, curves: Mapping[str, np.ndarray]) -> "Figure":
    """Curves of `metrics.decisions.risk_coverage`; the area under each is in the legend."""
    figure, axes = _figure(title, "coverage: share of the records, the surest first, %", f"{risk}, %")
    for (name, curve), (colour, _) in zip(curves.items(), STYLES, strict=False):
        coverage = np.arange(1, len(curve) + 1) / len(curve)
        axes.plot(100 * coverage, 100 * curve, color=colour, label=f"{name} (area {100 * curve.mean():.1f})")
    axes.set_xlim(0, 100)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9)
    return figure


def reliability_figure(title: str, targets: np.ndarray, probabilities: Mapping[str, np.ndarray]) -> "Figure":
    """Share of positives among pairs of record and class of like probability, in ten bins of equal width.

    Args:
        targets: (n, classes) of 0 and 1.
        probabilities: by method, (n, classes).
    """
    figure, axes = _figure(title, "mean probability, %", "share of positives, %")
    axes.plot([0, 100], [0, 100], color=BASELINE, linestyle="--")
    for (name, values), (colour, marker) in zip(probabilities.items(), STYLES, strict=False):
        bins = np.minimum((values.ravel() * 10).astype(int), 9)
        _, index, counts = np.unique(bins, return_inverse=True, return_counts=True)
        means, shares = (100 * np.bincount(index, each.ravel()) / counts for each in (values, targets))
        axes.plot(means, shares, color=colour, marker=marker, label=name)
    axes.legend(frameon=False, fontsize=9)
    return figure


def uncertainty_figure(title: str, variance: np.ndarray, corrupted: Mapping[str, np.ndarray]) -> "Figure":
    """Histogram of the total variances (n,) of all recordings, and below it median and quartiles of some of them,
    corrupted: (records,) by kind."""
    from matplotlib.figure import Figure

    figure = Figure((5.5, 3 + 0.35 * len(corrupted)), layout="constrained")
    axes, quartiles = figure.subplots(2, 1, sharex=True, height_ratios=[3, 0.2 + 0.35 * len(corrupted)])
    axes.hist(100 * variance, bins=40, color=STYLES[0][0])
    axes.set(title=title, ylabel="recordings")
    places = range(len(corrupted))
    low, middle, high = 100 * np.quantile(list(corrupted.values()), [0.25, 0.5, 0.75], axis=1)
    quartiles.hlines(places, low, high, color=BASELINE, linewidth=6)
    quartiles.plot(middle, places, color=STYLES[1][0], marker="|", markersize=10, linestyle="")
    quartiles.set_yticks(places, list(corrupted))
    quartiles.set_ylim(len(corrupted) - 0.5, -0.5)
    quartiles.set_xlabel("total variance of an ECG, % of its squared mean")
    figure.supxlabel(RESEARCH_USE, fontsize=7)
    return figure
