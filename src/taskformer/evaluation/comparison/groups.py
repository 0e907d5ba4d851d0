"""Runs of one model with several seeds, as one."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from statistics import fmean, stdev
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from taskformer.evaluation.comparison.scored import Key, ScoredRun
from taskformer.metrics.units import shown

#: What results say of a network, see :func:`taskformer.evaluation.benchmark.cost.counts`.
COUNTS = ("parameters", "trained_parameters", "macs")


class Mean(NamedTuple):
    """A number's mean over the seeds.

    >>> print(Mean.of([0.25, 0.35]).text("%"), Mean.of([1.5]).text("m"), Mean.of([1.5, None]))
    30.00 ± 7.07 1.5 None

    Attributes:
        mean: The mean.
        spread: Standard deviation of the sample; None of one seed.
        seeds: How many there are.
    """

    mean: float
    spread: float | None
    seeds: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Self | None:
        """Summarise the seeds' numbers; None where a seed has none."""
        numbers = list(values)
        known = [float(number) for number in numbers if number is not None and math.isfinite(number)]
        if not known or len(known) < len(numbers):
            return None
        return cls(fmean(known), stdev(known) if len(known) > 1 else None, len(known))

    def text(self, unit: str) -> str:
        """Write it as tables show it."""
        spread = "" if self.spread is None else f" ± {shown(self.spread, unit, digits=2)}"
        return shown(self.mean, unit) + spread


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone; most often one.

    Attributes:
        name: What tables call it.
        runs: The runs.
    """

    name: str
    runs: list[ScoredRun]

    @property
    def first(self) -> ScoredRun:
        """The run that says what all have in common."""
        return self.runs[0]

    def score(self, key: Key) -> Mean | None:
        """Return a metric of the whole split; None where a run lacks it."""
        return Mean.of(self.values(key))

    def values(self, key: Key) -> list[float | None]:
        """Return a metric of the whole split of each run."""
        return [run.scores().get(key) for run in self.runs]

    @property
    def delta_m(self) -> Mean | None:
        """Mean improvement over single-task runs in percent; None where a run was compared with none."""
        return Mean.of(run.record.get("delta_m") for run in self.runs)

    def count(self, name: str) -> int | None:
        """Return one of the network's :data:`COUNTS`; None where nobody has counted, or all parameters train."""
        found: int | None = self.first.record.get(name)
        return found

    def images(self, key: Key) -> tuple[list[str], NDArray[np.float64]] | None:
        """Return a metric of each image alone, the mean over the seeds; None where a run lacks it."""
        if not all(key in run.images for run in self.runs):
            return None
        return self.first.images[key][0], np.mean([run.images[key][1] for run in self.runs], axis=0)


def apart(runs: Sequence[ScoredRun]) -> list[Group]:
    """Make a group of each run."""
    return [Group(run.name, [run]) for run in runs]


def grouped(runs: Sequence[ScoredRun]) -> list[Group]:
    """Put together what differs in its seed alone; runs of one seed stay apart, as their spread is none of seeds."""
    alike: dict[str, list[ScoredRun]] = {}
    for place, run in enumerate(runs):
        alike.setdefault(run.settings or f"run {place}", []).append(run)
    groups = []
    for members in alike.values():
        seeds = Counter(run.seed for run in members)
        distinct = max(seeds.values()) == 1
        groups += [Group(_name([run.name for run in members]), members)] if distinct else apart(members)
    return groups


def _name(names: list[str]) -> str:
    """Name a group after what its names have in common.

    >>> _name(["runs/mqt-0", "runs/mqt-1"]), _name(["mqtransformer", "mqtransformer"]), _name(["a", "b"])
    ('runs/mqt-*', 'mqtransformer', 'a, b')
    """
    if len(set(names)) == 1:
        return names[0]
    start = commonprefix(names)  # noqa: RUF071  # characters are meant
    end = commonprefix([name[len(start) :][::-1] for name in names])[::-1]  # noqa: RUF071  # here too
    return f"{start}*{end}" if start.rpartition("/")[2] else ", ".join(names)
