"""The boundary benchmark (ODS, OIS, AP) on files, no MATLAB needed."""

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from taskformer.data.images import File, read_json
from taskformer.data.names import existing, files_in, read_text
from taskformer.data.predictions import file_name
from taskformer.errors import ConfigError, CorruptFileError, DatasetNotFoundError
from taskformer.evaluation.edge_files import read_probability, read_truths
from taskformer.files import write_json
from taskformer.metrics.boundaries import (
    COUNTED,
    Counts,
    Floats,
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

#: Seconds from one save of what has been scored to the next.
SAVE_EVERY_S = 60.0


@dataclass(frozen=True)
class Settings:
    """What an image's counts depend on, beside its files.

    Attributes:
        thresholds: Increasing, in (0, 1].
        max_dist: Tolerance as a fraction of the image diagonal.
        nms: Whether predictions are first thinned by non-maximum suppression.
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


@dataclass(frozen=True)
class EdgeEvaluation:
    """Scores of edge maps by the boundary benchmark.

    One image, of whose 4 true edge pixels 2 are found by the 2 that are predicted: recall 1/2, precision 1.

    >>> counts = {"files": [], **{name: [number] for name, number in zip(COUNTED, (2, 4, 2, 2), strict=True)}}
    >>> settings = Settings(thresholds=[0.5], max_dist=0.0075, nms=True, thin_truth=False)
    >>> found = EdgeEvaluation(summarise({"a": counts}, settings, expected=1))  # as `evaluate_edges` returns it
    >>> found.report["ods_recall"], found.report["ods_precision"], round(found.report["ods"], 3)
    (0.5, 1.0, 0.667)

    Attributes:
        report: ``ods``, ``ois`` and ``ap`` as fractions, their thresholds, recalls and precisions, the rows of all
            ``thresholds`` and ``images``, and the ``settings``.
    """

    report: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain types, for JSON."""
        return self.report

    def table(self) -> Table:
        """Build the table for the terminal."""
        table = Table(title=f"edges: {self.report['scored']} images")
        for name in ("", "F", "recall", "precision", "threshold"):
            table.add_column(name, justify="right" if name else "left")
        for name, keys in {
            "ODS": ("ods", "ods_recall", "ods_precision", "ods_threshold"),
            "OIS": ("ois", "ois_recall", "ois_precision"),
            "AP": ("ap",),
        }.items():
            table.add_row(name, *(f"{self.report[key]:.4f}" for key in keys))
        return table


def evaluate_edges(
    pred: str | Path,
    gt: str | Path,
    thresholds: int | str | Path = 99,
    max_dist: float = 0.0075,
    nms: bool = True,
    thin_truth: bool = False,
    json: str | Path | None = None,
    workers: int | None = None,
) -> EdgeEvaluation:
    """Score edge maps by the boundary benchmark (ODS, OIS, AP), no MATLAB needed.

    Args:
        pred: Folder of the predictions: ``ID.png`` (grey levels) or ``ID.npy`` (probabilities in [0, 1]), of the size
            of the true edges.
        gt: Folder of the true edges: ``ID.png`` (an edge is what is not 0), or ``ID.mat`` as BSDS has them, with all
            annotators; or with one array.
        thresholds: How many thresholds, spread evenly inside (0, 1), or a text file with one on each line.
        max_dist: Tolerance as a fraction of the image diagonal: 0.0075 for BSDS and PASCAL-Context, 0.011 for NYUD-v2.
        nms: Whether predictions are first thinned by non-maximum suppression; not if they are already.
        thin_truth: Whether the true edges are thinned too.
        json: JSON file that keeps what every image scored: the same call again goes on where it was stopped, and scores
            only images whose files have changed.
        workers: Number of processes; one per processor by default.

    Raises:
        ConfigError: If a setting is impossible, or ``json`` cannot be written or is something else.
        DatasetNotFoundError: If there are no true edges, or one lacks its prediction.
        CorruptFileError: If an image cannot be scored; the others are in ``json`` by then.
    """
    if not 0 <= max_dist < math.inf:
        msg = f"--max-dist is a fraction of the image diagonal, at least 0, got {max_dist}"
        raise ConfigError(msg)
    settings = Settings(_thresholds(str(thresholds)), max_dist, nms, thin_truth)
    pairs = find_pairs(Path(pred), Path(gt))
    out = None if json is None else Path(json)
    if out and (out.is_dir() or any(parent.exists() and not parent.is_dir() for parent in out.parents)):
        msg = f"--json {out} cannot be written: it is a folder, or inside of a file"
        raise ConfigError(msg)
    images = score(pairs, settings, out, default_workers() if workers is None else workers)
    report = summarise(images, settings, len(pairs))
    if out:
        write_json(out, report)
    return EdgeEvaluation(report)


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


def score(pairs: Sequence[Pair], settings: Settings, out: Path | None, workers: int) -> dict[str, Any]:
    """Count the matches of all images, in several processes; what ``out`` has of them is taken from there.

    Args:
        pairs: The images.
        settings: How to score.
        out: Where counts are saved from time to time; None: nowhere.
        workers: Number of processes.

    Returns:
        Facts of the files and counts by image.

    Raises:
        TaskformerError: If an image cannot be scored; the others are saved by then.
    """
    facts = {pair.name: pair.facts() for pair in pairs}
    old = _saved(out, settings) if out and out.exists() else {}
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
            if out and time.monotonic() - saved > SAVE_EVERY_S:
                write_json(out, summarise(images, settings, len(pairs)))
                saved = time.monotonic()
    finally:
        if out and images:
            write_json(out, summarise(images, settings, len(pairs)))
    if failed:
        msg = f"{len(failed)} of {len(pairs)} images could not be scored, the first: {failed[0]}"
        raise CorruptFileError(msg)
    return images


def _saved(out: Path, settings: Settings) -> dict[str, Any]:
    """Return the images of an earlier result with the same settings."""
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
