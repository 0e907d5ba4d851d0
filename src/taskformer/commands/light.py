"""Lightning in less time, for help texts: without what only optional parts of it and of torchmetrics need."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata

#: Packages that take half of Lightning's import, and that no help text needs.
OPTIONAL = ("matplotlib", "scipy", "torchvision")


def import_lightning() -> None:
    """Import LightningCLI as if :data:`OPTIONAL` were not installed; only for processes that end with a help text."""
    with without(*OPTIONAL):
        importlib.import_module("lightning.pytorch.cli")


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
