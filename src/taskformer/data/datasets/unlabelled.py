"""Any folder of photographs, without labels."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from taskformer.data.datasets.base import IMAGE, MultiTaskDataset
from taskformer.data.images import File, read_rgb
from taskformer.data.names import ends_with, is_hidden
from taskformer.errors import DatasetNotFoundError
from taskformer.pictures import IMAGE_SUFFIXES


class Unlabelled(MultiTaskDataset):
    """The photographs in a folder and all folders below it, upright as viewers show them; hidden ones are left out.

    An image's identifier is its path below the root, with its ending.

    Args:
        root: The folder.
        split: Its name in messages; all photographs are of one split.
        *args: What else :class:`MultiTaskDataset` takes; there are no tasks.
        **kwargs: The same as ``args``, by name.

    Raises:
        DatasetNotFoundError: If there is no photograph.
    """

    orientation = "image"

    def _ids(self) -> list[str]:
        found = []
        for folder, folders, names in os.walk(self._require(self.root), followlinks=True):
            folders[:] = [name for name in folders if not is_hidden(name)]
            found += [Path(folder, name) for name in names if not is_hidden(name) and ends_with(name, IMAGE_SUFFIXES)]
        if not found:
            msg = f"no photograph in {str(self.root)!r} or below it; expected files of {', '.join(IMAGE_SUFFIXES)}"
            raise DatasetNotFoundError(msg)
        return sorted(path.relative_to(self.root).as_posix() for path in found)

    def files(self, index: int) -> dict[str, Path]:
        """Return the photograph."""
        return {IMAGE: self.root / self.ids[index]}

    def decode(self, key: str, files: Mapping[str, File]) -> NDArray[Any] | None:
        """Turn the file into the image; no task has a label."""
        return read_rgb(files[IMAGE], upright=True) if key == IMAGE else None
