"""What all data modules share: tasks, transforms and loaders."""

from __future__ import annotations  # the type of the transforms is resolved only when a parser asks for it

import math
from abc import ABC, abstractmethod
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    SequentialSampler,
    Subset,
    get_worker_info,
)

from taskformer.data.cache import DecodedCache
from taskformer.data.datasets.base import MultiTaskDataset, OnError, Sample
from taskformer.data.labels import LabelTurns, evenly
from taskformer.data.loading import ResumableLoader, SeededSamples, TrainingOrder, worker_init
from taskformer.data.memory import shared_empty
from taskformer.data.predictions import SavedPredictions, saved
from taskformer.errors import ConfigError, UnknownNameError, require
from taskformer.parallel import default_workers
from taskformer.tasks import IGNORE_INDEX, Task, build_tasks

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from taskformer.data.transforms import Transform


#: Loader processes beyond which a machine does nothing but switch between them.
WORKERS_PER_PROCESSOR = 16


class MultiTaskDataModule(LightningDataModule, ABC):
    """A data set with its splits, tasks and augmentations. Subclasses name what they offer and build :meth:`dataset`.

    The options below are those of every data module: a subclass states its own and hands the others on by
    ``super().__init__(root, tasks, **kwargs)``, where the command line finds them too.

    Args:
        root: The data set's folder, relative to the current one.
        tasks: Names of the tasks to use; ``None`` uses all that the data set offers.
        batch_size: Images per batch and device.
        num_workers: Loader processes; 0 loads in the main one.
        train_transforms: Augmentations of the training split, from :mod:`taskformer.data.transforms`; photometric ones
            of albumentations too, by class path, e.g. ``albumentations.ColorJitter``. Normalisation and conversion to
            tensors always follow.
        eval_transforms: What is done to images outside training. Images of different sizes need a ``Pad`` or ``Resize``
            to one size here, or ``size``, for results that do not depend on the batch size.
        size: Height and width that images and maps are resized to when they are loaded; depth stays the same. None
            keeps the stored size.
        on_error: What a missing or broken file does: ``raise`` stops at once, ``skip`` logs it once and goes on.
        cache_dir: Folder for decoded samples, built once and read instead of the files; None reads the files.
        cache_gb: Largest size of the cached samples of one split in gigabytes; the rest is read from the files.
        holdout: Share of the training images, taken from the end, that is held out and used instead of the validation
            split. Choose models and search architectures with one where papers test on ``val``. It is a block because
            neighbouring images often show the same scene.
        label_share: Share of the training images, without those held out, that is used. They are spread evenly over the
            split, the same for every seed, and among those of any larger share. An epoch is as long as with all.
        one_label_of: Tasks of which each training image keeps the label of only one, the same in every run; all of them
            have equally many. The others' labels count as missing, and an image with no label of the chosen ``tasks``
            is left out: so a task that is trained alone has the labels that it has among the others. An epoch is as
            long as with all. None keeps all.
        loss_weights: Weights of tasks' losses that belong to a published recipe of this data; the other tasks have
            their defaults, and the model's own ``loss_weights`` win.
        predictions: Folder of predictions of the training images, as ``predict`` and ``test`` write them: what a
            teacher says of them, see ``docs/distillation.md``. Images without a file have none.

    Attributes:
        name: Short name of the data set, for folders, tables and commands.
        offers: Specification of every task the data set has labels for, see :func:`taskformer.tasks.build_tasks`.
        published: Number of images of each split that the data set's owners publish.

    Raises:
        UnknownNameError: If a task is not offered.
        ConfigError: If a setting is impossible, or one of ``eval_transforms`` is random.
    """

    name: str
    offers: ClassVar[dict[str, dict[str, Any]]]
    published: ClassVar[dict[str, int]] = {}

    def __init__(
        self,
        root: str,
        tasks: list[str] | None = None,
        batch_size: int = 8,
        num_workers: int = 0,
        train_transforms: list[Transform] | None = None,
        eval_transforms: list[Transform] | None = None,
        size: tuple[int, int] | None = None,
        on_error: OnError = "raise",
        cache_dir: str | None = None,
        cache_gb: float = 20.0,
        holdout: float = 0.0,
        label_share: float = 1.0,
        one_label_of: list[str] | None = None,
        loss_weights: dict[str, float] | None = None,
        predictions: str | None = None,
    ) -> None:
        super().__init__()
        require("[0, 1)", holdout=holdout)
        require("(0, 1]", label_share=label_share)
        require("[1, inf)", batch_size=batch_size)
        require(f"[0, {WORKERS_PER_PROCESSOR * default_workers()}]", num_workers=num_workers)
        require("[0, inf)", cache_gb=cache_gb)
        require("[1, 32767]", size=size)
        require("[0, inf)", loss_weights=list((loss_weights or {}).values()))
        if eval_transforms:
            from taskformer.data.transforms import require_fixed  # with albumentations, which takes seconds to import

            require_fixed(eval_transforms)
        self.root = root
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.train_transforms = train_transforms or []
        self.eval_transforms = eval_transforms or []
        self.size = size
        self.on_error = on_error
        self.cache_dir = cache_dir
        self.cache_gb = cache_gb
        self.holdout = holdout
        self.label_share = label_share
        self.one_label_of = list(dict.fromkeys(one_label_of or []))
        self.loss_weights = loss_weights or {}
        self.predictions = predictions
        self.datasets: dict[str, Dataset[Sample]] = {}
        #: The tasks of the mixture that this is a part of.
        self.mixture: dict[str, dict[str, Any]] = {}
        self._training: ResumableLoader | None = None
        self._place: dict[str, Any] = {}
        offered = self.task_offers()
        self.task_names = list(offered) if tasks is None else list(tasks)
        for task in (*self.task_names, *self.one_label_of, *self.loss_weights):
            if task not in offered:
                kind = f"task of {type(self).__name__}"
                raise UnknownNameError(kind, task, offered)
        if len(self.task_names) < min(1, len(offered)) or len(set(self.task_names)) < len(self.task_names):
            msg = f"data.init_args.tasks must name one or more different tasks, got {self.task_names}"
            raise ConfigError(msg)

    def task_offers(self) -> dict[str, dict[str, Any]]:
        """Return the specification of every task that there are labels for, given the options."""
        return self.offers

    @property
    def task_specs(self) -> dict[str, dict[str, Any]]:
        """The chosen tasks as plain dictionaries, which the command line hands to the model."""
        offered = self.task_offers()
        weights = {name: {"loss_weight": weight} for name, weight in self.loss_weights.items()}
        return {name: {**offered[name], **weights.get(name, {})} for name in self.task_names}

    @property
    def predicted_specs(self) -> dict[str, dict[str, Any]]:
        """The tasks that :attr:`predictions` may be of, as plain dictionaries."""
        return self.task_specs

    @property
    def dataset_options(self) -> dict[str, Any]:
        """The options that every :class:`MultiTaskDataset` takes too, by name."""
        return {"size": self.size, "on_error": self.on_error}

    def available(self) -> list[str]:
        """Return the offered tasks that there are files for; tools that look at data use all of these."""
        return list(self.task_offers())

    def splits(self) -> list[str]:
        """Return the names of the splits that differ."""
        return ["train", "val", "test"]

    @abstractmethod
    def dataset(self, split: str, tasks: dict[str, Task], transform: Any) -> MultiTaskDataset:
        """Build the data set of ``"train"``, ``"val"`` or ``"test"``."""

    def prepare_data(self) -> None:
        """Fill the cache for ``fit``, if there is a ``cache_dir``; Lightning calls this once per machine."""
        if self.trainer is None or self.trainer.state.fn == "fit":
            self.build_caches()

    def build_caches(self) -> None:
        """Decode the training and validation images into ``cache_dir``, with the loader's processes."""
        if not self.cache_dir:
            return
        splits = {"train": self.train_transforms} | ({} if self.holdout else {"val": self.eval_transforms})
        for split in splits.keys() & self.splits():
            dataset = self._transformed(split, splits[split])
            DecodedCache.build(Path(self.cache_dir), dataset, self.cache_gb, self.num_workers)

    def setup(self, stage: str) -> None:
        """Build the splits that ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"`` needs."""
        splits = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}[stage]
        for split in splits:
            self.datasets[split] = self._built(split)

    def _built(self, split: str) -> Dataset[Sample]:
        """Build a split as it is loaded."""
        source = "train" if split == "val" and self.holdout else split
        dataset = self.training_dataset(source) if split == "train" else self._transformed(source, self.eval_transforms)
        if self.cache_dir:
            dataset.cache = DecodedCache.find(Path(self.cache_dir), dataset, self.cache_gb)
        return self._part(split, dataset)

    def _part(self, split: str, dataset: MultiTaskDataset) -> Dataset[Sample]:
        """Divide the training images if some of them validate."""
        first = len(dataset) - math.ceil(self.holdout * len(dataset))
        if split == "train":
            return self._training_part(dataset, first)
        return Subset(dataset, range(first, len(dataset))) if self.holdout and split == "val" else dataset

    def _training_part(self, dataset: MultiTaskDataset, count: int) -> Dataset[Sample]:
        """Choose those of the first ``count`` images that train, and the labels that they keep.

        Broken images are replaced by others of them. An epoch has as many steps as with all images: these come up more
        often, so that one recipe fits any share.
        """
        images: Sequence[int] = range(count)
        if self.label_share < 1:
            images = sorted(evenly(count)[: max(1, round(self.label_share * count))].tolist())
        if self.one_label_of:
            dataset.turns = LabelTurns.over(evenly(count), self.one_label_of)
            images = [image for image in images if not set(self.task_names) <= set(dataset.turns.withheld(image))]
        dataset.substitutes = images
        return dataset if len(images) == len(dataset) else Subset(dataset, list(islice(cycle(images), count)))

    def training_dataset(self, split: str) -> MultiTaskDataset:
        """Build any split with the augmentation of training, and with what a teacher has said of it."""
        if self.predictions is None:
            return self._transformed(split, self.train_transforms)
        tasks = build_tasks(self.predicted_specs)
        dataset = self._transformed(split, self.train_transforms, {saved(name): task for name, task in tasks.items()})
        dataset.predictions = SavedPredictions(Path(self.predictions), tasks, dataset.ids, self.size is not None)
        return dataset

    def evaluation_dataset(self, split: str) -> MultiTaskDataset | ConcatDataset[Sample]:
        """Build any split without augmentation."""
        return self._transformed(split, self.eval_transforms)

    def _transformed(
        self, split: str, steps: list[Transform], others: Mapping[str, Task] | None = None
    ) -> MultiTaskDataset:
        from taskformer.data.transforms import TaskCompose, wanted_guides  # albumentations takes seconds to import

        tasks, offered = build_tasks(self.task_specs), self.task_offers()
        names = [name for name in wanted_guides(steps) if name not in tasks and name in self.available()]
        guides = build_tasks({name: offered[name] for name in names})
        return self.dataset(split, {**tasks, **guides}, TaskCompose(steps, {**tasks, **(others or {})}, guides))

    def train_dataloader(self) -> DataLoader[Sample]:
        """Load the training split in random order, full batches only."""
        images = len(self.datasets["train"])  # type: ignore[arg-type]  # all of ours have a length
        if images < self.batch_size:
            msg = f"{self.root} has {images} training images, fewer than data.init_args.batch_size {self.batch_size}"
            raise ConfigError(msg)
        loader = self._loader("train", shuffle=True)
        if isinstance(loader, ResumableLoader):
            self._training = loader
            loader.epoch_ended = self._epoch_ended
            loader.load_state_dict(self._place)
        return loader

    def _epoch_ended(self) -> bool:
        """Whether the training's last batch was the last of its epoch, or the last that the Trainer wanted."""
        if self.trainer is None:
            return False
        epochs: Any = self.trainer.fit_loop.epoch_progress.current
        return self.trainer.is_last_batch or bool(epochs.processed == epochs.started)

    def state_dict(self) -> dict[str, Any]:
        """Return the training's place in its epoch, for checkpoints."""
        return self._training.state_dict() if self._training else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the next training loader start from a checkpoint's place.

        Lightning hands the place to the loader too, but not where its length was asked for first, as schedules do.
        """
        self._place = state_dict

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
        loader = ResumableLoader if shuffle else DataLoader
        return loader(
            **self._batches(split, shuffle),
            num_workers=self.num_workers,
            collate_fn=collate,
            worker_init_fn=worker_init,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _batches(self, split: str, shuffle: bool) -> dict[str, Any]:
        """Return the arguments that tell the loader of a split which images form a batch."""
        dataset = self.datasets[split]
        if shuffle:
            processes, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
            order = TrainingOrder(dataset, processes, rank)
            return {
                "dataset": SeededSamples(dataset),
                "batch_size": self.batch_size,
                "sampler": order,
                "drop_last": True,
            }
        images = SequentialSampler(dataset)  # type: ignore[arg-type]  # all of ours have a length
        return {"dataset": dataset, "batch_sampler": EvaluationBatches(images, self.batch_size, drop_last=False)}


class EvaluationBatches(BatchSampler):
    """Batches of evaluation: every image exactly once, whatever the number of processes.

    The arguments are those that Lightning needs to put its own sampler in when there are several processes. That one
    repeats images until all processes have equally many; here some processes have one image less instead.

    Args:
        sampler: Indices into the data set.
        batch_size: Largest number of images in a batch.
        drop_last: Must be False, every image is evaluated.

    Raises:
        ConfigError: If there is not an image for every process.
    """

    def __init__(self, sampler: Iterable[int], batch_size: int, drop_last: bool) -> None:
        super().__init__(_each_once(sampler), batch_size, drop_last)


def _each_once(sampler: Iterable[int]) -> Iterable[int]:
    """Replace Lightning's sampler by the same process's share without repetitions."""
    if not isinstance(sampler, DistributedSampler):
        return sampler
    images, processes = len(sampler.dataset), sampler.num_replicas  # type: ignore[arg-type]  # all of ours have a length
    if images < processes:
        msg = f"{images} images cannot be evaluated by {processes} processes; set trainer.devices to at most {images}"
        raise ConfigError(msg)
    return range(sampler.rank, images, processes)


def data_modules() -> dict[str, type[MultiTaskDataModule]]:
    """Return every data module by the short name of its data set."""
    found: dict[str, type[MultiTaskDataModule]] = {}
    pending = MultiTaskDataModule.__subclasses__()
    while pending:
        cls = pending.pop(0)
        pending += cls.__subclasses__()
        found |= {cls.name: cls} if cls.name else {}  # Lightning's own is None
    return found


def collate(samples: list[Sample]) -> Sample:
    """Stack samples into a batch; ``meta`` becomes a dictionary of plain lists, None where a sample lacks an entry.

    Images that could not be read are left out and listed in ``unreadable``: each one's place among the samples and its
    identifier. Where no other is left, the batch has no target and an image of shape ``(0, 3, 0, 0)``.

    Images of different sizes are padded on the right and at the bottom to the largest: with 0, the mean colour, and
    invalid pixels. The network sees that border; evaluation whose results must not depend on which images share a
    batch therefore gives all images one size (``eval_transforms``).
    """
    broken = {place: sample["meta"]["id"] for place, sample in enumerate(samples) if "image" not in sample}
    unreadable = {"unreadable": broken} if broken else {}
    samples = [sample for sample in samples if "image" in sample]
    if not samples:
        return {"image": torch.empty(0, 3, 0, 0), "targets": {}, "meta": {"id": []}, **unreadable}
    first = samples[0]
    keys = dict.fromkeys(key for sample in samples for key in sample["meta"])
    return {
        "image": _stack([sample["image"] for sample in samples], 0.0),
        "targets": {name: _stack_targets([sample["targets"][name] for sample in samples]) for name in first["targets"]},
        "meta": {key: [sample["meta"].get(key) for sample in samples] for key in keys},
        **unreadable,
    }


def _stack_targets(targets: list[Tensor]) -> Tensor:
    return _stack(targets, np.nan if targets[0].is_floating_point() else IGNORE_INDEX)


def _stack(tensors: list[Tensor], fill: float) -> Tensor:
    shape = (len(tensors), *(max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)))
    # A loader's process writes to where the main one can read it.
    empty = torch.empty if get_worker_info() is None else shared_empty
    stacked: Tensor = empty(shape, dtype=tensors[0].dtype)
    # numpy, because torch would wake its threads for a small copy: on busy processors that took four times as long
    # as everything else.
    for place, tensor in zip(stacked.numpy(), tensors, strict=True):
        if tensor.shape != place.shape:
            place[...] = fill
        place[tuple(slice(length) for length in tensor.shape)] = tensor.numpy()
    return stacked
