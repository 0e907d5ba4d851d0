"""Pictures of a sweep, readable at 800 pixels' width: parallel coordinates, and the importance of the settings."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import Locator, LogLocator, MaxNLocator

from taskformer.evaluation.settings import text_of
from taskformer.plots import BLUE, GREY, STYLE, WIDTH, save
from taskformer.sweeps.parameters import Choice, Parameter

#: From the worst run to the best; colour-blind people see it as others do.
COLORS, PALEST = colormaps["cividis_r"], 0.1
#: Height that the runs of one value share, as a part of the axis.
BAND = 0.08
#: What lies behind a tick's text.
LABEL = {"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.8, "linewidth": 0}


@dataclass(frozen=True)
class Axis:
    """One vertical axis.

    Args:
        label: What stands below it.
        places: Where each run crosses it, from 0 to 1.
        ticks: Heights and what is written there.
    """

    label: str
    places: Sequence[float]
    ticks: Mapping[float, str]

    @classmethod
    def of_choices(cls, label: str, values: Sequence[Any], choices: Sequence[Any]) -> "Axis":
        """Build the axis of a few values; the runs of one lie side by side in their order, so that all are seen."""
        texts = [text_of(choice) for choice in choices if choice in values]
        heights = dict(zip(texts, np.linspace(0, 1, len(texts)), strict=True))
        column = [text_of(value) for value in values]
        places = []
        for run, text in enumerate(column):
            shift = BAND * (column[:run].count(text) / max(1, column.count(text) - 1) - 0.5)
            places.append(float(heights[text] - (shift if column.count(text) > 1 else 0.0)))
        return cls(label, places, {float(height): text for text, height in heights.items()})

    @classmethod
    def of_numbers(cls, label: str, values: Sequence[float], log: bool = False, turned: bool = False) -> "Axis":
        """Build the axis of numbers; turned, the lowest is at the top."""
        low, high = min(values), max(values)
        locator: Locator = LogLocator(subs=(1, 2, 5)) if log else MaxNLocator(5, steps=[1, 2, 5, 10])
        ticks = [low] if low == high else [tick for tick in locator.tick_values(low, high) if low <= tick <= high]

        scale = math.log if log else float

        def height(value: float) -> float:
            part = 0.5 if low == high else (scale(value) - scale(low)) / (scale(high) - scale(low))
            return 1 - part if turned else part

        return cls(label, list(map(height, values)), {height(tick): f"{tick:.4g}" for tick in ticks})

    @classmethod
    def of_setting(cls, label: str, values: Sequence[Any], parameter: Parameter) -> "Axis":
        """Build the axis of a setting."""
        if isinstance(parameter, Choice):
            return cls.of_choices(label, values, parameter.values)
        return cls.of_numbers(label, values, log="log" in getattr(parameter, "kind", ""))


@rc_context(STYLE)
def draw_parallel(path: Path, axes: Sequence[Axis], finished: Sequence[bool]) -> None:
    """Draw each run as a line through its settings to its value; lines of the best runs are dark, and on top.

    Args:
        path: The picture.
        axes: One for each setting, and last that of the metric, with the best at the top.
        finished: Whether each run was finished; others are grey.
    """
    figure = Figure((WIDTH, 4.6), layout="constrained")
    panel = figure.subplots()
    quality = axes[-1].places
    for run in np.argsort(quality):
        color = COLORS(PALEST + (1 - PALEST) * quality[run]) if finished[run] else GREY
        style = "-" if finished[run] else ":"
        panel.plot([axis.places[run] for axis in axes], style, color=color, linewidth=2.0, marker="o", markersize=4)
    for place, axis in enumerate(axes):
        panel.axvline(place, color="black", linewidth=1, zorder=0)
        for height, text in axis.ticks.items():
            panel.annotate(text, (place, height), (7 if place else -7, 0), textcoords="offset points", va="center",
                           ha="left" if place else "right", fontsize=10, bbox=LABEL)  # fmt: skip
    panel.set_xticks(range(len(axes)), [axis.label for axis in axes])
    panel.set_xlim(-0.05, len(axes) - 0.95)
    _bare(panel)
    if not all(finished):
        panel.plot([], ":", color=GREY, label="stopped early")
        figure.legend(loc="outside upper right")
    save(figure, path)


@rc_context(STYLE)
def draw_importance(path: Path, importances: Mapping[str, float], metric: str) -> None:
    """Draw how much each setting decides whether a run is among the best.

    Args:
        path: The picture.
        importances: The shares by the setting's name as it is written, the largest first.
        metric: What the runs are compared by.
    """
    names = list(importances)[::-1]
    figure = Figure((WIDTH, 1.6 + 0.45 * len(names)), layout="constrained")
    panel = figure.subplots()
    shares = [100 * importances[name] for name in names]
    bars = panel.barh(names, shares, color=BLUE, height=0.6)
    panel.bar_label(bars, [f"{share:.0f}" for share in shares], padding=4)
    panel.set_xlim(0, 108)
    panel.set_xlabel("share, %")
    panel.set_title(f"what decides whether a run is among the best quarter\nby {metric}", fontsize=11)
    panel.grid(axis="y", visible=False)
    save(figure, path)


def _bare(panel: Axes) -> None:
    """Leave only what is drawn."""
    panel.set_yticks([])
    panel.set_ylim(-0.08, 1.08)
    panel.grid(visible=False)
    for spine in panel.spines.values():
        spine.set_visible(False)
    panel.tick_params(axis="x", length=0)
