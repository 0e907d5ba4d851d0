"""Data sets: the layout of files on the disk, and nothing else."""

from taskformer.data.datasets.base import MultiTaskDataset
from taskformer.data.datasets.cityscapes import Cityscapes
from taskformer.data.datasets.folder import Folder, Label
from taskformer.data.datasets.nyud import NYUD
from taskformer.data.datasets.pascal_context import PASCALContext
from taskformer.data.datasets.rooms import Rooms
from taskformer.data.datasets.taskonomy import Taskonomy
from taskformer.data.datasets.unlabelled import Unlabelled

__all__ = [
    "NYUD",
    "Cityscapes",
    "Folder",
    "Label",
    "MultiTaskDataset",
    "PASCALContext",
    "Rooms",
    "Taskonomy",
    "Unlabelled",
]
