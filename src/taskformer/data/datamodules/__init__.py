"""Data modules: a data set with its splits, tasks and augmentations."""

from taskformer.data.datamodules.base import MultiTaskDataModule, data_modules
from taskformer.data.datamodules.rooms import RoomsDataModule

__all__ = ["MultiTaskDataModule", "RoomsDataModule", "data_modules"]
