"""How runs are told apart: by colour, marker and line, so that the colours need not be seen."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from taskformer.plots import BLUE, GREY, PALETTE

#: The palette's colours that stand out as thin lines on white, the most different first.
COLORS = (BLUE, PALETTE[1], PALETTE[2], PALETTE[3], PALETTE[5], PALETTE[0], GREY)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
#: Letters that fit beside each other.
LETTERS = 95
#: Matplotlib's names of lines.
Line: TypeAlias = Literal["-", "--", ":", "-."]
LINES: tuple[Line, ...] = ("-", "--", ":", "-.")


class Mark(NamedTuple):
    """How a run is drawn: its name in legends, colour, marker and line as matplotlib has them."""

    name: str
    color: str
    marker: str
    line: Line


def marks(names: Sequence[str]) -> list[Mark]:
    """Choose how runs are drawn; what there is too little of comes again.

    >>> marks(["a", "b"])[1]
    Mark(name='b', color='#E69F00', marker='s', line='--')
    """
    return [
        Mark(name, COLORS[place % len(COLORS)], MARKERS[place % len(MARKERS)], LINES[place % len(LINES)])
        for place, name in enumerate(names)
    ]


def write_legend(figure: Figure, axes: Axes, title: str) -> None:
    """Write the title above a figure, with what is what below it where there is more than one thing.

    Args:
        figure: The figure.
        axes: Axes that have everything that the figure shows.
        title: The title.
    """
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(handles, labels, loc="outside upper center", ncols=legend_columns(labels), fontsize=10,
                      title=title, title_fontsize=12)  # fmt: skip
    else:
        figure.suptitle(title, fontsize=12)


def legend_columns(labels: Sequence[str]) -> int:
    """Return how many columns of a legend fit beside each other, with the lines in front of the labels.

    >>> legend_columns(["baseline", "mqtransformer"]), legend_columns(["x" * 40] * 3)
    (2, 2)
    """
    return max(1, min(len(labels), LETTERS // (max(map(len, labels)) + 7)))
