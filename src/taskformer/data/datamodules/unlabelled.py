"""Photographs without labels as a part of a mixture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskformer.data.datamodules.base import MultiTaskDataModule
from taskformer.data.datasets.unlabelled import Unlabelled

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from taskformer.data.datasets.base import MultiTaskDataset, Sample
    from taskformer.tasks import Task


class UnlabelledFolder(MultiTaskDataModule):
    """Photographs that only a teacher has something to say about: part of a mixture, for training alone.

    Example:
        >>> from taskformer.data import CombinedDataModule, RoomsDataModule
        >>> data = CombinedDataModule([RoomsDataModule(tasks=["depth"]), UnlabelledFolder("data/rooms/image")])
        >>> data.task_names, data.splits()
        (['depth'], ['train', 'val', 'test'])

    The model then needs a teacher, see ``docs/distillation.md``.

    Args:
        root: The folder of the photographs; those in the folders below it count too.
        tasks: None, there are none.
        **kwargs: The options that all data modules share, see :class:`MultiTaskDataModule`. Those of evaluation do
            nothing.
    """

    name = "unlabelled"

    def __init__(self, root: str = "data/unlabelled", tasks: list[str] | None = None, **kwargs: Any) -> None:
        super().__init__(root, tasks, **kwargs)

    @property
    def predicted_specs(self) -> dict[str, dict[str, Any]]:
        """The tasks of the mixture."""
        return self.mixture

    def task_offers(self) -> dict[str, dict[str, Any]]:
        """Return nothing: there are no labels."""
        return {}

    def splits(self) -> list[str]:
        """Return the names of the splits that differ."""
        return ["train"]

    def dataset(self, split: str, tasks: dict[str, Task], transform: Any) -> Unlabelled:
        """Build the data set; there is no other split than ``"train"``."""
        return Unlabelled(self.root, split, tasks, transform, **self.dataset_options)

    def setup(self, stage: str) -> None:
        """Build the training images; there are no others."""
        if stage == "fit":
            self.datasets["train"] = self._built("train")

    def _part(self, split: str, dataset: MultiTaskDataset) -> Dataset[Sample]:
        """Hold nothing out: what has no labels cannot evaluate."""
        dataset.substitutes = range(len(dataset))
        return dataset
