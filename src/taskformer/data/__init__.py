"""Data sets, data modules and geometry-aware augmentations."""

from taskformer.data.datamodules import (
    CityscapesDataModule,
    CombinedDataModule,
    FolderDataModule,
    MultiTaskDataModule,
    NYUDDataModule,
    PASCALContextDataModule,
    RoomsDataModule,
    TaskonomyDataModule,
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
]
