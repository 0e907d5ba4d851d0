"""Pictures of what happens inside a network."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from numpy.typing import NDArray

from taskformer.insight.attention import Attention, Maps
from taskformer.insight.exchange import Affinity
from taskformer.insight.gradients import Conflicts
from taskformer.plots import STYLE, WIDTH, save
from taskformer.tasks.colors import Picture

#: Rows of panels: each row's name, and its panels' names and maps ``(y, x)``.
Rows = Mapping[str, Mapping[str, NDArray[Any]]]
#: Attention over that of a query which tells nothing apart: what the brightest colour shows at least.
BRIGHT = 2.0
#: Opacity of the brightest attention over the image; none is transparent.
OPACITY = 0.85
#: Largest height of a matrix of pairs of tasks in inches; 16 tasks have 120 pairs.
HIGHEST = 20.0
#: Side of a matrix's cell in inches; the smallest share that may be the darkest; from more tasks on names are tilted.
CELL, DARKEST, TILT = 0.7, 0.5, 4


def gathered_by_heads(maps: Maps, scale: int) -> dict[str, dict[str, NDArray[Any]]]:
    """Lay out where each task's queries look, head by head, times the number of tokens: 1 is everywhere alike.

    Args:
        maps: What was gathered from one image, ``(1, h, N, y, x)`` of each task and scale.
        scale: Number of the scale.
    """
    rows = {}
    for task, scales in maps.items():
        looks = scales[scale][0].mean(axis=1)  # (h, y, x)
        looks = looks * looks[0].size
        rows[task] = {f"head {number + 1}": look for number, look in enumerate(looks)} | {"mean": looks.mean(axis=0)}
    return rows


def sharpest_queries(maps: Maps, scale: int, count: int) -> dict[str, dict[str, NDArray[Any]]]:
    """Lay out the queries of each task whose looks tell most apart, mean over heads; 1 is everywhere alike.

    Args:
        maps: What was gathered from one image, ``(1, h, N, y, x)`` of each task and scale.
        scale: Number of the scale.
        count: How many queries.
    """
    looks = {task: scales[scale][0].mean(axis=0) for task, scales in maps.items()}  # (N, y, x)
    return {task: _most_varied(look * look[0].size, count) for task, look in looks.items()}


def most_read_queries(maps: Maps, scale: int, count: int) -> dict[str, dict[str, NDArray[Any]]]:
    """Lay out how much pixels read the queries of each task between which they tell most, mean over heads.

    Args:
        maps: What was read by one image, ``(1, h, N, y, x)`` of each task and scale; 1 is all queries alike.
        scale: Number of the scale.
        count: How many queries.
    """
    looks = {task: scales[scale][0].mean(axis=0) for task, scales in maps.items()}  # (N, y, x)
    return {task: _most_varied(look * len(look), count) for task, look in looks.items()}


def _most_varied(looks: NDArray[Any], count: int) -> dict[str, NDArray[Any]]:
    """Choose the queries ``(N, y, x)`` that vary most over the image, and name them by their numbers."""
    chosen = np.argsort(-looks.std(axis=(1, 2)), kind="stable")[:count]
    return {f"query {number + 1}": looks[number] for number in sorted(chosen)}


@rc_context(STYLE | {"axes.grid": False})
def draw_maps(path: Path, image: Picture, attention: Attention, rows: Rows, title: str, label: str) -> None:
    """Draw attention over an image, all panels with one scale of colours.

    Args:
        path: The picture.
        image: The image ``(H, W, 3)``, of any size.
        attention: The pass of the network that saw it.
        rows: The panels: attention over that of a query which tells nothing apart.
        title: What to write above.
        label: What the colours mean.
    """
    columns = max(map(len, rows.values()))
    height, width = attention.size
    below, right = attention.padded
    figure = Figure((WIDTH, 0.4 + len(rows) * (0.22 + (WIDTH - 1.3) / columns * height / width)), layout="constrained")
    panels = figure.subplots(len(rows), columns, squeeze=False)
    grey = image.mean(axis=-1)
    everything = np.concatenate([look.ravel() for row in rows.values() for look in row.values()])
    brightest = max(BRIGHT, float(np.quantile(everything, 0.995)))
    for axes_of_row, (name, row) in zip(panels, rows.items(), strict=True):
        axes_of_row[0].set_ylabel(name)
        for axes, (heading, look) in zip(axes_of_row, row.items(), strict=False):
            axes.imshow(grey, cmap="gray", vmin=0, vmax=255, extent=(0, width, height, 0))
            opacity = OPACITY * np.sqrt(np.clip(look / brightest, 0, 1))
            shown = axes.imshow(look, cmap="inferno", vmin=0, vmax=brightest, alpha=opacity, interpolation="bilinear",
                                extent=(0, right, below, 0))  # fmt: skip
            axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            axes.set_title(heading, fontsize=9, pad=3)
    figure.colorbar(ScalarMappable(shown.norm, shown.cmap), ax=panels, aspect=40, pad=0.01).set_label(label)
    figure.suptitle(title, fontsize=11)
    save(figure, path)


def draw_affinity(path: Path, affinity: Affinity, title: str) -> None:
    """Draw which task's queries read which others', in percent; over several images with their spread.

    Args:
        path: The picture.
        affinity: What was measured.
        title: What to write above.
    """
    several = len(affinity.per_image) > 1
    texts = [
        [
            f"{100 * share:.1f}" + (f"\n± {100 * spread:.1f}" if several else "")
            for share, spread in zip(*rows, strict=True)
        ]
        for rows in zip(affinity.mean, affinity.spread, strict=True)
    ]
    _draw_matrix(path, affinity.mean, texts, affinity.tasks, title, "queries of", "read those of, % of their attention")


def draw_shared_units(path: Path, shares: NDArray[np.float64], tasks: Sequence[str], title: str) -> None:
    """Draw which share of the encoder's units two tasks have in common, in percent.

    Args:
        path: The picture.
        shares: ``(T, T)``, see :func:`~taskformer.insight.sharing.shared_units`.
        tasks: Names of the tasks.
        title: What to write above.
    """
    _draw_matrix(path, shares, [[f"{100 * share:.0f}" for share in row] for row in shares], tasks, title, "", "")


@rc_context(STYLE | {"axes.grid": False})
def draw_conflicts(path: Path, conflicts: Conflicts, title: str) -> None:
    """Draw the mean cosines of two tasks' gradients in every layer that both train.

    Args:
        path: The picture.
        conflicts: What was measured.
        title: What to write above.
    """
    pairs = list(combinations(range(len(conflicts.tasks)), 2))
    cosines = np.array([conflicts.mean[:, a, b] for a, b in pairs])  # (pairs, layers)
    figure = Figure((WIDTH, 2.6 + min(0.28 * len(pairs), HIGHEST)), layout="constrained")
    axes = figure.subplots()
    largest = max(0.1, float(np.nanmax(np.abs(cosines))))
    axes.set_facecolor("#E6E6E6")  # where one of the two has no gradient
    shown = axes.imshow(cosines, cmap="RdBu", vmin=-largest, vmax=largest, aspect="auto")
    axes.set_yticks(range(len(pairs)), [f"{conflicts.tasks[a]} - {conflicts.tasks[b]}" for a, b in pairs], fontsize=9)
    conflicting = np.array([conflicts.conflicting[:, a, b] for a, b in pairs])
    agreed = np.argwhere((conflicting == 0) | (conflicting == 1))
    axes.plot(agreed[:, 1], agreed[:, 0], "o", color="black", markersize=2)
    names = [name.removeprefix("backbone.").removeprefix("encoder.") for name in conflicts.layers]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.colorbar(shown, ax=axes, aspect=15, pad=0.01).set_label("cosine of gradients")
    colors = "red: a step for one task is a step against the other; dot: in every batch the same sign"
    axes.set_title(f"{title}\n{colors}", fontsize=11)
    save(figure, path)


@rc_context(STYLE | {"axes.grid": False})
def _draw_matrix(
    path: Path,
    shares: NDArray[np.float64],
    texts: Sequence[Sequence[str]],
    tasks: Sequence[str],
    title: str,
    rows: str,
    columns: str,
) -> None:
    """Draw shares ``(T, T)`` of tasks, from white for none to dark blue for all or the largest of small ones."""
    side = CELL * len(tasks)
    figure = Figure((side + 2.4, side + 1.3), layout="constrained")
    axes = figure.subplots()
    darkest = max(shares.max(), DARKEST)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=darkest)
    for (row, column), share in np.ndenumerate(shares):
        color = "white" if share > 0.6 * darkest else "black"
        axes.text(column, row, texts[row][column], ha="center", va="center", fontsize=9, color=color)
    axes.set_xticks(range(len(tasks)), tasks, rotation=45 if len(tasks) > TILT else 0, fontsize=9)
    axes.set_yticks(range(len(tasks)), tasks, fontsize=9)
    axes.set(xlabel=columns, ylabel=rows)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.suptitle(title, fontsize=11)
    save(figure, path)
