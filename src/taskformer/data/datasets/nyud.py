"""NYUD-v2: indoor images of a depth camera, in the three layouts that multi-task code has them in."""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from itertools import permutations, product
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from taskformer.data.datasets.base import IMAGE, MultiTaskDataset, is_list_of_paths
from taskformer.data.geometry import decode_normals, normal_vectors
from taskformer.data.images import File, holds_array, read_array, read_ids, read_pixels, read_plane, read_rgb
from taskformer.data.names import files_in, names_in
from taskformer.data.surfaces import plane_normals
from taskformer.errors import ConfigError, CorruptFileError, DatasetNotFoundError, InvalidTargetError
from taskformer.tasks import IGNORE_INDEX

SemsegClasses: TypeAlias = Literal[40, 13]
LayoutName: TypeAlias = Literal["auto", "a", "b", "adashare"]
#: For x, y and z the stored channel (1, 2 or 3) that holds it, negative where it has the other sign.
Axes: TypeAlias = tuple[int, int, int]

#: The colour camera's focal lengths and principal point for the 640x480 frame, from the owners' toolbox.
FOCAL, CENTER = (518.8579, 519.4696), (325.5824, 253.7362)
FRAME_WIDTH = 640
#: Depth in metres up to this one is missing, as in AdaShare's code: 0, and what rounding made of it.
MIN_DEPTH = 3e-5
#: Split file of the AdaShare layout, which also works without.
ADASHARE_SPLITS = "nyu_v2_3task.json"
#: Value that no label has.
UNKNOWN = 254
#: Images whose normals are compared with their depth.
COMPARED = 5


class Layout(NamedTuple):
    """Where one version of the data set has its files, and what is in them.

    Attributes:
        folders: Folder and ending of the image and of each task.
        first_label: Label of the first class; the one below it is unlabelled (A and B), else 255 (AdaShare).
        axes: How normals are stored.
    """

    folders: dict[str, tuple[str, str]]
    first_label: int
    axes: Axes


LAYOUTS = {
    "a": Layout(
        {
            IMAGE: ("images", ".png"),
            "semseg": ("segmentation", ".png"),
            "depth": ("depth", ".npy"),
            "normals": ("normals", ".png"),
            "edges": ("edge", ".png"),
        },
        first_label=1,
        axes=(1, 2, 3),
    ),
    "b": Layout(
        {
            IMAGE: ("images", ".jpg"),
            "semseg": ("segmentation", ".png"),
            "depth": ("depth", ".npy"),
            "normals": ("normals", ".npy"),
            "edges": ("edge", ".npy"),
        },
        first_label=1,
        axes=(1, 2, 3),
    ),
    "adashare": Layout(
        {
            IMAGE: ("img", ".png"),
            "semseg": ("seg", ".png"),
            "normals": ("normal_mask", ".png"),
            "depth": ("depth", ".npy"),
        },
        first_label=0,
        axes=(1, -3, 2),  # x right, y into the scene, z up
    ),
}


@cache
def table() -> dict[str, Any]:
    """Read the data set's facts: class names, their 13-class groups, the 894 raw names, and the official split."""
    text = resources.files("taskformer.data").joinpath("tables/nyud.json").read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


@cache
def official_split() -> dict[int, str]:
    """Return ``"train"`` or ``"val"`` (the test images) for each image number 1..1449."""
    names = {"train": "train", "test": "val"}
    return {
        number: names[split] for split in names for first, last in table()[split] for number in range(first, last + 1)
    }


def class_names(count: SemsegClasses) -> list[str]:
    """Return the names of the 40 classes of Gupta et al. (2013) or the 13 of Couprie et al. (2013)."""
    return list(table()[f"classes_{count}"])


@cache
def label_table(first_label: int, count: SemsegClasses) -> NDArray[np.uint8]:
    """Return the class of each stored label ``(256,)``: 255 where unlabelled, 254 where there is no such label."""
    classes = np.full(256, UNKNOWN, dtype=np.uint8)
    classes[first_label - 1 if first_label else IGNORE_INDEX] = IGNORE_INDEX
    classes[first_label : first_label + 40] = np.arange(40) if count == 40 else np.array(table()["to_13"]) - 1
    return classes


def find_layout(root: str | Path) -> str | None:
    """Recognise the layout of a folder by its images; None if it is none of the three."""
    for name, layout in LAYOUTS.items():
        folder, ending = layout.folders[IMAGE]
        if any(files_in(Path(root) / folder, [ending])):
            return name
    return None


class NYUD(MultiTaskDataset):
    """Indoor images: ``semseg``, ``depth`` in metres, ``normals`` and ``edges``, in one of three layouts.

    ========== =================== ====================== =========== ======================== ==============
    layout     image               semseg                 depth       normals                  edges
    ========== =================== ====================== =========== ======================== ==============
    a          images/*.png        segmentation/*.png     depth/*.npy normals/*.png            edge/*.png
               425x560             0 unlabelled, 1..40    metres      2 v / 255 - 1            0, 255
    b          images/*.jpg        segmentation/*.png     depth/*.npy normals/*.npy            edge/*.npy
               480x640             0 unlabelled, 1..40    metres      -1..1                    0, 1
    adashare   img/*.png           seg/*.png              depth/*.npy normal_mask/*.png        none
               480x640             0..39, 255 unlabelled  metres      2 v / 255 - 1, white is
                                                                      invalid
    ========== =================== ====================== =========== ======================== ==============

    The first is ``NYUDv2.tar.gz`` of ATRC, MQTransformer, InvPT and their followers, the second ``NYUD_MT.tgz`` of
    MTI-Net. Both list their images in ``gt_sets/{train,val}.txt``. AdaShare has ``nyu_v2_3task.json``; without it, the
    number in an image's name decides, counted from 1 as in the official split. ``"test"`` is ``"val"`` everywhere.

    The axes of AdaShare's normals are known from real images: x right, y into the scene, z up. For the two archives no
    description was found and no copy was at hand: they are read as x right, y down, z into the scene, which is also
    what ``taskformer data prepare nyud`` writes. Angular errors do not depend on the axes, but pictures and
    mixtures with other data do: ``taskformer data verify nyud`` compares the normals with the depth and, where they do
    not fit, says which ``normal_axes`` do.

    Args:
        root: The data set's folder.
        *args: What else :class:`MultiTaskDataset` takes.
        semseg_classes: 40 classes, or the 13 groups of them.
        layout: ``"a"``, ``"b"``, ``"adashare"``, or ``"auto"`` to look at the files.
        normal_axes: For x (right), y (down) and z (into the scene) the stored channel that holds it, 1 to 3, negative
            if it has the other sign; None for the layout's own.
        **kwargs: The same, by name.

    Raises:
        DatasetNotFoundError: If the folder is not NYUD-v2, or lacks a split or a task.
        ConfigError: If ``normal_axes`` does not name each channel once.
        CorruptFileError: If AdaShare's split file is broken.
    """

    def __init__(
        self,
        root: str | Path,
        *args: Any,
        semseg_classes: SemsegClasses = 40,
        layout: LayoutName = "auto",
        normal_axes: Axes | None = None,
        **kwargs: Any,
    ) -> None:
        name = find_layout(root) if layout == "auto" else layout
        if name is None:
            msg = (
                f"NYUD: {root} has neither images/*.png, images/*.jpg nor img/*.png (working directory: {Path.cwd()}); "
                "write it with `taskformer data prepare nyud`, or point data.init_args.root to the data set's folder"
            )
            raise DatasetNotFoundError(msg)
        if normal_axes is not None and sorted(map(abs, normal_axes)) != [1, 2, 3]:
            msg = f"normal_axes must name the channels 1, 2 and 3 once each, negative where negated; got {normal_axes}"
            raise ConfigError(msg)
        self.layout_name = name
        self.layout = LAYOUTS[name]
        self.axes = normal_axes or self.layout.axes
        self._labels = label_table(self.layout.first_label, semseg_classes)
        self._listed: dict[str, dict[str, Path]] = {}
        super().__init__(root, *args, **kwargs)

    def _ids(self) -> list[str]:
        for task in self.tasks:
            if reason := missing(self.root, self.layout, task):
                msg = f"NYUD: {self.root} has no labels for {task!r}: {reason}; leave it out of data.init_args.tasks"
                raise DatasetNotFoundError(msg)
        split = "val" if self.split == "test" else self.split
        if self.layout_name != "adashare":
            ids = self._read_list(self.root / "gt_sets" / f"{split}.txt")
        elif (self.root / ADASHARE_SPLITS).is_file():
            ids = self._listed_ids(split)
        else:
            ids = self._numbered_ids(split)
        if not ids:
            msg = (
                f"NYUD: {self.root} has no image of the split {self.split!r}, which is given by gt_sets/{split}.txt, "
                f"{ADASHARE_SPLITS}, or without these the official numbers (e.g. train 295, val 61)"
            )
            raise DatasetNotFoundError(msg)
        return ids

    def _listed_ids(self, split: str) -> list[str]:
        """Read AdaShare's split file, which calls our validation images "test"."""
        path = self.root / ADASHARE_SPLITS
        index = self._read_json(path)
        rows: Any = None
        if isinstance(index, dict):
            rows = index.get(split) or (index.get("test", []) if split == "val" else [])
        keys = (IMAGE, "semseg", "normals", "depth")
        if not isinstance(rows, list) or not all(is_list_of_paths(row, len(keys)) for row in rows):
            msg = f"{path} must give each split a list of [img, seg, normal_mask, depth], four paths per image"
            raise CorruptFileError(msg)
        files = [{key: self.root / name for key, name in zip(keys, row, strict=True)} for row in rows]
        self._listed = {paths[IMAGE].stem: paths for paths in files}
        return list(self._listed)

    def _numbered_ids(self, split: str) -> list[str]:
        """Divide the images there are by the official split."""
        folder, ending = self.layout.folders[IMAGE]
        names = names_in(self.root / folder, ending)
        return [name for name in names if owner(name) == split]

    def files(self, index: int) -> dict[str, Path]:
        """Return the image and one file per task."""
        paths = self._paths(index)
        return {key: paths[key] for key in (IMAGE, *self.tasks)}

    def _paths(self, index: int) -> dict[str, Path]:
        """Return all files of a sample, also of tasks that are not asked for."""
        name = self.ids[index]
        here = {key: self.root / folder / f"{name}{end}" for key, (folder, end) in self.layout.folders.items()}
        return self._listed.get(name, here)

    def decode(self, key: str, files: Mapping[str, File]) -> NDArray[Any]:
        """Turn a file into the image or a task's target."""
        file = files[key]
        if key == IMAGE:
            return read_rgb(file)
        if key == "semseg":
            return self._decode_labels(file)
        if key == "depth":
            return _decode_depth(file)
        if key == "normals":
            return self._decode_normals(file)
        return _decode_edges(file)

    def _decode_labels(self, file: File) -> NDArray[np.uint8]:
        labels = read_ids(file)
        classes: NDArray[np.uint8] = self._labels[labels if labels.dtype == np.uint8 else np.minimum(labels, UNKNOWN)]
        if (classes == UNKNOWN).any():
            wrong = np.unique(labels[classes == UNKNOWN])
            first = self.layout.first_label
            none = f"{first - 1}" if first else f"{IGNORE_INDEX}"
            msg = (
                f"{file.path} has the labels {wrong[:5].tolist()}, expected {first} to {first + 39}, or {none} for none"
            )
            raise InvalidTargetError(msg)
        return classes

    def _decode_normals(self, file: File) -> NDArray[np.float32]:
        stored = read_array(file) if holds_array(file) else read_pixels(file)
        if stored.ndim != 3 or stored.shape[2] != 3:
            msg = f"{file.path} has the shape {stored.shape}, normals need (height, width, 3)"
            raise CorruptFileError(msg)
        normals = decode_normals(stored) if stored.dtype == np.uint8 else normal_vectors(stored)
        if self.axes == (1, 2, 3):
            return normals
        return normals[..., np.abs(self.axes) - 1] * np.sign(self.axes).astype(np.float32)

    def problems(self) -> Iterator[str]:
        """Find images of another split, and normals that do not fit the depth."""
        home = "val" if self.split == "test" else self.split
        strangers = [name for name in self.ids if owner(name) not in (home, None)]
        # Whether AdaShare counts the images from 1 as the official split does is not known.
        if len(strangers) > (len(self) / 2 if self.layout_name == "adashare" else 0):
            yield (
                f"the split {home!r} lists {len(strangers)} images that officially belong to another "
                f"({', '.join(strangers[:3])}, ...): have the lists been exchanged?"
            )
        if "normals" in self.tasks and not missing(self.root, self.layout, "depth"):
            yield from self._axes_problems()

    def _axes_problems(self) -> Iterator[str]:
        """Compare the normals of a few images with those of their depth: which axes would fit best?"""
        # How much the true component i (row) agrees with the read component j (column), summed over pixels.
        agreement = np.zeros((3, 3))
        for index in np.unique(np.linspace(0, len(self) - 1, COMPARED).astype(int)):
            agreement += self._agreement(int(index))
        fits: dict[Axes, float] = {
            (x * i, y * j, z * k): x * agreement[0, i - 1] + y * agreement[1, j - 1] + z * agreement[2, k - 1]
            for i, j, k in permutations((1, 2, 3))
            for x, y, z in product((1, -1), repeat=3)
        }
        best = max(fits, key=lambda axes: fits[axes])
        if fits[best] > fits[1, 2, 3]:
            # The best axes are of the normals as they are read now; in terms of the stored channels:
            advice = [int(np.sign(axis)) * self.axes[abs(axis) - 1] for axis in best]
            yield (
                f"the normals of the split {self.split!r} do not fit its depth with normal_axes={list(self.axes)} (for "
                f"instance, floors do not point up); data.init_args.normal_axes={advice} would fit"
            )

    def _agreement(self, index: int) -> NDArray[np.float64]:
        """Return ``(3, 3)``; zeros where files are broken or do not fit, which is reported elsewhere."""
        paths = self._paths(index)
        try:
            files = {key: File(str(paths[key]), paths[key].read_bytes()) for key in ("normals", "depth")}
            read, depth = self.decode("normals", files), self.decode("depth", files)
        except (OSError, CorruptFileError):
            return np.zeros((3, 3))
        if read.shape[:2] != depth.shape:
            return np.zeros((3, 3))
        # The camera only needs to be about right, also for crops: the axes differ by right angles.
        height, width = depth.shape
        scale = width / FRAME_WIDTH
        true = plane_normals(depth, (FOCAL[0] * scale, FOCAL[1] * scale), ((width - 1) / 2, (height - 1) / 2))
        valid = np.isfinite(true).all(axis=-1) & np.isfinite(read).all(axis=-1)
        return np.asarray(true[valid].T.astype(np.float64) @ read[valid].astype(np.float64))


def owner(name: str) -> str | None:
    """Return the official split of an image, None if its name is not the number of an official image."""
    return official_split().get(int(name)) if name.isdecimal() else None


def missing(root: str | Path, layout: Layout, task: str) -> str | None:
    """Say in a few words why there are no labels for a task; None if there are."""
    if task not in layout.folders:
        return f"this layout has only {', '.join(key for key in layout.folders if key != IMAGE)}"
    folder = layout.folders[task][0]
    return None if (Path(root) / folder).is_dir() else f"there is no folder {folder}/"


def _decode_depth(file: File) -> NDArray[np.float32]:
    depth = read_array(file)
    if depth.ndim == 3 and depth.shape[2] == 1:
        depth = depth[..., 0]
    if depth.ndim != 2 or depth.dtype.kind != "f":
        msg = f"{file.path} holds {depth.dtype} of the shape {depth.shape}, depth must be floats (height, width)"
        raise CorruptFileError(msg)
    return np.where(depth > MIN_DEPTH, depth, np.nan).astype(np.float32)


def _decode_edges(file: File) -> NDArray[np.float32]:
    is_array = holds_array(file)
    edges = read_array(file) if is_array else read_plane(file)
    highest = 1 if is_array else 255
    if edges.ndim != 2 or not (edges.min() >= 0 and edges.max() <= highest):
        msg = (
            f"{file.path} has the shape {edges.shape} and values {edges.min():g} to {edges.max():g}, edges must be "
            f"(height, width) and 0 or {highest}"
        )
        raise CorruptFileError(msg)
    return edges.astype(np.float32) / np.float32(highest)
