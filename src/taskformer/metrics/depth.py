"""Depth errors over all valid pixels of a data set."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from taskformer.metrics.counting import (
    SumMetric,
    count_bins,
    empty_result,
    image_means,
    image_sums,
    require_same_shape,
    sum_bins,
    within,
)

#: Two depths agree at level k if their ratio is below the k-th of these; inverse depths have the same ratios.
RATIOS = (1.25, 1.25**2, 1.25**3)


class DepthErrors(SumMetric):
    """RMSE and mean error in metres, relative error, RMSE of logarithms, shares within factors of 1.25, ..., 1.25^3.

    >>> output = torch.tensor([3.0, 5.0, 9.0]).view(1, 1, 1, 3)
    >>> target = torch.tensor([2.0, 4.0, torch.nan]).view(1, 1, 1, 3)
    >>> errors = DepthErrors()
    >>> errors.update(output, target)
    >>> scores = errors.compute()
    >>> scores["rmse"].item(), scores["abs_rel"].item()  # errors of 1 m, of depths of 2 m and 4 m
    (1.0, 0.375)

    Sums run over all pixels of all images, so ``rmse`` is not the mean of the images' RMSEs, ``rmse_per_image``. There
    is no depth cap and no median scaling. Pixels whose target is not finite or not above 0 are ignored.

    Args:
        inverse: The values are 1 / depth. Then 0 is valid, infinitely far, and counts for ``rmse`` and ``mae``; ratios
            to it do not exist, so the other shares and means leave it out.
        floor: Predictions below it are raised to it; None keeps negative ones, which then are within every factor.
        log_floor: The same before the logarithm is taken.
        above: Targets up to this value are invalid, whether inverse or not.
        inclusive: Whether a factor of exactly 1.25^k counts as within.
        image_means: Whether ``mae`` and ``abs_rel`` are means of the images' means instead of means over pixels.
        ranges: Where ranges of the true value begin, increasing, for :meth:`details`; empty: they are not counted.
    """

    names = ("rmse", "rmse_per_image", "rmse_log", "mae", "abs_rel", "delta1", "delta2", "delta3")
    squared: Tensor
    image_rmse: Tensor
    log_squared: Tensor
    absolute: Tensor
    relative: Tensor
    within: Tensor
    pixels: Tensor
    ratios: Tensor
    images: Tensor
    ratio_images: Tensor
    range_ends: Tensor
    range_squared: Tensor
    range_absolute: Tensor
    range_pixels: Tensor

    def __init__(
        self,
        inverse: bool = False,
        floor: float | None = 0.0,
        log_floor: float = 1e-3,
        above: float | None = None,
        inclusive: bool = False,
        image_means: bool = False,
        ranges: Sequence[float] = (),
    ) -> None:
        super().__init__()
        self.inverse = inverse
        self.floor = floor
        self.log_floor = log_floor
        self.above = above
        self.inclusive = inclusive
        self.image_means = image_means
        for name in ("squared", "image_rmse", "log_squared", "absolute", "relative"):
            self.add_sum(name, dtype=torch.float64)
        for name in ("pixels", "ratios", "images", "ratio_images"):
            self.add_sum(name)
        self.add_sum("within", len(RATIOS))
        self.ranges = tuple(ranges)
        if ranges:
            self.register_buffer("range_ends", torch.tensor(ranges[1:]), persistent=False)
            self.add_sum("range_squared", len(ranges), dtype=torch.float64)
            self.add_sum("range_absolute", len(ranges), dtype=torch.float64)
            self.add_sum("range_pixels", len(ranges))

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add predicted and true values, both ``(B, 1, H, W)`` in metres (1/m if inverse)."""
        require_same_shape(self, output, target)
        positive = torch.isfinite(target) & (target > (self.above or 0.0))
        valid = positive | (target == 0) if self.inverse and self.above is None else positive
        # 1 m against 1 m adds nothing to the sums, whatever stood in the invalid pixel.
        truth = torch.where(valid, target.float(), 1.0)
        guess = torch.where(valid, output.float(), 1.0)
        guess = guess if self.floor is None else guess.clamp(min=self.floor)
        error = (guess - truth).abs()
        pixels, ratios = image_sums(valid), image_sums(positive)
        squared = image_sums(error.square())
        self.squared += squared.sum()
        self.image_rmse += image_means(squared, pixels).sqrt().sum()
        self._add_means("absolute", image_sums(error), pixels)
        self._add_means("relative", image_sums(torch.where(positive, error / truth, 0.0)), ratios)
        logs = guess.clamp(min=self.log_floor).log() - truth.log()
        self.log_squared += torch.where(positive, logs, 0.0).square().sum(dtype=torch.float64)
        self.within += torch.stack([(positive & self._agree(guess, truth, ratio)).sum() for ratio in RATIOS])
        self.pixels += pixels.sum()
        self.ratios += ratios.sum()
        self.images += (pixels > 0).sum()
        self.ratio_images += (ratios > 0).sum()
        if self.ranges:
            self._add_ranges(error, truth, valid)

    def _add_ranges(self, error: Tensor, truth: Tensor, valid: Tensor) -> None:
        """Add the errors, 0 where invalid, to those of their ranges; the first and the last range have no end."""
        place = torch.bucketize(truth, self.range_ends, right=True)
        self.range_squared += sum_bins(error.square(), place, len(self.ranges))
        self.range_absolute += sum_bins(error, place, len(self.ranges))
        self.range_pixels += count_bins(place, valid, len(self.ranges))

    def _add_means(self, name: str, sums: Tensor, counts: Tensor) -> None:
        """Add each image's sum, or its mean, to a state."""
        getattr(self, name).add_((image_means(sums, counts) if self.image_means else sums).sum())

    def _agree(self, guess: Tensor, truth: Tensor, ratio: float) -> Tensor:
        """Find depths within a factor of each other: both quotients of a negative one are below it."""
        low = within(guess, ratio * truth, self.inclusive)
        return (guess < 0) | (low & within(truth, ratio * guess, self.inclusive))

    def compute(self) -> dict[str, Tensor]:
        """Return the errors; ``delta1`` to ``delta3`` are fractions."""
        if not self.pixels:
            return empty_result(self)
        if not self.ratios:
            message = "DepthErrors saw only infinite depths; errors that need ratios are NaN"
            warnings.warn(message, UserWarning, stacklevel=2)
        share = self.within.double() / self.ratios
        return {
            "rmse": (self.squared / self.pixels).sqrt(),
            "rmse_per_image": self.image_rmse / self.images,
            "rmse_log": (self.log_squared / self.ratios).sqrt(),
            "mae": self.absolute / (self.images if self.image_means else self.pixels),
            "abs_rel": self.relative / (self.ratio_images if self.image_means else self.ratios),
            **{f"delta{level}": value for level, value in enumerate(share, start=1)},
        }

    def details(self) -> dict[str, Any]:
        """Return the sums of ``squared`` and ``absolute`` errors and the ``pixels`` of each range.

        ``ranges`` says where each begins; the last has no end.
        """
        if not self.ranges:
            return {}
        sums = {name: getattr(self, f"range_{name}").tolist() for name in ("squared", "absolute", "pixels")}
        return {"ranges": list(self.ranges), **sums}
