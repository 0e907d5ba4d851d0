"""PASCAL-Context as a data module."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from taskformer.data.datamodules.base import MultiTaskDataModule
from taskformer.data.datasets.base import OnError
from taskformer.data.datasets.pascal_context import CLASSES, COLORS, FOLDERS, NORMAL_AXES, PASCALContext

if TYPE_CHECKING:
    from taskformer.data.transforms import Transform
    from taskformer.tasks import Task


class PASCALContextDataModule(MultiTaskDataModule):
    """PASCAL-Context with semantic classes, human parts, saliency, normals and edges; tested on the validation split.

    The images have different sizes: pad them to one (``eval_transforms``), so that results do not depend on the batch.

    Args:
        root: The data set's folder, relative to the current one: ``PASCALContext``, ``PASCAL_MT``, or what
            ``taskformer data prepare pascal_context`` made.
        tasks: Any of ``semseg``, ``human_parts``, ``saliency``, ``normals`` and ``edges``; ``None`` uses all.
        batch_size: Images per batch and device.
        num_workers: Loader processes; 0 loads in the main one.
        train_transforms: Augmentations of the training split, see :class:`MultiTaskDataModule`.
        eval_transforms: What is done to images outside training.
        size: Height and width that images and maps are resized to when they are loaded; None keeps theirs.
        on_error: What a missing or broken file does: ``raise`` stops at once, ``skip`` logs it once and goes on.
        cache_dir: Folder for decoded samples, built once and read instead of the files; None reads the files.
        cache_gb: Largest size of the cached samples of one split in gigabytes; the rest is read from the files.
        holdout: Share of the training images that validate instead of ``val``, see :class:`MultiTaskDataModule`.
        people_only: Whether training leaves out images without a person where ``human_parts`` is the only task.
        normal_axes: For x (right), y (down) and z (into the scene) the stored channel that holds it, 1 to 3, negative
            if it has the other sign.
    """

    name = "pascal_context"
    offers: ClassVar[dict[str, dict[str, Any]]] = {
        "semseg": {"classes": list(CLASSES), "colors": [list(color) for color in COLORS]},
        "human_parts": {},
        "saliency": {},
        "normals": {},
        "edges": {"positive_weight": 0.95, "max_dist": 0.0075},
    }
    published: ClassVar[dict[str, int]] = {"train": 4998, "val": 5105}

    def __init__(
        self,
        root: str = "data/pascal_context",
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
        people_only: bool = True,
        normal_axes: tuple[int, int, int] = NORMAL_AXES,
    ) -> None:
        super().__init__(
            root,
            tasks,
            batch_size,
            num_workers,
            train_transforms,
            eval_transforms,
            size,
            on_error,
            cache_dir,
            cache_gb,
            holdout,
        )
        self.people_only = people_only
        self.normal_axes = normal_axes

    def available(self) -> list[str]:
        """Return the tasks whose folders exist; what the owners publish gives no saliency and no normals."""
        return [task for task, folder in FOLDERS.items() if (Path(self.root) / folder).is_dir()]

    def splits(self) -> list[str]:
        """Return the names of the splits that differ."""
        return ["train", "val"]

    def dataset(self, split: str, tasks: dict[str, Task], transform: Any) -> PASCALContext:
        """Build one split; ``"test"`` is ``"val"``."""
        people_only = self.people_only and split == "train" and self.task_names == ["human_parts"]
        options = (self.size, self.on_error, people_only, self.normal_axes)
        return PASCALContext(self.root, "val" if split == "test" else split, tasks, transform, *options)
