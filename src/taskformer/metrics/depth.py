"""Depth errors over all valid pixels of a data set."""

import torch
from torch import Tensor

from taskformer.metrics.counting import SumMetric, empty_result, require_same_shape


class DepthErrors(SumMetric):
    """RMSE in metres, mean absolute relative error and the share of pixels within a factor of 1.25.

    Sums run over all pixels of all images, so ``rmse`` is not the mean of the images' RMSEs. Predictions are clamped
    at 0; there is no depth cap and no median scaling. Pixels whose target is not finite or not above 0 are ignored.
    """

    names = ("rmse", "abs_rel", "delta1")
    squared: Tensor
    relative: Tensor
    within: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_sum("squared", dtype=torch.float64)
        self.add_sum("relative", dtype=torch.float64)
        self.add_sum("within")
        self.add_sum("total")

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add predicted and true depth, both ``(B, 1, H, W)`` in metres."""
        require_same_shape(self, output, target)
        valid = torch.isfinite(target) & (target > 0)
        # 1 m against 1 m adds nothing to the sums, whatever stood in the invalid pixel.
        truth = torch.where(valid, target.float(), 1.0)
        guess = torch.where(valid, output.float().clamp(min=0), 1.0)
        error = (guess - truth).abs()
        self.squared += error.square().sum(dtype=torch.float64)
        self.relative += (error / truth).sum(dtype=torch.float64)
        self.within += (valid & (guess < 1.25 * truth) & (truth < 1.25 * guess)).sum()
        self.total += valid.sum()

    def compute(self) -> dict[str, Tensor]:
        """Return the errors; ``delta1`` is a fraction."""
        if not self.total:
            return empty_result(self)
        return {
            "rmse": (self.squared / self.total).sqrt(),
            "abs_rel": self.relative / self.total,
            "delta1": self.within.double() / self.total,
        }
