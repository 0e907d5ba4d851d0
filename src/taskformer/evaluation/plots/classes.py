"""Tasks with classes: the IoU of each class, and which classes are taken for which."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from taskformer.errors import ConfigError
from taskformer.evaluation.details import Details, Floats, class_ious, ratios
from taskformer.evaluation.plots.style import marks, write_legend
from taskformer.metrics.units import SHARE, factor
from taskformer.plots import NEUTRAL, STYLE, WIDTH

#: Height of a class's row in inches: of its IoU, and at most in the confusion matrix, where many classes have less.
ROW, CELL = 0.27, 0.36
#: Up to this many classes the confusion matrix has numbers.
NUMBERED = 21
#: Shares in percent from which the confusion matrix has a number, and from which it is white on dark.
WRITTEN, DARK = 0.5, 55


@rc_context(STYLE)
def draw_classes(task: str, subjects: Mapping[str, Details]) -> Figure:
    """Draw the IoU of each class, the first run's best on top: bars of one run, points of several.

    Args:
        task: Name of the task.
        subjects: Details with a confusion matrix by the name of their run.

    Raises:
        ConfigError: If the runs have different classes.
    """
    classes: list[str] = next(iter(subjects.values()))["classes"]
    for name, details in subjects.items():
        if details["classes"] != classes:
            msg = f"{task} has other classes in {name} than in {next(iter(subjects))}; plot the runs one by one"
            raise ConfigError(msg)
    ious = np.stack([factor(SHARE) * class_ious(details) for details in subjects.values()])
    order = _best_first(ious)
    figure = Figure((WIDTH, 1.4 + ROW * len(order)), layout="constrained")
    axes = figure.subplots()
    _draw_ious(axes, list(subjects), ious[:, order])
    axes.set_yticks(range(len(order)), [classes[place] for place in order], fontsize=10)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.grid(False, axis="y")
    absent = [name for place, name in enumerate(classes) if place not in order]
    axes.set_xlabel("IoU, %" + (f"\nneither in labels nor in predictions: {', '.join(absent)}" if absent else ""))
    write_legend(figure, axes, f"{task}: IoU of each class")
    return figure


def _best_first(ious: Floats) -> NDArray[np.intp]:
    """Order the classes that occur in some run ``(R, K)``, by the first run's IoU."""
    order = np.argsort(-np.nan_to_num(ious[0], nan=-1.0), kind="stable")
    return np.array([place for place in order if np.isfinite(ious[:, place]).any()], np.intp)


def _draw_ious(axes: Axes, names: Sequence[str], ious: Floats) -> None:
    """Draw IoUs ``(R, K)`` in percent, from the top to the bottom."""
    rows = np.arange(ious.shape[1])
    if len(names) > 1:
        axes.hlines(rows, np.nanmin(ious, axis=0), np.nanmax(ious, axis=0), color=NEUTRAL, linewidth=3, zorder=1)
        for (name, color, marker, _), values in zip(marks(names), ious, strict=True):
            axes.scatter(values, rows, s=42, color=color, marker=marker, label=name, alpha=0.9, zorder=2, clip_on=False)
    else:
        bars = axes.barh(rows, ious[0], 0.72, color=marks(names)[0].color)
        axes.bar_label(bars, [f"{value:.1f}" for value in ious[0]], padding=3, fontsize=9)


@rc_context(STYLE)
def draw_confusion(task: str, subjects: Mapping[str, Details]) -> Figure:
    """Draw which classes the pixels of each true class are taken for, in percent; one run below the other.

    Args:
        task: Name of the task.
        subjects: Details with a confusion matrix by the name of their run.
    """
    count = max(len(details["classes"]) for details in subjects.values())
    cell = min(CELL, (WIDTH - 1.5) / count)
    figure = Figure((WIDTH, (1.6 + cell * count) * len(subjects)), layout="constrained")
    panels = figure.subplots(len(subjects), 1, squeeze=False)[:, 0]
    for axes, (name, details) in zip(panels, subjects.items(), strict=True):
        _draw_matrix(axes, details["classes"], np.asarray(details["confusion"], np.float64))
        axes.set_title(f"{task}, {name}: % of each true class's pixels", fontsize=12)
    return figure


def _draw_matrix(axes: Axes, classes: Sequence[str], confusion: Floats) -> None:
    """Draw one confusion matrix ``(K, K)``; the rows of classes without a label stay empty."""
    shares = factor(SHARE) * ratios(confusion, confusion.sum(axis=1, keepdims=True))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    size = 9 if len(classes) <= NUMBERED else 6
    axes.set_xticks(range(len(classes)), classes, rotation=90, fontsize=size)
    axes.set_yticks(range(len(classes)), classes, fontsize=size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.grid(False)
    if len(classes) <= NUMBERED:
        for (row, column), share in np.ndenumerate(shares):
            if share >= WRITTEN:
                color = "white" if share >= DARK else "black"
                axes.text(column, row, f"{share:.0f}", color=color, ha="center", va="center", fontsize=8)
