"""Mean absolute error of dense values."""

import torch
from torch import Tensor

from taskformer.metrics.counting import SumMetric, empty_result, require_same_shape


class MaskedMeanAbsoluteError(SumMetric):
    """Mean absolute error over all finite target values, in the unit of the target."""

    names = ("mae",)
    absolute: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_sum("absolute", dtype=torch.float64)
        self.add_sum("total")

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add predicted and true values, both ``(B, C, H, W)``."""
        require_same_shape(self, output, target)
        valid = torch.isfinite(target)
        error = torch.where(valid, output.float() - target.float(), 0.0)
        self.absolute += error.abs().sum(dtype=torch.float64)
        self.total += valid.sum()

    def compute(self) -> dict[str, Tensor]:
        """Return the error."""
        if not self.total:
            return empty_result(self)
        return {"mae": self.absolute / self.total}
