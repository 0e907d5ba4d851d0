"""Data sets, data modules and geometry-aware augmentations."""

from taskformer.data.datamodules import MultiTaskDataModule, RoomsDataModule
from taskformer.data.datasets import MultiTaskDataset, Rooms

__all__ = ["MultiTaskDataModule", "MultiTaskDataset", "Rooms", "RoomsDataModule"]
