"""Cityscapes: German streets, as its owners publish them and as MTAN and AdaShare have preprocessed them."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from taskformer.data.datasets.base import IMAGE, MultiTaskDataset, is_list_of_paths
from taskformer.data.images import File, read_ids, read_json, read_npy, read_plane, read_rgb
from taskformer.data.names import folders_in, names_in
from taskformer.errors import CorruptFileError, DatasetNotFoundError, InvalidTargetError
from taskformer.tasks import IGNORE_INDEX

SemsegClasses: TypeAlias = Literal[19, 7, 2]

DOWNLOADS = "https://www.cityscapes-dataset.com/downloads"
#: The packages of the owners by the folder that each unpacks to.
PACKAGES = {name: f"{name}_trainvaltest.zip" for name in ("leftImg8bit", "gtFine", "disparity", "camera")}
#: Categories of the foreground of the 2-class labels; all others are background. MTAN (Liu et al., CVPR 2019) has 2
#: classes too, but the script that made them is lost, so its arrays may draw the line elsewhere.
FOREGROUND = ("human", "vehicle")
#: Metres beyond which depth is invalid: about one pixel of disparity, so that more is noise, up to 100 km of it, which
#: would drown every mean. Inverse depth keeps these pixels.
FARTHEST = 500.0
#: Preprocessed inverse depths up to this one are invalid, as in AdaShare's code: 0, and what rounding made of it.
ARRAY_EPSILON = 3e-5


class Labels(NamedTuple):
    """One way to group Cityscapes' labels.

    Attributes:
        classes: Class names.
        colors: RGB colours of the classes in pictures.
        of_id: Class of each label id ``(256,)`` uint8, 255 where void.
    """

    classes: list[str]
    colors: list[list[int]]
    of_id: NDArray[np.uint8]


@cache
def table() -> dict[str, Any]:
    """Read the data set's facts: ``labels`` and the ``cities`` of each split."""
    found: dict[str, Any] = json.loads(
        resources.files("taskformer.data").joinpath("tables/cityscapes.json").read_text()
    )
    return found


@cache
def semseg_labels(count: SemsegClasses) -> Labels:
    """Group the labels that the benchmark evaluates; the others, such as the ego vehicle, are void.

    Args:
        count: 19 classes; their 7 categories; or 2: background and foreground (humans and vehicles).
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for label in table()["labels"]:
        if 0 <= label["train_id"] != IGNORE_INDEX:
            ground = "foreground" if label["category"] in FOREGROUND else "background"
            groups.setdefault({19: label["name"], 7: label["category"], 2: ground}[count], []).append(label)
    of_id = np.full(256, IGNORE_INDEX, dtype=np.uint8)
    for index, labels in enumerate(groups.values()):
        of_id[[label["id"] for label in labels]] = index
    return Labels(list(groups), [labels[0]["color"] for labels in groups.values()], of_id)


class Layout(ABC):
    """Where the files of one version of the data set are, and how they are read.

    Args:
        root: The data set's folder.
        classes: Number of semantic classes.
    """

    #: Kind of the task ``inverse_depth``, see :mod:`taskformer.tasks.depth`.
    inverse_depth: ClassVar[str]

    def __init__(self, root: Path, classes: SemsegClasses) -> None:
        self.root = root
        self.classes: SemsegClasses = classes

    @abstractmethod
    def missing(self, task: str) -> str | None:
        """Return the end of a sentence: why a task has no labels and what to do; None if it has labels."""

    @abstractmethod
    def ids(self, split: str) -> list[str]:
        """Return the identifiers of a split's images; none if there is no such split."""

    @abstractmethod
    def files(self, split: str, name: str) -> dict[str, Path]:
        """Return the files of an image, there or not: ``"image"``, each task's, and ``"camera"``."""

    @abstractmethod
    def decode(self, key: str, files: Mapping[str, File]) -> NDArray[Any]:
        """See :meth:`MultiTaskDataset.decode`."""

    @abstractmethod
    def owner(self, name: str) -> str | None:
        """Return the split that an image belongs to, if its identifier tells."""


class OfficialLayout(Layout):
    """``leftImg8bit/SPLIT/CITY/CITY_SEQUENCE_FRAME_leftImg8bit.png`` and likewise gtFine, disparity and camera."""

    inverse_depth = "inverse_depth"
    folders: ClassVar[dict[str, tuple[str, ...]]] = {
        "semseg": ("gtFine",),
        "depth": ("disparity", "camera"),
        "inverse_depth": ("disparity", "camera"),
    }

    def missing(self, task: str) -> str | None:
        """Name the missing packages."""
        absent = [PACKAGES[folder] for folder in self.folders[task] if not (self.root / folder).is_dir()]
        return f"it needs {' and '.join(absent)} from {DOWNLOADS}, unpacked there" if absent else None

    def ids(self, split: str) -> list[str]:
        """Return ``CITY_SEQUENCE_FRAME`` of every image, in order."""
        folder = self.root / "leftImg8bit" / split
        return sorted(name for place in folders_in(folder) for name in names_in(folder / place, "_leftImg8bit.png"))

    def files(self, split: str, name: str) -> dict[str, Path]:
        """Return the file of each package."""
        start = f"{split}/{city(name)}/{name}"
        disparity = self.root / "disparity" / f"{start}_disparity.png"
        return {
            IMAGE: self.root / "leftImg8bit" / f"{start}_leftImg8bit.png",
            "semseg": self.root / "gtFine" / f"{start}_gtFine_labelIds.png",
            "depth": disparity,
            "inverse_depth": disparity,
            "camera": self.root / "camera" / f"{start}_camera.json",
        }

    def decode(self, key: str, files: Mapping[str, File]) -> NDArray[Any]:
        """Map label ids to classes and disparities to (inverse) depth."""
        if key == IMAGE:
            return read_rgb(files[key])
        if key == "semseg":
            return read_label_ids(files[key], semseg_labels(self.classes))
        disparity = read_disparity(files[key])
        # float32 is exact enough: a step of the disparity is coarser than its rounding.
        scale = np.float32(read_stereo(files["camera"]))
        if key == "inverse_depth":
            return disparity / scale
        with np.errstate(divide="ignore"):
            depth = scale / disparity
        return np.where(depth <= FARTHEST, depth, np.float32(np.nan))

    def owner(self, name: str) -> str | None:
        """Return the split of the image's city."""
        cities: dict[str, list[str]] = table()["cities"]
        return next((split for split, names in cities.items() if city(name) in names), None)


class ArrayLayout(Layout):
    """MTAN's ``SPLIT/{image,depth,label_19,label_7,label_2}/N.npy``; AdaShare lists them in ``cityscape.json``.

    ``depth`` is the disparity of an unknown camera, scaled to 0..1 (judging by its largest value, 1 is the largest
    16-bit number, 256 pixels of disparity). Which official image became which number is not known either. Labels are
    -1 where void.
    """

    inverse_depth = "relative_inverse_depth"
    index = "cityscape.json"

    def __init__(self, root: Path, classes: SemsegClasses) -> None:
        super().__init__(root, classes)
        self._listed: dict[str, dict[str, dict[str, Path]]] = {}

    def missing(self, task: str) -> str | None:
        """Say that there is no metric depth."""
        if task == "depth":
            return (
                "these preprocessed arrays hold disparity without its camera; "
                "take the task inverse_depth, or the official files"
            )
        return None

    def ids(self, split: str) -> list[str]:
        """Return the path of every image, without its ending, in the order of the index or of the numbers."""
        if (self.root / self.index).is_file():
            return list(self._rows(split))
        names = sorted(names_in(self.root / split / "image", ".npy"), key=len)
        return [f"{split}/image/{name}" for name in names]

    def files(self, split: str, name: str) -> dict[str, Path]:
        """Return the files beside the image, or those in its row of the index."""
        if (self.root / self.index).is_file():
            return self._rows(split)[name]
        folders = {IMAGE: "image", "inverse_depth": "depth", "semseg": f"label_{self.classes}"}
        return {key: self.root / split / folder / f"{Path(name).name}.npy" for key, folder in folders.items()}

    def _rows(self, split: str) -> dict[str, dict[str, Path]]:
        """Return the files of each image that the index lists."""
        if split not in self._listed:
            index = self._read_index()
            # AdaShare calls the images of Cityscapes' validation "test".
            rows = index.get("test" if split == "val" and "val" not in index else split, [])
            self._listed[split] = {str(Path(row[0]).with_suffix("")): self._row(row) for row in rows}
        return self._listed[split]

    def _row(self, row: list[str]) -> dict[str, Path]:
        image, depth, *labels = (self.root / path for path in row)
        semseg = dict(zip((2, 7, 19), labels, strict=True))[self.classes]
        return {IMAGE: image, "inverse_depth": depth, "semseg": semseg}

    def _read_index(self) -> dict[str, list[list[str]]]:
        path = self.root / self.index
        index: dict[str, list[list[str]]] = read_json(File(str(path), path.read_bytes()))
        is_index = isinstance(index, dict) and all(isinstance(rows, list) for rows in index.values())
        rows = [row for rows in index.values() for row in rows] if is_index else [[]]
        if not all(is_list_of_paths(row, 5) for row in rows):
            msg = f"{path} must give each split a list of [image, depth, 2, 7 and 19 class labels], 5 paths per image"
            raise CorruptFileError(msg)
        return index

    def decode(self, key: str, files: Mapping[str, File]) -> NDArray[Any]:
        """Turn colours 0..1 into bytes, and -1 and 0 into what is invalid here."""
        array = read_npy(files[key])
        if array.ndim == 3 and array.shape[2] == 1:
            array = array[..., 0]
        low, high = (-1, self.classes - 1) if key == "semseg" else (0, 1)
        shape = (*array.shape[:2], 3)[: 3 if key == IMAGE else 2]
        if array.shape != shape or array.dtype.kind not in "fiu":
            msg = (
                f"{files[key].path} holds {array.dtype} {array.shape} that is not a map of {key} (height x width"
                f"{' x 3' if key == IMAGE else ''}); get the file again"
            )
            raise CorruptFileError(msg)
        if not ((array >= low) & (array <= high)).all():
            msg = f"{files[key].path} has values from {array.min():g} to {array.max():g}, {key} has {low} to {high}"
            raise InvalidTargetError(msg)
        if key == IMAGE:
            return np.asarray(np.rint(array * 255), dtype=np.uint8)
        if key == "semseg":
            return np.where(array < 0, IGNORE_INDEX, array).astype(np.uint8)
        return np.where(array > ARRAY_EPSILON, array, np.nan).astype(np.float32)

    def owner(self, name: str) -> str | None:
        """Return the split that the image's path names."""
        return next((split for split in ("train", "val") if split in Path(name).parts), None)


def find_layout(root: str | Path, classes: SemsegClasses) -> Layout | None:
    """Recognise the layout of a folder; None if it is neither."""
    root = Path(root)
    if (root / "leftImg8bit").is_dir():
        return OfficialLayout(root, classes)
    if (root / ArrayLayout.index).is_file() or (root / "train" / "image").is_dir():
        return ArrayLayout(root, classes)
    return None


class Cityscapes(MultiTaskDataset):
    """Street scenes: ``semseg``, ``depth`` in metres (up to 500) and ``inverse_depth`` in 1/m.

    The owners' files and the arrays of MTAN and AdaShare are told apart automatically, see :class:`OfficialLayout` and
    :class:`ArrayLayout`; the arrays' inverse depth has no unit, and they have no ``depth``. Resizing does not change
    (inverse) depth. The labels of the test images are not public, so ``"test"`` is ``"val"``.

    Args:
        root: The data set's folder.
        *args: What else :class:`MultiTaskDataset` takes.
        semseg_classes: 19 classes, their 7 categories, or 2 (background, foreground).
        **kwargs: The same, by name; a ``size`` of 256x512 is usual, 1024x2048 the images' own.

    Raises:
        DatasetNotFoundError: If the folder is not Cityscapes or lacks what a task needs.
        CorruptFileError: If the index of the arrays is broken.
    """

    def __init__(self, root: str | Path, *args: Any, semseg_classes: SemsegClasses = 19, **kwargs: Any) -> None:
        layout = find_layout(root, semseg_classes)
        if layout is None:
            msg = (
                f"Cityscapes: {root} has neither leftImg8bit/ nor train/image/ (working directory: {Path.cwd()}); "
                f"unpack the packages of {DOWNLOADS} there (taskformer data prepare cityscapes), or set "
                "data.init_args.root"
            )
            raise DatasetNotFoundError(msg)
        self._layout = layout
        super().__init__(root, *args, **kwargs)

    def _ids(self) -> list[str]:
        for task in self.tasks:
            reason = self._layout.missing(task)
            if reason:
                msg = f"Cityscapes: {self.root} has no {task}: {reason}, or leave {task} out of data.init_args.tasks"
                raise DatasetNotFoundError(msg)
        self._home = "val" if self.split == "test" else self.split  # the labels of the test images are not public
        ids = self._layout.ids(self._home)
        if not ids:
            package = PACKAGES["leftImg8bit"]
            msg = f"Cityscapes: {self.root} has no images of the split {self.split!r}; unpack {package} there again"
            raise DatasetNotFoundError(msg)
        return ids

    def files(self, index: int) -> dict[str, Path]:
        """Return the image, one file per task, and the camera if a task is a depth."""
        keys = {IMAGE, *self.tasks} | ({"camera"} if {"depth", "inverse_depth"} & set(self.tasks) else set())
        return {key: path for key, path in self._layout.files(self._home, self.ids[index]).items() if key in keys}

    def decode(self, key: str, files: Mapping[str, File]) -> NDArray[Any]:
        """Decode the image or a task's target."""
        return self._layout.decode(key, files)

    def problems(self) -> Iterator[str]:
        """Find images of another split: Cityscapes' splits are cities."""
        strangers: dict[str, list[str]] = {}
        for name in self.ids:
            owner = self._layout.owner(name)
            if owner not in (self._home, None):
                strangers.setdefault(str(owner), []).append(name)
        for owner, names in strangers.items():
            yield (
                f"{len(names)} of the {len(self)} images of the split {self._home!r} belong to {owner!r} "
                f"(the first is {names[0]}): the splits are swapped or mixed"
            )


def city(stem: str) -> str:
    """Return the city of ``CITY_SEQUENCE_FRAME``."""
    return stem.rsplit("_", 2)[0]


def read_label_ids(file: File, labels: Labels) -> NDArray[np.uint8]:
    """Read label ids 0..33 as classes ``(H, W)``.

    Raises:
        InvalidTargetError: If there are other ids.
    """
    ids = read_ids(file)
    last = max(label["id"] for label in table()["labels"])
    if ids.max() > last:
        msg = f"{file.path} has the label id {ids.max()}, Cityscapes has 0 to {last}; is it a labelTrainIds file?"
        raise InvalidTargetError(msg)
    return labels.of_id.take(ids)


def read_disparity(file: File) -> NDArray[np.float32]:
    """Read disparity in pixels of the original image ``(H, W)``, NaN where the file has 0.

    A value p above 0 stands for (p - 1) / 256 pixels (README of the data set's scripts); 0 pixels is infinitely far.

    Raises:
        CorruptFileError: If the file does not have 16 bits.
    """
    values = read_plane(file)
    if values.dtype != np.uint16:
        msg = f"{file.path} has {values.dtype} values, a 16-bit disparity map was expected"
        raise CorruptFileError(msg)
    return np.where(values > 0, (values - np.float32(1)) / np.float32(256), np.float32(np.nan))


def read_stereo(file: File) -> float:
    """Read the product of baseline in metres and focal length in pixels, which is depth times disparity.

    Raises:
        CorruptFileError: If the calibration lacks a number or has one that cannot be.
    """
    camera = read_json(file)
    try:
        product = float(camera["extrinsic"]["baseline"]) * float(camera["intrinsic"]["fx"])
    except (KeyError, TypeError, ValueError) as error:
        msg = f"{file.path} is not a calibration of Cityscapes: it needs extrinsic.baseline and intrinsic.fx"
        raise CorruptFileError(msg) from error
    if not 0 < product < np.inf:
        msg = f"{file.path}: baseline times focal length is {product}, it must be above 0"
        raise CorruptFileError(msg)
    return product
