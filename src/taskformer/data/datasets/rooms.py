"""The rendered rooms that come with the package."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskformer.data.datasets.base import MultiTaskDataset
from taskformer.data.geometry import decode_normals
from taskformer.data.images import File, read_ids, read_pixels, read_plane, read_rgb
from taskformer.errors import ConfigError, CorruptFileError

CLASSES = (
    *("wall", "floor", "ceiling", "window", "door", "bed", "sofa", "chair"),
    *("table", "cabinet", "shelf", "lamp", "plant", "appliance", "person", "prop"),
)
#: Colours of the classes in pictures, RGB: those that colour-blind people tell apart best, see tasks/colors.py.
COLORS = (
    *((200, 200, 200), (160, 200, 120), (240, 255, 255), (86, 180, 233)),
    *((213, 94, 0), (204, 121, 167), (0, 114, 178), (120, 0, 0)),
    *((120, 80, 80), (230, 159, 0), (120, 120, 255), (240, 228, 66)),
    *((0, 158, 115), (0, 40, 160), (0, 0, 255), (160, 255, 200)),
)
PARTS = ("background", "head", "torso", "arms", "legs")


def read_depth(pixels: NDArray[np.uint16], units_per_metre: float) -> NDArray[np.float32]:
    """Turn 16-bit depth ``(H, W)`` into metres, 0 into NaN."""
    depth: NDArray[np.float32] = np.divide(pixels, units_per_metre).astype(np.float32)
    depth[pixels == 0] = np.nan
    return depth


class Rooms(MultiTaskDataset):
    """Small rendered rooms with exact labels: ``semseg``, ``depth``, ``normals``, ``edges`` and more.

    Layout: ``rooms.json`` (classes, palette, units), ``{train,val,test}.json`` (a list of images), and one folder per
    map with ``ID.png`` (``image/ID.jpg``). The arguments are those of :class:`MultiTaskDataset`.

    Raises:
        DatasetNotFoundError: If the files are not there.
        CorruptFileError: If ``rooms.json`` or the list of images is broken.
        ConfigError: If ``rooms.json`` names other classes than this version of the package.
    """

    def _ids(self) -> list[str]:
        path = self.root / f"{self.split}.json"
        self._records: list[dict[str, Any]] = self._read_json(path)
        if not isinstance(self._records, list) or not all(
            isinstance(record, dict) and isinstance(record.get("id"), str) for record in self._records
        ):
            msg = f"{path} must be a list of images, each with its 'id'; get the file again"
            raise CorruptFileError(msg)
        self._units_per_metre = self._read_units()
        return [record["id"] for record in self._records]

    def _read_units(self) -> float:
        """Read the units of depth from ``rooms.json``, whose classes must be ours."""
        path = self.root / "rooms.json"
        try:
            info = self._read_json(path)
            classes, units = tuple(info["classes"]), float(info["depth_units_per_m"])
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, CorruptFileError):
                raise
            msg = f"{path} must give the 'classes' and 'depth_units_per_m' of the rooms ({error!r}); get the file again"
            raise CorruptFileError(msg) from error
        if classes != CLASSES:
            msg = f"{path} has the classes {list(classes)}, this version expects {list(CLASSES)}"
            raise ConfigError(msg)
        return units

    def files(self, index: int) -> dict[str, Path]:
        """Return the image and one PNG per task."""
        name = self.ids[index]
        image = {"image": self.root / "image" / f"{name}.jpg"}
        return image | {task: self.root / task / f"{name}.png" for task in self.tasks}

    def decode(self, key: str, files: Mapping[str, File]) -> NDArray[Any]:
        """Turn a file into the image or a task's target."""
        file = files[key]
        if key == "image":
            return read_rgb(file)
        if key == "normals":
            return decode_normals(read_pixels(file))
        if key in ("semseg", "human_parts"):
            return read_ids(file)
        pixels = read_plane(file)
        if key == "depth":
            return read_depth(pixels, self._units_per_metre)
        if key == "saliency":
            return (pixels > 127).astype(np.uint8)
        if key in ("edges", "reshading"):
            return (pixels / 255).astype(np.float32)
        return pixels

    def meta(self, index: int) -> dict[str, Any]:
        """Return the image's record: its room, kind of room and camera."""
        return dict(self._records[index])
