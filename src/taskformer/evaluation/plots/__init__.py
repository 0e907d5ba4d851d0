"""Pictures of one run or of several on one axis, drawn from the files of their folders.

>>> from taskformer.evaluation.plots import PLOTS
>>> list(PLOTS)
['curves', 'classes', 'confusion', 'ranges', 'angles', 'precision_recall']
"""

import importlib
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from taskformer.evaluation.plots.run import PLOTS, draw_test, draw_training, plot

__all__ = ["PLOTS", "Format", "Kind", "draw_test", "draw_training", "plot"]

#: The kinds of plots, and how they are written. Help texts need nothing else, and drawing takes a while to import.
Kind: TypeAlias = Literal["curves", "classes", "confusion", "ranges", "angles", "precision_recall"]
Format: TypeAlias = Literal["png", "svg"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("taskformer.evaluation.plots.run"), name)
    message = f"module 'taskformer.evaluation.plots' has no attribute {name!r}"
    raise AttributeError(message)
