"""A few numbers about the whole image."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from taskformer.errors import ConfigError, InvalidTargetError
from taskformer.metrics.protocols import Protocol
from taskformer.metrics.regression import MaskedMeanAbsoluteError
from taskformer.tasks.base import Geometry, Stage, Task
from taskformer.tasks.colors import INVALID_COLOR, distinct_colors
from taskformer.tasks.losses import l1
from taskformer.tasks.maps import check_shapes
from taskformer.tasks.registry import register

BAR_HEIGHT = 64


@register("image_vector")
@register("room_layout")
@register("vanishing_point")
class ImageVector(Task):
    """Numbers about the whole image; outputs and targets ``(B, channels)`` float32, NaN without label.

    Such numbers often describe the camera: whoever moves an image's pixels must not keep them.

    Args:
        name: The task's name.
        channels: How many numbers.
        value_range: Values at the bottom and top of the bars in pictures; losses and metrics have no range.
        loss_weight: Weight of the task's loss in the sum.
    """

    geometry: ClassVar[Geometry] = "image"
    headline: ClassVar[str] = "mae"
    units: ClassVar[dict[str, str]] = {"mae": ""}
    higher_is_better: ClassVar[bool] = False

    def __init__(
        self, name: str, channels: int = 9, value_range: Sequence[float] = (-1.0, 1.0), loss_weight: float = 1.0
    ) -> None:
        if channels < 1 or len(value_range) != 2 or not value_range[0] < value_range[1]:
            message = (
                f"task {name!r} needs at least 1 channel and a value_range [low, high], got {channels}, {value_range}"
            )
            raise ConfigError(message)
        super().__init__(name, channels, loss_weight)
        self.low, self.high = value_range

    def check(self, target: Tensor, output: Tensor) -> Tensor:
        """Return the numbers as ``(B, channels)`` float32.

        Raises:
            InvalidTargetError: If shape or type do not fit.
        """
        if not target.is_floating_point():
            message = f"task {self.name!r} needs float values (float32), got {target.dtype}"
            raise InvalidTargetError(message)
        check_shapes(self, output, target, tuple(output.shape))
        return target.float()

    def _loss(self, output: Tensor, target: Tensor) -> Tensor:
        return l1(output, target)

    def _metrics(self, protocol: Protocol, stage: Stage) -> dict[str, Metric]:
        return {"errors": MaskedMeanAbsoluteError()}

    def decode(self, output: Tensor) -> Tensor:
        """Return the numbers ``(B, channels)`` as float32."""
        return output.float()

    def colorize(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Draw the numbers ``(channels,)`` of one image as bars ``(64, channels, 3)``."""
        if values.shape != (self.channels,):
            message = f"task {self.name!r} draws {self.channels} numbers, got {values.shape}"
            raise InvalidTargetError(message)
        shares = np.nan_to_num((values - self.low) / (self.high - self.low))
        filled = np.arange(BAR_HEIGHT, 0, -1)[:, None] <= np.round(shares * BAR_HEIGHT)[None]
        background = np.array(INVALID_COLOR, dtype=np.uint8)
        return np.where(filled[..., None], distinct_colors(self.channels)[None], background)

    def constant(self, targets: list[Tensor]) -> Tensor:
        """Return each number's median ``(channels,)``, which minimises the mean absolute error."""
        rows = torch.cat(
            [torch.empty(0, self.channels), *(t.float().cpu().reshape(-1, self.channels) for t in targets)]
        )
        columns = [column[torch.isfinite(column)] for column in rows.unbind(dim=1)]
        return torch.stack([column.median() if column.numel() else torch.tensor(0.0) for column in columns])

    def invalid(self, height: int, width: int) -> Tensor:
        """Return numbers ``(channels,)`` that are all NaN; the size of the image does not matter."""
        del height, width
        return torch.full((self.channels,), torch.nan)
