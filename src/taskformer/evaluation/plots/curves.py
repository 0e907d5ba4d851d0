"""Learning curves: losses, metrics, learning rates and weights of the losses over the steps of a training."""

import re
from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import NamedTuple, TypeAlias

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from taskformer.evaluation.details import Floats
from taskformer.evaluation.plots.sources import Run
from taskformer.evaluation.plots.style import LINES, Line, legend_columns, marks
from taskformer.metrics.units import factor
from taskformer.plots import STYLE, WIDTH

#: Largest number of panels beside each other, and height of a row of them in inches.
COLUMNS, ROW = 4, 1.9
#: A curve of more points than the first number is drawn as its mean over windows of a part of them.
MANY, PARTS = 60, 30
#: Largest number of a curve's points that have a marker.
MARKED = 12

#: Line of each stage, and whether it has markers.
Styles: TypeAlias = dict[str, tuple[Line, bool]]
KNOWN: Styles = {"training": ("-", False), "validation": ("-", True)}
#: Lines of validations of a supernet's other sub-networks.
OTHERS: tuple[Line, ...] = ("--", ":", "-.")


class Panel(NamedTuple):
    """One pair of axes.

    Attributes:
        title: What is drawn, with its unit.
        names: Names in the log.
        scale: Factor by which the values are multiplied.
    """

    title: str
    names: list[str]
    scale: float = 1.0


@rc_context(STYLE | {"font.size": 8.5})
def draw_curves(runs: Sequence[Run]) -> Figure:
    """Draw the losses, the headline metric of each task, and the rates, a colour for each run.

    Args:
        runs: Runs that have curves.
    """
    sections = [section for section in _sections(runs) if section]
    most = max(map(len, sections))
    columns = -(-most // -(-most // COLUMNS))  # the least with which it takes no more rows
    rows = [section[start : start + columns] for section in sections for start in range(0, len(section), columns)]
    figure = Figure((WIDTH, 0.6 + ROW * len(rows)), layout="constrained")
    grid = figure.add_gridspec(len(rows), columns)
    styles = _styles([name for row in rows for panel in row for name in panel.names])
    for place, row in enumerate(rows):
        for column, panel in enumerate(row):
            _draw_panel(figure.add_subplot(grid[place, column]), panel, runs, styles)
    figure.supxlabel("optimizer step", fontsize=9)
    drawn = marks([run.name for run in runs])
    handles = [
        Line2D([], [], color=mark.color, marker=mark.marker, linewidth=3, label=mark.name)
        for mark in drawn
        if len(runs) > 1
    ]
    handles += [
        Line2D([], [], color="black", linewidth=1, linestyle=line, marker="o" * marked, markersize=4, label=stage)
        for stage, (line, marked) in styles.items()
    ]
    labels = [str(handle.get_label()) for handle in handles]
    figure.legend(handles=handles, loc="outside upper center", ncols=legend_columns(labels), fontsize=9)
    return figure


def _sections(runs: Sequence[Run]) -> Iterator[list[Panel]]:
    """Group what was logged: the whole, then the losses, the metrics and the weights of the tasks."""
    logged = list(dict.fromkeys(name for run in runs for name in run.curves))
    tasks = dict.fromkeys(name.split("/")[2] for name in logged if re.fullmatch(r"\w+/loss/\w+", name))
    headlines = {task: metric for run in reversed(runs) for task, metric in run.headlines.items()}
    units = {task: names for run in reversed(runs) for task, names in run.units.items()}

    def panel(title: str, pattern: str, unit: str = "") -> list[Panel]:
        """Make a panel of the names that a pattern matches; none if there is none."""
        names = [name for name in logged if re.fullmatch(pattern, name)]
        return [Panel(f"{title}, {unit}" if unit else title, names, factor(unit))] if names else []

    def panels(title: str, pattern: str) -> list[Panel]:
        """Make a panel for each task."""
        return [found for task in tasks for found in panel(title.format(task), pattern.format(task))]

    yield panel("loss", r"\w+/loss") + panel("delta_m, %", r"val/delta_m") + panel("learning rate", r"lr(/.*)?")
    yield panels("{} loss", r"\w+/loss/{}")
    yield [
        found
        for task in tasks
        if (metric := headlines.get(task))
        for found in panel(f"{task} {metric}", rf"\w+/{task}/{re.escape(metric)}", units.get(task, {}).get(metric, ""))
    ]
    yield panels("{} weight", r"train/weight/{}")


def _styles(names: Sequence[str]) -> Styles:
    """Choose how each stage is drawn."""
    stages = dict.fromkeys(_stage(name) for name in names)
    others = zip((stage for stage in stages if stage not in KNOWN), cycle(OTHERS), strict=False)
    known = {stage: style for stage, style in KNOWN.items() if stage in stages}
    return known | {stage: (line, True) for stage, line in others}


def _stage(name: str) -> str:
    """Say in which stage a value was logged; learning rates are of the training."""
    stage = name.split("/")[0]
    return "training" if stage in ("train", "lr") else stage.replace("val", "validation").replace("_", ", ")


def _draw_panel(axes: Axes, panel: Panel, runs: Sequence[Run], styles: Styles) -> None:
    """Draw one panel.

    Names of the same stage have different lines, which the panel says itself. Where nothing was logged twice, values
    are written.
    """
    alike = len(panel.names) > len({_stage(name) for name in panel.names})
    last = []
    for run, mark in zip(runs, marks([run.name for run in runs]), strict=True):
        for name, own in zip(panel.names, cycle(LINES), strict=False):
            if name in run.curves:
                steps, values = _smooth(*run.curves[name])
                line, marked = (own, False) if alike else styles[_stage(name)]
                marker = mark.marker if marked or len(values) == 1 else ""
                axes.plot(steps, panel.scale * values, line, marker=marker, markevery=-(-len(values) // MARKED),
                          color=mark.color, linewidth=1.2, markersize=3.5, clip_on=False, label=name)  # fmt: skip
                last.append((len(values), steps[-1], panel.scale * values[-1], mark.color))
    if alike:
        by_name = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        axes.legend(by_name.values(), by_name, fontsize=7, handlelength=2.5)
    if all(count == 1 for count, *_ in last):
        axes.margins(y=0.3)
        for _, step, value, color in last:
            axes.annotate(f"{value:.4g}", (step, value), (-5, 0), textcoords="offset points", ha="right", va="center",
                          fontsize=8, color=color)  # fmt: skip
    axes.set_title(panel.title, fontsize=9)
    axes.set_xlim(0, max(1, *(steps[-1] for run in runs for steps, _ in run.curves.values())))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _smooth(steps: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Average many points over windows; few stay as they are."""
    if len(values) <= MANY:
        return steps, values
    window = max(len(values) // PARTS, 2)
    kernel = np.full(window, 1 / window)
    return np.convolve(steps, kernel, "valid"), np.convolve(values, kernel, "valid")
