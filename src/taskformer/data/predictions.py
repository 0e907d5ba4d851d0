"""Predictions as files ``FOLDER/TASK/ID.png``, ``.npy`` or ``.mat``, as the field's evaluators write and read them.

What a file holds is known by its content: class ids are whole numbers, probabilities floats or shares of the largest
number of 8 or 16 bits, normals floats or colours, all else (depth in metres, ...) floats in the task's unit. Numbers
that can only be in another unit are refused.

Beside labels they are targets of their own, :class:`SavedPredictions`: what a teacher says, augmented with the image as
labels are.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taskformer.data.geometry import map_kind, resize_map
from taskformer.data.images import (
    File,
    holds_array,
    read_array,
    read_ids,
    read_pixels,
    read_plane,
    write_npy,
    write_png,
)
from taskformer.data.names import ends_with, files_in, is_hidden
from taskformer.errors import ConfigError, CorruptFileError, DatasetNotFoundError, InvalidTargetError
from taskformer.tasks import Task

if TYPE_CHECKING:
    from taskformer.data.transforms import Transform

SUFFIXES = (".png", ".npy", ".npz", ".mat", ".tif", ".tiff")


def write_prediction(folder: Path, task: Task, name: str, output: Tensor) -> None:
    """Write the raw output of one image as the task stores it.

    Args:
        folder: Folder of all predictions; the task has one below it.
        task: The task.
        name: The image's identifier.
        output: ``(channels, H, W)``, or ``(channels,)`` of a whole image.
    """
    values = task.store(output)
    path = folder / task.name / file_name(name)
    if values.dtype == np.uint8:
        write_png(path.with_name(f"{path.name}.png"), values)
    else:
        write_npy(path.with_name(f"{path.name}.npy"), values)


def file_name(name: str) -> str:
    """Make an image's identifier a file's name; that of another image is another one."""
    return quote(name, safe=" +,=@")


def task_folder(folder: Path, task: Task) -> Path | None:
    """Find the folder of a task's predictions, also under the name that other programs give it."""
    candidates = [folder / name for name in (task.name, *task.other_names)]
    return next((path for path in candidates if path.is_dir()), None)


def find_prediction(folder: Path, name: str) -> Path | None:
    """Find the file of one image's prediction, see :func:`find_predictions`."""
    return find_predictions(folder, [name])[0]


def find_predictions(folder: Path, names: Sequence[str]) -> list[Path | None]:
    """Find the files of images' predictions in the folder of a task, None where there is none.

    Raises:
        CorruptFileError: If an image has several.
    """
    there: dict[str, list[Path]] = {}
    for path in files_in(folder, SUFFIXES):
        there.setdefault(path.stem, []).append(path)
    found = [there.get(file_name(name), []) for name in names]
    if several := next((paths for paths in found if len(paths) > 1), None):
        listed = ", ".join(sorted(path.name for path in several))
        msg = f"{folder} has several predictions of one image: {listed}; keep one"
        raise CorruptFileError(msg)
    return [paths[0] if paths else None for paths in found]


def read_prediction(path: Path, task: Task, axes: Sequence[int] = (1, 2, 3)) -> Tensor:
    """Read a prediction as a raw output ``(channels, H, W)`` with the same scores.

    Args:
        path: The file. Pictures of normals hold ``(n + 1) / 2 * 255``, in the axes of the data set's own files.
        task: The task.
        axes: For x (right), y (down) and z (into the scene) the channel of a picture that holds it, 1 to 3, negative
            if it has the other sign.

    Raises:
        CorruptFileError: If the file cannot be read, or does not hold a prediction of the task.
    """
    file = File(str(path), path.read_bytes())
    stored = _read(file, task)
    try:
        output = task.restore(stored)
    except InvalidTargetError as error:
        msg = f"{path}: {error}"
        raise CorruptFileError(msg) from error
    if task.geometry == "vector" and not holds_array(file):
        signs = torch.tensor(np.sign(axes), dtype=output.dtype).view(-1, 1, 1)
        output = output[np.abs(axes) - 1] * signs
    return output


def taken_as(path: Path, task: Task) -> str:
    """Say in a few words what the numbers of a prediction are taken for, e.g. ``uint8 of .png, shares of 255``."""
    stored = _read(File(str(path), path.read_bytes()), task)
    if task.stores_classes:
        meaning = "class ids"
    elif stored.dtype.kind == "u":
        meaning = "colours" if task.geometry == "vector" else f"shares of {np.iinfo(stored.dtype).max}"
    else:
        unit = task.units[task.headline] if task.geometry in ("depth", "inverse_depth") else ""
        meaning = f"in {unit}" if unit else "as they are"
    return f"{stored.dtype} of {path.suffix.lower()}, {meaning}"


def _read(file: File, task: Task) -> NDArray[Any]:
    """Read the array that a file of any kind holds."""
    if holds_array(file):
        return read_array(file, (task.name, *task.other_names))
    if task.stores_classes:
        return read_ids(file)
    return read_plane(file) if task.channels == 1 or task.geometry == "label" else read_pixels(file)


def is_only_padded(transforms: Sequence["Transform"]) -> bool:
    """Whether transforms leave images as they are but for borders around them."""
    from taskformer.data.transforms import Pad  # with albumentations, which takes seconds to import

    return all(isinstance(step, Pad) and step.position == "center" for step in transforms)


def without_padding(output: Tensor, size: Sequence[int], transforms: Sequence["Transform"]) -> Tensor:
    """Cut what an image shows out of a map ``(C, H, W)`` of the image as the network saw it.

    Args:
        output: The map.
        size: Height and width of the image before the transforms.
        transforms: The transforms. If they do more than pad, the map is returned as it is.
    """
    if output.ndim != 3 or not is_only_padded(transforms):
        return output
    # Batches are padded on the right and at the bottom, see collate; Pad centres.
    place, padded = [0, 0], list(size)
    for step in transforms:
        for axis, least in enumerate((step.height, step.width)):
            place[axis] += max(0, least - padded[axis]) // 2
            padded[axis] = max(least, padded[axis])
    return output[:, place[0] : place[0] + size[0], place[1] : place[1] + size[1]]


def saved(name: str) -> str:
    """Name the saved prediction of a task among the targets of a sample."""
    return f"{name}:saved"


class SavedPredictions:
    """Predictions of a data set's images as targets, in the form of labels.

    Args:
        folder: What ``predict`` or ``test`` has written: a folder for each task, or ``raw`` with those.
        tasks: The tasks of the data set; those without a folder have no predictions.
        names: The identifiers of its images. An image's files are named by it, or by it without its ending.
        resized: Whether images are resized when they are loaded, as their predictions then are.

    Raises:
        DatasetNotFoundError: If no image has a prediction of any task.
        ConfigError: If a prediction of a task is no label of it.
    """

    def __init__(self, folder: Path, tasks: Mapping[str, Task], names: Sequence[str], resized: bool = False) -> None:
        self.resized = resized
        parent = folder / "raw" if (folder / "raw").is_dir() else folder
        folders = {name: task_folder(parent, task) for name, task in tasks.items()}
        self.tasks = {name: tasks[name] for name, path in folders.items() if path is not None}
        self.files = {name: _files_below(path) for name, path in folders.items() if path is not None}
        if not any(self._file(task, name) for task in self.files for name in names):
            msg = (
                f"data.init_args.predictions: {folder} has no prediction of {', '.join(tasks)} for any of the "
                f"{len(names)} images, such as {next(iter(tasks), 'depth')}/{file_name(names[0])}.npy; give what "
                "`taskformer predict` has written for these images"
            )
            raise DatasetNotFoundError(msg)
        for name, task in self.tasks.items():
            if not task.has_pseudo_labels:
                msg = f"predictions of {name!r} cannot stand for labels: {type(task).__name__} has none that could"
                raise ConfigError(msg)

    def targets(self, name: str, size: tuple[int, int]) -> dict[str, NDArray[Any]]:
        """Return the predictions that there are of an image, in the form of labels of this height and width.

        Raises:
            CorruptFileError: If a file cannot be read, or does not hold a prediction of its task.
        """
        files = {task: self._file(task, name) for task in self.tasks}
        return {saved(task): self._label(path, self.tasks[task], size) for task, path in files.items() if path}

    def _label(self, path: Path, task: Task, size: tuple[int, int]) -> NDArray[Any]:
        label, kind = _as_label(path, task), map_kind(task)
        if kind is None or label.shape[:2] == size:
            return label
        if not self.resized:
            msg = (
                f"{path} is {label.shape[0]}x{label.shape[1]} and its image {size[0]}x{size[1]} (height x width): "
                "is it of another image?"
            )
            raise CorruptFileError(msg)
        return resize_map(label, kind, *size)

    def _file(self, task: str, name: str) -> Path | None:
        stem = name.rpartition(".")[0]
        places = (self.files[task].get(key) for key in (file_name(name), name, file_name(stem), stem))
        return next((path for path in places if path), None)


def _files_below(folder: Path) -> dict[str, Path]:
    """Find the files of predictions in a folder and those below it, by their paths without ending."""
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            if not is_hidden(name) and ends_with(name, SUFFIXES):
                path = Path(parent, name)
                found[path.relative_to(folder).with_suffix("").as_posix()] = path
    return found


def _as_label(path: Path, task: Task) -> NDArray[Any]:
    """Read a prediction in the form of a label, as data sets give them."""
    stored = _read(File(str(path), path.read_bytes()), task)
    if stored.ndim == 3 and stored.shape[0] == task.channels != stored.shape[2]:  # as networks have it
        stored = stored[0] if task.channels == 1 else np.ascontiguousarray(np.moveaxis(stored, 0, -1))
    try:
        return task.stored_label(stored)
    except InvalidTargetError as error:
        msg = f"{path}: {error}"
        raise CorruptFileError(msg) from error
