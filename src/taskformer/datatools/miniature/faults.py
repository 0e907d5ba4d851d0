"""One deliberate fault of each kind, to see what finds it."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from taskformer.data.datamodules import data_modules
from taskformer.data.datasets.base import IMAGE, MultiTaskDataset
from taskformer.data.images import File, read_ids, read_npy, read_pixels, write_npy, write_png
from taskformer.datatools.miniature import WRITERS, split_swapper, writer
from taskformer.datatools.selection import chosen_tasks
from taskformer.errors import ConfigError, UnknownNameError
from taskformer.tasks import Task

#: A stored value that is not a class of any data set, and neither 0 nor 255.
NO_CLASS = 200


def write_miniature(name: str, out: Path, fault: str | None = None, **options: Any) -> Path | None:
    """Write a miniature of a data set to a new or an empty folder, and damage it if that is asked for.

    Args:
        name: Short name of the data set.
        out: The folder.
        fault: One of :data:`FAULTS`; None: none.
        **options: Of the data set's writer, see :func:`taskformer.datatools.miniature.writer`.

    Returns:
        What was damaged, see :func:`plant`; None if nothing was.

    Raises:
        ConfigError: If the folder holds something already.
        UnknownNameError: If there is no such data set or fault; then nothing is written.
    """
    if out.exists() and any(out.iterdir()):
        msg = f"{out} is not empty; a miniature could overwrite real data there: give --out a new folder"
        raise ConfigError(msg)
    if fault is not None and fault not in FAULTS:
        kind = "fault"
        raise UnknownNameError(kind, fault, FAULTS)
    writer(name)(out, **options)
    return None if fault is None else plant(name, out, fault)


def plant(name: str, root: Path, fault: str) -> Path:
    """Damage a data set on disk.

    Args:
        name: Short name of the data set.
        root: Its folder, best a miniature: files are changed.
        fault: One of :data:`FAULTS`.

    Returns:
        The file that was damaged, the folder for ``swapped_split``.

    Raises:
        UnknownNameError: If there is no such data set or fault.
        ConfigError: If the data set has nothing that this fault could damage.
    """
    for kind, wanted, known in (("data set", name, data_modules()), ("fault", fault, FAULTS)):
        if wanted not in known:
            raise UnknownNameError(kind, wanted, known)
    if fault == "swapped_split":
        if name not in WRITERS:
            msg = f"the splits of {name!r} cannot be swapped; this fault exists for {', '.join(WRITERS)}"
            raise ConfigError(msg)
        split_swapper(name)(root)
        return root
    training = partial(_training_set, name, root)
    path = next((found.path for found in _maps(training) if _DAMAGES[fault](found)), None)
    if path is None and fault == "missing":  # the data set can do without any label
        path = training().files(0)[IMAGE]
        path.unlink()
    if path is None:
        msg = f"the data set {name!r} in {root} has no file that can have the fault {fault!r}"
        raise ConfigError(msg)
    return path


class _Map(NamedTuple):
    """A file that holds the label of a task, and how to read its split afresh."""

    task: Task
    path: Path
    training: Callable[[], MultiTaskDataset]


def _training_set(name: str, root: Path) -> MultiTaskDataset:
    module = data_modules()[name](root=str(root))
    return module.dataset("train", chosen_tasks(module), None)


def _maps(training: Callable[[], MultiTaskDataset]) -> Iterator[_Map]:
    """Walk through the training labels, all tasks of an image before the next image."""
    dataset = training()
    for index in range(len(dataset)):
        files = dataset.files(index)
        yield from (_Map(task, files[name], training) for name, task in dataset.tasks.items() if name in files)


def _remove(found: _Map) -> bool:
    """Delete a file, unless the data set would take another in its place or do without."""
    content = found.path.read_bytes()
    found.path.unlink()
    dataset = found.training()
    if any(found.path in dataset.files(index).values() for index in range(len(dataset))):
        return True
    found.path.write_bytes(content)
    return False


def _truncate(found: _Map) -> bool:
    """Keep the first half of a file."""
    content = found.path.read_bytes()
    found.path.write_bytes(content[: len(content) // 2])
    return True


def _crop(found: _Map) -> bool:
    """Cut off the right quarter of a map."""
    return found.task.geometry != "image" and _change(found, lambda pixels: pixels[:, : -pixels.shape[1] // 4])


def _mislabel(found: _Map) -> bool:
    """Give some pixels of a label map an id that no class has."""

    def mislabel(pixels: NDArray[Any]) -> NDArray[Any]:
        pixels[:3, :3] = NO_CLASS
        return pixels

    return found.task.stores_classes and _change(found, mislabel)


def _flatten(found: _Map) -> bool:
    """Set all normals to zero, in colours the grey that stands for it."""

    def flatten(pixels: NDArray[Any]) -> NDArray[Any]:
        return np.full_like(pixels, np.iinfo(pixels.dtype).max // 2 + 1 if pixels.dtype.kind == "u" else 0)

    return found.task.geometry == "vector" and _change(found, flatten)


def _change(found: _Map, change: Callable[[NDArray[Any]], NDArray[Any]]) -> bool:
    """Change the stored values of a png or npy file; others are left alone."""
    file = File(str(found.path), found.path.read_bytes())
    if found.path.suffix == ".npy":
        write_npy(found.path, change(read_npy(file)))
    elif found.path.suffix == ".png":
        has_colors = found.task.geometry != "label" and found.task.channels > 1
        write_png(found.path, change(read_pixels(file) if has_colors else read_ids(file)))
    return found.path.suffix in (".npy", ".png")


#: How a label's file is damaged; the functions say whether it was one that could be.
_DAMAGES: dict[str, Callable[[_Map], bool]] = {
    "missing": _remove,
    "truncated": _truncate,
    "wrong_size": _crop,
    "label_out_of_range": _mislabel,
    "zero_normals": _flatten,
}
FAULTS = (*_DAMAGES, "swapped_split")
