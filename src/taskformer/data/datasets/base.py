"""What all data sets share: they only know a folder's layout; tasks and transforms are given to them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from torch.utils.data import Dataset

from taskformer.errors import DatasetNotFoundError
from taskformer.tasks import Task

Sample: TypeAlias = dict[str, Any]


class MultiTaskDataset(Dataset[Sample], ABC):
    """Images with one label map per task. Subclasses read the files: :meth:`_ids` and :meth:`_load`.

    Args:
        root: The data set's folder.
        split: Part of the data set, e.g. ``"train"``.
        tasks: The tasks to load, by name.
        transform: Turns a raw sample into tensors, usually a :class:`taskformer.data.transforms.TaskCompose`;
            ``None`` gives the raw numpy arrays and only the labels that the image has.

    Attributes:
        ids: Identifier of each image, in order.

    Raises:
        DatasetNotFoundError: If the files are not there.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        tasks: Mapping[str, Task],
        transform: Callable[[Sample], Sample] | None = None,
    ) -> None:
        self.root = Path(root)
        self.split = split
        self.tasks = dict(tasks)
        self.transform = transform
        self.ids = self._ids()

    @abstractmethod
    def _ids(self) -> list[str]:
        """Return the identifiers of the split's images."""

    @abstractmethod
    def _load(self, index: int) -> Sample:
        """Read one sample.

        Returns:
            ``{"image": (H, W, 3) uint8 RGB, "targets": {task: array of the same H, W}, "meta": {"id", "size", ...}}``.
            Labels are integers, 255 where invalid; other targets float32, NaN where invalid: depth ``(H, W)`` in
            metres, normals ``(H, W, 3)``. A task that the image has no label for is left out.
        """

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        """Return one sample, transformed; tasks without a label are all invalid."""
        sample = self._load(index)
        if self.transform is None:
            return sample
        sample = self.transform(sample)
        height, width = sample["image"].shape[-2:]
        missing = {name: task for name, task in self.tasks.items() if name not in sample["targets"]}
        sample["targets"] |= {name: task.invalid(height, width) for name, task in missing.items()}
        return sample

    def _require(self, path: Path) -> Path:
        """Return the path of a file of this data set, or say that the data set is not there."""
        if not path.exists():
            msg = (
                f"{type(self).__name__}: {path} does not exist, looked from {Path.cwd()}; "
                f"point `data.init_args.root` (now {str(self.root)!r}) to the data set's folder"
            )
            raise DatasetNotFoundError(msg)
        return path
