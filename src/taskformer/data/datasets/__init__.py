"""Data sets: the layout of files on the disk, and nothing else."""

from taskformer.data.datasets.base import MultiTaskDataset
from taskformer.data.datasets.rooms import Rooms

__all__ = ["MultiTaskDataset", "Rooms"]
