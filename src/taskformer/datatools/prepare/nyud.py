"""NYUD-v2 from the MATLAB file of its owners, or from an archive that multi-task code circulates."""

import logging
import shutil
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from taskformer.data.datamodules.nyud import NYUDDataModule
from taskformer.data.datasets.nyud import ADASHARE_SPLITS, CENTER, FOCAL, LAYOUTS, find_layout, official_split, table
from taskformer.data.images import write_npy, write_png
from taskformer.data.names import is_hidden
from taskformer.data.surfaces import plane_normals
from taskformer.datatools.prepare.sources import Source, convert, extract, fetch
from taskformer.datatools.selection import chosen_tasks
from taskformer.errors import CorruptFileError, DatasetNotFoundError, MissingExtraError
from taskformer.files import replacing, write_text

logger = logging.getLogger(__name__)

LABELED = Source(
    url="https://horatio.cs.nyu.edu/mit/silberman/nyu_depth_v2/nyu_depth_v2_labeled.mat",
    file="nyu_depth_v2_labeled.mat",
    # The owners publish neither; these are what several independent projects have recorded for this file.
    bytes=2_972_037_809,
    sha256="2d724b0c0ab358aa1ce5df855e5bd14a2279ab7202efe22f32a30d612dcb86aa",
    note="its page is https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html",
)
#: The part of the 480x640 frame where the projected depth reaches: rows 46..470, columns 41..600 of the literature.
CROP = np.s_[45:470, 40:600]
#: Unlabelled pixels up to this many pixels from a label are gaps between objects, and take the nearest one's.
GAP = 10
#: The arrays that are read, with their shapes as MATLAB's reversed axes make them: image, channel, column, row.
ARRAYS = {"images": 4, "depths": 3, "rawDepths": 3, "labels": 3, "instances": 3}

#: What belongs to a layout, in archives and folders that may hold more.
FOLDERS = {"gt_sets", *(folder for layout in LAYOUTS.values() for folder, _ in layout.folders.values())}
ENDINGS = (".jpg", ".npy", ".png", ".txt")
ARCHIVES = (".gz", ".tar", ".tgz", ".zip")


class Frame(NamedTuple):
    """One image of the MATLAB file, all maps ``(480, 640)``.

    Attributes:
        image: RGB ``(480, 640, 3)`` uint8.
        depth: Metres, filled where the camera saw nothing.
        raw_depth: Metres, 0 where the camera saw nothing.
        labels: Raw labels 1..894, 0 where unlabelled.
        instances: Number of the object among those of its label.
    """

    image: NDArray[np.uint8]
    depth: NDArray[np.float32]
    raw_depth: NDArray[np.float32]
    labels: NDArray[np.uint16]
    instances: NDArray[np.uint8]


def prepare_nyud(source: Path | None, out: Path, full_frame: bool = False, workers: int | None = None) -> None:
    """Build NYUD-v2 from ``nyu_depth_v2_labeled.mat`` (2.8 GB); run again, it continues where it stopped.

    Layout a of :class:`taskformer.data.datasets.NYUD` is written, split as the owners do (795, 654):

    * ``segmentation``: the 894 raw labels in the 40 classes of Gupta et al. (2013).
    * ``depth``: the owners' filled depth.
    * ``normals``: planes fitted to the depth around each pixel (:func:`taskformer.data.surfaces.plane_normals`), with
      the colour camera of the owners' toolbox; invalid (grey 128) where the camera measured no depth, so that nothing
      is learned from filled holes.
    * ``edge``: pixels whose right or lower neighbour belongs to another object (raw label and instance). The unlabelled
      gaps between objects, up to 10 pixels from a label, are first given to the nearest one.

    Normals and edges thus differ in detail from those of ``NYUDv2.tar.gz`` and ``NYUD_MT.tgz``: results on them compare
    with published ones only approximately. With one of these archives as the source, its files are taken as they are.

    Args:
        source: ``nyu_depth_v2_labeled.mat``, or the folder that it is in or is downloaded to; or an archive with the
            files of a layout, or their folder. None downloads to ``OUT/downloads``, which can be deleted afterwards.
        out: Folder of the data set to build.
        full_frame: Keep all 480x640 pixels instead of the 425x560 in the middle, where the depth is measured.
        workers: Number of processes; None takes one per processor.

    Raises:
        DownloadError: If the file can neither be found nor downloaded.
        CorruptFileError: If it is broken or not the expected one, or an archive would write outside its folder.
        DatasetNotFoundError: If the source does not exist, or files are missing in the end.
        MissingExtraError: If h5py is not installed.
    """
    source = out / "downloads" if source is None else source
    if source.is_dir() and find_layout(source):
        _copy_files(source, out)
    elif source.suffix in ARCHIVES:
        extract(source, out, _place)
    else:
        _convert(source if source.suffix == ".mat" else fetch(LABELED, source), out, full_frame, workers)
    _check_complete(out)


def read_frame(path: Path, number: int) -> Frame:
    """Read one image from the MATLAB file.

    Args:
        path: The file.
        number: Its number from 1.
    """
    with _h5py().File(path) as file:
        image, *maps = (file[name][number - 1].T for name in ARRAYS)  # MATLAB's axes are stored the other way round
    return Frame(image, *maps)


def boundaries(labels: NDArray[Any], instances: NDArray[Any]) -> NDArray[np.bool_]:
    """Find the pixels ``(H, W)`` whose right or lower neighbour belongs to another object.

    Args:
        labels: Label of each pixel, 0 where unlabelled.
        instances: Number of the object among those of its label.
    """
    objects = labels.astype(np.int64) * 256 + instances
    unlabelled = labels == 0
    objects[unlabelled] = 0
    if not unlabelled.all():
        distance, (rows, columns) = ndimage.distance_transform_edt(unlabelled, return_indices=True)
        objects = np.where(distance <= GAP, objects[rows, columns], 0)
    edges = np.zeros(labels.shape, dtype=bool)
    edges[:, :-1] |= objects[:, :-1] != objects[:, 1:]
    edges[:-1] |= objects[:-1] != objects[1:]
    return edges


def _convert(mat: Path, out: Path, full_frame: bool, workers: int | None) -> None:
    """Write all images, then the lists that make them a data set."""
    numbers = range(1, _image_count(mat) + 1)
    failures = convert(numbers, partial(_write_image, mat, out, full_frame), workers, "nyud")
    if failures:
        number, reason = failures[0]
        msg = f"{len(failures)} of {len(numbers)} images of {mat} could not be converted, the first, {number}: {reason}"
        raise CorruptFileError(msg)
    for split in NYUDDataModule.published:
        ids = [f"{number:04d}" for number in numbers if official_split().get(number) == split]
        write_text(out / "gt_sets" / f"{split}.txt", "".join(f"{name}\n" for name in ids))


def _image_count(mat: Path) -> int:
    """Look whether this is the file with the expected labels; returns the number of its images."""
    h5py = _h5py()
    if not mat.is_file():
        msg = f"{mat} does not exist; get it from {LABELED.url}, or name no source to have it downloaded"
        raise DatasetNotFoundError(msg)
    try:
        with h5py.File(mat) as file:
            fits = all(name in file and file[name].ndim == ndim for name, ndim in ARRAYS.items()) and "names" in file
            names = ["".join(map(chr, file[name][()].ravel())) for name in file["names"][0]] if fits else []
            count = len(file["images"]) if fits else 0
    except OSError as error:
        msg = f"{mat} is truncated or not a MATLAB 7.3 file ({error}); get it again from {LABELED.url}"
        raise CorruptFileError(msg) from error
    if names != table()["raw_names"]:
        msg = f"{mat} does not hold {', '.join(ARRAYS)} and the 894 names of labels; get it again from {LABELED.url}"
        raise CorruptFileError(msg)
    return count


def _write_image(mat: Path, out: Path, full_frame: bool, number: int) -> None:
    """Write the image and its labels, unless all of them are there."""
    folders = LAYOUTS["a"].folders
    paths = {key: out / folder / f"{number:04d}{ending}" for key, (folder, ending) in folders.items()}
    if all(path.is_file() for path in paths.values()):
        return
    frame = read_frame(mat, number)
    window = np.s_[:, :] if full_frame else CROP
    to_40 = np.array([0, *table()["raw_to_40"]], dtype=np.uint8)
    measured = np.where(frame.raw_depth > 0, frame.depth, np.float32(np.nan))
    normals = plane_normals(measured, FOCAL, CENTER)
    write_png(paths["semseg"], to_40[frame.labels][window])
    write_npy(paths["depth"], np.ascontiguousarray(frame.depth[window]))
    write_png(paths["normals"], np.round((np.nan_to_num(normals, nan=0.0) + 1) * 127.5).astype(np.uint8)[window])
    write_png(paths["edges"], boundaries(frame.labels, frame.instances)[window].astype(np.uint8) * np.uint8(255))
    write_png(paths["image"], np.ascontiguousarray(frame.image[window]))


def _place(name: str) -> str | None:
    """Return where a file of an archive or folder goes: below the folders that a layout has, whatever they are in."""
    path = PurePosixPath(name)
    if path.name == ADASHARE_SPLITS:
        return path.name
    known = path.parent.name in FOLDERS and path.suffix.lower() in ENDINGS and not is_hidden(path.name)
    return f"{path.parent.name}/{path.name}" if known else None


def _copy_files(source: Path, out: Path) -> None:
    """Copy the files of a layout."""
    for path in sorted(source.rglob("*")):
        target = _place(path.relative_to(source).as_posix())
        if target is None or not path.is_file() or path == out / target:
            continue
        if not (out / target).is_file() or (out / target).stat().st_size != path.stat().st_size:
            with replacing(out / target) as temporary:
                shutil.copyfile(path, temporary)


def _check_complete(out: Path) -> None:
    """Say what is missing of the images that the lists name."""
    module = NYUDDataModule(str(out))
    tasks = chosen_tasks(module)
    for split, published in module.published.items():
        dataset = module.dataset(split, tasks, None)
        paths = [path for index in range(len(dataset)) for path in dataset.files(index).values()]
        if missing := [path for path in paths if not path.is_file()]:
            msg = (
                f"{len(missing)} of {len(paths)} files of the split {split!r} are missing, e.g. {missing[0]}; "
                "the archive or folder they come from is incomplete, get it again"
            )
            raise DatasetNotFoundError(msg)
        if len(dataset) != published:
            logger.warning("%s has %d images of the split %s, %d were published", out, len(dataset), split, published)


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        package, extra = "h5py", "prepare"
        raise MissingExtraError(package, extra) from error
    return h5py
