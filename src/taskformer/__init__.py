"""Multi-task dense prediction transformers on PyTorch Lightning.

``import taskformer`` is quick; torch and Lightning are imported when something that needs them is first used.
"""

from typing import TYPE_CHECKING, Any

from taskformer._version import __version__

if TYPE_CHECKING:
    from taskformer.api import from_config, load

__all__ = ["__version__", "from_config", "load"]


def __getattr__(name: str) -> Any:
    import importlib

    if name in ("from_config", "load"):
        return getattr(importlib.import_module("taskformer.api"), name)
    if name in ("callbacks", "data", "metrics", "models", "modules", "tasks"):
        return importlib.import_module(f"taskformer.{name}")
    message = f"module 'taskformer' has no attribute {name!r}"
    raise AttributeError(message)
