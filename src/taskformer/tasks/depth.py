"""Depth."""

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from taskformer.errors import ConfigError
from taskformer.metrics.depth import DepthErrors
from taskformer.tasks.base import Geometry
from taskformer.tasks.colors import color_scale
from taskformer.tasks.losses import l1
from taskformer.tasks.maps import ValueMapTask, plane
from taskformer.tasks.registry import register


@register("depth")
class Depth(ValueMapTask):
    """Distance along the optical axis; targets ``(B, 1, H, W)`` float32 in metres, NaN (or not above 0) where invalid.

    Args:
        name: The task's name.
        max_depth: Depth in metres at the far end of the colours; losses and metrics have no cap.
        loss_weight: Weight of the task's loss in the sum.
    """

    geometry: ClassVar[Geometry] = "depth"
    headline: ClassVar[str] = "rmse"
    units: ClassVar[dict[str, str]] = {"rmse": "m", "abs_rel": "", "delta1": "%"}
    higher_is_better: ClassVar[bool] = False

    def __init__(self, name: str, max_depth: float = 10.0, loss_weight: float = 1.0) -> None:
        if not max_depth > 0:
            message = f"task {name!r} needs max_depth above 0 metres, got {max_depth}"
            raise ConfigError(message)
        super().__init__(name, 1, loss_weight)
        self.max_depth = max_depth

    def check(self, target: Tensor, output: Tensor) -> Tensor:
        """Return the depth as ``(B, 1, H, W)`` float32 with NaN where it is not above 0."""
        target = super().check(target, output)
        return torch.where(target > 0, target, torch.nan)

    def _loss(self, output: Tensor, target: Tensor) -> Tensor:
        return l1(output, target)

    def _metrics(self) -> dict[str, Metric]:
        return {"errors": DepthErrors()}

    def decode(self, output: Tensor) -> Tensor:
        """Return depth in metres ``(B, 1, H, W)`` float32, at least 0."""
        return output.float().clamp(min=0)

    def colorize(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Draw depth in metres from yellow (near) to purple (``max_depth`` and beyond), the same range for all maps."""
        return color_scale(plane(self, values), self.max_depth, 0.0)

    def constant(self, targets: list[Tensor]) -> Tensor:
        """Return the mean depth ``(1,)``, which minimises the RMSE."""
        values = self.values(targets)
        values = values[torch.isfinite(values) & (values > 0)]
        return values.double().mean().nan_to_num(0.0).float().view(1)
