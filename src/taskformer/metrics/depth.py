"""Depth errors over all valid pixels of a data set."""

import torch
from torch import Tensor

from taskformer.metrics.counting import SumMetric, empty_result, require_same_shape

#: Two depths agree at level k if their ratio is below the k-th of these; inverse depths have the same ratios.
RATIOS = (1.25, 1.25**2, 1.25**3)


class DepthErrors(SumMetric):
    """RMSE and mean error in metres, mean relative error and the shares of pixels within factors of 1.25, ..., 1.25^3.

    Sums run over all pixels of all images, so ``rmse`` is not the mean of the images' RMSEs. Predictions are clamped
    at 0; there is no depth cap and no median scaling. Pixels whose target is not finite or not above 0 are ignored.

    Args:
        inverse: The values are 1 / depth. Then 0 is valid, infinitely far, and counts for ``rmse`` and ``mae``; ratios
            to it do not exist, so the other shares and means leave it out.
    """

    names = ("rmse", "mae", "abs_rel", "delta1", "delta2", "delta3")
    squared: Tensor
    absolute: Tensor
    relative: Tensor
    within: Tensor
    total: Tensor
    ratios: Tensor

    def __init__(self, inverse: bool = False) -> None:
        super().__init__()
        self.inverse = inverse
        self.add_sum("squared", dtype=torch.float64)
        self.add_sum("absolute", dtype=torch.float64)
        self.add_sum("relative", dtype=torch.float64)
        self.add_sum("within", len(RATIOS))
        self.add_sum("total")
        self.add_sum("ratios")

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add predicted and true values, both ``(B, 1, H, W)`` in metres (1/m if inverse)."""
        require_same_shape(self, output, target)
        positive = torch.isfinite(target) & (target > 0)
        valid = positive | (target == 0) if self.inverse else positive
        # 1 m against 1 m adds nothing to the sums, whatever stood in the invalid pixel.
        truth = torch.where(valid, target.float(), 1.0)
        guess = torch.where(valid, output.float().clamp(min=0), 1.0)
        error = (guess - truth).abs()
        self.squared += error.square().sum(dtype=torch.float64)
        self.absolute += error.sum(dtype=torch.float64)
        self.relative += torch.where(positive, error / truth, 0.0).sum(dtype=torch.float64)
        near = [positive & (guess < ratio * truth) & (truth < ratio * guess) for ratio in RATIOS]
        self.within += torch.stack([pixels.sum() for pixels in near])
        self.total += valid.sum()
        self.ratios += positive.sum()

    def compute(self) -> dict[str, Tensor]:
        """Return the errors; ``delta1`` to ``delta3`` are fractions."""
        if not self.total:
            return empty_result(self)
        share = self.within.double() / self.ratios
        return {
            "rmse": (self.squared / self.total).sqrt(),
            "mae": self.absolute / self.total,
            "abs_rel": self.relative / self.ratios,
            **{f"delta{level}": value for level, value in enumerate(share, start=1)},
        }
