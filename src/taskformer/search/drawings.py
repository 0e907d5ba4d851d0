"""Pictures of a search, readable at 800 pixels' width: front, hypervolume, and what tasks share in a network."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from taskformer.metrics.units import SHARE, factor
from taskformer.models.autotaskformer import Architecture
from taskformer.models.autotaskformer.sharing import Row, Rows, first_appearance
from taskformer.modules.quantities import unit_of
from taskformer.plots import BLUE, GREY, NEUTRAL, PALETTE, STYLE, WIDTH, save
from taskformer.search.hypervolume import Curve
from taskformer.search.objectives import Candidate, Objective, front
from taskformer.tasks import Task


class Mark(NamedTuple):
    """How the networks of an origin are drawn.

    Attributes:
        label: Their name in the legend.
        marker: Matplotlib's marker.
        color: Their colour.
        size: Area of the marker in square points.
        alpha: Opacity.
    """

    label: str
    marker: str
    color: str
    size: float
    alpha: float


#: Later ones cover earlier ones.
MARKS = {
    "random": Mark("random search", "o", GREY, 20, 0.5),
    "evolution": Mark("evolution", "o", PALETTE[0], 20, 0.6),
    "all-shared": Mark("all shared, equal size", "s", PALETTE[2], 55, 1.0),
    "all-specific": Mark("nothing shared, equal size", "^", PALETTE[3], 65, 1.0),
    "hand-made": Mark("hand-made", "D", PALETTE[5], 50, 1.0),
}


@rc_context(STYLE)
def draw_front(
    path: Path,
    origins: Mapping[str, Sequence[Candidate]],
    objectives: Sequence[Objective],
    tasks: Mapping[str, Task],
) -> None:
    """Draw the first objective against each other one: the search's front and everything else that was evaluated.

    With a single objective it is drawn against the parameters.

    Args:
        path: The picture.
        origins: Completely evaluated candidates of each origin.
        objectives: What was improved.
        tasks: The supernet's tasks by name.
    """
    first, *others = objectives
    others = others or [Objective("delta_m" if first.name == "params" else "params", "minimize")]
    fronts = {"random": (GREY, "--"), "evolution": (BLUE, "o-")}
    if len(objectives) != 2:  # a front of more than two has no border in the plane
        fronts = {"evolution": (BLUE, "o")}
    figure = Figure((WIDTH, 4.8), layout="constrained")
    panels = figure.subplots(1, len(others), sharey=True, squeeze=False)[0]
    for axes, other in zip(panels, others, strict=True):
        shown = {name: unit_of(name, tasks).scale for name in (other.name, first.name)}
        for origin, mark in MARKS.items():
            if candidates := origins.get(origin):
                axes.scatter(*_places(candidates, shown), s=mark.size, color=mark.color, marker=mark.marker,
                             alpha=mark.alpha, label=mark.label, linewidths=0)  # fmt: skip
        border = "steps-post" if other.direction == "minimize" else "steps-pre"
        for origin, (color, style) in fronts.items():
            if candidates := origins.get(origin):
                found = sorted(front(candidates, objectives), key=lambda one: one.values[other.name])
                axes.plot(*_places(found, shown), style, drawstyle=border, color=color, markersize=5,
                          label=f"front of {MARKS[origin].label}")  # fmt: skip
        axes.set_xlabel(unit_of(other.name, tasks).label)
    panels[0].set_ylabel(unit_of(first.name, tasks).label)
    figure.legend(
        *(reversed(each) for each in panels[0].get_legend_handles_labels()),
        loc="outside upper center",
        ncols=3,
        fontsize=10,
    )
    save(figure, path)


@rc_context(STYLE)
def draw_hypervolume(path: Path, curves: Mapping[str, Curve]) -> None:
    """Draw how much each origin had found after how many networks.

    Args:
        path: The picture.
        curves: How much each origin had found when.
    """
    figure = Figure((WIDTH, 3.6), layout="constrained")
    axes = figure.subplots()
    for origin, curve in curves.items():
        color, style = (BLUE, "o-") if origin == "evolution" else (GREY, "s--")
        percent = [factor(SHARE) * share for share in curve.shares]
        axes.plot(curve.evaluations, percent, style, color=color, markersize=5, label=MARKS[origin].label)
    axes.set_xlabel("networks evaluated")
    axes.set_ylabel("hypervolume, % of the ideal")
    axes.legend(loc="lower right")
    save(figure, path)


@rc_context(STYLE)
def draw_architecture(path: Path, architecture: Architecture, tasks: Sequence[str], title: str) -> None:
    """Draw each layer's heads and MLP ratio, and which tasks use the same copy of its attention and of its MLP.

    Args:
        path: The picture.
        architecture: The network.
        tasks: Names of the supernet's tasks, in its order.
        title: What to write above it.
    """
    depth = architecture.depth
    rows = architecture.rows(len(tasks))
    heights = [0.65, 0.65, 0.36 * len(tasks)]
    figure = Figure((WIDTH, sum(heights) + 1.75), layout="constrained")
    heads, ratios, sharing = figure.subplots(3, 1, height_ratios=heights)
    _draw_bars(heads, "heads", architecture.num_heads)
    _draw_bars(ratios, "MLP ratio", architecture.mlp_ratio)
    for unit, row in enumerate(rows):
        _draw_unit(sharing, unit, row)
    sharing.set_xlim(0, 2 * depth)
    sharing.set_ylim(len(tasks), 0)
    sharing.set_yticks([task + 0.5 for task in range(len(tasks))], tasks)
    sharing.set_xticks([unit + 0.5 for unit in range(2 * depth)], ["A", "M"] * depth, fontsize=9)
    layers = sharing.secondary_xaxis("bottom")
    layers.set_xticks([2 * layer + 1 for layer in range(depth)], [f"\n{layer + 1}" for layer in range(depth)])
    layers.set_xlabel(f"layer (A attention, M MLP)\n{_explain(rows)}")
    for axes in (heads, ratios, sharing, layers):
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.grid(False)
    figure.suptitle(f"{title}\n{depth} layers of width {architecture.embed_dim}", fontsize=11)
    save(figure, path)


def _places(candidates: Sequence[Candidate], scales: Mapping[str, float]) -> list[list[float]]:
    """Return some values of all candidates, in the units in which they are drawn."""
    return [[one.values[name] / scale for one in candidates] for name, scale in scales.items()]


def _draw_bars(axes: Axes, name: str, values: Sequence[float]) -> None:
    """Draw a number for every layer."""
    places = [layer + 0.5 for layer in range(len(values))]
    bars = axes.bar(places, values, 0.86, color=NEUTRAL)
    axes.bar_label(bars, [f"{value:g}" for value in values], fontsize=10)
    axes.set_xlim(0, len(values))
    axes.set_ylim(0, 1.45 * max(values))
    axes.set_xticks([])
    axes.set_yticks([max(values) / 2], [name])


def _draw_unit(axes: Axes, unit: int, row: Row) -> None:
    """Draw one unit as blocks, each of neighbouring tasks that use the same weights."""
    left = unit + (0.12 if unit % 2 == 0 else 0.02)  # the two units of a layer stand together
    groups = first_appearance(row)
    for group, run in groupby(range(len(row)), groups.__getitem__):
        members = list(run)
        shared = not any(groups)
        color = NEUTRAL if shared else PALETTE[group % len(PALETTE)]
        box = (left + 0.06, members[0] + 0.1), 0.74, len(members) - 0.2
        axes.add_patch(
            FancyBboxPatch(*box, boxstyle="round,pad=0,rounding_size=0.08", facecolor=color, edgecolor="none")
        )
        if not shared:
            middle = (members[0] + members[-1] + 1) / 2
            axes.text(left + 0.43, middle, chr(ord("a") + group), ha="center", va="center", fontsize=10)


def _explain(rows: Rows) -> str:
    """Say what the blocks mean."""
    if not any(any(row) for row in rows):
        return "all tasks share all weights"
    return "grey: all tasks share the weights; else in a column the same letter is the same weights"
