"""Miniature copies of the data sets in their real layouts, with exact and consistent labels.

For tests, notebooks and reports of faults: every loader of the data set, ours or another's, accepts them. One file per
data set, with ``write_NAME(root, ...)`` and ``swap_splits(root)``; the drawn views are those of
:mod:`taskformer.datatools.miniature.scene`. ``miniature.json`` in the folder tells which images belong to which split.
"""

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from taskformer.errors import UnknownNameError

#: The data sets that have a writer: each file here is one, but for what they share.
WRITERS = tuple(module.name for module in pkgutil.iter_modules(__path__) if module.name not in ("faults", "scene"))


def writer(name: str) -> Callable[..., Path]:
    """Return the function that writes the miniature of a data set to a folder.

    Raises:
        UnknownNameError: If there is none.
    """
    write: Callable[..., Path] = getattr(_module(name), f"write_{name}")
    return write


def split_swapper(name: str) -> Callable[[Path], None]:
    """Return the function that exchanges the training and validation images of a miniature.

    Raises:
        UnknownNameError: If there is none.
    """
    swap: Callable[[Path], None] = _module(name).swap_splits
    return swap


def _module(name: str) -> ModuleType:
    if name not in WRITERS:
        kind = "miniature"
        raise UnknownNameError(kind, name, WRITERS)
    return importlib.import_module(f"{__name__}.{name}")
