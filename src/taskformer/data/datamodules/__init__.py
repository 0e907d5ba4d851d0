"""Data modules: a data set with its splits, tasks and augmentations."""

from taskformer.data.datamodules.base import MultiTaskDataModule, data_modules
from taskformer.data.datamodules.cityscapes import CityscapesDataModule
from taskformer.data.datamodules.combined import CombinedDataModule
from taskformer.data.datamodules.folder import FolderDataModule
from taskformer.data.datamodules.nyud import NYUDDataModule
from taskformer.data.datamodules.pascal_context import PASCALContextDataModule
from taskformer.data.datamodules.rooms import RoomsDataModule
from taskformer.data.datamodules.taskonomy import TaskonomyDataModule
from taskformer.data.datamodules.unlabelled import UnlabelledFolder

__all__ = [
    "CityscapesDataModule",
    "CombinedDataModule",
    "FolderDataModule",
    "MultiTaskDataModule",
    "NYUDDataModule",
    "PASCALContextDataModule",
    "RoomsDataModule",
    "TaskonomyDataModule",
    "UnlabelledFolder",
    "data_modules",
]
