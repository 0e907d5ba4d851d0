"""What all plots have in common: size, colours and style, and that they are written whole.

The colours are Okabe and Ito's, which colour-blind people can tell apart; markers and letters say the same again.
"""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from taskformer.files import replacing

#: Width of all plots in inches, and pixels per inch: twice 800 pixels, for sharp screens.
WIDTH, DPI = 8.0, 200
PALETTE = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#F0E442", "#D55E00", "#0072B2")
BLUE = PALETTE[-1]
#: Of what is common to all, and of what is only there to compare with.
NEUTRAL, GREY = "#C8CDD2", "#8A8A8A"
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "legend.frameon": False,
}


def save(figure: Figure, path: Path) -> None:
    """Write a plot whole or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=DPI)
