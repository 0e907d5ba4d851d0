"""Cityscapes as a data module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from taskformer.data.datamodules.base import MultiTaskDataModule
from taskformer.data.datasets.cityscapes import Cityscapes, SemsegClasses, find_layout, semseg_labels

if TYPE_CHECKING:
    from taskformer.data.datasets.base import OnError
    from taskformer.data.transforms import Transform
    from taskformer.tasks import Task


class CityscapesDataModule(MultiTaskDataModule):
    """Street scenes (1024x2048) from the owners' packages, or the 256x512 arrays of MTAN and AdaShare.

    Args:
        root: The data set's folder, relative to the current one.
        tasks: Any of ``semseg``, ``depth`` (metres) and ``inverse_depth`` (1/m); ``None`` uses all that there are
            files for. The preprocessed arrays have no ``depth``, and their ``inverse_depth`` no unit.
        batch_size: Images per batch and device.
        num_workers: Loader processes; 0 loads in the main one.
        train_transforms: Augmentations of the training split, see :class:`MultiTaskDataModule`.
        eval_transforms: What is done to images outside training.
        size: Height and width that images and maps are resized to when they are loaded, usually [256, 512]; None keeps
            the images' own. Depth stays the same.
        on_error: What a missing or broken file does: ``raise`` stops at once, ``skip`` logs it once and goes on.
        cache_dir: Folder for decoded samples, see :class:`MultiTaskDataModule`.
        cache_gb: Largest size of the cached samples of one split in gigabytes.
        holdout: Share of the training images that validate instead of ``val``, see :class:`MultiTaskDataModule`.
        semseg_classes: 19 classes, their 7 categories, or 2: background and foreground (humans and vehicles).
    """

    name = "cityscapes"
    offers: ClassVar[dict[str, dict[str, Any]]] = {"semseg": {}, "depth": {"max_depth": 80.0}, "inverse_depth": {}}
    published: ClassVar[dict[str, int]] = {"train": 2975, "val": 500}

    def __init__(
        self,
        root: str = "data/cityscapes",
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
        semseg_classes: SemsegClasses = 19,
    ) -> None:
        # What there is depends on the number of classes and on the files.
        self.semseg_classes: SemsegClasses = semseg_classes
        self._layout = find_layout(root, semseg_classes)
        super().__init__(
            root,
            tasks if tasks is not None else self.available() or None,
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

    def task_offers(self) -> dict[str, dict[str, Any]]:
        """Return the tasks of the official files, or of the arrays if these are there."""
        labels = semseg_labels(self.semseg_classes)
        offers = {**self.offers, "semseg": {"classes": labels.classes, "colors": labels.colors}}
        if self._layout and self._layout.inverse_depth != "inverse_depth":
            offers["inverse_depth"] = {"type": self._layout.inverse_depth}
        return offers

    def available(self) -> list[str]:
        """Return the tasks whose packages are there."""
        layout = self._layout
        return [task for task in self.task_offers() if layout and not layout.missing(task)]

    def splits(self) -> list[str]:
        """Return the splits with public labels; ``"test"`` is ``"val"``."""
        return ["train", "val"]

    def dataset(self, split: str, tasks: dict[str, Task], transform: Any) -> Cityscapes:
        """Build one split."""
        return Cityscapes(self.root, split, tasks, transform, self.size, self.on_error, self.semseg_classes)
