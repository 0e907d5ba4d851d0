"""PASCAL-Context as a data module."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from taskformer.data.datamodules.base import MultiTaskDataModule
from taskformer.data.datasets.pascal_context import CLASSES, COLORS, FOLDERS, NORMAL_AXES, PASCALContext
from taskformer.errors import require

if TYPE_CHECKING:
    from taskformer.tasks import Task


class PASCALContextDataModule(MultiTaskDataModule):
    """PASCAL-Context with semantic classes, human parts, saliency, normals and edges; tested on the validation split.

    >>> data = PASCALContextDataModule(tasks=["human_parts", "edges"], batch_size=4)
    >>> data.task_specs
    {'human_parts': {'needs_people': True}, 'edges': {'positive_weight': 0.95, 'max_dist': 0.0075}}

    The images have different sizes: pad them to one (``eval_transforms``), so that results do not depend on the batch.

    Args:
        root: The data set's folder, relative to the current one: ``PASCALContext``, ``PASCAL_MT``, or what
            ``taskformer data prepare pascal_context`` made.
        tasks: Any of ``semseg``, ``human_parts``, ``saliency``, ``normals`` and ``edges``; ``None`` uses all.
        people_only: Whether training leaves out images without a person where ``human_parts`` is the only task, unless
            it is one of ``one_label_of``.
        normal_axes: For x (right), y (down) and z (into the scene) the stored channel that holds it, 1 to 3, negative
            if it has the other sign.
        edge_weight: Weight of edge pixels in the loss of ``edges``; the rest has 1 minus it.
        **kwargs: The options that all data modules share, see :class:`MultiTaskDataModule`.
    """

    name = "pascal_context"
    offers: ClassVar[dict[str, dict[str, Any]]] = {
        "semseg": {"classes": list(CLASSES), "colors": [list(color) for color in COLORS]},
        "human_parts": {"needs_people": True},
        "saliency": {},
        "normals": {},
        "edges": {"positive_weight": 0.95, "max_dist": 0.0075},
    }
    published: ClassVar[dict[str, int]] = {"train": 4998, "val": 5105}

    def __init__(
        self,
        root: str = "data/pascal_context",
        tasks: list[str] | None = None,
        *,
        people_only: bool = True,
        normal_axes: tuple[int, int, int] = NORMAL_AXES,
        edge_weight: float = 0.95,
        **kwargs: Any,
    ) -> None:
        require("(0, 1)", edge_weight=edge_weight)
        self.edge_weight = edge_weight  # the tasks on offer depend on it
        super().__init__(root, tasks, **kwargs)
        self.people_only = people_only
        self.normal_axes = normal_axes

    def task_offers(self) -> dict[str, dict[str, Any]]:
        """Return the tasks, with the weight of edges that was chosen."""
        return {**self.offers, "edges": {**self.offers["edges"], "positive_weight": self.edge_weight}}

    def available(self) -> list[str]:
        """Return the tasks whose folders exist; what the owners publish gives no saliency and no normals."""
        return [task for task, folder in FOLDERS.items() if (Path(self.root) / folder).is_dir()]

    def splits(self) -> list[str]:
        """Return the names of the splits that differ."""
        return ["train", "val"]

    def dataset(self, split: str, tasks: dict[str, Task], transform: Any) -> PASCALContext:
        """Build one split; ``"test"`` is ``"val"``."""
        alone = self.task_names == ["human_parts"] and not self.one_label_of
        people_only = self.people_only and split == "train" and alone
        return PASCALContext(
            self.root,
            "val" if split == "test" else split,
            tasks,
            transform,
            people_only=people_only,
            normal_axes=self.normal_axes,
            **self.dataset_options,
        )
