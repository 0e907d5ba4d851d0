"""Is one run better than another, or was it the choice of images? Paired bootstrap of the scores of single images."""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from taskformer.errors import ConfigError, require
from taskformer.evaluation.report import METRICS

#: Resampled values that are in memory at a time.
BATCH_VALUES = 10**7

#: ``{(task, metric): (ids, values)}``
Columns = dict[tuple[str, str], tuple[list[str], NDArray[np.float64]]]


@dataclass(frozen=True)
class Difference:
    """The first run, A, and another one in one metric of one task.

    >>> Difference("B", "depth", "rmse", 2, 1.0, 1.5, 0.5, low=0.4, high=0.6, better="A").as_dict()["b"]
    1.5

    Attributes:
        other: Letter of the other run.
        task: The task.
        metric: The metric, of each image alone.
        images: How many images both runs have a value for.
        first: Mean over them of A.
        second: Mean of the other run.
        difference: ``second - first``.
        low: Lower end of the 95 % interval of the difference.
        high: Upper end.
        better: Letter of the better run; empty where the interval holds 0 or neither direction is better.
    """

    other: str
    task: str
    metric: str
    images: int
    first: float
    second: float
    difference: float
    low: float
    high: float
    better: str

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain types; the means are under the runs' letters."""
        return {
            "task": self.task,
            "metric": self.metric,
            "images": self.images,
            "a": self.first,
            self.other.lower(): self.second,
            "difference": self.difference,
            "low": self.low,
            "high": self.high,
            "better": self.better,
        }


@dataclass(frozen=True)
class Comparison:
    """Runs image by image, each with the first.

    >>> row = Difference("B", "depth", "rmse", 2, 1.0, 1.5, 0.5, low=0.4, high=0.6, better="A")
    >>> labels = {"A": "imagenet1k (timm)", "B": "ade20k (upernet.pth)"}
    >>> found = Comparison({"A": "runs/a", "B": "runs/b"}, labels, "standard", 10_000, [row])  # as `compare` returns it
    >>> found.runs[found.differences[0].better]
    'runs/a'

    Attributes:
        runs: Folder of each run by its letter, the first is A.
        initialisations: What each run's network was filled with before its training, by its letter.
        protocol: How all were scored.
        resamples: Number of bootstrap samples.
        differences: Every other run's difference to A in every metric that both have.
    """

    runs: dict[str, str]
    initialisations: dict[str, str]
    protocol: str
    resamples: int
    differences: list[Difference]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain types, for JSON."""
        runs = {letter.lower(): folder for letter, folder in self.runs.items()}
        settings = {"protocol": self.protocol, "resamples": self.resamples}
        settings["initialisations"] = {letter.lower(): label for letter, label in self.initialisations.items()}
        return runs | settings | {"rows": [row.as_dict() for row in self.differences]}

    @property
    def warning(self) -> str:
        """Say that the runs began from different weights; empty if they did not."""
        if len(set(self.initialisations.values())) == 1:
            return ""
        labels = ", ".join(f"{letter}: {label}" for letter, label in self.initialisations.items())
        return f"The runs began from different weights ({labels}): no rows of one table."

    def table(self) -> Table:
        """Build the table for the terminal."""
        caption = "Means over images, each scored alone; these are not the values of the whole data set."
        table = Table(
            title=f"{', '.join(f'{letter}: {run}' for letter, run in self.runs.items())}, protocol {self.protocol}",
            caption=f"{caption} {self.warning}".strip(),
            box=None,
            padding=(0, 1, 0, 0),  # so that it fits into 80 columns
            pad_edge=False,
        )
        pair = len(self.runs) == 2
        other = "B" if pair else "other"
        headings = ["task", "metric", "images", "A", other, f"{other} - A", "95 % interval", "better"]
        for heading in headings if pair else ["run", *headings]:
            text = heading in ("run", "task", "metric")
            table.add_column(heading, justify="left" if text else "right", no_wrap=True)
        for row in self.differences:
            digits = len(f"{max(abs(row.first), abs(row.second)):.0f}")  # before the point
            difference, low, high = (
                f"{value:+.{max(0, 5 - digits)}f}" for value in (row.difference, row.low, row.high)
            )
            cells = [row.task, row.metric, str(row.images), f"{row.first:.4g}", f"{row.second:.4g}"]
            cells += [difference, f"{low} to {high}", row.better or "-"]
            table.add_row(*cells if pair else [row.other, *cells])
        return table


@dataclass(frozen=True)
class ScoredRun:
    """What a run says of its test images.

    Attributes:
        folder: The run folder.
        protocol: How it was scored.
        data: Data set and split.
        initialisation: What its network was filled with before its training.
        better: ``{task: {metric: "higher", "lower" or ""}}``.
        values: The values of each task and metric, with their images.
    """

    folder: Path
    protocol: str
    data: str
    initialisation: str
    better: dict[str, dict[str, str]]
    values: Columns


def compare(runs: Sequence[str | Path], resamples: int = 10_000, seed: int = 0) -> Comparison:
    """Compare tested runs image by image: mean differences with paired bootstrap 95 % intervals.

    Every run is compared with the first. The intervals are of one difference each: among many differences some exclude
    0 by chance.

    Args:
        runs: Two run folders or more, tested with ``--results.per_image true`` on the same images.
        resamples: Number of bootstrap samples of the images.
        seed: Seed of the bootstrap.

    Raises:
        ConfigError: If a run has no scores of single images, protocols or images differ, nothing is shared, or an image
            is too little.
    """
    require("[1, inf)", resamples=resamples)
    require("[0, inf)", seed=seed)
    if not 2 <= len(runs) <= len(ascii_uppercase):
        msg = f"two to {len(ascii_uppercase)} runs can be compared, got {len(runs)}"
        raise ConfigError(msg)
    first, *others = (read_run(Path(run)) for run in runs)
    differences = [
        difference
        for letter, other in zip(ascii_uppercase[1:], others, strict=False)
        for difference in _differences(first, other, letter, resamples, seed)
    ]
    by_letter = dict(zip(ascii_uppercase, [first, *others], strict=False))
    folders = {letter: str(run.folder) for letter, run in by_letter.items()}
    initialisations = {letter: run.initialisation for letter, run in by_letter.items()}
    return Comparison(folders, initialisations, first.protocol, resamples, differences)


def read_run(folder: Path) -> ScoredRun:
    """Read the scores of a run's test images.

    Raises:
        ConfigError: If the run was not tested with ``--results.per_image true``.
    """
    try:
        record: dict[str, Any] = json.loads((folder / METRICS).read_text(encoding="utf-8"))["test"]
        path = folder / record["per_image"]
        columns: dict[tuple[str, str], tuple[list[str], list[float]]] = {}
        with path.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                ids, values = columns.setdefault((row["task"], row["metric"]), ([], []))
                ids.append(row["id"])
                values.append(float(row["value"]))
        arrays = {key: (ids, np.array(values)) for key, (ids, values) in columns.items()}
        initialisation = record.get("facts", {}).get("initialisation", "unknown")
        return ScoredRun(folder, record["protocol"], _data(record), initialisation, record["better"], arrays)
    except (OSError, KeyError, ValueError, TypeError) as error:
        msg = (
            f"{folder} has no scores of single images; test it with "
            f"`taskformer test --config {folder / 'config.yaml'} --ckpt_path {folder / 'checkpoints' / 'best.ckpt'} "
            "--results.per_image true`"
        )
        raise ConfigError(msg) from error


def paired_interval(differences: NDArray[np.float64], resamples: int, seed: int) -> tuple[float, float]:
    """Compute the 95 % percentile interval of the mean of paired differences ``(N,)``, at least two.

    >>> paired_interval(np.array([0.25, 0.25, 0.25]), resamples=100, seed=0)
    (0.25, 0.25)
    """
    from scipy.stats import bootstrap  # takes half a second to import

    # Drawing images and taking both runs' values of each is drawing differences.
    found = bootstrap(
        (differences,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, BATCH_VALUES // len(differences)),
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def _data(record: dict[str, Any]) -> str:
    """Name the data set and the split that a test was made on."""
    facts = record.get("facts", {})
    return f"{facts.get('data', 'unknown data')}, {facts.get('split', 'test')}"


def _differences(a: ScoredRun, b: ScoredRun, letter: str, resamples: int, seed: int) -> Iterator[Difference]:
    """Compare a run, of some letter, with the first in every metric that both have.

    Raises:
        ConfigError: If that is impossible.
    """
    _require_alike(a, b)
    found = False
    for key in (key for key in a.values if key in b.values):
        first, second = a.values[key][1], b.values[key][1]
        both = np.isfinite(first) & np.isfinite(second)
        if both.sum() > 1:
            found = True
            sense = a.better[key[0]][key[1]]
            yield _difference(letter, key, first[both], second[both], sense, resamples, seed)
    if not found:
        msg = f"a bootstrap needs at least 2 images with a value in both {a.folder} and {b.folder}, no metric has them"
        raise ConfigError(msg)


def _difference(
    letter: str,
    key: tuple[str, str],
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    sense: str,
    resamples: int,
    seed: int,
) -> Difference:
    """Bootstrap the mean difference of one metric; both have a value for each of the images ``(N,)``."""
    low, high = paired_interval(second - first, resamples, seed)
    winner = ""
    if sense and (low > 0 or high < 0):
        winner = letter if (low > 0) == (sense == "higher") else "A"
    means = float(first.mean()), float(second.mean())
    return Difference(letter, *key, len(first), *means, float((second - first).mean()), low, high, winner)


def _require_alike(a: ScoredRun, b: ScoredRun) -> None:
    """Refuse runs that were scored in other ways or on other images."""
    if a.protocol != b.protocol:
        msg = f"{a.folder} was scored by the protocol {a.protocol} and {b.folder} by {b.protocol}; test both by one"
        raise ConfigError(msg)
    if a.data != b.data:
        msg = f"{a.folder} was tested on {a.data} and {b.folder} on {b.data}; test both on the same images"
        raise ConfigError(msg)
    shared = [key for key in a.values if key in b.values]
    if not shared:
        msg = f"{a.folder} and {b.folder} have no task in common"
        raise ConfigError(msg)
    for key in shared:
        if (ids := a.values[key][0]) != (others := b.values[key][0]):
            raise ConfigError(_other_images(a.folder, b.folder, ids, others))


def _other_images(a: Path, b: Path, ids: list[str], others: list[str]) -> str:
    """Say how two lists of images differ."""
    if len(ids) != len(others):
        return f"{a} was tested on {len(ids)} images and {b} on {len(others)}; test both on the same"
    first = next(index for index, (one, other) in enumerate(zip(ids, others, strict=True)) if one != other)
    return (
        f"{a} and {b} were tested on different images: number {first + 1} is {ids[first]!r} and {others[first]!r}; "
        "test both on the same"
    )
