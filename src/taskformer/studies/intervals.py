"""Intervals over the choice of images and of seeds: both are drawn again, as a bootstrap in two levels."""

from collections.abc import Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray

from taskformer.evaluation.significance import ENDS, Interval

Floats = NDArray[np.float64]
#: A metric of each image ``(N,)`` by the seed of its training.
BySeed = Mapping[int, Floats]


class Resampling:
    """Draws of images and of seeds with replacement, the same for all that is compared.

    Images are drawn jointly for all arms, and so are seeds for arms that were trained with the same ones: equal seeds
    see the images in the same order. Where seeds differ, each arm's are drawn by themselves.

    >>> values = {0: np.array([1.0, 3.0]), 1: np.array([2.0, 4.0])}
    >>> means = Resampling(images=2, resamples=500).means(values)
    >>> float(means[0]), float(means[1:].min()), float(means[1:].max())
    (2.5, 1.0, 4.0)

    Args:
        images: How many images there are.
        resamples: Number of draws.
        seed: Seed of the draws.
    """

    def __init__(self, images: int, resamples: int = 10_000, seed: int = 0) -> None:
        self.resamples = resamples
        self._rng = np.random.default_rng(seed)
        self._images = self._draw(images)
        self._seeds = cache(lambda seeds: self._draw(len(seeds)))

    def means(self, values: BySeed) -> Floats:
        """Return the mean over seeds and images: first of all, then of each draw, ``(1 + resamples,)``.

        An image without a value (NaN) counts in no mean that it is drawn for.
        """
        table = np.stack([values[seed] for seed in sorted(values)])
        known = np.isfinite(table)
        seeds = self._seeds(tuple(sorted(values)))
        sums = ((seeds @ np.where(known, table, 0.0)) * self._images).sum(axis=1)
        with np.errstate(invalid="ignore"):  # where no image with a value was drawn
            return np.asarray(sums / ((seeds @ known) * self._images).sum(axis=1))

    def _draw(self, count: int) -> Floats:
        """Return how often each of some things is drawn: first each once, then in each draw."""
        drawn = self._rng.multinomial(count, np.full(count, 1 / count), size=self.resamples)
        return np.concatenate([np.ones((1, count)), drawn])


def interval(values: Floats) -> Interval:
    """Return the first of some values as the estimate, with the 95 % percentile interval of the others."""
    low, high = np.nanpercentile(values[1:], ENDS)
    return Interval(float(values[0]), float(low), float(high))


def relative_gain(means: Floats, single: Floats, higher_is_better: bool) -> Floats:
    """Return the improvement over single tasks in percent, as :func:`taskformer.metrics.improvement` of each draw."""
    change = 100 * (means - single) / single
    return change if higher_is_better else -change
