"""Multi-task dense prediction transformers on PyTorch Lightning.

``import taskformer`` is quick; torch and Lightning are imported when something that needs them is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from taskformer._version import __version__

if TYPE_CHECKING:
    from taskformer.commands.trainer import from_config
    from taskformer.modules.checkpoints import load
    from taskformer.search.run import search

__all__ = ["__version__", "from_config", "load", "search"]

_FUNCTIONS = {"from_config": "taskformer.commands.trainer", "load": "taskformer.modules.checkpoints"}
_PACKAGES = ("callbacks", "data", "metrics", "models", "modules", "search", "tasks")


def __getattr__(name: str) -> Any:
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    if name in _PACKAGES:
        return importlib.import_module(f"taskformer.{name}")
    message = f"module 'taskformer' has no attribute {name!r}"
    raise AttributeError(message)
