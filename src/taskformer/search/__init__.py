"""Search: from one trained supernet to the sub-networks for any budget.

``taskformer.search("runs/NAME", ...)`` is :func:`taskformer.search.run.search`: this package can be called.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskformer.search.costs import LatencyOptions
    from taskformer.search.objectives import Candidate, Constraints
    from taskformer.search.pruning import DominatedPruner, NopPruner, Pruner
    from taskformer.search.results import SearchResult
    from taskformer.search.run import search

#: Public names and their files, which are imported when they are first used.
_FILES = {
    "Candidate": "objectives",
    "Constraints": "objectives",
    "DominatedPruner": "pruning",
    "LatencyOptions": "costs",
    "NopPruner": "pruning",
    "Pruner": "pruning",
    "SearchResult": "results",
    "search": "run",
}

__all__ = [
    "Candidate",
    "Constraints",
    "DominatedPruner",
    "LatencyOptions",
    "NopPruner",
    "Pruner",
    "SearchResult",
    "search",
]


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(importlib.import_module(f"{__name__}.{_FILES[name]}"), name)


class _CallableModule(ModuleType):
    """A package that is also the function of its name, whichever was imported first."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return importlib.import_module(f"{__name__}.run").search(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
