"""The rendered rooms as a data module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from taskformer.data.datamodules.base import MultiTaskDataModule
from taskformer.data.datasets.rooms import CLASSES, COLORS, PARTS, Rooms

if TYPE_CHECKING:
    from taskformer.data.datasets.base import OnError
    from taskformer.data.transforms import Transform
    from taskformer.tasks import Task


class RoomsDataModule(MultiTaskDataModule):
    """Small rendered rooms (160x128) with exact labels, part of the repository: no download.

    Args:
        root: The data set's folder, relative to the current one.
        tasks: Any of ``semseg``, ``depth``, ``normals``, ``edges``, ``saliency``, ``human_parts`` and ``reshading``;
            ``None`` uses all.
        batch_size: Images per batch and device.
        num_workers: Loader processes; 0 loads in the main one.
        train_transforms: Augmentations of the training split, see :class:`MultiTaskDataModule`.
        eval_transforms: What is done to images outside training.
        size: Height and width that images and maps are resized to when they are loaded; None keeps theirs.
        on_error: What a missing or broken file does: ``raise`` stops at once, ``skip`` logs it once and goes on.
        holdout: Share of the training images that validate instead of ``val``, see :class:`MultiTaskDataModule`.
    """

    name = "rooms"
    offers: ClassVar[dict[str, dict[str, Any]]] = {
        "semseg": {"classes": list(CLASSES), "colors": [list(color) for color in COLORS]},
        "depth": {"max_depth": 7.0},
        "normals": {},
        "edges": {"positive_weight": 0.8},
        "saliency": {},
        "human_parts": {"classes": list(PARTS)},
        "reshading": {},
    }
    published: ClassVar[dict[str, int]] = {"train": 440, "val": 100, "test": 100}

    def __init__(
        self,
        root: str = "data/rooms",
        tasks: list[str] | None = None,
        batch_size: int = 8,
        num_workers: int = 0,
        train_transforms: list[Transform] | None = None,
        eval_transforms: list[Transform] | None = None,
        size: tuple[int, int] | None = None,
        on_error: OnError = "raise",
        holdout: float = 0.0,
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
            holdout=holdout,
        )

    def dataset(self, split: str, tasks: dict[str, Task], transform: Any) -> Rooms:
        """Build one split."""
        return Rooms(self.root, split, tasks, transform, self.size, self.on_error)
