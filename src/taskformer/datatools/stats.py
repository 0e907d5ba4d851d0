"""What a data set's labels look like: class frequencies, ranges of values, share of labelled pixels."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from taskformer.data.datamodules.base import MultiTaskDataModule
from taskformer.data.datasets.base import MultiTaskDataset
from taskformer.datatools.selection import chosen_tasks, spread
from taskformer.errors import CorruptFileError
from taskformer.metrics.units import shown
from taskformer.parallel import default_workers, run_jobs
from taskformer.tasks import Task

#: Percentiles of float maps that are reported.
PERCENTILES = (5, 50, 95)
#: Values are counted in bins that grow with them: this many for each factor of ten between these two powers of ten, on
#: both sides of 0. Percentiles are right within the 0.6 % that a bin is wide.
BINS_PER_DECADE, LOWEST_DECADE, HIGHEST_DECADE = 400, -6, 6
BINS = BINS_PER_DECADE * (HIGHEST_DECADE - LOWEST_DECADE)

#: Classes that are written to the screen.
CLASSES_SHOWN = 60


@dataclass
class Tally:
    """Counts of one task's maps, which add up over images.

    >>> tally = Tally(maps=1, pixels=4, valid=3)
    >>> tally.add(Tally(maps=1, pixels=4, valid=4))
    >>> tally.maps, tally.valid / tally.pixels
    (2, 0.875)

    Attributes:
        maps: Number of images that have a map.
        pixels: Number of the maps' pixels.
        valid: Number of those with a label.
        classes: Pixels of each class ``(K,)``; for whole-image labels their sum. Empty for other tasks.
        containing: Images that contain each class ``(K,)``; for whole-image labels those where it is the likeliest.
        low: Smallest value.
        high: Largest value.
        total: Sum of the values.
        values: Number of values.
        bins: How many values lie in each bin.
    """

    maps: int = 0
    pixels: int = 0
    valid: int = 0
    classes: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    containing: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    low: float = np.inf
    high: float = -np.inf
    total: float = 0.0
    values: int = 0
    bins: NDArray[np.int64] = field(default_factory=lambda: np.zeros(2 * BINS + 1, np.int64))

    def add(self, other: "Tally") -> None:
        """Count another tally's maps too."""
        for name in ("maps", "pixels", "valid", "total", "values", "bins"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("classes", "containing"):
            setattr(self, name, getattr(other, name) + (getattr(self, name) if len(getattr(self, name)) else 0))
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def percentile(self, percent: float) -> float:
        """Return the value that this percentage of the values does not exceed."""
        place = int(np.searchsorted(np.cumsum(self.bins), max(1, percent / 100 * self.values)))
        return float(np.clip(_bin_center(place - BINS), self.low, self.high))


@dataclass
class Statistics:
    """What :func:`statistics` counted.

    Attributes:
        dataset: Short name of the data set.
        split: The split.
        images: Number of its images.
        opened: Number of those that were looked at.
        tasks: The tasks.
        tallies: The counts of each task.
    """

    dataset: str
    split: str
    images: int
    opened: int
    tasks: dict[str, Task]
    tallies: dict[str, Tally]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain types, for JSON; shares are fractions."""
        tasks = {name: self._task(name) for name in self.tasks}
        return {
            "dataset": self.dataset,
            "split": self.split,
            "images": self.images,
            "opened": self.opened,
            "tasks": tasks,
        }

    def _task(self, name: str) -> dict[str, Any]:
        tally = self.tallies[name]
        record: dict[str, Any] = {
            "maps": tally.maps,
            "valid_share": tally.valid / tally.pixels if tally.pixels else None,
        }
        if classes := self.tasks[name].classes:
            shares = tally.classes / max(tally.classes.sum(), 1e-12) if len(tally.classes) else np.zeros(len(classes))
            images = tally.containing if len(tally.containing) else np.zeros(len(classes), np.int64)
            rows = zip(classes, shares.tolist(), images.tolist(), strict=True)
            record["classes"] = [{"name": label, "share": share, "images": count} for label, share, count in rows]
        elif tally.values:
            percentiles = {f"p{percent}": tally.percentile(percent) for percent in PERCENTILES}
            mean = tally.total / tally.values
            record |= {"min": tally.low, "mean": mean, **percentiles, "max": tally.high}
        return record

    def tables(self) -> list[Table]:
        """Build the tables for the screen: of all tasks, of their values, and of each task's classes."""
        looked = "" if self.opened == self.images else f", {self.opened} opened"
        overview = _table(f"{self.dataset}, {self.split}: {self.images} images{looked}", "task", "maps", "valid %")
        numbers = ["min", *(f"p{percent}" for percent in PERCENTILES), "max", "mean"]
        values = _table("values", "task", *numbers)
        classes = []
        for name, record in self.as_dict()["tasks"].items():
            share = "" if record["valid_share"] is None else shown(record["valid_share"])
            overview.add_row(name, str(record["maps"]), share)
            if "mean" in record:
                values.add_row(name, *(f"{record[key]:.3g}" for key in numbers))
            if "classes" in record:
                classes.append(_class_table(name, record["classes"]))
        return [overview, *([values] if values.row_count else []), *classes]


def _table(title: str, *headings: str) -> Table:
    table = Table(headings[0], title=title)
    for heading in headings[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _class_table(name: str, classes: list[dict[str, Any]]) -> Table:
    numbered = list(enumerate(classes))
    title = name
    if len(classes) > CLASSES_SHOWN:
        numbered = sorted(numbered, key=lambda row: -row[1]["share"])[:CLASSES_SHOWN]
        title = f"{name}: the {CLASSES_SHOWN} most frequent of {len(classes)} classes, all of them with --json FILE"
    table = _table(title, "class", "id", "share %", "images")
    for number, row in numbered:
        table.add_row(row["name"], str(number), shown(row["share"]), str(row["images"]))
    return table


def statistics(
    module: MultiTaskDataModule,
    split: str = "train",
    sample: int | None = None,
    workers: int | None = None,
    tasks: Sequence[str] | None = None,
) -> Statistics:
    """Count what the labels of a split hold.

    Args:
        module: The data set.
        split: The split.
        sample: Number of images to look at, spread evenly; None looks at all.
        workers: Number of processes; None takes one per processor. The counts do not depend on it.
        tasks: The tasks to count; None takes all that there are files for.

    Returns:
        The counts.

    Raises:
        CorruptFileError: If a file is missing or broken.
    """
    built = chosen_tasks(module, tasks)
    dataset = module.dataset(split, built, None)
    chosen = spread(len(dataset), sample)
    tallies = {name: Tally() for name in built}
    count = default_workers() if workers is None else workers
    for outcome in run_jobs(chosen, partial(tally_sample, dataset), count, f"stats {module.name} {split}"):
        if outcome.value is None:
            msg = f"{outcome.error} (`taskformer data verify` finds all such files)"
            raise CorruptFileError(msg)
        for name, tally in outcome.value.items():
            tallies[name].add(tally)
    return Statistics(module.name, split, len(dataset), len(chosen), built, tallies)


def tally_sample(dataset: MultiTaskDataset, index: int) -> dict[str, Tally]:
    """Count the maps of one image."""
    targets = dataset.raw(index)["targets"]
    tasks = dataset.tasks
    # A target of another shape is a stand-in for one that is made from the augmented image.
    return {name: _tally(tasks[name], target) for name, target in targets.items() if not tasks[name].misfit(target)}


def _tally(task: Task, target: NDArray[Any]) -> Tally:
    valid = task.valid(target)
    tally = Tally(1, valid.size, int(valid.sum()))
    if counts := task.count_classes(target):
        tally.classes, tally.containing = counts
    elif (values := task.quantities(target)).size:
        tally.low, tally.high = float(values.min()), float(values.max())
        tally.total, tally.values = float(values.sum(dtype=np.float64)), values.size
        tally.bins = np.bincount(_bin_number(values) + BINS, minlength=2 * BINS + 1)
    return tally


def _bin_number(values: NDArray[Any]) -> NDArray[np.int64]:
    """Return the bin of each value: 0 for what is nearly 0, negative ones for negative values."""
    with np.errstate(divide="ignore"):
        decades = np.log10(np.abs(values)) - LOWEST_DECADE
    return np.asarray(np.sign(values) * np.clip(np.floor(decades * BINS_PER_DECADE) + 1, 0, BINS), dtype=np.int64)


def _bin_center(number: int) -> float:
    if number == 0:
        return 0.0
    magnitude: float = 10.0 ** ((abs(number) - 0.5) / BINS_PER_DECADE + LOWEST_DECADE)
    return magnitude if number > 0 else -magnitude
