"""Lightning in less time, for help texts: without what they do not need of it, of torchmetrics and of torch."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from types import ModuleType
from typing import Any

#: Packages that take half of Lightning's import, and that no help text needs.
OPTIONAL = ("matplotlib", "scipy", "torchvision")


def import_lightning() -> None:
    """Import LightningCLI as if :data:`OPTIONAL` were not installed; only for processes that end with a help text."""
    importlib.import_module("torch")
    with without(*OPTIONAL), without_compiler():
        importlib.import_module("lightning.pytorch.cli")


class LightCompiler(ModuleType):
    """What Lightning's import wants of ``torch._dynamo``, and the real one for whoever wants more."""

    OptimizedModule = type("OptimizedModule", (), {})

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = getattr(importlib.util.find_spec(name), "submodule_search_locations", [])

    @staticmethod
    def disable(function: Any, *_: Any, **__: Any) -> Any:
        """Return a function that is not to be compiled."""
        return function

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def without_compiler() -> Iterator[None]:
    """Hide torch's compiler, which takes a third of Lightning's import, unless it has been imported before."""
    compiler = LightCompiler("torch._dynamo")
    sys.modules.setdefault(compiler.__name__, compiler)
    try:
        yield
    finally:
        if sys.modules[compiler.__name__] is compiler:
            del sys.modules[compiler.__name__]


@contextmanager
def without(*packages: str) -> Iterator[None]:
    """Hide packages from imports and from questions for their versions, unless they have been imported before."""
    hidden = [name for name in packages if name not in sys.modules]
    version = metadata.version

    def known_version(distribution_name: str) -> str:
        if distribution_name in hidden:
            raise metadata.PackageNotFoundError(distribution_name)
        return version(distribution_name)

    metadata.version = known_version
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: as if there was none
    try:
        yield
    finally:
        metadata.version = version
        for name in hidden:
            del sys.modules[name]
