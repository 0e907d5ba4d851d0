"""PASCAL-Context with the five tasks of the multi-task literature."""

import json
import logging
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from taskformer.data.datasets.base import IMAGE, MultiTaskDataset
from taskformer.data.geometry import decode_normals, label_edges
from taskformer.data.images import File, read_ids, read_mat, read_plane, read_rgb
from taskformer.data.names import existing
from taskformer.errors import ConfigError, CorruptFileError, DatasetNotFoundError
from taskformer.tasks import IGNORE_INDEX

_TABLE = json.loads(resources.files("taskformer.data").joinpath("tables/pascal_context.json").read_text("utf-8"))

#: Id of each of the 459 labels of PASCAL-Context; 0 is unlabelled.
CONTEXT: dict[str, int] = _TABLE["context"]
#: The classes of PASCAL VOC in the order of their ids, the background first.
CLASSES: tuple[str, ...] = tuple(row["name"] for row in _TABLE["voc"])
#: VOC's own colours of the classes, RGB.
COLORS: tuple[tuple[int, int, int], ...] = tuple(tuple(row["color"]) for row in _TABLE["voc"])
#: VOC's palette: its colours, and the one of unlabelled pixels.
PALETTE = np.zeros((256, 3), dtype=np.uint8)
PALETTE[: len(COLORS)] = COLORS
PALETTE[IGNORE_INDEX] = (224, 224, 192)
PERSON = CLASSES.index("person")
#: The VOC class of each Context label, by its id; labels of other things are background.
VOC_CLASS: NDArray[np.uint8] = np.zeros(max(CONTEXT.values()) + 1, dtype=np.uint8)
VOC_CLASS[[row["context"] for row in _TABLE["voc"][1:]]] = np.arange(1, len(CLASSES))
#: The part 1..6 that each of PASCAL-Part's names for parts of a person belongs to.
PERSON_PARTS: dict[str, int] = _TABLE["person_parts"]
#: Whether the distilled normals of a Context label count, by its id: only where NYU-Depth v2, which their network was
#: trained on, has the same class.
HAS_NORMALS: NDArray[np.bool_] = np.isin(np.arange(max(CONTEXT.values()) + 1), _TABLE["normals"])

#: For x (right), y (down) and z (into the scene) the stored channel 1 to 3 of the distilled normals, negative if it has
#: the other sign: they are taken to point left, up and toward the camera where their values are positive. That is what
#: users report of a network trained on published normals of NYU-Depth v2 (issue 13 of
#: baegwangbin/surface_normal_uncertainty), as the one that made these ones was. Not verified on the files themselves.
NORMAL_AXES = (-1, -2, -3)

#: Where the files of each task are.
FOLDERS = {
    "semseg": "semseg",
    "human_parts": "human_parts",
    "saliency": "sal_distill",
    "normals": "normals_distill",
    "edges": "pascal-context/trainval",
}

logger = logging.getLogger(__name__)


class PASCALContext(MultiTaskDataset):
    """PASCAL-Context: ``semseg`` (21 classes), ``human_parts`` (7), ``saliency``, ``normals`` and ``edges``.

    Layout (the folder is usually called ``PASCALContext`` or ``PASCAL_MT``), ``ID`` like ``2008_000002``:

    - ``ImageSets/Context/{train,val}.txt``: one id per line;
    - ``JPEGImages/ID.jpg``: at most 500 pixels high and wide;
    - ``semseg/VOC12/ID.png``, or where there is none ``semseg/pascal-context/ID.png``: class ids, 255 where unlabelled;
    - ``human_parts/ID.mat``: PASCAL-Part's ``anno``; images that show no part of a person have no label;
    - ``sal_distill/ID.png``: salient from 128;
    - ``normals_distill/ID.png``: ``n = v / 127.5 - 1``, which only counts where :data:`HAS_NORMALS` is true of the
      Context label;
    - ``pascal-context/trainval/ID.mat``: the 459 labels as ``LabelMap``, whose thinned boundaries are the edges;
    - ``ImageSets/Parts/{train,val}.txt``, optional: JSON, the VOC classes of the objects of every id.

    Nothing is ever written there.

    The axes of the distilled normals are documented nowhere, see :data:`NORMAL_AXES`. Angular errors do not depend on
    them, but pictures and mixtures with other data do; ``taskformer data verify`` says if z points the wrong way.

    Args:
        *args: What :class:`MultiTaskDataset` takes.
        people_only: Whether images that show no person are left out.
        normal_axes: For x (right), y (down) and z (into the scene) the stored channel that holds it, 1 to 3, negative
            if it has the other sign.
        **kwargs: The same, by name.

    Raises:
        DatasetNotFoundError: If the list of images or the folder of a task is not there.
        ConfigError: If ``normal_axes`` does not name each channel once.
    """

    #: Some images show nothing that NYU-Depth v2 has a class for.
    may_be_empty: ClassVar[frozenset[str]] = frozenset({"normals"})

    def __init__(
        self, *args: Any, people_only: bool = False, normal_axes: tuple[int, int, int] = NORMAL_AXES, **kwargs: Any
    ) -> None:
        if sorted(map(abs, normal_axes)) != [1, 2, 3]:
            msg = f"normal_axes must name the channels 1, 2 and 3 once each, negative where negated; got {normal_axes}"
            raise ConfigError(msg)
        self.people_only = people_only
        self.normal_axes = normal_axes
        super().__init__(*args, **kwargs)

    def _ids(self) -> list[str]:
        ids = self._read_list(self.root / "ImageSets" / "Context" / f"{self.split}.txt")
        for task in self.tasks:
            self._require_folder(task)
        return self._with_people(ids) if self.people_only else ids

    def _require_folder(self, task: str) -> None:
        if not (self.root / FOLDERS[task]).is_dir():
            others = [name for name in FOLDERS if (self.root / FOLDERS[name]).is_dir()]
            msg = (
                f"PASCALContext: {self.root} has no folder {FOLDERS[task]!r}, where the labels of {task!r} would be; "
                f"choose from data.init_args.tasks {others}, or import the folder with `taskformer data prepare "
                "pascal_context --distilled` (saliency and normals come from third parties, not from the owners)"
            )
            raise DatasetNotFoundError(msg)

    def _with_people(self, ids: list[str]) -> list[str]:
        """Keep the images with a person, by the index file if it covers them, else by their annotations."""
        path = self.root / "ImageSets" / "Parts" / f"{self.split}.txt"
        index = self._read_json(path) if path.is_file() else {}
        if not isinstance(index, dict) or not all(isinstance(classes, list) for classes in index.values()):
            msg = f"{path} must give each image a list of the classes of its objects; get the file again"
            raise CorruptFileError(msg)
        if not all(name in index for name in ids):
            logger.info("%s lists not all images: reading their %d annotations instead", path, len(ids))
            index = {name: object_classes(self._file("human_parts", name)) for name in ids}
        return [name for name in ids if PERSON in index[name]]

    def _file(self, task: str, name: str) -> File:
        path = self._require(self._path(task, name))
        return File(str(path), path.read_bytes())

    def files(self, index: int) -> dict[str, Path]:
        """Name the files of a sample; normals, too, need those of ``"edges"``, whose labels tell where they count."""
        name = self.ids[index]
        keys = [*self.tasks, "edges"] if "normals" in self.tasks else self.tasks
        return {IMAGE: self.root / "JPEGImages" / f"{name}.jpg"} | {key: self._path(key, name) for key in keys}

    def _path(self, task: str, name: str) -> Path:
        folder = self.root / FOLDERS[task]
        if task == "semseg":
            voc = folder / "VOC12" / f"{name}.png"
            return voc if existing(voc).exists() else folder / "pascal-context" / f"{name}.png"
        return folder / f"{name}.{'mat' if task in ('human_parts', 'edges') else 'png'}"

    def decode(self, key: str, files: Mapping[str, File]) -> NDArray[Any] | None:
        """Turn files into the image or a task's target; images without a part of a person have no ``human_parts``."""
        if key == IMAGE:
            return read_rgb(files[IMAGE])
        if key == "semseg":
            return read_ids(files[key])
        if key == "human_parts":
            return read_parts(files[key])
        if key == "saliency":
            return (read_plane(files[key]) > 127).astype(np.uint8)
        if key == "normals":
            return self._decode_normals(files[key], files["edges"])
        return label_edges(read_labels(files[key]))

    def _decode_normals(self, file: File, labels_file: File) -> NDArray[np.float32]:
        stored, labels = decode_normals(read_rgb(file)), read_labels(labels_file)
        if labels.shape != stored.shape[:2]:
            msg = (
                f"{file.path} is {stored.shape[0]}x{stored.shape[1]} and {labels_file.path} "
                f"{labels.shape[0]}x{labels.shape[1]} (height x width); they must agree"
            )
            raise CorruptFileError(msg)
        normals: NDArray[np.float32] = stored[..., np.abs(self.normal_axes) - 1] * np.sign(
            self.normal_axes, dtype=np.float32
        )
        normals[~HAS_NORMALS[labels]] = np.nan
        return normals

    def faults(self, key: str, files: Mapping[str, File], target: NDArray[Any]) -> Iterator[str]:
        """Find normals of other axes: surfaces that are seen face the camera."""
        if key == "normals":
            z = target[..., 2][np.isfinite(target[..., 2])]
            if z.size and (z > 0).mean() > 0.5:
                yield (
                    f"{files[key].path}: {(z > 0).mean():.0%} of the normals point away from the camera; if all images "
                    f"are like this, data.init_args.normal_axes (now {list(self.normal_axes)}) needs other signs"
                )


def read_labels(file: File) -> NDArray[np.uint16]:
    """Read the 459 labels ``(H, W)`` of a Context annotation, 0 where unlabelled.

    Raises:
        CorruptFileError: If it holds something else.
    """
    labels = read_mat(file).get("LabelMap", np.empty(0))
    last = len(HAS_NORMALS) - 1
    if labels.ndim != 2 or labels.size == 0 or not 0 <= labels.min() <= labels.max() <= last:
        msg = (
            f"{file.path} holds no matrix 'LabelMap' of labels 0..{last}, as the annotations of PASCAL-Context do; "
            "get the file again"
        )
        raise CorruptFileError(msg)
    return np.asarray(labels, dtype=np.uint16)


def read_parts(file: File) -> NDArray[np.uint8] | None:
    """Draw the parts of all people of a PASCAL-Part annotation, in its order, the last on top.

    Returns:
        Part ids ``(H, W)``, 0 elsewhere; None if there are none.

    Raises:
        CorruptFileError: If it is not such an annotation.
    """
    drawn: NDArray[np.uint8] | None = None
    try:
        people = [thing for thing in _objects(file) if thing["class_ind"].item() == PERSON]
        for part in (part for person in people for part in person["parts"].ravel()):
            mask = part["mask"] > 0
            drawn = np.zeros(mask.shape, dtype=np.uint8) if drawn is None else drawn
            drawn[mask] = PERSON_PARTS[part["part_name"].item()]
    except _NO_ANNOTATION as error:
        raise _no_annotation(file, error) from error
    return drawn if drawn is not None and drawn.any() else None


def object_classes(file: File) -> list[int]:
    """List the VOC class of every object of a PASCAL-Part annotation; -1 for those without a pixel.

    Raises:
        CorruptFileError: If it is not such an annotation.
    """
    try:
        return [int(thing["class_ind"].item()) if thing["mask"].any() else -1 for thing in _objects(file)]
    except _NO_ANNOTATION as error:
        raise _no_annotation(file, error) from error


#: What looking for fields that are not there, or are something else, raises.
_NO_ANNOTATION = (KeyError, IndexError, ValueError, TypeError)


def _no_annotation(file: File, error: Exception) -> CorruptFileError:
    return CorruptFileError(f"{file.path} is not an annotation of PASCAL-Part ({error}); get the file again")


def _objects(file: File) -> NDArray[Any]:
    """Return the struct array of the objects; without objects, or parts, files hold any empty matrix instead."""
    objects: NDArray[Any] = read_mat(file)["anno"]["objects"].item()
    return objects.ravel()
