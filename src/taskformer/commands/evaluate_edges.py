"""``taskformer evaluate edges``: the boundary benchmark (ODS, OIS, AP) on files, no MATLAB needed.

OUT keeps what every image scored: the same command again goes on where it was stopped, and scores only images whose
files have changed.
"""

import io
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.sparse import issparse

from taskformer.data.images import File, holds_array, read_array, read_json, read_mat, read_plane
from taskformer.data.names import existing, files_in, read_text
from taskformer.errors import ConfigError, CorruptFileError, DatasetNotFoundError, MissingExtraError
from taskformer.evaluation.predictions import file_name
from taskformer.files import write_json
from taskformer.metrics.boundaries import (
    COUNTED,
    Counts,
    Floats,
    Mask,
    average_precision,
    best_point,
    count_matches,
    counts_at_best,
    even_thresholds,
    recall_precision_f,
    suppress,
    thin,
)
from taskformer.parallel import default_workers, run_jobs
from taskformer.parsing import Parser

#: Seconds between savings of what has been scored.
SAVE_EVERY_S = 60.0
#: How far probabilities may be from [0, 1], by rounding.
ROUNDING = 1e-6
#: Variables of MATLAB files that hold edges themselves.
PLAIN_NAMES = ("Boundaries", "edges", "edge")
#: How MATLAB files of version 7.3 begin, perhaps after a header of their own.
HDF5, HDF5_WITHIN = b"\x89HDF\r\n\x1a\n", 1024


@dataclass(frozen=True)
class Settings:
    """What an image's counts depend on, beside its files.

    Attributes:
        thresholds: Increasing, in (0, 1].
        max_dist: Tolerance as a fraction of the image diagonal.
        nms: Whether predictions are first suppressed off the ridges.
        thin_truth: Whether true edges are thinned first.
    """

    thresholds: list[float]
    max_dist: float
    nms: bool
    thin_truth: bool


@dataclass(frozen=True)
class Pair:
    """The two files of an image."""

    name: str
    prediction: Path
    truth: Path

    def facts(self) -> list[list[int]]:
        """Return size in bytes and time of change of both files, which tell whether a score is still theirs."""
        return [[stat.st_size, stat.st_mtime_ns] for stat in (self.prediction.stat(), self.truth.stat())]


def main(argv: list[str]) -> None:
    """Parse the command line, score, print and write."""
    options = _parser().parse_args(argv[1:])
    if not 0 <= options.max_dist < math.inf:
        msg = f"--max-dist is a fraction of the image diagonal, at least 0, got {options.max_dist}"
        raise ConfigError(msg)
    settings = Settings(_thresholds(options.thresholds), options.max_dist, options.nms, options.thin_truth)
    pairs = find_pairs(Path(options.pred), Path(options.gt))
    out = Path(options.json)
    if out.is_dir() or any(parent.exists() and not parent.is_dir() for parent in out.parents):
        msg = f"--json {out} cannot be written: it is a folder, or inside of a file"
        raise ConfigError(msg)
    images = score(pairs, settings, out, default_workers() if options.workers is None else options.workers)
    report = summarise(images, settings, len(pairs))
    write_json(out, report)
    Console().print(screen_table(report))


def _parser() -> Parser:
    parser = Parser(prog="taskformer evaluate edges", description=__doc__)
    parser.add_argument("--pred", type=str, required=True, help="Folder of the predictions: ID.png (grey levels) or "
                        "ID.npy (probabilities in [0, 1]), of the size of the true edges.")  # fmt: skip
    parser.add_argument("--gt", type=str, required=True, help="Folder of the true edges: ID.png (an edge is what is "
                        "not 0), or ID.mat as BSDS has them, with all annotators; or with one array.")  # fmt: skip
    parser.add_argument("--thresholds", type=str, default="99", help="How many thresholds, spread evenly inside "
                        "(0, 1), or a text file with one on each line.")  # fmt: skip
    parser.add_argument("--max-dist", type=float, default=0.0075, help="Tolerance as a fraction of the image diagonal: "
                        "0.0075 for BSDS and PASCAL-Context, 0.011 for NYUD-v2.")  # fmt: skip
    parser.add_argument("--nms", type=bool, default=True, help="Whether predictions are first suppressed off the "
                        "ridges; false if they are already.")  # fmt: skip
    parser.add_argument("--thin-truth", action="store_true", help="Also thin the true edges.")
    parser.add_argument("--json", type=str, required=True, help="JSON file to write, and to go on from if it exists.")
    parser.add_argument("--workers", type=int | None, help="Number of processes; one per processor by default.")
    return parser


def _thresholds(text: str) -> list[float]:
    """Read thresholds: a number of them, or a file."""
    if text.isdecimal():
        values = even_thresholds(int(text))
    else:
        try:
            values = np.array(read_text(Path(text)).split(), dtype=np.float64)
        except (OSError, ValueError) as error:
            msg = f"--thresholds {text} is neither a number nor a text file with one threshold on each line ({error})"
            raise ConfigError(msg) from error
    if not (values.size and np.diff(values, prepend=0).min() > 0 and values[-1] <= 1):
        msg = f"--thresholds {text} must give thresholds that increase within (0, 1]"
        raise ConfigError(msg)
    thresholds: list[float] = values.tolist()
    return thresholds


def find_pairs(predictions: Path, truths: Path) -> list[Pair]:
    """Find the prediction of every file of true edges.

    Raises:
        DatasetNotFoundError: If there are no true edges, or one lacks its prediction.
        ConfigError: If an image has two files of true edges.
    """
    found = sorted(files_in(truths, (".png", ".mat")))
    if not found:
        msg = f"{truths} has no true edges (ID.png or ID.mat); check --gt"
        raise DatasetNotFoundError(msg)
    name, times = Counter(path.stem for path in found).most_common(1)[0]
    if times > 1:
        msg = f"{truths} has two files of true edges of the image {name}, .mat and .png; keep one of them"
        raise ConfigError(msg)
    files = {path: _prediction(predictions, path.stem) for path in found}
    missing = [path.stem for path, file in files.items() if file is None]
    if missing:
        names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        msg = (
            f"{predictions} lacks the predictions (ID.png or ID.npy) of {len(missing)} of {len(found)} images: {names}"
        )
        raise DatasetNotFoundError(msg)
    return [Pair(truth.stem, file, truth) for truth, file in files.items() if file is not None]


def _prediction(folder: Path, name: str) -> Path | None:
    stems = (name, file_name(name))
    candidates = [existing(folder / f"{stem}{suffix}") for stem in stems for suffix in (".png", ".npy")]
    return next((path for path in candidates if path.is_file()), None)


def score(pairs: Sequence[Pair], settings: Settings, out: Path, workers: int) -> dict[str, Any]:
    """Count the matches of all images, in several processes; what ``out`` has of them is taken from there.

    Args:
        pairs: The images.
        settings: How to score.
        out: Where counts are saved from time to time.
        workers: Number of processes.

    Returns:
        Facts of the files and counts by image.

    Raises:
        TaskformerError: If an image cannot be scored; the others are saved by then.
    """
    facts = {pair.name: pair.facts() for pair in pairs}
    old = _saved(out, settings)
    images = {name: old[name] for name in facts if name in old and old[name]["files"] == facts[name]}
    left = [pair for pair in pairs if pair.name not in images]
    failed: list[str] = []
    saved = time.monotonic()
    try:
        for outcome in run_jobs(left, partial(count_pair, settings=settings), workers, "edges"):
            name = outcome.item.name
            if outcome.value is None:
                failed.append(f"{name}: {outcome.error}")
                continue
            images[name] = {"files": facts[name], **dict(zip(COUNTED, outcome.value.tolist(), strict=True))}
            if time.monotonic() - saved > SAVE_EVERY_S:
                write_json(out, summarise(images, settings, len(pairs)))
                saved = time.monotonic()
    finally:
        if images:
            write_json(out, summarise(images, settings, len(pairs)))
    if failed:
        msg = f"{len(failed)} of {len(pairs)} images could not be scored, the first: {failed[0]}"
        raise CorruptFileError(msg)
    return images


def _saved(out: Path, settings: Settings) -> dict[str, Any]:
    """Return the images of an earlier result with the same settings."""
    if not out.exists():
        return {}
    report = read_json(File(str(out), out.read_bytes()))
    try:
        images: dict[str, Any] = report["images"] if report["settings"] == asdict(settings) else {}
        [image[key] for image in images.values() for key in ("files", *COUNTED)]
    except (KeyError, TypeError, AttributeError) as error:
        msg = f"{out} is no result of this command and would be overwritten; give --json another name"
        raise ConfigError(msg) from error
    return images


def count_pair(pair: Pair, settings: Settings) -> Counts:
    """Count the matches of one image.

    Returns:
        ``(4, thresholds)`` in the order of :data:`COUNTED`.

    Raises:
        CorruptFileError: If a file does not hold what its name says, or the sizes differ.
    """
    probability, truths = read_probability(pair.prediction), read_truths(pair.truth)
    for truth in truths:
        if truth.shape != probability.shape:
            msg = f"{pair.prediction} has shape {probability.shape} and {pair.truth} {truth.shape} (height, width)"
            raise CorruptFileError(msg)
    return count_matches(
        suppress(probability) if settings.nms else probability,
        [thin(truth) for truth in truths] if settings.thin_truth else truths,
        np.array(settings.thresholds),
        settings.max_dist * math.hypot(*probability.shape),
    )


def read_probability(path: Path) -> Floats:
    """Read a predicted edge map ``(H, W)`` in [0, 1]; whole numbers are shares of the largest of their type."""
    file = File(str(path), path.read_bytes())
    values: NDArray[Any] = read_array(file) if holds_array(file) else read_plane(file)
    if values.dtype.kind not in "bufi":
        msg = f"{path} must be a map of probabilities, got values of type {values.dtype}"
        raise CorruptFileError(msg)
    if values.dtype.kind == "u":
        values = values / np.iinfo(values.dtype).max
    values = values.astype(np.float64)
    if values.ndim != 2 or not ((values >= -ROUNDING) & (values <= 1 + ROUNDING)).all():
        msg = f"{path} must be a map (height, width) of probabilities in [0, 1], got shape {values.shape}" + (
            f" with values {values.min():.4g}..{values.max():.4g}" if values.size else ""
        )
        raise CorruptFileError(msg)
    return values.clip(0, 1)


def read_truths(path: Path) -> list[Mask]:
    """Read true edges, ``(H, W)`` of every annotator.

    A MATLAB file, of any version, holds ``groundTruth``: an array, or a cell or struct of several, each with the field
    ``Boundaries`` or an array itself; or else one array called as in :data:`PLAIN_NAMES`.

    Raises:
        CorruptFileError: If it holds something else.
    """
    file = File(str(path), path.read_bytes())
    if not holds_array(file):
        return [read_plane(file) > 0]
    variables = _read_hdf5(file) if HDF5 in file.content[:HDF5_WITHIN] else read_mat(file)
    names = [name for name in ("groundTruth", *PLAIN_NAMES) if name in variables]
    drawn = list(_arrays(variables[names[0]])) if names else []
    if not drawn:
        there = ", ".join(name for name in variables if not name.startswith(("_", "#"))) or "nothing"
        msg = f"{path} does not hold groundTruth{{k}}.Boundaries as BSDS has it, nor one array of edges, but {there}"
        raise CorruptFileError(msg)
    for array in drawn:
        values = np.unique(array)
        if array.ndim != 2 or array.dtype.kind not in "buif" or not 0 < values.size <= 2 or values[0] != 0:
            msg = (
                f"{path}: an annotator's edges must be a map (height, width) of 0 and one other value, "
                f"got {array.dtype} of shape {array.shape} with {values.size} different values"
            )
            raise CorruptFileError(msg)
    return [array > 0 for array in drawn]


def _arrays(value: Any) -> Iterator[NDArray[Any]]:
    """Find the annotators' arrays in cells and structs, however nested."""
    if isinstance(value, dict):
        yield from _arrays(value.get("Boundaries", []))
    elif isinstance(value, list):
        for item in value:
            yield from _arrays(item)
    elif issparse(value):
        yield value.toarray()
    elif value.dtype.names:  # a struct, or an array of them
        for item in value.ravel():
            yield from _arrays(dict(zip(value.dtype.names, item, strict=True)))
    elif value.dtype.kind == "O":  # a cell
        yield from _arrays(value.ravel().tolist())
    else:
        yield value


def _read_hdf5(file: File) -> dict[str, Any]:
    """Read a MATLAB file of version 7.3: structs as dictionaries, cells as lists, arrays of numbers as such.

    Raises:
        MissingExtraError: If h5py is not installed.
        CorruptFileError: If the file cannot be read.
    """
    try:
        import h5py
    except ImportError as error:
        package, extra = "h5py", "prepare"
        raise MissingExtraError(package, extra) from error

    def convert(item: Any) -> Any:
        if isinstance(item, h5py.Group):
            return {name: convert(part) for name, part in item.items()}
        if h5py.check_ref_dtype(item.dtype):
            return [convert(item.file[reference]) for reference in item[()].ravel()]
        return item[()].T  # columns come first there

    try:
        with h5py.File(io.BytesIO(file.content)) as stored:
            return {name: convert(item) for name, item in stored.items() if not name.startswith("#")}
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        msg = f"{file.path} ({len(file.content)} bytes) cannot be read as a MATLAB 7.3 file ({error})"
        raise CorruptFileError(msg) from error


def summarise(images: dict[str, Any], settings: Settings, expected: int) -> dict[str, Any]:
    """Turn counts into the report: the scores of the data set, the tables per threshold and per image.

    Args:
        images: Facts of the files and counts by image.
        settings: How they were scored.
        expected: How many images there should be.
    """
    thresholds = np.array(settings.thresholds)
    counts = {name: np.array([image[key] for key in COUNTED]) for name, image in sorted(images.items())}
    total = sum(counts.values(), np.zeros((len(COUNTED), thresholds.size), np.int64))
    best = best_point(total, thresholds)
    ois = recall_precision_f(sum(map(counts_at_best, counts.values()), np.zeros(len(COUNTED), np.int64)))
    return {
        "ods": best.f,
        "ois": float(ois[2]),
        "ap": average_precision(total),
        "ods_threshold": best.threshold,
        "ods_recall": best.recall,
        "ods_precision": best.precision,
        "ois_recall": float(ois[0]),
        "ois_precision": float(ois[1]),
        "scored": len(images),
        "expected": expected,
        "settings": asdict(settings),
        "thresholds": _rows(total, thresholds),
        "images": {name: {**asdict(best_point(counts[name], thresholds)), **images[name]} for name in counts},
    }


def _rows(counts: Counts, thresholds: Floats) -> list[dict[str, float]]:
    """Return a row per threshold."""
    names = ("threshold", "recall", "precision", "f", *COUNTED)
    columns = [thresholds.tolist(), *(curve.tolist() for curve in recall_precision_f(counts)), *counts.tolist()]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def screen_table(report: dict[str, Any]) -> Table:
    """Build the table for the terminal."""
    table = Table(title=f"edges: {report['scored']} images")
    for name in ("", "F", "recall", "precision", "threshold"):
        table.add_column(name, justify="right" if name else "left")
    for name, keys in {
        "ODS": ("ods", "ods_recall", "ods_precision", "ods_threshold"),
        "OIS": ("ois", "ois_recall", "ois_precision"),
        "AP": ("ap",),
    }.items():
        table.add_row(name, *(f"{report[key]:.4f}" for key in keys))
    return table
