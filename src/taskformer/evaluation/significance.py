"""Is a difference more than chance? Confidence intervals over the choice of images, and over the seeds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

#: How often images were drawn that are in memory at a time.
BATCH_DRAWS = 10**7
#: Ends of the 95 % intervals in percent.
ENDS = (2.5, 97.5)


class Interval(NamedTuple):
    """A difference and the ends of its 95 % confidence interval.

    >>> Interval(0.5, low=0.25, high=0.75).sign, Interval(0.5, low=-0.25, high=1.25).sign
    (1, 0)

    Attributes:
        difference: The estimate.
        low: Lower end.
        high: Upper end.
    """

    difference: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 or -1 where the interval leaves out 0, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def paired_interval(
    differences: NDArray[np.float64], resamples: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute 95 % percentile bootstrap intervals of means over images.

    Images are drawn with replacement; to draw an image and take both runs' values of it is to draw its difference. All
    columns have the same draws. An image without a value counts in no mean that it is drawn for.

    >>> low, high = paired_interval(np.array([[0.25, 1.0], [0.25, np.nan]]), resamples=100, seed=0)
    >>> low.tolist(), high.tolist()
    ([0.25, 1.0], [0.25, 1.0])

    Args:
        differences: Of two runs for each image ``(N,)``, or of several metrics and runs ``(N, M)``; NaN for none.
        resamples: Number of bootstrap samples.
        seed: Seed of the draws.

    Returns:
        The lower and the upper ends, ``()`` or ``(M,)``.
    """
    rng = np.random.default_rng(seed)
    images = len(differences)
    known = np.isfinite(differences)
    sums = np.where(known, differences, 0.0)
    step = max(1, BATCH_DRAWS // images)
    means = []
    for start in range(0, resamples, step):
        samples = min(step, resamples - start)
        drawn = rng.integers(images, size=(samples, images)) + images * np.arange(samples)[:, None]
        times = np.bincount(drawn.ravel(), minlength=samples * images).reshape(samples, images).astype(np.float64)
        with np.errstate(invalid="ignore"):  # where no image with a value was drawn
            means.append(times @ sums / (times @ known))
    low, high = np.nanpercentile(np.concatenate(means), ENDS, axis=0)
    return low, high


def seeds_interval(first: Sequence[float], second: Sequence[float]) -> Interval | None:
    """Compute how much the mean over seeds differs, with Welch's 95 % t interval; None if a side has one seed.

    >>> found = seeds_interval([0.5, 0.7], [0.9, 1.1])
    >>> f"{found.difference:.2f} ({found.low:.2f} to {found.high:.2f})"
    '0.40 (-0.21 to 1.01)'

    Args:
        first: A metric of the first model's runs.
        second: Of the other's.
    """
    if min(len(first), len(second)) < 2:
        return None
    difference = float(np.mean(second) - np.mean(first))
    # Variances of the means. scipy's own test warns where seeds are nearly equal, and fails where they are.
    squares = [float(np.var(values, ddof=1)) / len(values) for values in (first, second)]
    if not (total := sum(squares)):
        return Interval(difference, difference, difference)
    from scipy import stats  # takes half a second to import

    freedom = total**2 / sum(
        square**2 / (len(values) - 1) for square, values in zip(squares, (first, second), strict=True)
    )
    half = float(stats.t.ppf(ENDS[1] / 100, freedom)) * total**0.5
    return Interval(difference, difference - half, difference + half)
