"""The rendered rooms that come with the package."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from taskformer.data.datasets.base import MultiTaskDataset, Sample
from taskformer.errors import ConfigError
from taskformer.tasks import Task

Readers: TypeAlias = dict[str, Callable[[NDArray[Any]], NDArray[Any]]]

CLASSES = (
    *("wall", "floor", "ceiling", "window", "door", "bed", "sofa", "chair"),
    *("table", "cabinet", "shelf", "lamp", "plant", "appliance", "person", "prop"),
)
#: Colours of the classes in pictures, RGB.
COLORS = (
    *((174, 199, 232), (152, 223, 138), (230, 230, 230), (120, 200, 255)),
    *((214, 39, 40), (255, 187, 120), (140, 86, 75), (188, 189, 34)),
    *((255, 152, 150), (31, 119, 180), (148, 103, 189), (255, 255, 60)),
    *((44, 160, 44), (100, 100, 110), (255, 0, 160), (247, 182, 210)),
)
PARTS = ("background", "head", "torso", "arms", "legs")


def read_depth(pixels: NDArray[np.uint16], units_per_metre: float) -> NDArray[np.float32]:
    """Turn 16-bit depth ``(H, W)`` into metres, 0 into NaN."""
    depth: NDArray[np.float32] = np.divide(pixels, units_per_metre).astype(np.float32)
    depth[pixels == 0] = np.nan
    return depth


def read_normals(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Turn 8-bit colours ``(H, W, 3)`` into unit vectors; (128, 128, 128) marks invalid pixels."""
    normals = pixels.astype(np.float32) / np.float32(127.5) - 1
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    normals[(pixels == 128).all(axis=-1)] = np.nan
    return normals


def read_share(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Turn 8-bit values into 0..1."""
    return (pixels / 255).astype(np.float32)


def read_mask(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Turn 0 and 255 into 0 and 1."""
    return (pixels > 127).astype(np.uint8)


def read_labels(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return class ids as they are, 255 where invalid."""
    return pixels


#: How the files of each task are read; depth also needs its unit.
READERS: Readers = {
    "semseg": read_labels,
    "human_parts": read_labels,
    "saliency": read_mask,
    "normals": read_normals,
    "edges": read_share,
    "reshading": read_share,
}


class Rooms(MultiTaskDataset):
    """Small rendered rooms with exact labels: ``semseg``, ``depth``, ``normals``, ``edges`` and more.

    Layout: ``rooms.json`` (classes, palette, units), ``{train,val,test}.json`` (a list of images), and one folder per
    map with ``ID.png`` (``image/ID.jpg``).

    Args:
        root: The data set's folder.
        split: ``"train"``, ``"val"`` or ``"test"``.
        tasks: The tasks to load, by name: any that ``data.RoomsDataModule`` offers.
        transform: See :class:`MultiTaskDataset`.

    Raises:
        DatasetNotFoundError: If the files are not there.
        ConfigError: If ``rooms.json`` names other classes than this version of the package.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        tasks: Mapping[str, Task],
        transform: Callable[[Sample], Sample] | None = None,
    ) -> None:
        super().__init__(root, split, tasks, transform)
        info = json.loads(self._require(self.root / "rooms.json").read_text())
        if tuple(info["classes"]) != CLASSES:
            msg = f"{self.root / 'rooms.json'} has the classes {info['classes']}, this version expects {list(CLASSES)}"
            raise ConfigError(msg)
        self._readers: Readers = {**READERS, "depth": partial(read_depth, units_per_metre=info["depth_units_per_m"])}

    def _ids(self) -> list[str]:
        self._records: list[dict[str, Any]] = json.loads(self._require(self.root / f"{self.split}.json").read_text())
        return [record["id"] for record in self._records]

    def _load(self, index: int) -> Sample:
        name = self.ids[index]
        image = np.asarray(Image.open(self._require(self.root / "image" / f"{name}.jpg")).convert("RGB"))
        targets = {task: self._read(task, name) for task in self.tasks}
        return {"image": image, "targets": targets, "meta": {**self._records[index], "size": image.shape[:2]}}

    def _read(self, task: str, name: str) -> NDArray[Any]:
        return self._readers[task](np.asarray(Image.open(self._require(self.root / task / f"{name}.png"))))
