"""NYUD-v2 as a data module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from taskformer.data.datamodules.base import MultiTaskDataModule
from taskformer.data.datasets.nyud import (
    LAYOUTS,
    NYUD,
    Axes,
    LayoutName,
    SemsegClasses,
    class_names,
    find_layout,
    missing,
)
from taskformer.errors import require

if TYPE_CHECKING:
    from taskformer.tasks import Task
    from taskformer.tasks.normals import NormalsLoss


class NYUDDataModule(MultiTaskDataModule):
    """1449 indoor images of a depth camera, in any of the layouts of :class:`taskformer.data.datasets.NYUD`.

    >>> data = NYUDDataModule(tasks=["semseg", "depth"], semseg_classes=13)
    >>> len(data.task_specs["semseg"]["classes"]), data.task_specs["depth"]
    (13, {'max_depth': 10.0})

    Args:
        root: The data set's folder, relative to the current one.
        tasks: Any of ``semseg``, ``depth``, ``normals`` and ``edges``; ``None`` uses those that there are files
            for: AdaShare's layout has no ``edges``.
        semseg_classes: 40 classes, or the 13 groups of them.
        layout: ``a`` (425x560, png), ``b`` (480x640, jpg), ``adashare``, or ``auto`` to look at the files.
        normal_axes: For x (right), y (down) and z (into the scene) the stored channel that holds it, 1 to 3, negative
            if it has the other sign; None for the layout's own, see :class:`taskformer.data.datasets.NYUD`.
        edge_weight: Weight of edge pixels in the loss of ``edges``, the rest has 1 minus it: 0.8 in ATRC and
            MQTransformer, 0.95 in InvPT and its followers.
        normals_loss: How normals are compared in training: ``l1``, or ``cosine`` as in AdaShare.
        **kwargs: The options that all data modules share, see :class:`MultiTaskDataModule`.
    """

    name = "nyud"
    offers: ClassVar[dict[str, dict[str, Any]]] = {
        "semseg": {},
        "depth": {"max_depth": 10.0},
        "normals": {},
        "edges": {"positive_weight": 0.8, "max_dist": 0.011},
    }
    published: ClassVar[dict[str, int]] = {"train": 795, "val": 654}

    def __init__(
        self,
        root: str = "data/nyud",
        tasks: list[str] | None = None,
        *,
        semseg_classes: SemsegClasses = 40,
        layout: LayoutName = "auto",
        normal_axes: Axes | None = None,
        edge_weight: float = 0.8,
        normals_loss: NormalsLoss = "l1",
        **kwargs: Any,
    ) -> None:
        require("(0, 1)", edge_weight=edge_weight)
        self.semseg_classes: SemsegClasses = semseg_classes  # the tasks on offer depend on it
        self.layout: LayoutName = layout
        self.normal_axes = normal_axes
        self.edge_weight = edge_weight
        self.normals_loss: NormalsLoss = normals_loss
        self.root = root
        super().__init__(root, self.available() or None if tasks is None else tasks, **kwargs)

    def task_offers(self) -> dict[str, dict[str, Any]]:
        """Return the tasks, with the names of 40 or 13 classes and the losses that were chosen."""
        chosen: dict[str, dict[str, Any]] = {
            "semseg": {"classes": class_names(self.semseg_classes)},
            "normals": {"loss": self.normals_loss},
            "edges": {"positive_weight": self.edge_weight},
        }
        return {name: {**spec, **chosen.get(name, {})} for name, spec in self.offers.items()}

    def available(self) -> list[str]:
        """Return the tasks whose folders are there."""
        name = find_layout(self.root) if self.layout == "auto" else self.layout
        return [task for task in self.offers if name and not missing(self.root, LAYOUTS[name], task)]

    def splits(self) -> list[str]:
        """Return the two splits; ``"test"`` is ``"val"``."""
        return ["train", "val"]

    def dataset(self, split: str, tasks: dict[str, Task], transform: Any) -> NYUD:
        """Build one split."""
        return NYUD(
            self.root,
            split,
            tasks,
            transform,
            semseg_classes=self.semseg_classes,
            layout=self.layout,
            normal_axes=self.normal_axes,
            **self.dataset_options,
        )
