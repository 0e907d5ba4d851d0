"""Taskonomy as a data module."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from taskformer.data.datamodules.base import MultiTaskDataModule, collate
from taskformer.data.datasets.taskonomy import (
    CAMERA_TASKS,
    CLASS_COUNTS,
    CLASSES,
    FOLDERS,
    IMAGE_TASKS,
    PRIOR_FACTORS,
    Taskonomy,
    decode,
)
from taskformer.data.datasets.taskonomy_index import SplitList, open_index, published_splits, read_splits, read_views
from taskformer.data.loading import worker_init
from taskformer.data.shards import ShardedDataset, stream
from taskformer.data.variants import SPECS, ImageVariants
from taskformer.errors import ConfigError
from taskformer.tasks import build_tasks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch.utils.data import DataLoader

    from taskformer.data.datasets.base import MultiTaskDataset, Sample
    from taskformer.data.transforms import Transform
    from taskformer.tasks import Task
    from taskformer.tasks.normals import NormalsLoss

#: The tasks with a file for every view and a value for every pixel.
DENSE = (
    *("semseg", "depth_zbuffer", "depth_euclidean", "normals", "curvature", "reshading", "edge_texture"),
    *("edge_occlusion", "keypoints2d", "keypoints3d", "segment_unsup2d", "segment_unsup25d"),
)


class TaskonomyDataModule(MultiTaskDataModule):
    """Views of 537 buildings, 512x512, 4.5 million in all, with up to 20 tasks.

    >>> data = TaskonomyDataModule(tasks=["depth_zbuffer", "normals"], split_list="tiny")
    >>> data.task_specs, len(data.buildings("train"))
    ({'depth_zbuffer': {'type': 'depth'}, 'normals': {'loss': 'l1'}}, 25)

    :mod:`taskformer.data.datasets.taskonomy` describes the values of each task. A domain that was not downloaded, or
    has no file for a view, is a missing label. ``vanishing_point`` and ``room_layout`` describe the camera of the
    whole image, so the augmentations must not move pixels with them.

    Args:
        root: The data set's folder, in either layout; relative to the current one.
        tasks: Any of ``semseg``, ``depth_zbuffer``, ``depth_euclidean``, ``normals``, ``curvature``, ``reshading``,
            ``edge_texture``, ``edge_occlusion``, ``keypoints2d``, ``keypoints3d``, ``segment_unsup2d``,
            ``segment_unsup25d`` (None uses these twelve), ``class_object``, ``class_scene``, ``vanishing_point``,
            ``room_layout``, ``autoencoding``, ``colorization``, ``denoising`` and ``inpainting``.
        split_list: Which of the owners' lists of buildings: ``tiny`` (25 for training, 5, 5), ``medium`` (99, 20, 19),
            ``full`` (346, 67, 69) or ``fullplus`` (383, 75, 79).
        splits_file: Your own list instead, a table ``id,train,val,test`` with a 1 for each building's split.
        views_file: Keep only the views in this table ``building,point,view``; ``{split}`` in its name stands for the
            split.
        mask_blocks: Blocks of this many pixels squared are invalid as a whole if one of their pixels is; MultiMAE: 4.
        spoilt_share: Share of the images that are spoilt for one of ``colorization``, ``denoising`` and ``inpainting``
            and labelled only for it; the others stay as they are and have all other labels.
        index_dir: Folder of the index of views; None is ``ROOT/.taskformer``, or ``~/.cache/taskformer`` if the root
            is read-only.
        shards: Folder or address (``s3://...``) of shards written by ``taskformer data shard``, streamed instead of
            the files; needs the extra ``stream``.
        prior_factors: Whether the classes of ``semseg`` count in the loss by the factors that Taskonomy's own networks
            were trained with: 0.54 for the background, about 9 for the others.
        normals_loss: How normals are compared in training: ``l1``, or ``cosine`` as in AdaShare.
        **kwargs: The options that all data modules share, see :class:`MultiTaskDataModule`.

    Raises:
        ConfigError: If augmentations move the pixels of images whose camera is a label.
    """

    name = "taskonomy"
    offers: ClassVar[dict[str, dict[str, Any]]] = {
        "semseg": {"classes": list(CLASSES)},
        "depth_zbuffer": {"type": "depth"},
        "depth_euclidean": {"type": "depth"},
        "normals": {},
        "curvature": {"value_range": [-0.5, 0.5]},
        **{name: {} for name in DENSE[5:]},
        **{name: {"classes": [str(k) for k in range(count)]} for name, count in CLASS_COUNTS.items()},
        "vanishing_point": {},
        "room_layout": {"value_range": [-3.0, 3.0]},
        **SPECS,
    }

    def __init__(
        self,
        root: str = "data/taskonomy",
        tasks: list[str] | None = None,
        *,
        split_list: SplitList = "tiny",
        splits_file: str | None = None,
        views_file: str | None = None,
        mask_blocks: int = 1,
        spoilt_share: float = 0.5,
        index_dir: str | None = None,
        shards: str | None = None,
        prior_factors: bool = False,
        normals_loss: NormalsLoss = "l1",
        **kwargs: Any,
    ) -> None:
        self.prior_factors = prior_factors  # the tasks on offer depend on these two
        self.normals_loss: NormalsLoss = normals_loss
        super().__init__(root, list(DENSE) if tasks is None else tasks, **kwargs)
        if mask_blocks < 1 or not 0 <= spoilt_share <= 1:
            msg = f"mask_blocks must be at least 1 and spoilt_share in [0, 1], got {mask_blocks} and {spoilt_share}"
            raise ConfigError(msg)
        if shards is not None and (self.holdout or self.label_share < 1 or self.one_label_of):
            msg = (
                "shards are read in their own order and cannot leave out images or labels; leave out shards, or "
                "holdout, label_share and one_label_of"
            )
            raise ConfigError(msg)
        if made := [name for name in self.one_label_of if name in SPECS]:
            msg = f"the labels of {', '.join(made)} are made from the image; leave them out of one_label_of"
            raise ConfigError(msg)
        self.split_list: SplitList = split_list
        self.splits_file = splits_file
        self.views_file = views_file
        self.mask_blocks = mask_blocks
        self.spoilt_share = spoilt_share
        self.index_dir = index_dir
        self.shards = shards

    def task_offers(self) -> dict[str, dict[str, Any]]:
        """Return the tasks, with the losses that were chosen."""
        semseg = {"class_weights": list(PRIOR_FACTORS)} if self.prior_factors else {}
        return {
            **self.offers,
            "semseg": {**self.offers["semseg"], **semseg},
            "normals": {**self.offers["normals"], "loss": self.normals_loss},
        }

    def available(self) -> list[str]:
        """Return the tasks that some building has a folder for, or that were packed into the shards."""
        if self.shards is not None:
            return ShardedDataset(self.shards, "train", {}, decode=decode).packed_tasks()
        index = open_index(Path(self.root), Path(self.index_dir) if self.index_dir else None)
        there = {domain for tails in index.tails for domain in tails}
        return [name for name in self.offers if name not in IMAGE_TASKS and FOLDERS.get(name, name) in there]

    def buildings(self, split: str) -> list[str]:
        """Return the names of the buildings of a split."""
        splits = read_splits(Path(self.splits_file)) if self.splits_file else published_splits(self.split_list)
        return sorted(name for name, place in splits.items() if place == split)

    def dataset(self, split: str, tasks: dict[str, Task], transform: Any) -> MultiTaskDataset:
        """Build one split."""
        if self.shards is not None:
            read = partial(decode, mask_blocks=self.mask_blocks)
            return ShardedDataset(self.shards, split, tasks, transform, decode=read, **self.dataset_options)
        only = read_views(Path(self.views_file.replace("{split}", split))) if self.views_file else None
        return Taskonomy(
            self.root,
            split,
            tasks,
            transform,
            buildings=self.buildings(split),
            only=only,
            mask_blocks=self.mask_blocks,
            index_dir=self.index_dir,
            **self.dataset_options,
        )

    def _transformed(
        self, split: str, steps: list[Transform], others: Mapping[str, Task] | None = None
    ) -> MultiTaskDataset:
        self._refuse_moved_cameras(steps)
        dataset = super()._transformed(split, steps, others)
        if dataset.transform and any(name in IMAGE_TASKS for name in self.task_names):
            tasks, repeatable = build_tasks(self.task_specs), steps is not self.train_transforms
            dataset.transform = ImageVariants(dataset.transform, tasks, self.spoilt_share, repeatable)
        return dataset

    def _refuse_moved_cameras(self, steps: list[Transform]) -> None:
        from taskformer.data.transforms import Resize, SpatialTransform

        cameras = [name for name in self.task_names if name in CAMERA_TASKS]
        spatial = [step for step in _single(steps) if isinstance(step, SpatialTransform)]
        moving = [type(step).__name__ for step in spatial if not isinstance(step, Resize)]
        if cameras and moving:
            msg = (
                f"the label {' or '.join(cameras)} is about the camera of the whole image and {', '.join(moving)} "
                "would make it wrong; leave out the transform or the task"
            )
            raise ConfigError(msg)

    def _loader(self, split: str, *, shuffle: bool = False) -> DataLoader[Sample]:
        dataset = self.datasets[split]
        if not isinstance(dataset, ShardedDataset):
            return super()._loader(split, shuffle=shuffle)
        return stream(dataset, self.batch_size, self.num_workers, shuffle, collate, worker_init)


def _single(steps: Iterable[Any]) -> Iterator[Any]:
    """Walk through compositions of transforms down to the single ones."""
    for step in steps:
        yield from _single(step.transforms) if hasattr(step, "transforms") else (step,)
