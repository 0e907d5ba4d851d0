"""Every column against the first: the difference, and whether it is more than chance."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskformer.evaluation.comparison.groups import Group
from taskformer.evaluation.comparison.scored import Key
from taskformer.evaluation.significance import Interval, paired_interval, seeds_interval


@dataclass(frozen=True)
class Difference:
    """The first column, A, and another one in one metric of one task.

    >>> Difference("B", "depth", "rmse", 2, 1.0, 1.5, 0.5, low=0.4, high=0.6, better="A").as_dict()["b"]
    1.5

    Attributes:
        other: Letter of the other column.
        task: The task.
        metric: The metric, of each image alone; where those are not known, of the whole split.
        images: How many images both have a value for; 0 where those of single images are not known.
        first: Mean over them of A, and over its seeds.
        second: Mean of the other one.
        difference: ``second - first``.
        low: Lower end of the 95 % interval of the difference over the choice of images; NaN where it is not known.
        high: Upper end.
        better: Letter of the better one; empty where an interval holds 0, or neither direction is better.
        over_seeds: The difference of the whole split's values and its 95 % interval over the seeds; None where one of
            the two has a single seed.
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
    over_seeds: Interval | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain types; the means are under the columns' letters."""
        seeds = {} if self.over_seeds is None else {"over_seeds": self.over_seeds._asdict()}
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
        } | seeds


@dataclass(frozen=True)
class _Pair:
    """Both columns' values of one metric, image by image, NaN where one of them has none."""

    letter: str
    key: Key
    first: NDArray[np.float64]
    second: NDArray[np.float64]


def find_differences(groups: Mapping[str, Group], resamples: int, seed: int) -> list[Difference]:
    """Compare every group with the first in all metrics that both have, where there is an interval.

    Args:
        groups: The columns by letter, of the same images.
        resamples: Number of bootstrap samples of the images.
        seed: Seed of the bootstrap.
    """
    (_, base), *others = groups.items()
    pairs = {
        (letter, key): pair
        for letter, group in others
        for key in base.first.images
        if (pair := _paired(letter, key, base, group)) is not None
    }
    ends: dict[tuple[str, Key], tuple[float, float]] = {}
    if pairs:
        columns = np.stack([pair.second - pair.first for pair in pairs.values()], axis=1)
        ends = dict(zip(pairs, zip(*paired_interval(columns, resamples, seed), strict=True), strict=True))
    found = []
    for letter, group in others:
        for key in dict.fromkeys([*base.first.images, *base.first.scores()]):
            over_seeds = _over_seeds(base, group, key)
            if (pair := pairs.get((letter, key))) is not None:
                found.append(_of_images(pair, *ends[letter, key], base.first.better(key), over_seeds))
            elif over_seeds is not None:
                found.append(_of_seeds(letter, key, base, group, over_seeds))
    return found


def _paired(letter: str, key: Key, base: Group, other: Group) -> _Pair | None:
    """Pair the images of two groups; None where not two of them have a value in both."""
    first, second = base.images(key), other.images(key)
    if first is None or second is None:
        return None
    both = np.isfinite(first[1]) & np.isfinite(second[1])
    if both.sum() < 2:
        return None
    return _Pair(letter, key, np.where(both, first[1], np.nan), np.where(both, second[1], np.nan))


def _over_seeds(base: Group, other: Group, key: Key) -> Interval | None:
    """Compare the values of the whole split over the seeds; None where not every run has one."""
    if base.score(key) is None or other.score(key) is None:
        return None
    first, second = ([float(value) for value in group.values(key) if value is not None] for group in (base, other))
    return seeds_interval(first, second)


def _of_images(pair: _Pair, low: float, high: float, sense: str, over_seeds: Interval | None) -> Difference:
    first, second = float(np.nanmean(pair.first)), float(np.nanmean(pair.second))
    over_images = Interval(float(np.nanmean(pair.second - pair.first)), float(low), float(high))
    intervals = [over_images] + ([over_seeds] if over_seeds else [])
    better = _better(pair.letter, sense, intervals)
    images = int(np.isfinite(pair.first).sum())
    return Difference(pair.letter, *pair.key, images, first, second, *over_images, better, over_seeds)


def _of_seeds(letter: str, key: Key, base: Group, other: Group, over_seeds: Interval) -> Difference:
    means = [group.score(key) for group in (base, other)]
    first, second = (mean.mean for mean in means if mean is not None)
    better = _better(letter, base.first.better(key), [over_seeds])
    nan = float("nan")
    return Difference(letter, *key, 0, first, second, over_seeds.difference, nan, nan, better, over_seeds)


def _better(letter: str, sense: str, intervals: list[Interval]) -> str:
    """Return the letter of the better one where all intervals agree on it."""
    signs = {interval.sign for interval in intervals}
    if not sense or len(signs) > 1 or 0 in signs:
        return ""
    return letter if (signs.pop() > 0) == (sense == "higher") else "A"
