"""What all data modules share: tasks, transforms and loaders."""

from __future__ import annotations  # the type of the transforms is resolved only when a parser asks for it

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from taskformer.data.datasets.base import MultiTaskDataset, Sample
from taskformer.errors import ConfigError, UnknownNameError
from taskformer.tasks import Task, build_tasks

if TYPE_CHECKING:
    from taskformer.data.transforms import Transform


class MultiTaskDataModule(LightningDataModule, ABC):
    """A data set with its splits, tasks and augmentations. Subclasses name what they offer and build :meth:`dataset`.

    Args:
        root: The data set's folder, relative to the current one.
        tasks: Names of the tasks to use; ``None`` uses all that the data set offers.
        batch_size: Images per batch and device.
        num_workers: Loader processes; 0 loads in the main one.
        train_transforms: Augmentations of the training split, from :mod:`taskformer.data.transforms` and photometric
            ones from albumentations. Normalisation and conversion to tensors always follow.

    Attributes:
        name: Short name of the data set, for folders and tables.
        offers: Specification of every task the data set has labels for, see :func:`taskformer.tasks.build_tasks`.

    Raises:
        UnknownNameError: If a task is not offered.
    """

    name: str
    offers: ClassVar[dict[str, dict[str, Any]]]

    def __init__(
        self,
        root: str,
        tasks: list[str] | None = None,
        batch_size: int = 8,
        num_workers: int = 0,
        train_transforms: list[Transform] | None = None,
    ) -> None:
        super().__init__()
        self.root = root
        self.task_names = list(self.offers) if tasks is None else list(tasks)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.train_transforms = train_transforms or []
        self.datasets: dict[str, MultiTaskDataset] = {}
        for task in self.task_names:
            if task not in self.offers:
                kind = f"task of {type(self).__name__}"
                raise UnknownNameError(kind, task, self.offers)

    @property
    def task_specs(self) -> dict[str, dict[str, Any]]:
        """The chosen tasks as plain dictionaries, which the command line hands to the model."""
        return {name: dict(self.offers[name]) for name in self.task_names}

    @abstractmethod
    def dataset(self, split: str, tasks: dict[str, Task], transform: Any) -> MultiTaskDataset:
        """Build the data set of ``"train"``, ``"val"`` or ``"test"``."""

    def eval_transforms(self) -> list[Transform]:
        """Return what is done to images outside training; nothing by default."""
        return []

    def setup(self, stage: str) -> None:
        """Build the splits that ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"`` needs."""
        splits = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}[stage]
        for split in splits:
            steps = self.train_transforms if split == "train" else self.eval_transforms()
            self.datasets[split] = self._transformed(split, steps)

    def evaluation_dataset(self, split: str) -> MultiTaskDataset:
        """Build a split without augmentation, also that of training."""
        return self._transformed(split, self.eval_transforms())

    def _transformed(self, split: str, steps: list[Transform]) -> MultiTaskDataset:
        from taskformer.data.transforms import TaskCompose  # albumentations takes seconds to import

        tasks = build_tasks(self.task_specs)
        return self.dataset(split, tasks, TaskCompose(steps, tasks))

    def train_dataloader(self) -> DataLoader[Sample]:
        """Load the training split in random order, full batches only."""
        images = len(self.datasets["train"])
        if images < self.batch_size:
            msg = f"{self.root} has {images} training images, fewer than data.init_args.batch_size {self.batch_size}"
            raise ConfigError(msg)
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[Sample]:
        """Load the validation split in order."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Sample]:
        """Load the test split in order."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[Sample]:
        """Load the test split, whose maps are predicted."""
        return self._loader("test")

    def _loader(self, split: str, *, shuffle: bool = False) -> DataLoader[Sample]:
        from taskformer.data.transforms import worker_init

        return DataLoader(
            self.datasets[split],
            batch_size=self.batch_size,
            shuffle=shuffle,
            drop_last=shuffle,
            num_workers=self.num_workers,
            collate_fn=collate,
            worker_init_fn=worker_init,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )


def collate(samples: list[Sample]) -> Sample:
    """Stack samples of one size into a batch; ``meta`` becomes a dictionary of plain lists."""
    first = samples[0]
    return {
        "image": _stack([sample["image"] for sample in samples]),
        "targets": {name: _stack([sample["targets"][name] for sample in samples]) for name in first["targets"]},
        "meta": {key: [sample["meta"][key] for sample in samples] for key in first["meta"]},
    }


def _stack(tensors: list[Tensor]) -> Tensor:
    # numpy, because torch would wake its threads for a small copy: on busy processors that took four times as long
    # as everything else.
    return torch.from_numpy(np.stack([tensor.numpy() for tensor in tensors]))
