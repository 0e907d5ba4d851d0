"""The rendered rooms as a data module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from taskformer.data.datamodules.base import MultiTaskDataModule
from taskformer.data.datasets.rooms import CLASSES, COLORS, PARTS, Rooms

if TYPE_CHECKING:
    from taskformer.tasks import Task


class RoomsDataModule(MultiTaskDataModule):
    """Small rendered rooms (160x128) with exact labels, part of the repository: no download.

    Example:
        >>> data = RoomsDataModule(tasks=["depth", "normals"], batch_size=4)
        >>> data.task_specs
        {'depth': {'max_depth': 7.0}, 'normals': {}}

    Args:
        root: The data set's folder, relative to the current one.
        tasks: Any of ``semseg``, ``depth``, ``normals``, ``edges``, ``saliency``, ``human_parts`` and ``reshading``;
            ``None`` uses all.
        **kwargs: The options that all data modules share, see :class:`MultiTaskDataModule`.
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

    def __init__(self, root: str = "data/rooms", tasks: list[str] | None = None, **kwargs: Any) -> None:
        super().__init__(root, tasks, **kwargs)

    def dataset(self, split: str, tasks: dict[str, Task], transform: Any) -> Rooms:
        """Build one split."""
        return Rooms(self.root, split, tasks, transform, **self.dataset_options)
