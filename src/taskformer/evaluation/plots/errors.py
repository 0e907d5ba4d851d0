"""Errors of depth by the distance and of normals by their size, and precision against recall."""

from collections.abc import Mapping

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from taskformer.evaluation.details import Details, f_measure, range_errors
from taskformer.evaluation.plots.style import marks, write_legend
from taskformer.metrics.normals import LIMITS
from taskformer.metrics.units import SHARE, factor, shown
from taskformer.plots import GREY, STYLE, WIDTH

#: F-measures whose curves are drawn for orientation.
ORIENTATION = (0.2, 0.4, 0.6, 0.8)
#: Angles are drawn up to where this share of the pixels is, but at least to the other number of degrees.
MOST, LEAST = 0.95, 40


@rc_context(STYLE)
def draw_ranges(task: str, subjects: Mapping[str, Details]) -> Figure:
    """Draw the RMSE by the true value, of one run also the mean error, and below how many of the pixels have it.

    Args:
        task: Name of the task.
        subjects: Details with ranges by the name of their run.
    """
    figure = Figure((WIDTH, 5.2), layout="constrained")
    errors, pixels = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    end, beyond = 0.0, ""
    for (name, color, marker, line), details in zip(marks(list(subjects)), subjects.values(), strict=True):
        starts = np.asarray(details["ranges"], np.float64)
        middles = starts + (starts[1] - starts[0]) / 2
        rmse, mae = range_errors(details)
        alone = len(subjects) == 1
        errors.plot(middles, rmse, f"{marker}-", color=color, markersize=5, label="RMSE" if alone else name)
        if alone:
            errors.plot(middles, mae, f"{marker}:", color=color, markersize=3, label="mean error")
        counts = np.asarray(details["pixels"], np.float64)
        pixels.plot(middles, factor(SHARE) * counts / max(counts.sum(), 1), line, drawstyle="steps-mid", color=color)
        end = max(end, *middles[counts > 0])
        beyond = f"; the last point is all from {starts[-1]:g}" if counts[-1] else beyond
    unit = next(iter(subjects.values()))["unit"]
    in_unit = f", {unit}" if unit else ""
    errors.set_ylabel(f"{'error' if len(subjects) == 1 else 'RMSE'}{in_unit}")
    errors.set_ylim(bottom=0)
    pixels.set_ylabel("pixels, %")
    pixels.set_ylim(bottom=0)
    pixels.set_xlim(0, 1.03 * end or 1)
    pixels.set_xlabel(f"true {task}{in_unit}{beyond}")
    write_legend(figure, errors, f"{task}: error by the true value")
    return figure


@rc_context(STYLE)
def draw_angles(task: str, subjects: Mapping[str, Details]) -> Figure:
    """Draw how many of the pixels have which error, and how many have at most that.

    Args:
        task: Name of the task.
        subjects: Details with angles by the name of their run.
    """
    figure = Figure((WIDTH, 4.0), layout="constrained")
    single, total = figure.subplots(1, 2)
    end = LEAST
    for (name, color, _, line), details in zip(marks(list(subjects)), subjects.values(), strict=True):
        counts = np.asarray(details["angles"], np.float64)
        shares = counts / max(counts.sum(), 1)
        below = np.concatenate([[0.0], shares.cumsum()])
        single.stairs(factor(SHARE) * shares, np.arange(len(counts) + 1), color=color, linestyle=line, label=name)
        total.plot(np.arange(len(below)), factor(SHARE) * below, line, color=color)
        end = max(end, int(np.searchsorted(below, MOST)))
    for limit in LIMITS:
        total.axvline(limit, color=GREY, linewidth=1, linestyle=":")
        total.text(limit + end / 100, 2, f"{limit:g}°", color=GREY, fontsize=9, rotation=90)
    for axes in (single, total):
        axes.set_xlim(0, end)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("error, degrees")
    total.set_ylim(0, 100)
    single.set_ylabel("pixels within a degree, %")
    total.set_ylabel("pixels with at most this error, %")
    write_legend(figure, single, f"{task}: angular error")
    return figure


@rc_context(STYLE)
def draw_precision_recall(task: str, subjects: Mapping[str, Details]) -> Figure:
    """Draw precision against recall over the thresholds, with the point of the best F-measure.

    Args:
        task: Name of the task.
        subjects: Details with precision and recall by the name of their run.
    """
    figure = Figure((WIDTH, 6.4), layout="constrained")
    axes = figure.subplots()
    first = next(iter(subjects.values()))
    _draw_orientation(axes, first["beta_squared"])
    for (name, color, marker, line), details in zip(marks(list(subjects)), subjects.values(), strict=True):
        recall, precision = (factor(SHARE) * np.asarray(details[key]) for key in ("recall", "precision"))
        found = precision > 0  # where nothing reaches the threshold there is no precision
        best = f_measure(details["best"][0], details["best"][1], details["beta_squared"])
        axes.plot(recall[found], precision[found], line, color=color)
        axes.plot(*(factor(SHARE) * share for share in details["best"]), marker, color=color, markersize=9,
                  linestyle=line, label=f"{name}: best F {shown(best)} %")  # fmt: skip
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.set_aspect("equal")
    axes.set_xlabel("recall, %")
    axes.set_ylabel("precision, %")
    axes.legend(loc="lower left", fontsize=10, frameon=True, edgecolor="white")
    weight = "" if first["beta_squared"] == 1 else f", β² = {first['beta_squared']:g}"
    figure.suptitle(f"{task}: precision and recall{weight}", fontsize=12)
    return figure


def _draw_orientation(axes: Axes, beta_squared: float) -> None:
    """Draw the curves on which the F-measure is the same."""
    for level in ORIENTATION:
        # F = (1 + b) P R / (b P + R), solved for R at P = 1, from where the curve begins, and for P.
        recall = np.linspace(beta_squared * level / (1 + beta_squared - level), 1, 100)
        precision = level * recall / ((1 + beta_squared) * recall - beta_squared * level)
        recall, precision = factor(SHARE) * recall, factor(SHARE) * precision
        axes.plot(recall, precision, color=GREY, linewidth=0.8, linestyle=":")
        axes.text(100, precision[-1], f" F {factor(SHARE) * level:.0f}", color=GREY, fontsize=9, va="center")
