"""From what is kept of each run to what a study has found: means, spreads, delta_m, differences with intervals."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from taskformer.errors import ConfigError
from taskformer.evaluation.comparison.comparison import heading
from taskformer.evaluation.comparison.groups import Mean
from taskformer.evaluation.comparison.scored import Key, ScoredRun
from taskformer.evaluation.significance import Interval, seeds_interval
from taskformer.metrics import delta_m
from taskformer.metrics.units import factor
from taskformer.studies.evidence import read_json_file
from taskformer.studies.intervals import BySeed, Floats, Resampling, interval, relative_gain
from taskformer.studies.schema import Study, Trial

#: In place of a task and its metric: the mean improvement of all tasks.
DELTA_M: Key = ("delta_m", "")


@dataclass(frozen=True)
class Finding:
    """One quantity of one arm.

    Attributes:
        arm: The arm.
        key: Task and metric, or :data:`DELTA_M`.
        unit: Its unit.
        better: ``"higher"`` or ``"lower"``.
        values: Its value of the whole split by seed.
        difference: That of the means of single images to the reference, with its interval over images and seeds; None
            where it is not known.
        over_seeds: That of the whole split to the reference, with Welch's interval over the seeds; None of one seed.
    """

    arm: str
    key: Key
    unit: str
    better: str
    values: Mapping[int, float]
    difference: Interval | None = None
    over_seeds: Interval | None = None

    @property
    def mean(self) -> Mean | None:
        """Mean and standard deviation over the seeds; None where a seed has no value."""
        return Mean.of(self.values.values())

    @property
    def scale(self) -> float:
        """By what values are multiplied before people read them; delta_m is percent everywhere."""
        return 1.0 if self.key == DELTA_M else factor(self.unit)

    @property
    def heading(self) -> str:
        """What it is called, with its unit."""
        return heading(" ".join(filter(None, self.key)), self.unit)


@dataclass(frozen=True)
class Evidence:
    """The runs of a study that are finished.

    Attributes:
        study: The study.
        runs: What is kept of each, by the names of variant, e.g. ``single-depth``, and by seed.
    """

    study: Study
    runs: Mapping[str, Mapping[int, Mapping[str, Any]]]

    @classmethod
    def read(cls, study: Study, folder: Path) -> "Evidence":
        """Read the JSON files of a study's runs, as far as they are there."""
        runs: dict[str, dict[int, Any]] = {}
        for trial in study.trials():
            if (path := folder / "runs" / f"{trial.name}.json").is_file():
                runs.setdefault(trial.variant.name, {})[trial.seed] = read_json_file(path)
        return cls(study, runs)

    @property
    def records(self) -> list[Mapping[str, Any]]:
        """All runs."""
        return [record for seeds in self.runs.values() for record in seeds.values()]

    @property
    def missing(self) -> list[Trial]:
        """The runs that are not finished."""
        return [trial for trial in self.study.trials() if trial.seed not in self.runs.get(trial.variant.name, {})]

    @property
    def evaluations(self) -> list[str]:
        """What the runs were scored on, that of the study first."""
        return list(dict.fromkeys(name for record in self.records for name in record["evaluations"]))

    def of(self, arm: str) -> list[Mapping[int, Mapping[str, Any]]]:
        """Return the runs of an arm by seed; of the arm of single tasks, those of each task."""
        names = [variant.name for variant in self.study.variants if variant.arm == arm]
        return [self.runs[name] for name in names if name in self.runs]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of all arms.

    Attributes:
        evidence: The finished runs.
        name: ``test``, ``val``, ``photographs`` or ``streets``.
        resamples: Number of draws of the bootstrap.
    """

    evidence: Evidence
    name: str
    resamples: int = 10_000
    _scored: dict[str, dict[int, ScoredRun]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        for variant, seeds in self.evidence.runs.items():
            self._scored[variant] = {
                seed: _scored(variant, seed, found)
                for seed, record in seeds.items()
                if (found := record["evaluations"].get(self.name))
            }

    @cached_property
    def findings(self) -> list[Finding]:
        """What was found of each arm: delta_m first, then each task's headline metric."""
        return [finding for arm in self.evidence.study.arms for finding in self._of_arm(arm)]

    @property
    def columns(self) -> dict[Key, list[Finding]]:
        """What was found by its quantity, in the order in which it is shown."""
        found = {key: [each for each in self.findings if each.key == key] for key in (DELTA_M, *self.keys)}
        return {key: findings for key, findings in found.items() if findings}

    @property
    def arms(self) -> list[str]:
        """The arms of which something was found."""
        return list(dict.fromkeys(finding.arm for finding in self.findings))

    @cached_property
    def keys(self) -> list[Key]:
        """The tasks of all arms with their headline metrics, in their order."""
        runs = (run for seeds in self._scored.values() for run in seeds.values())
        return list(dict.fromkeys(key for run in runs for key in run.scores() if run.is_headline(key)))

    @property
    def images(self) -> int:
        """How many images were scored."""
        return int(next(run.facts["images"] for seeds in self._scored.values() for run in seeds.values()))

    def single(self, key: Key) -> dict[int, ScoredRun]:
        """Return the runs of one task alone by seed."""
        return self._scored.get(f"{self.evidence.study.single_tasks}-{key[0]}", {})

    @cached_property
    def references(self) -> dict[str, float]:
        """Each task's headline metric alone, the mean over the seeds."""
        return {key[0]: fmean(run.scores()[key] for run in seeds.values())
                for key in self.keys if (seeds := self.single(key))}  # fmt: skip

    def runs_of(self, arm: str, key: Key) -> dict[int, ScoredRun]:
        """Return the runs of an arm that have a metric, by seed."""
        runs = self.single(key) if arm == self.evidence.study.single_tasks else self._scored.get(arm, {})
        return {seed: run for seed, run in runs.items() if key in run.scores()}

    def delta_m(self, run: ScoredRun) -> float | None:
        """Return how much better a run is than single tasks in percent; None while one of its tasks has none."""
        values = {key[0]: run.scores()[key] for key in self.keys if key in run.scores()}
        if not values or values.keys() - self.references.keys():
            return None
        return delta_m(values, self.references, self._senses)

    @cached_property
    def _senses(self) -> dict[str, bool]:
        """Whether more is better, by task."""
        return {key[0]: self._any(key).better(key) == "higher" for key in self.keys}

    def _any(self, key: Key) -> ScoredRun:
        """Return a run that has a metric, which says its unit and sense."""
        return next(run for seeds in self._scored.values() for run in seeds.values() if key in run.scores())

    def _of_arm(self, arm: str) -> Iterator[Finding]:
        """Yield what was found of an arm."""
        against = self.evidence.study.against
        gains = {each: self._gains(each) for each in (arm, against)}
        if gains[arm]:
            yield self._finding(arm, DELTA_M, "%", "higher", gains[arm], gains[against])
        for key in self.keys:
            values = {each: {seed: run.scores()[key] for seed, run in self.runs_of(each, key).items()}
                      for each in (arm, against)}  # fmt: skip
            if values[arm]:
                run = self._any(key)
                yield self._finding(arm, key, run.unit(key), run.better(key), values[arm], values[against])

    def _gains(self, arm: str) -> dict[int, float]:
        """Return delta_m of each run of an arm, by seed."""
        gains = {seed: self.delta_m(run) for seed, run in self._scored.get(arm, {}).items()}
        return {seed: gain for seed, gain in gains.items() if gain is not None}

    def _finding(
        self, arm: str, key: Key, unit: str, better: str, own: Mapping[int, float], others: Mapping[int, float]
    ) -> Finding:
        """Compare an arm with the reference."""
        if arm == self.evidence.study.against or not others:
            return Finding(arm, key, unit, better, own)
        difference = self._delta_difference(arm) if key == DELTA_M else self._difference(arm, key)
        welch = seeds_interval(list(others.values()), list(own.values()))
        return Finding(arm, key, unit, better, own, difference, welch)

    def _difference(self, arm: str, key: Key) -> Interval | None:
        """Compare the means over images in a metric."""
        means = [self._means(each, key) for each in (arm, self.evidence.study.against)]
        return None if means[0] is None or means[1] is None else interval(means[0] - means[1])

    def _delta_difference(self, arm: str) -> Interval | None:
        """Compare delta_m of the means over images, against those of single tasks on the same images."""
        study, total = self.evidence.study, np.zeros(self.resamples + 1)
        tasks = [[key for key in self.keys if self.runs_of(each, key)] for each in (arm, study.against)]
        if tasks[0] != tasks[1]:
            return None
        for key in tasks[0]:
            own, other = (self._means(each, key) for each in (arm, study.against))
            single = self._means(str(study.single_tasks), key)
            if own is None or other is None or single is None:
                return None
            sense = self._senses[key[0]]
            total += relative_gain(own, single, sense) - relative_gain(other, single, sense)
        return interval(total / len(tasks[0]))

    def _means(self, arm: str, key: Key) -> Floats | None:
        """Return the mean of a metric over seeds and images, of all and of each draw; None where images are missing."""
        runs = self.runs_of(arm, key)
        if self._resampling is None or not runs or not all(key in run.images for run in runs.values()):
            return None
        if arm == self.evidence.study.single_tasks:  # the yardstick: one network, the mean of its seeds
            return self._resampling.means({-1: np.mean([run.images[key][1] for run in runs.values()], axis=0)})
        values: BySeed = {seed: run.images[key][1] for seed, run in runs.items()}
        return self._resampling.means(values)

    @cached_property
    def _resampling(self) -> Resampling | None:
        """Draws of the images, which are the same for all runs; None where scores of single images are not known."""
        known = [run for seeds in self._scored.values() for run in seeds.values() if run.images]
        if not known:
            return None
        ids = [next(iter(run.images.values()))[0] for run in known]
        for run, own in zip(known, ids, strict=True):
            if own != ids[0]:
                msg = f"{run.name} and {known[0].name} were scored on different images; delete one and run it again"
                raise ConfigError(msg)
        return Resampling(len(ids[0]), self.resamples)


def _scored(variant: str, seed: int, record: Mapping[str, Any]) -> ScoredRun:
    """Return an evaluation as comparisons have them."""
    columns: dict[str, Sequence[Any]] = dict(record.get("images", {}))
    ids = [str(each) for each in columns.pop("ids", [])]
    images = {(task, record["headline"][task]): (ids, np.array(column, dtype=np.float64))
              for task, column in columns.items()}  # fmt: skip
    return ScoredRun(f"{variant}-seed{seed}", "test", record, seed, images=images)
