"""Data sets, data modules and geometry-aware augmentations.

A class is imported when it is first asked for, so that the readers of files and the geometry are quick to import.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskformer.data.datamodules import (
        CityscapesDataModule,
        CombinedDataModule,
        FolderDataModule,
        MultiTaskDataModule,
        NYUDDataModule,
        PASCALContextDataModule,
        RoomsDataModule,
        TaskonomyDataModule,
        UnlabelledFolder,
        data_modules,
    )
    from taskformer.data.datasets import (
        NYUD,
        Cityscapes,
        Folder,
        Label,
        MultiTaskDataset,
        PASCALContext,
        Rooms,
        Taskonomy,
        Unlabelled,
    )

__all__ = [
    "NYUD",
    "Cityscapes",
    "CityscapesDataModule",
    "CombinedDataModule",
    "Folder",
    "FolderDataModule",
    "Label",
    "MultiTaskDataModule",
    "MultiTaskDataset",
    "NYUDDataModule",
    "PASCALContext",
    "PASCALContextDataModule",
    "Rooms",
    "RoomsDataModule",
    "Taskonomy",
    "TaskonomyDataModule",
    "Unlabelled",
    "UnlabelledFolder",
    "data_modules",
]


def __getattr__(name: str) -> Any:
    """Import the room in which a class lives: the data sets, or else the data modules."""
    for room in ("datasets", "datamodules"):
        module = importlib.import_module(f"taskformer.data.{room}")
        if name in module.__all__:
            return getattr(module, name)
    message = f"module 'taskformer.data' has no attribute {name!r}"
    raise AttributeError(message)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
