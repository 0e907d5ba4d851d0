"""Angles between predicted and true surface normals."""

from typing import Any

import torch
from torch import Tensor

from taskformer.metrics.counting import SumMetric, count_bins, empty_result, require_same_shape, within

LIMITS = (11.25, 22.5, 30.0)
BINS = 1800
BIN_WIDTH = 180 / BINS


class AngularError(SumMetric):
    """Mean, median and root mean square angle in degrees, and the shares of pixels below 11.25, 22.5 and 30 degrees.

    >>> right, down = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    >>> output = torch.stack([2 * right, down], dim=-1).view(1, 3, 1, 2)  # two pixels, the first exactly right
    >>> target = torch.stack([right, right], dim=-1).view(1, 3, 1, 2)
    >>> errors = AngularError()
    >>> errors.update(output, target)
    >>> scores = errors.compute()
    >>> f"{scores['mean_angle']:.1f} degrees on average, {scores['within_30']:.2f} of the pixels within 30"
    '45.0 degrees on average, 0.50 of the pixels within 30'

    Both vectors are normalised here, and the angle is ``2 atan2(|p - g|, |p + g|)``, which unlike the arc cosine is
    exact near 0 and 180 degrees and counts a predicted zero vector as 90 degrees. The median comes from a histogram
    with bins of 0.1 degrees, so it is within 0.05 degrees of the exact one. Pixels whose target is not finite or has
    no length are ignored.

    Args:
        inclusive: Whether an angle of exactly a limit counts as below it.
        uncentred: Compare ``(n + 1) / 2``, vectors as images store them (x right, y up, z into the scene), as if
            that did not change their angle.
    """

    names = ("mean_angle", "median_angle", "rmse_angle", "within_11.25", "within_22.5", "within_30")
    angles: Tensor
    squared: Tensor
    within: Tensor
    histogram: Tensor

    def __init__(self, inclusive: bool = False, uncentred: bool = False) -> None:
        super().__init__()
        self.inclusive = inclusive
        self.uncentred = uncentred
        self.add_sum("angles", dtype=torch.float64)
        self.add_sum("squared", dtype=torch.float64)
        self.add_sum("within", len(LIMITS))
        self.add_sum("histogram", BINS)

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add predicted vectors of any length and true normals, both ``(B, 3, H, W)``."""
        require_same_shape(self, output, target)
        valid = torch.isfinite(target).all(dim=1) & (target != 0).any(dim=1)
        guess = unit_vectors(output.float())
        truth = unit_vectors(target.float())
        if self.uncentred:
            guess, truth = unit_vectors(stored(guess)), unit_vectors(stored(truth))
        angle = torch.rad2deg(2 * torch.atan2(lengths(guess - truth), lengths(guess + truth)))
        counted = torch.where(valid, angle, 0.0)
        self.angles += counted.sum(dtype=torch.float64)
        self.squared += counted.square().sum(dtype=torch.float64)
        self.within += torch.stack([(valid & within(angle, limit, self.inclusive)).sum() for limit in LIMITS])
        # A NaN prediction makes the mean NaN; its bin only has to exist.
        bins = (angle / BIN_WIDTH).nan_to_num(BINS).long().clamp(max=BINS - 1)
        self.histogram += count_bins(bins, valid, BINS)

    def compute(self) -> dict[str, Tensor]:
        """Return angles in degrees and shares as fractions."""
        total = self.histogram.sum()
        if not total:
            return empty_result(self)
        shares = self.within.double() / total
        return {
            "mean_angle": self.angles / total,
            "median_angle": median_of(self.histogram) * BIN_WIDTH,
            "rmse_angle": (self.squared / total).sqrt(),
            **dict(zip(self.names[3:], shares.unbind(), strict=True)),
        }

    def details(self) -> dict[str, Any]:
        """Return the pixels by their angle: ``angles`` from 0 to 1 degree, from 1 to 2, ..., from 179 to 180."""
        return {"angles": self.histogram.view(180, -1).sum(1).tolist()}


def stored(normals: Tensor) -> Tensor:
    """Map normals ``(B, 3, H, W)`` to the values 0..1 of an image of them, whose y points up."""
    x, y, z = normals.unbind(dim=1)
    return (torch.stack([x, -y, z], dim=1) + 1) / 2


def lengths(vectors: Tensor) -> Tensor:
    """Return the lengths ``(B, H, W)`` of vectors ``(B, C, H, W)``."""
    # On a CPU torch's own norm over an inner axis is a hundred times slower.
    return vectors.square().sum(dim=1).sqrt()


def unit_vectors(vectors: Tensor, eps: float = 1e-12) -> Tensor:
    """Scale vectors ``(B, C, H, W)`` to length 1; those shorter than ``eps`` are divided by ``eps`` instead."""
    # Clamping under the root keeps the gradient of a zero vector finite.
    return vectors * vectors.square().sum(dim=1, keepdim=True).clamp(min=eps**2).rsqrt()


def median_of(histogram: Tensor) -> Tensor:
    """Return the median in bins, taking each element to lie in the middle of its bin."""
    cumulative = histogram.cumsum(0)
    total = cumulative[-1]
    # Of an even number of elements the median is the mean of the middle two, which may lie in different bins.
    middle = torch.stack([(total - 1) // 2, total // 2])
    return torch.searchsorted(cumulative, middle, right=True).double().mean() + 0.5
