"""PASCAL-Context from PASCAL VOC 2010, its Context labels and PASCAL-Part."""

import json
import logging
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from taskformer.data.datamodules.pascal_context import PASCALContextDataModule
from taskformer.data.datasets.pascal_context import PALETTE, VOC_CLASS, object_classes, read_labels
from taskformer.data.images import File, write_png
from taskformer.data.names import ends_with, is_hidden, read_lines
from taskformer.datatools.prepare.sources import Source, convert, extract, fetch
from taskformer.errors import CorruptFileError, DatasetNotFoundError
from taskformer.files import replacing, write_text
from taskformer.parallel import default_workers, run_jobs

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Collection:
    """A published archive, and what of it goes where.

    Attributes:
        source: The archive.
        folder: Folder below the source folder where the archive is looked for, or downloaded to.
        trees: Folders below the source folder that may hold it unpacked.
        places: Folder below the result of each member, by the name of the folder that the member is in.
    """

    source: Source
    folder: str
    trees: tuple[str, ...]
    places: Mapping[str, str]


VOC2010 = _Collection(
    Source(
        url="http://host.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar",
        file="VOCtrainval_03-May-2010.tar",
        md5="da459979d0c395079b5c75ee67908abb",  # torchvision's; the owners publish none
        note="the page of the file is http://host.robots.ox.ac.uk/pascal/VOC/voc2010/",
    ),
    "",
    ("VOCdevkit/VOC2010", "VOC2010"),
    {"JPEGImages": "JPEGImages", "Main": "ImageSets/Main"},
)
VOC2012 = _Collection(
    Source(
        url="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
        file="VOCtrainval_11-May-2012.tar",
        md5="6cd6e144f989b92b3379bac3b3de84fd",  # torchvision's; the owners publish none
        note="the page of the file is http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
    ),
    "",
    ("VOCdevkit/VOC2012", "VOC2012"),
    {"SegmentationClass": "semseg/VOC12"},
)
# Both archives of annotations are called trainval.tar.gz, so each has a folder of its own.
CONTEXT_LABELS = _Collection(
    Source(
        url="https://roozbehm.info/pascal-context/trainval.tar.gz",
        file="trainval.tar.gz",
        note="it was at https://cs.stanford.edu/~roozbeh/pascal-context/ before",
    ),
    "pascal-context",
    ("pascal-context/trainval", "trainval"),
    {"trainval": "pascal-context/trainval"},
)
PARTS = _Collection(
    Source(
        url="https://roozbehm.info/pascal-parts/trainval.tar.gz",
        file="trainval.tar.gz",
        note="it was at http://www.stat.ucla.edu/~xianjie.chen/pascal_part_dataset/pascal_part.html before",
    ),
    "pascal-parts",
    ("pascal-parts/Annotations_Part", "Annotations_Part"),
    {"Annotations_Part": "human_parts"},
)
#: What is taken from an existing PASCAL_MT or PASCALContext.
DISTILLED_PLACES = {"sal_distill": "sal_distill", "normals_distill": "normals_distill", "VOC12": "semseg/VOC12"}


def prepare_pascal_context(
    source: Path | None,
    out: Path,
    distilled: Path | None = None,
    voc12: bool = False,
    workers: int | None = None,
) -> None:
    """Build PASCAL-Context from what its owners publish; run again, it continues where it stopped.

    The images come from PASCAL VOC 2010 (1.3 GB), the edges and ``semseg`` from the 459 labels of PASCAL-Context
    (30 MB), ``human_parts`` from PASCAL-Part (80 MB). Training and validation are VOC 2010's, as far as they have
    Context labels: 4998 and 5105 images. The 21 classes are the Context labels of the same names (``diningtable`` is
    ``table``), all else is background; the masks of VOC 2012, which the literature uses where they exist, can be added.

    Nobody but third parties has made ``saliency`` and ``normals``: predictions of other networks (Maninis et al., CVPR
    2019), which came as https://data.vision.ee.ethz.ch/kmaninis/share/MTL/PASCAL_MT.tgz. Without them the data set
    has three tasks.

    Args:
        source: Folder with the archives as downloaded, or unpacked: ``VOCtrainval_03-May-2010.tar`` or ``VOCdevkit``,
            ``pascal-context/trainval.tar.gz`` or ``pascal-context/trainval``, ``pascal-parts/trainval.tar.gz`` or
            ``pascal-parts/Annotations_Part``. What is not there is downloaded to it. None takes ``OUT/downloads``,
            which can be deleted afterwards.
        out: Folder of the data set to build.
        distilled: An existing ``PASCAL_MT.tgz`` or ``PASCALContext.tar.gz``, or its folder, to take saliency, normals
            and VOC 2012's masks from.
        voc12: Whether to add the masks of VOC 2012 from its archive (2 GB).
        workers: Number of processes; None takes one per processor.

    Raises:
        DownloadError: If a file can neither be found nor downloaded.
        CorruptFileError: If a file is broken, or an archive would write outside its folder.
        DatasetNotFoundError: If images or annotations are missing in the end.
    """
    source = out / "downloads" if source is None else source
    _unpack(_find(CONTEXT_LABELS, source), out, CONTEXT_LABELS.places, None)
    labelled = {path.stem for path in (out / "pascal-context" / "trainval").glob("*.mat")}
    for collection in (VOC2010, PARTS, VOC2012) if voc12 else (VOC2010, PARTS):
        _unpack(_find(collection, source), out, collection.places, labelled)
    if distilled is not None:
        _unpack(distilled, out, DISTILLED_PLACES, labelled)
    splits = {split: _listed(out, split, labelled) for split in ("train", "val")}
    ids = [name for names in splits.values() for name in names]
    _check_complete(out, ids)
    _report(convert(ids, partial(_write_semseg, out), workers, "semseg"), len(ids))
    _write_part_lists(out, splits, workers)
    for split, names in splits.items():  # last: with these, it is a data set
        write_text(out / "ImageSets" / "Context" / f"{split}.txt", "".join(f"{name}\n" for name in names))


def _find(collection: _Collection, source: Path) -> Path:
    """Return the folder of an unpacked archive, or else the archive, downloaded if need be."""
    for tree in collection.trees:
        if (source / tree).is_dir():
            return source / tree
    return fetch(collection.source, source / collection.folder)


def _unpack(origin: Path, out: Path, places: Mapping[str, str], ids: Collection[str] | None) -> None:
    """Bring the files of an archive or a folder to their places."""
    wanted = partial(_place, places, ids)
    if not origin.is_dir():
        extract(origin, out, wanted)
        return
    for path in sorted(origin.rglob("*")):
        target = wanted(str(PurePosixPath(origin.name) / path.relative_to(origin).as_posix()))
        if target is not None and path.is_file():
            _copy(path, out / target)


def _place(places: Mapping[str, str], ids: Collection[str] | None, name: str) -> str | None:
    """Return where a member goes; labels, images and lists of training and validation are wanted, of these ids."""
    path = PurePosixPath(name)
    folder = places.get(path.parent.name)
    if folder is None or is_hidden(path.name) or not ends_with(path.name, (".jpg", ".mat", ".png", ".txt")):
        return None
    listed = path.stem in ("train", "val") if path.suffix == ".txt" else ids is None or path.stem in ids
    return f"{folder}/{path.name}" if listed else None


def _copy(path: Path, target: Path) -> None:
    if not target.is_file() or target.stat().st_size != path.stat().st_size:
        with replacing(target) as temporary:
            shutil.copyfile(path, temporary)


def _listed(out: Path, split: str, labelled: Collection[str]) -> list[str]:
    """Return the images of VOC's split that have Context labels, in VOC's order."""
    path = out / "ImageSets" / "Main" / f"{split}.txt"
    if not path.is_file():
        msg = f"{path} is missing: the archive or folder of VOC 2010 has no ImageSets/Main/{split}.txt"
        raise DatasetNotFoundError(msg)
    names = [name for name in read_lines(path) if name in labelled]
    if len(names) != (published := PASCALContextDataModule.published[split]):
        logger.warning("%s has %d images with Context labels, the owners publish %d", path, len(names), published)
    return names


def _check_complete(out: Path, ids: list[str]) -> None:
    expected = [out / place for name in ids for place in (f"JPEGImages/{name}.jpg", f"human_parts/{name}.mat")]
    if missing := [path for path in expected if not path.is_file()]:
        msg = (
            f"{len(missing)} of {len(expected)} images and annotations of parts are missing, e.g. {missing[0]}; "
            "the archive or folder they come from is incomplete, get it again"
        )
        raise DatasetNotFoundError(msg)


def _write_semseg(out: Path, name: str) -> None:
    """Derive the 21 classes of an image from its Context labels."""
    target = out / "semseg" / "pascal-context" / f"{name}.png"
    if not target.is_file():
        write_png(target, VOC_CLASS[read_labels(_read(out / "pascal-context" / "trainval" / f"{name}.mat"))], PALETTE)


def _write_part_lists(out: Path, splits: Mapping[str, list[str]], workers: int | None) -> None:
    """Write the classes of every image's objects, which loaders would otherwise read all annotations for."""
    for split, names in splits.items():
        path = out / "ImageSets" / "Parts" / f"{split}.txt"
        if path.is_file():
            continue
        count = default_workers() if workers is None else workers
        outcomes = list(run_jobs(names, partial(_classes, out), count, f"parts of {split}"))
        _report([(outcome.item, outcome.error) for outcome in outcomes if outcome.error is not None], len(names))
        write_text(path, json.dumps({outcome.item: outcome.value for outcome in outcomes}))


def _classes(out: Path, name: str) -> list[int]:
    return object_classes(_read(out / "human_parts" / f"{name}.mat"))


def _read(path: Path) -> File:
    return File(str(path), path.read_bytes())


def _report(failures: list[tuple[str, str]], total: int) -> None:
    if failures:
        msg = f"{len(failures)} of {total} files could not be converted, the first: {failures[0][1]}"
        raise CorruptFileError(msg)
