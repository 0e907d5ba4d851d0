"""Mean absolute error of dense values."""

import torch
from torch import Tensor

from taskformer.metrics.counting import SumMetric, empty_result, require_same_shape


class MaskedMeanAbsoluteError(SumMetric):
    """Mean absolute error over all finite target values, in the unit of the target.

    >>> error = MaskedMeanAbsoluteError()
    >>> output, target = torch.tensor([1.0, 5.0, 7.0]), torch.tensor([2.0, 2.0, torch.nan])
    >>> error.update(output.view(1, 1, 1, 3), target.view(1, 1, 1, 3))
    >>> error.compute()["mae"].item()
    2.0
    """

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
