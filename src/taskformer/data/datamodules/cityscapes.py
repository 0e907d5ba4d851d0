"""Cityscapes as a data module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from taskformer.data.datamodules.base import MultiTaskDataModule
from taskformer.data.datasets.cityscapes import Cityscapes, SemsegClasses, find_layout, semseg_labels

if TYPE_CHECKING:
    from taskformer.tasks import Task


class CityscapesDataModule(MultiTaskDataModule):
    """Street scenes (1024x2048) from the owners' packages, or the 256x512 arrays of MTAN and AdaShare.

    >>> data = CityscapesDataModule(tasks=["semseg", "depth"], semseg_classes=2, size=(256, 512))
    >>> data.task_specs["semseg"]["classes"], data.task_specs["depth"]
    (['background', 'foreground'], {'max_depth': 80.0})

    Their ``size`` is usually [256, 512].

    Args:
        root: The data set's folder, relative to the current one.
        tasks: Any of ``semseg``, ``depth`` (metres) and ``inverse_depth`` (1/m); ``None`` uses all that there are
            files for. The preprocessed arrays have no ``depth``, and their ``inverse_depth`` no unit.
        semseg_classes: 19 classes, their 7 categories, or 2: background and foreground (humans and vehicles).
        **kwargs: The options that all data modules share, see :class:`MultiTaskDataModule`.
    """

    name = "cityscapes"
    offers: ClassVar[dict[str, dict[str, Any]]] = {"semseg": {}, "depth": {"max_depth": 80.0}, "inverse_depth": {}}
    published: ClassVar[dict[str, int]] = {"train": 2975, "val": 500}

    def __init__(
        self,
        root: str = "data/cityscapes",
        tasks: list[str] | None = None,
        *,
        semseg_classes: SemsegClasses = 19,
        **kwargs: Any,
    ) -> None:
        # What there is depends on the number of classes and on the files.
        self.semseg_classes: SemsegClasses = semseg_classes
        self._layout = find_layout(root, semseg_classes)
        super().__init__(root, tasks if tasks is not None else self.available() or None, **kwargs)

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
        options = {"semseg_classes": self.semseg_classes, **self.dataset_options}
        return Cityscapes(self.root, split, tasks, transform, **options)
