"""Any folder of images and label maps, described by file name patterns instead of code."""

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from itertools import pairwise
from operator import methodcaller
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from taskformer.data.datasets.base import IMAGE, MultiTaskDataset
from taskformer.data.geometry import decode_normals, label_edges, map_kind, normal_vectors
from taskformer.data.images import (
    ARRAY_SUFFIXES,
    File,
    holds_array,
    read_array,
    read_ids,
    read_pixels,
    read_plane,
    read_rgb,
)
from taskformer.data.names import ends_with, examples, existing, is_hidden, uniform_hash
from taskformer.errors import ConfigError, CorruptFileError, DatasetNotFoundError, InvalidTargetError, UnknownNameError
from taskformer.pictures import IMAGE_SUFFIXES, Orientation, orientation, turned
from taskformer.tasks import IGNORE_INDEX, Task

#: Fields of :class:`Label` that mean something for kinds of maps that do not hold plain values.
_MEANINGFUL_FOR_VALUES = {"divide_by", "add", "invalid"}
_MEANINGFUL: dict[str | None, set[str]] = {
    "label": {"ids"},
    "lines": {*_MEANINGFUL_FOR_VALUES, "boundaries"},
    "vector": {"axes", "invalid"},
    None: set(),
}


@dataclass
class Label:
    """Where the labels of one task lie and what their stored values mean.

    Args:
        file: Pattern of the file's path below the root, e.g. ``gtFine/{split}/{id}_label.png``: an array (``.npy``;
            ``.npz`` or ``.mat``, where it is the only one or called like the task), or an image of any kind. An image
            without this file has no label for the task.
        spec: Options of the task, e.g. ``{classes: [road, sky]}`` or ``{max_depth: 80}``; ``type`` where the task's
            name is none of the known ones.
        ids: For label maps: the stored value, or list of values, of each class in turn; all other values mean no label.
            By default stored values are class ids and 255 means no label; for saliency 0, and 1 or 255.
        divide_by: For depth, edges and other values: what stored values are divided by, e.g. 1000 for depth in
            millimetres, 255 for edges drawn in white.
        add: For depth, edges and other values: what is added after the division.
        invalid: Stored value, besides NaN and infinity, that means no label; for normals in all three channels. Depth
            that is not above 0 and normals that are far from unit length never are labels.
        axes: For normals: for x (right), y (down) and z (into the scene) the stored channel that holds it, 1 to 3,
            negative if it has the other sign: ``[1, -2, -3]`` where y is up and z towards the camera. Normals in images
            are stored as colours, ``(n + 1) / 2`` of the full range.
        boundaries: For edges: whether the file holds class ids, and edges are the lines of one pixel between different
            ones. Pixels of id 255, and those beside them, have no label.
    """

    file: str
    spec: dict[str, Any] = field(default_factory=dict)
    ids: list[int | list[int]] | None = None
    divide_by: float = 1.0
    add: float = 0.0
    invalid: float | None = None
    axes: list[int] = field(default_factory=lambda: [1, 2, 3])
    boundaries: bool = False


class Folder(MultiTaskDataset):
    """Images and labels found by patterns of their paths.

    Args:
        root: The data set's folder.
        split: Which of ``splits``.
        tasks: The tasks to load, by name: any of ``labels``.
        *args: What else :class:`MultiTaskDataset` takes.
        image: Pattern of the images' paths below the root, with ``{id}`` (which may span folders) and perhaps
            ``{split}``.
        labels: Where each task's labels are.
        splits: What ``{split}`` stands for, by split; where the image's pattern has no ``{split}``, the share of the
            images (a number; which ones follows from their ids alone) or a text file below the root, one id per line.
        border: Width in pixels of a frame at the edge of the image where no label counts.
        orientation: What the orientation tags of images turn: nothing (``"stored"``), the image, whose labels were
            drawn on it as viewers show it (``"image"``), or the image and its labels, which fit its stored pixels
            (``"both"``).
        **kwargs: The same as ``args``, by name.

    Raises:
        DatasetNotFoundError: If no image, or no label of a task, matches its pattern.
        ConfigError: If patterns, labels or splits contradict themselves, or two files have one id.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        tasks: Mapping[str, Task],
        *args: Any,
        image: str,
        labels: Mapping[str, Label],
        splits: Mapping[str, float | str],
        border: int = 0,
        orientation: Orientation = "stored",
        **kwargs: Any,
    ) -> None:
        if split not in splits:
            kind = "split"
            raise UnknownNameError(kind, split, splits)
        for key, pattern in {"image": image, **{name: label.file for name, label in labels.items()}}.items():
            _check_pattern(key, pattern)
        self._source = splits[split]
        self._shares = {name: share for name, share in splits.items() if not isinstance(share, str)}
        self._has_folders = "{split}" in image
        if self._has_folders and split in self._shares:
            msg = f"splits.{split} is {self._source}; as image is {image!r}, it must name the folder for {{split}}"
            raise ConfigError(msg)
        folder = str(self._source) if self._has_folders else split
        self._image = image.replace("{split}", folder)
        self._all_labels = {label.file.replace("{split}", folder) for label in labels.values()}
        self._patterns = {name: labels[name].file.replace("{split}", folder) for name in tasks}
        self._decoders = {name: _Decoder(labels[name], task) for name, task in tasks.items()}
        self._border = border
        self.orientation = orientation
        super().__init__(root, split, tasks, *args, **kwargs)

    def _ids(self) -> list[str]:
        ids = self._found() if self._has_folders or self.split in self._shares else self._listed()
        if not ids:
            raise self._nothing("image", self._image, "no image")
        if self.split in self._shares:
            ids = self._share_of(ids)
        for name, pattern in self._patterns.items():
            if not any(existing(self.root / _path(pattern, image)).exists() for image in ids):
                msg = f"none of the {len(ids)} images of the split {self.split!r} has a label for {name!r}: no file"
                raise self._nothing(f"labels.{name}.file", pattern, msg)
        return ids

    def _listed(self) -> list[str]:
        """Ids in the split's text file."""
        path = self.root / str(self._source)
        if not path.is_file():
            msg = (
                f"Folder: splits.{self.split} is {self._source!r}, but {path} is not a file (working directory: "
                f"{Path.cwd()}); as image is {self._image!r}, it must be a share or a text file below the root with "
                "one id per line"
            )
            raise DatasetNotFoundError(msg)
        return self._read_list(path)

    def _found(self) -> list[str]:
        """Ids of the files that match the image's pattern, without those that are labels of another."""
        ids = sorted(find_ids(self.root, self._image))
        if twice := [name for name, other in pairwise(ids) if name == other]:
            msg = f"{self.root} has two files {_path(self._image, twice[0])!r}, in capitals and not; rename one of them"
            raise ConfigError(msg)
        labels = {_path(pattern, name) for name in ids for pattern in self._all_labels - {self._image}}
        return [name for name in ids if _path(self._image, name) not in labels]

    def _share_of(self, ids: list[str]) -> list[str]:
        """Ids whose number in [0, 1) falls into the split's share: an image keeps its split when others come."""
        shares = list(self._shares.values())
        if min(shares) <= 0 or sum(shares) > 1 + 1e-9:
            msg = f"splits must be shares above 0 that sum up to at most 1, got {self._shares}"
            raise ConfigError(msg)
        place = list(self._shares).index(self.split)
        low, high = sum(shares[:place]), sum(shares[: place + 1])
        chosen = [name for name in ids if low <= uniform_hash(name) < high]
        if not chosen:
            msg = (
                f"splits.{self.split} {shares[place]} gives none of the {len(ids)} images in {self.root}; "
                "give it more, or name text files of ids"
            )
            raise ConfigError(msg)
        return chosen

    def _nothing(self, key: str, pattern: str, message: str) -> DatasetNotFoundError:
        return DatasetNotFoundError(
            f"Folder: {message} matches {pattern!r} in {str(self.root)!r} (working directory: {Path.cwd()}); "
            f"{what_is_there(self.root, pattern)}; correct data.init_args.root, {key} or splits"
        )

    def files(self, index: int) -> dict[str, Path]:
        """Return the image and the labels that it has."""
        name = self.ids[index]
        labels = {task: existing(self.root / _path(pattern, name)) for task, pattern in self._patterns.items()}
        image = {IMAGE: self.root / _path(self._image, name)}
        return image | {task: path for task, path in labels.items() if path.exists()}

    def decode(self, key: str, files: Mapping[str, File]) -> NDArray[Any] | None:
        """Turn a file into the image or a task's target."""
        if key == IMAGE:
            image = _read_image(files[key])
            return image if self.orientation == "stored" else turned(image, orientation(files[IMAGE]))
        if key not in files:
            return None
        target = self._decoders[key](files[key])
        if self.orientation == "both" and map_kind(self.tasks[key]):
            target = turned(target, orientation(files[IMAGE]), self.tasks[key].geometry == "vector")
        if self._border and map_kind(self.tasks[key]):
            inner = (slice(self._border, -self._border),) * 2
            framed = np.full_like(target, np.nan if target.dtype.kind == "f" else IGNORE_INDEX)
            framed[inner] = target[inner]
            return framed
        return target

    def doubts(self) -> Iterator[str]:
        """Find files that match no pattern, and labels of no image."""
        images = set(find_ids(self.root, self._image))
        patterns = [_expression(pattern) for pattern in (self._image, *self._all_labels)]
        strangers = [
            path
            for path in _files_below(self.root, _start(self._image))
            if ends_with(path, (*IMAGE_SUFFIXES, *ARRAY_SUFFIXES))
            and not any(map(methodcaller("fullmatch", path), patterns))
        ]
        if strangers:
            yield f"{len(strangers)} files match neither image nor labels: {examples(sorted(strangers))}"
        for task, pattern in self._patterns.items():
            if orphans := sorted(set(find_ids(self.root, pattern)) - images):
                files = [_path(pattern, name) for name in orphans]
                yield f"{len(files)} files of {task!r} belong to no image: {examples(files)}"


@dataclass  # so that a cache of what it decodes knows its options
class _Decoder:
    """Reads the files of one task's labels.

    Args:
        label: What stored values mean.
        task: The task.
    """

    label: Label
    task: Task

    def __post_init__(self) -> None:
        label, task = self.label, self.task
        self.kind = map_kind(task)
        self.table = _table(task, label.ids) if self.kind == "label" else None
        for name in _changed(label) - _MEANINGFUL.get(self.kind, _MEANINGFUL_FOR_VALUES) - {"file", "spec"}:
            msg = f"labels.{task.name}.{name} means nothing for a {type(task).__name__} task; leave it out"
            raise ConfigError(msg)
        numbers = math.isfinite(label.divide_by) and math.isfinite(label.add)
        if label.divide_by == 0 or not numbers or sorted(map(abs, label.axes)) != [1, 2, 3]:
            msg = (
                f"labels.{task.name} needs divide_by other than 0 and axes that are 1, 2 and 3 in some order and with "
                f"some signs, got {label.divide_by} and {label.axes}"
            )
            raise ConfigError(msg)

    def __call__(self, file: File) -> NDArray[Any]:
        """Return the target, see :meth:`MultiTaskDataset.decode`."""
        stored = self._shaped(self._stored(file), file)
        if self.kind == "label":
            return self._classes(stored, file)
        if self.kind is None:
            return stored.astype(np.float32)
        if self.label.boundaries:
            return _boundaries(stored)
        values = self._normals(stored) if self.kind == "vector" else self._values(stored, file)
        no_label = ~np.isfinite(values)
        if self.label.invalid is not None:
            marked = stored == self.label.invalid
            no_label |= marked.all(axis=-1, keepdims=True) if stored.ndim == 3 else marked
        values[no_label] = np.nan
        return values

    def _stored(self, file: File) -> NDArray[Any]:
        if self.kind is None or holds_array(file):
            return read_array(file, (self.task.name,))
        if self.kind == "label" or self.label.boundaries:
            return read_ids(file)
        return read_plane(file) if self.task.channels == 1 else read_pixels(file)

    def _shaped(self, stored: NDArray[Any], file: File) -> NDArray[Any]:
        """Refuse arrays that are not maps with the task's number of channels."""
        if self.kind is None:
            return stored
        channels = 1 if self.kind == "label" else self.task.channels
        if channels == 1 and stored.ndim == 3 and stored.shape[2] == 1:
            stored = stored[..., 0]
        if (
            stored.dtype.kind not in "biuf"
            or stored.ndim != (2 if channels == 1 else 3)
            or stored.shape[2:] not in ((), (channels,))
        ):
            shape = "(height, width)" if channels == 1 else f"(height, width, {channels})"
            msg = (
                f"{file.path} holds {stored.dtype} {stored.shape}, labels of {self.task.name!r} must be numbers {shape}"
            )
            raise CorruptFileError(msg)
        return stored

    def _classes(self, stored: NDArray[Any], file: File) -> NDArray[Any]:
        if stored.dtype.kind not in "iub":
            msg = f"{file.path} holds {stored.dtype}, labels of {self.task.name!r} must be integers"
            raise InvalidTargetError(msg)
        if self.table is not None:
            # Above the largest listed value and below 0 (index -1) is the table's last entry, which is "no label".
            known = np.clip(stored.astype(np.int64), -1, len(self.table) - 1)
            classes: NDArray[np.uint8] = self.table[known]
            return classes
        count = len(self.task.classes) or IGNORE_INDEX
        wrong = (stored != IGNORE_INDEX) & ((stored < 0) | (stored >= count))
        if wrong.any():
            msg = (
                f"{file.path} holds the values {np.unique(stored[wrong])[:10].tolist()}, the classes of "
                f"{self.task.name!r} are 0..{count - 1} and 255 means no label; "
                f"set labels.{self.task.name}.ids to the stored value of each class"
            )
            raise InvalidTargetError(msg)
        return stored

    def _values(self, stored: NDArray[Any], file: File) -> NDArray[np.float32]:
        values: NDArray[np.float32] = np.divide(stored, self.label.divide_by, dtype=np.float32)
        values += np.float32(self.label.add)
        if self.kind == "depth":
            values[~(values > 0)] = np.nan
        if self.kind == "lines" and values.max(initial=0.0) > 1:
            msg = (
                f"{file.path} gives edges up to {values.max():g}, at most 1 was expected; set "
                f"labels.{self.task.name}.divide_by to the stored value of an edge, e.g. 255"
            )
            raise InvalidTargetError(msg)
        return values

    def _normals(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        if stored.dtype == np.uint8:
            normals = decode_normals(stored)
        elif stored.dtype.kind == "u":
            normals = normal_vectors(stored / (np.iinfo(stored.dtype).max / 2) - 1)
        else:
            normals = normal_vectors(stored)
        channels, signs = np.abs(self.label.axes) - 1, np.sign(self.label.axes)
        ours: NDArray[np.float32] = normals[..., channels] * signs.astype(np.float32)
        return ours


def _boundaries(ids: NDArray[Any]) -> NDArray[np.float32]:
    """Draw the boundaries of classes ``(H, W)``: 1 there, 0 elsewhere, NaN at and beside pixels without a class."""
    lines = label_edges(ids)
    unknown = (ids == IGNORE_INDEX).astype(np.uint8)
    lines[cv2.dilate(unknown, np.ones((3, 3), np.uint8)) > 0] = np.nan
    return lines


def find_ids(root: Path, pattern: str) -> Iterator[str]:
    """Find what ``{id}`` stands for in the paths below ``root`` that match a pattern; hidden files are left out."""
    matching = _expression(pattern)
    for path in _files_below(root, _start(pattern)):
        if found := matching.fullmatch(path):
            yield found["id"]


def _expression(pattern: str) -> re.Pattern[str]:
    """Compile a pattern of paths; its ending matches in any case."""
    ending = re.search(r"(\.\w+)?$", pattern)
    place = ending.start() if ending else len(pattern)
    first, *rest = (re.escape(part) for part in pattern[:place].split("{id}"))
    return re.compile(f"{first}(?P<id>.+){'(?P=id)'.join(rest)}(?i:{re.escape(pattern[place:])})")


def _start(pattern: str) -> str:
    """Return the folder that all paths of a pattern begin with."""
    return pattern.split("{id}")[0].rpartition("/")[0]


def _files_below(root: Path, start: str) -> Iterator[str]:
    """List the paths, from ``root``, of the visible files in one of its folders and in all visible ones below."""
    for folder, folders, names in os.walk(root / start, followlinks=True):
        folders[:] = [name for name in folders if not is_hidden(name)]
        parent = Path(os.path.relpath(folder, root))
        yield from ((parent / name).as_posix() for name in names if not is_hidden(name))


def what_is_there(root: Path, pattern: str) -> str:
    """Describe what lies where files of a pattern were expected."""
    if not root.is_dir():
        return f"there is no folder {str(root)!r}"
    folder = root
    for part in pattern.split("/")[:-1]:
        if "{" in part or not (folder / part).is_dir():
            break
        folder /= part
    for parent, folders, names in os.walk(folder):
        folders.sort()
        if names:
            return f"a file there is {os.path.relpath(Path(parent, min(names)), root)!r}"
    return f"there is no file in {str(folder)!r}"


def _check_pattern(key: str, pattern: str) -> None:
    found = set(re.findall(r"{(\w*)}", pattern))
    if "id" not in found or not found <= {"id", "split"}:
        msg = f"the pattern of {key} must contain {{id}}, may contain {{split}} and no other braces; got {pattern!r}"
        raise ConfigError(msg)


def _path(pattern: str, name: str) -> str:
    return pattern.replace("{id}", name)


def _changed(label: Label) -> set[str]:
    """Names of the fields that differ from their defaults."""
    defaults = {
        item.name: item.default if item.default_factory is MISSING else item.default_factory() for item in fields(label)
    }
    return {name for name, default in defaults.items() if getattr(label, name) != default}


def _table(task: Task, ids: list[int | list[int]] | None) -> NDArray[np.uint8] | None:
    """Make the class id of each stored value; the last entry, one above the largest listed value, means no label."""
    given = task.stored_ids if ids is None else ids
    if given is None:
        return None
    values = [[value] if isinstance(value, int) else value for value in given]
    listed = [value for group in values for value in group]
    if len(values) != task.channels or len(set(listed)) != len(listed) or min(listed, default=-1) < 0:
        msg = (
            f"labels.{task.name}.ids must list the stored value or values, each once and none below 0, of every one of "
            f"the {task.channels} classes in turn; got {given}"
        )
        raise ConfigError(msg)
    table = np.full(max(listed) + 2, IGNORE_INDEX, dtype=np.uint8)
    for number, group in enumerate(values):
        table[group] = number
    return table


def _read_image(file: File) -> NDArray[np.uint8]:
    if not holds_array(file):
        return read_rgb(file)
    image = read_array(file, (IMAGE,))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        msg = f"{file.path} holds {image.dtype} {image.shape}, an image must be uint8 (H, W, 3)"
        raise CorruptFileError(msg)
    return image
