"""A benchmark as bars, and its growth as curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase

from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from taskformer.evaluation.benchmark.figures import (
    BILLION,
    MEGABYTE,
    MILLION,
    MILLISECOND,
    Benchmark,
    Figures,
    Growth,
    digits,
)
from taskformer.evaluation.benchmark.timing import Spread
from taskformer.plots import BLUE, GREY, PALETTE, STYLE, WIDTH, save

#: Colours of the first network and of the second.
COLORS = (BLUE, PALETTE[1])
#: Height of a row of panels in inches: of bars, each of which takes a line, and of curves.
LINE, CURVES = 0.26, 2.5
#: Width of all bars of a line.
THICKNESS = 0.8

#: What dots show.
PROPORTION = "in proportion"

#: What each bar shows, with a quartile below and above where there is one.
Bars = dict[str, tuple[float, float, float]]


@rc_context(STYLE | {"font.size": 9})
def draw(path: Path, found: Benchmark) -> None:
    """Draw times, memory, multiply-accumulates and parameters of one or two networks, and how they grow.

    Args:
        path: The picture.
        found: What was measured.
    """
    lines = [len(found.subjects[0].timed), max(len(figures.costs) for figures in found.subjects)]
    heights = [1.0 + LINE * len(found.subjects) * count for count in lines] + [CURVES] * (2 if found.growth else 0)
    figure = Figure((WIDTH, 0.6 + sum(heights)), layout="constrained")
    rows = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    panels = [*rows[0].subplots(1, 2, sharey=True), *rows[1].subplots(1, 2, sharey=True)]
    for axes, label, bars in zip(panels, LABELS, zip(*map(_bars, found.subjects), strict=True), strict=True):
        _draw_bars(axes, label, bars)
    for axis, row in zip(("tasks", "side"), rows[2:], strict=False):
        _draw_growth(row.subplots(1, 3), axis, found.growth)
    if len(found.subjects) > 1:
        handles: list[Artist] = [bars[0] for bars in panels[0].containers if isinstance(bars, BarContainer)]
        names = [f"{letter}: {each.name}" for letter, each in zip(ascii_uppercase, found.subjects, strict=False)]
        figure.legend(handles, names, loc="outside upper center", fontsize=9)
    else:
        figure.suptitle(found.title, fontsize=10)
    save(figure, path)


#: What the panels of bars show.
LABELS = ("time, ms", "peak memory, MB", "MACs, G", "parameters, M")


def _bars(figures: Figures) -> tuple[Bars, Bars, Bars, Bars]:
    """Return the bars of a network in each panel."""
    times = {name: Spread.of(timed.walls) for name, timed in figures.timed.items()}
    memories = {name: (timed.memory or 0) / MEGABYTE for name, timed in figures.timed.items()}
    return (
        {name: (time.median / MILLISECOND, time.low / MILLISECOND, time.high / MILLISECOND)
         for name, time in times.items()},
        {name: (memory,) * 3 for name, memory in memories.items()},
        {part: (cost.macs / BILLION,) * 3 for part, cost in figures.costs.items()},
        {part: (cost.params / MILLION,) * 3 for part, cost in figures.costs.items()},
    )  # fmt: skip


def _draw_bars(axes: Axes, label: str, subjects: Sequence[Bars]) -> None:
    """Draw a line of bars for each name, one of every network, with its value behind it."""
    names = list(dict.fromkeys(name for bars in subjects for name in bars))
    thickness = THICKNESS / len(subjects)
    for number, (bars, color) in enumerate(zip(subjects, COLORS, strict=False)):
        places = [names.index(name) + (number - (len(subjects) - 1) / 2) * thickness for name in bars]
        values = [value for value, _, _ in bars.values()]
        spread = [[value - low for value, low, _ in bars.values()], [high - value for value, _, high in bars.values()]]
        drawn = axes.barh(places, values, thickness, color=color, xerr=spread, error_kw={"ecolor": GREY})
        axes.bar_label(drawn, [digits(value, 3) for value in values], padding=3, fontsize=8)
    axes.margins(x=0.15)
    axes.set_xlim(left=0)
    axes.locator_params(axis="x", nbins=5)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(False, axis="y")
    axes.set_xlabel(label)


def _draw_growth(panels: Sequence[Axes], axis: str, growth: Sequence[Growth]) -> None:
    """Draw time, memory and multiply-accumulates along an axis; dots: in proportion to the first point."""
    for axes, (label, values_of) in zip(panels, CURVES_OF.items(), strict=True):
        highest = 0.0
        for grown, color in zip(growth, COLORS, strict=False):
            points = {float(at): values_of(figures) for at, figures in grown.axes[axis].items()}
            for call, style in zip(next(iter(points.values())), ("o-", "s--"), strict=False):
                curve = {at: values[call] for at, values in points.items()}
                axes.plot(list(curve), list(curve.values()), style, color=color, markersize=4, label=call)
                _draw_proportion(axes, axis, curve)
                highest = max(highest, *curve.values())
        axes.set_xlabel("number of tasks" if axis == "tasks" else "image side, times")
        axes.set_ylabel(label)
        axes.set_xlim(left=0)
        axes.set_ylim(0, 1.15 * highest or 1)
    panels[0].legend(*_once(panels[0]), fontsize=8)


def _draw_proportion(axes: Axes, axis: str, curve: Mapping[float, float]) -> None:
    """Draw what would be in proportion to the tasks, or to the image's area."""
    (first, start), last = next(iter(curve.items())), list(curve)[-1]
    power = 1 if axis == "tasks" else 2
    places = [first + (last - first) * step / 20 for step in range(21)]
    axes.plot(places, [start * (place / first) ** power for place in places], ":", color=GREY, linewidth=1,
              label=PROPORTION)  # fmt: skip


def _once(axes: Axes) -> tuple[list[Artist], list[str]]:
    """Return the entries of a legend, each once."""
    handles, labels = axes.get_legend_handles_labels()
    names = sorted(dict.fromkeys(labels), key=lambda name: name == PROPORTION)
    return [handles[labels.index(name)] for name in names], names


def _times(figures: Figures) -> dict[str, float]:
    return {_short(name): Spread.of(timed.walls).median / MILLISECOND for name, timed in figures.timed.items()}


def _memories(figures: Figures) -> dict[str, float]:
    return {_short(name): (timed.memory or 0) / MEGABYTE for name, timed in figures.timed.items()}


def _macs(figures: Figures) -> dict[str, float]:
    return {"inference": figures.cost["total"].macs / BILLION}


def _short(call: str) -> str:
    """Leave out of a call's name that it takes one image."""
    return call.split(",")[0]


#: What the panels of growth show: one curve or more each.
CURVES_OF = {"time, ms": _times, "peak memory, MB": _memories, "MACs, G": _macs}
