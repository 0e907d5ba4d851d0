"""Several data sets as one: mixed in training, each by itself in evaluation."""

from __future__ import annotations

import inspect
import textwrap
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NoReturn

from torch.utils.data import ConcatDataset, Dataset, SequentialSampler

from taskformer.data.datamodules.base import EvaluationBatches, MultiTaskDataModule
from taskformer.data.datasets.base import Sample
from taskformer.data.predictions import saved
from taskformer.errors import ConfigError, UnknownNameError, require
from taskformer.tasks import Task, build_task, build_tasks

Specs = dict[str, dict[str, Any]]


class CombinedDataModule(MultiTaskDataModule):
    """Data sets with different tasks in one training: each image counts for the tasks that its data set has labels for.

    The options that all data modules share hold for every part if they are given here; otherwise the parts keep theirs.
    Training batches hold images of all parts; where the parts' pipelines give different sizes they are padded to the
    largest of the batch, so crop all parts alike. An evaluation batch holds images of one part only, and a metric is
    computed over all parts that have its task.

    Example:
        >>> from taskformer.data import CityscapesDataModule, RoomsDataModule
        >>> parts = [RoomsDataModule(tasks=["semseg", "depth"]), CityscapesDataModule(tasks=["semseg"])]
        >>> data = CombinedDataModule(parts, rename=[{}, {"semseg": "street_semseg"}])
        >>> data.task_names
        ['semseg', 'depth', 'street_semseg']

    Args:
        parts: The data modules, with their own roots, tasks and transforms; their batch sizes and workers do not count.
        rename: For each part, the task names to change and what to: ``[{}, {semseg: street_semseg}]`` makes the
            ``semseg`` of the second part a task of its own. None changes none.
        repeat: For each part, how often an epoch has its training images. None: once.
        tasks: Any tasks of the parts, by their new names; None uses all. Parts with none of them are left out.
        **kwargs: The options that all data modules share, see :class:`MultiTaskDataModule`.

    Raises:
        ConfigError: If the parts mean different things by the same name.
        UnknownNameError: If a task is unknown.
    """

    name = "combined"

    def __init__(
        self,
        parts: list[MultiTaskDataModule],
        rename: list[dict[str, str]] | None = None,
        repeat: list[int] | None = None,
        tasks: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        require("[1, inf)", repeat=repeat)
        renames = _per_part("rename", rename, parts, default={})
        repeats = _per_part("repeat", repeat, parts, default=1)
        self._offers = merge_tasks(parts, renames)
        super().__init__(" + ".join(part.root for part in parts), tasks, **kwargs)
        shared = inspect.signature(MultiTaskDataModule.__init__).parameters
        given = {name: value for name, value in kwargs.items() if value != shared[name].default}
        self.parts: list[MultiTaskDataModule] = []
        self._renames: list[dict[str, str]] = []
        self._repeats: list[int] = []
        for part, names, count in zip(parts, renames, repeats, strict=True):
            vars(part).update(given, num_workers=self.num_workers)
            if self.one_label_of:
                part.one_label_of = [name for name in part.task_names if names.get(name, name) in self.one_label_of]
            part.task_names = [name for name in part.task_names if names.get(name, name) in self.task_names]
            part.mixture = self.task_specs
            if part.task_names or not part.task_offers():
                self.parts.append(part)
                self._renames.append(names)
                self._repeats.append(count)

    def task_offers(self) -> Specs:
        """Return the specification of every task of the parts."""
        return self._offers

    def dataset(self, split: str, tasks: dict[str, Task], transform: Any) -> NoReturn:
        """Refuse: each part has a data set and transforms of its own."""
        del split, tasks, transform
        msg = f"a mixture has no data set of its own; look at its parts: {', '.join(part.name for part in self.parts)}"
        raise ConfigError(msg)

    def build_caches(self) -> None:
        """Decode the training and validation images of the parts that have a ``cache_dir``."""
        for part in self.parts:
            part.build_caches()

    def setup(self, stage: str) -> None:
        """Build the splits that ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"`` needs."""
        for part in self.parts:
            part.setup(stage)
        for split in dict.fromkeys(split for part in self.parts for split in part.datasets):
            parts = [part for part in self.parts if split in part.datasets]
            taught = split == "train" and any(part.predictions for part in parts)
            views = self._views({part: part.datasets[split] for part in parts}, taught)
            repeats = self._repeats if split == "train" else [1] * len(views)
            self.datasets[split] = ConcatDataset(
                [view for view, count in zip(views, repeats, strict=True) for _ in range(count)]
            )

    def evaluation_dataset(self, split: str) -> ConcatDataset[Sample]:
        """Build any split without augmentation."""
        labelled = [part for part in self.parts if part.task_names]
        return ConcatDataset(self._views({part: part.evaluation_dataset(split) for part in labelled}))

    def _views(
        self, datasets: Mapping[MultiTaskDataModule, Dataset[Sample]], taught: bool = False
    ) -> list[PartDataset]:
        """See each part's data set as one of the mixture, with what a teacher has said where there is such."""
        tasks = build_tasks(self.task_specs)
        tasks |= {saved(name): task for name, task in tasks.items()} if taught else {}
        renames = {
            part: names | {saved(old): saved(new) for old, new in names.items()}
            for part, names in zip(self.parts, self._renames, strict=True)
        }
        return [PartDataset(dataset, part.name, renames[part], tasks) for part, dataset in datasets.items()]

    def _batches(self, split: str, shuffle: bool) -> dict[str, Any]:
        dataset = self.datasets[split]
        if shuffle or not isinstance(dataset, ConcatDataset):
            return super()._batches(split, shuffle)
        batches = PartBatches(SequentialSampler(dataset), self.batch_size, False, dataset.cumulative_sizes)
        return {"dataset": dataset, "batch_sampler": batches}


class PartDataset(Dataset[Sample]):
    """A part's data set as the mixture sees it: with all tasks of the mixture, those it lacks all invalid.

    Args:
        dataset: The part's data set, with its transform.
        part: The part's name, for ``meta``.
        names: New names of its tasks.
        tasks: The tasks of the mixture by name.
    """

    def __init__(
        self, dataset: Dataset[Sample], part: str, names: Mapping[str, str], tasks: Mapping[str, Task]
    ) -> None:
        self.dataset = dataset
        self.part = part
        self.names = names
        self.tasks = tasks

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.dataset)  # type: ignore[arg-type]  # torch leaves len to subclasses; all of ours have it

    def __getitem__(self, index: int) -> Sample:
        """Return one sample with a target for every task of the mixture."""
        sample = self.dataset[index]
        if "image" not in sample:  # it could not be read
            return {"meta": {**sample["meta"], "part": self.part}}
        size = sample["image"].shape[-2:]
        own = {self.names.get(name, name): target for name, target in sample["targets"].items()}
        targets = {name: own[name] if name in own else task.invalid(*size) for name, task in self.tasks.items()}
        return {"image": sample["image"], "targets": targets, "meta": {**sample["meta"], "part": self.part}}


class PartBatches(EvaluationBatches):
    """Batches of evaluation that never mix two parts; the parts take turns.

    Args:
        sampler: Indices into the concatenated parts.
        batch_size: Largest number of images in a batch.
        drop_last: Must be False, every image is evaluated.
        ends: Index after the last image of each part.
    """

    def __init__(self, sampler: Iterable[int], batch_size: int, drop_last: bool, ends: list[int]) -> None:
        super().__init__(sampler, batch_size, drop_last)
        self.ends = ends

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the indices of each batch."""
        parts: list[list[int]] = [[] for _ in self.ends]
        for index in self.sampler:
            parts[bisect_right(self.ends, index)].append(index)
        size = self.batch_size
        batches = [[part[start : start + size] for start in range(0, len(part), size)] for part in parts]
        # In turns, so that the first few batches, all that the check before training looks at, have every task.
        return (batch for turn in zip_longest(*batches) for batch in turn if batch)

    def __len__(self) -> int:
        """Return the number of batches."""
        return sum(1 for _ in self)


def merge_tasks(parts: Sequence[MultiTaskDataModule], renames: Sequence[Mapping[str, str]]) -> Specs:
    """Gather the tasks of all parts by their new names.

    Tasks of one name must have the same outputs; where only other options differ, such as the weight of the loss or the
    range of the colours, those of the first part hold.

    Raises:
        ConfigError: If a name has different meanings.
        UnknownNameError: If a task that a part does not have is to be renamed.
    """
    specs: Specs = {}
    owners: dict[str, MultiTaskDataModule] = {}
    for part, names in zip(parts, renames, strict=True):
        for old in names:
            if old not in part.task_names:
                kind = f"task to rename of {part.root}"
                raise UnknownNameError(kind, old, part.task_names)
        for old, spec in part.task_specs.items():
            name = names.get(old, old)
            spec = {"type": old, **spec} if name != old else spec
            if name in specs and (was := _outputs(name, specs[name])) != (now := _outputs(name, spec)):
                msg = (
                    f"the task {name!r} means {_short(was)} in {owners[name].root} and {_short(now)} in {part.root}; "
                    f"choose different tasks for the parts, or rename one: "
                    f"data.init_args.rename={_example(parts, part, old)}"
                )
                raise ConfigError(msg)
            specs.setdefault(name, spec)
            owners.setdefault(name, part)
    return specs


def _outputs(name: str, spec: Mapping[str, Any]) -> str:
    """Describe what the outputs of a task mean."""
    task = build_task(name, spec)
    kind = type(task).__name__
    if not task.classes:
        return f"{kind} with {task.channels} channels"
    return f"{kind} with the {task.channels} classes {', '.join(task.classes)}"


def _short(meaning: str) -> str:
    return textwrap.shorten(meaning, 80, placeholder=" ...")


def _example(parts: Sequence[MultiTaskDataModule], part: MultiTaskDataModule, name: str) -> str:
    """Write a ``rename`` that gives one part's task a name of its own."""
    return f"[{', '.join(f'{{{name}: {part.name}_{name}}}' if other is part else '{}' for other in parts)}]"


def _per_part(key: str, values: list[Any] | None, parts: Sequence[MultiTaskDataModule], default: Any) -> list[Any]:
    """Return one value for each part."""
    if not parts or (values is not None and len(values) != len(parts)):
        msg = f"data.init_args.{key} must have one entry for each of the {len(parts)} parts (at least 1), got {values}"
        raise ConfigError(msg)
    return [default] * len(parts) if values is None else values
