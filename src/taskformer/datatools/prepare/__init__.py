"""From what the owners publish to the folders that the data sets read: one file per data set, with ``prepare_NAME``.

:mod:`taskformer.datatools.prepare.sources` downloads, unpacks and converts for all of them.
"""

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

from taskformer.errors import UnknownNameError

#: The data sets that can be prepared: each file here is one, but for what they share.
PREPARED = tuple(module.name for module in pkgutil.iter_modules(__path__) if module.name != "sources")


def preparer(name: str) -> Callable[..., Any]:
    """Return the function that prepares a data set.

    Raises:
        UnknownNameError: If there is none.
    """
    if name not in PREPARED:
        kind = "data set"
        raise UnknownNameError(kind, name, PREPARED)
    prepare: Callable[..., Any] = getattr(importlib.import_module(f"{__name__}.{name}"), f"prepare_{name}")
    return prepare
