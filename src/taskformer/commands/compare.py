"""``taskformer compare``: is one run better than another, or was it the choice of images?"""

import csv
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse.typing import NonNegativeInt, PositiveInt
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import bootstrap

from taskformer.errors import ConfigError
from taskformer.files import write_json
from taskformer.parsing import Parser

#: Resampled values that are in memory at a time.
BATCH_VALUES = 10**7

#: ``{(task, metric): (ids, values)}``
Columns = dict[tuple[str, str], tuple[list[str], NDArray[np.float64]]]


@dataclass(frozen=True)
class Difference:
    """Two runs in one metric of one task.

    Attributes:
        task: The task.
        metric: The metric, of each image alone.
        images: How many images both runs have a value for.
        a: Mean over them of the first run.
        b: Mean of the second.
        difference: ``b - a``.
        low: Lower end of the 95 % interval of the difference.
        high: Upper end.
        better: ``"A"`` or ``"B"``; empty where the interval holds 0 or neither direction is better.
    """

    task: str
    metric: str
    images: int
    a: float
    b: float
    difference: float
    low: float
    high: float
    better: str


@dataclass(frozen=True)
class ScoredRun:
    """What a run says of its test images.

    Attributes:
        folder: The run folder.
        protocol: How it was scored.
        data: Data set and split.
        better: ``{task: {metric: "higher", "lower" or ""}}``.
        values: The values of each task and metric, with their images.
    """

    folder: Path
    protocol: str
    data: str
    better: dict[str, dict[str, str]]
    values: Columns


def main(argv: list[str]) -> None:
    """Compare two runs image by image."""
    parser = Parser(
        prog="taskformer compare",
        description="Compare two tested runs image by image: mean differences with paired bootstrap 95 % intervals.",
    )
    parser.add_argument("run_a", type=str, help="Run folder, tested with --results.per_image true.")
    parser.add_argument("run_b", type=str, help="Another one, on the same images.")
    parser.add_argument("--json", type=str | None, help="Also write the table to this JSON file.")
    parser.add_argument("--resamples", type=PositiveInt, default=10_000, help="Number of bootstrap samples.")
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="Seed of the bootstrap.")
    options = parser.parse_args(argv[1:])
    a, b = read_run(Path(options.run_a)), read_run(Path(options.run_b))
    differences = compare(a, b, options.resamples, options.seed)
    Console().print(table(a, b, differences))
    if options.json:
        record = {"a": str(a.folder), "b": str(b.folder), "protocol": a.protocol, "resamples": options.resamples}
        write_json(Path(options.json), record | {"rows": [asdict(row) for row in differences]})


def read_run(folder: Path) -> ScoredRun:
    """Read the scores of a run's test images.

    Raises:
        ConfigError: If the run was not tested with ``--results.per_image true``.
    """
    try:
        record: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["test"]
        path = folder / record["per_image"]
        columns: dict[tuple[str, str], tuple[list[str], list[float]]] = {}
        with path.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                ids, values = columns.setdefault((row["task"], row["metric"]), ([], []))
                ids.append(row["id"])
                values.append(float(row["value"]))
        arrays = {key: (ids, np.array(values)) for key, (ids, values) in columns.items()}
        return ScoredRun(folder, record["protocol"], _data(record), record["better"], arrays)
    except (OSError, KeyError, ValueError, TypeError) as error:
        msg = (
            f"{folder} has no scores of single images; test it with "
            f"`taskformer test --config {folder / 'config.yaml'} --ckpt_path {folder / 'checkpoints' / 'best.ckpt'} "
            "--results.per_image true`"
        )
        raise ConfigError(msg) from error


def _data(record: dict[str, Any]) -> str:
    """Name the data set and the split that a test was made on."""
    facts = record.get("facts", {})
    return f"{facts.get('data', 'unknown data')}, {facts.get('split', 'test')}"


def compare(a: ScoredRun, b: ScoredRun, resamples: int, seed: int) -> list[Difference]:
    """Compare two runs in every metric that both have.

    Args:
        a: The first run.
        b: The second.
        resamples: Number of bootstrap samples of the images.
        seed: Seed of the bootstrap.

    Raises:
        ConfigError: If protocols or images differ, nothing is shared, or an image is too little.
    """
    if a.protocol != b.protocol:
        msg = f"{a.folder} was scored by the protocol {a.protocol} and {b.folder} by {b.protocol}; test them alike"
        raise ConfigError(msg)
    if a.data != b.data:
        msg = f"{a.folder} was tested on {a.data} and {b.folder} on {b.data}; test both on the same images"
        raise ConfigError(msg)
    if resamples < 1:
        msg = f"--resamples is the number of bootstrap samples, at least 1, got {resamples}"
        raise ConfigError(msg)
    shared = [key for key in a.values if key in b.values]
    if not shared:
        msg = f"{a.folder} and {b.folder} have no task in common"
        raise ConfigError(msg)
    found = []
    for key in shared:
        (ids, first), (others, second) = a.values[key], b.values[key]
        if ids != others:
            msg = _other_images(a.folder, b.folder, ids, others)
            raise ConfigError(msg)
        both = np.isfinite(first) & np.isfinite(second)
        if both.sum() > 1:
            found.append(_difference(key, first[both], second[both], a.better[key[0]][key[1]], resamples, seed))
    if not found:
        msg = f"a bootstrap needs at least 2 images with a value in both {a.folder} and {b.folder}, no metric has them"
        raise ConfigError(msg)
    return found


def _difference(
    key: tuple[str, str],
    first: NDArray[np.float64],
    second: NDArray[np.float64],
    sense: str,
    resamples: int,
    seed: int,
) -> Difference:
    """Bootstrap the mean difference of one metric; both have a value for each of the images."""
    low, high = paired_interval(second - first, resamples, seed)
    winner = "B" if low > 0 else "A" if high < 0 else ""
    if sense == "lower" and winner:
        winner = "A" if winner == "B" else "B"
    means = float(first.mean()), float(second.mean())
    return Difference(*key, len(first), *means, float((second - first).mean()), low, high, winner if sense else "")


def paired_interval(differences: NDArray[np.float64], resamples: int, seed: int) -> tuple[float, float]:
    """Compute the 95 % percentile interval of the mean of paired differences ``(N,)``.

    Raises:
        ConfigError: If there is only one.
    """
    count = len(differences)
    if count < 2:
        msg = f"a bootstrap needs at least 2 images with a value, got {count}"
        raise ConfigError(msg)
    # Drawing images and taking both runs' values of each is drawing differences.
    found = bootstrap(
        (differences,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, BATCH_VALUES // count),
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def table(a: ScoredRun, b: ScoredRun, differences: list[Difference]) -> Table:
    """Build the table for the terminal."""
    shown = Table(
        title=f"A: {a.folder}, B: {b.folder}, protocol {a.protocol}",
        caption="Means over images, each scored alone; these are not the values of the whole data set.",
        box=None,
        padding=(0, 1, 0, 0),  # so that it fits into 80 columns
        pad_edge=False,
    )
    for heading in ("task", "metric", "images", "A", "B", "B - A", "95 % interval", "better"):
        shown.add_column(heading, justify="left" if heading in ("task", "metric") else "right", no_wrap=True)
    for row in differences:
        digits = len(f"{max(abs(row.a), abs(row.b)):.0f}")  # before the point
        difference, low, high = (f"{value:+.{max(0, 5 - digits)}f}" for value in (row.difference, row.low, row.high))
        cells = [row.task, row.metric, str(row.images), f"{row.a:.4g}", f"{row.b:.4g}"]
        shown.add_row(*cells, difference, f"{low} to {high}", row.better or "-")
    return shown


def _other_images(a: Path, b: Path, ids: list[str], others: list[str]) -> str:
    """Say how two lists of images differ."""
    if len(ids) != len(others):
        return f"{a} was tested on {len(ids)} images and {b} on {len(others)}; test both on the same"
    first = next(index for index, (one, other) in enumerate(zip(ids, others, strict=True)) if one != other)
    return (
        f"{a} and {b} were tested on different images: number {first + 1} is {ids[first]!r} and {others[first]!r}; "
        "test both on the same"
    )
