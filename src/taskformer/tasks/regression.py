"""Dense values of any meaning, among them Taskonomy's."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from taskformer.errors import ConfigError, InvalidTargetError
from taskformer.metrics.protocols import Protocol
from taskformer.metrics.regression import MaskedMeanAbsoluteError
from taskformer.tasks.base import Geometry, Stage
from taskformer.tasks.colors import Swatch, color_scale, darken_invalid, scale_colors, unit_to_byte
from taskformer.tasks.losses import l1
from taskformer.tasks.registry import register
from taskformer.tasks.value_map import ValueMapTask


@register("regression")
@register("reshading")
@register("curvature", channels=2)
@register("keypoints2d")
@register("keypoints3d")
@register("edge_texture")
@register("edge_occlusion")
class Regression(ValueMapTask):
    """Dense values; targets ``(B, channels, H, W)`` float32 in the unit of the data set, NaN where invalid.

    >>> heat = Regression("heat", channels=1, value_range=[20.0, 40.0])
    >>> heat.colorize(np.array([[20.0, 40.0, np.nan]])).tolist()  # purple, yellow, and dark where there is no label
    [[[68, 1, 84], [253, 231, 37], [20, 20, 40]]]

    Args:
        name: The task's name.
        channels: Number of values per pixel.
        value_range: The two values at the ends of the colours; losses and metrics have no range.
        loss_weight: Weight of the task's loss in the sum.
    """

    geometry: ClassVar[Geometry] = "value"
    headline: ClassVar[str] = "mae"
    units: ClassVar[dict[str, str]] = {"mae": ""}
    higher_is_better: ClassVar[bool] = False

    def __init__(
        self, name: str, channels: int = 1, value_range: Sequence[float] = (0.0, 1.0), loss_weight: float = 1.0
    ) -> None:
        if channels < 1 or len(value_range) != 2 or not value_range[0] < value_range[1]:
            message = (
                f"task {name!r} needs at least 1 channel and a value_range [low, high], got {channels}, {value_range}"
            )
            raise ConfigError(message)
        super().__init__(name, channels, loss_weight)
        self.low, self.high = value_range

    def _loss(self, output: Tensor, target: Tensor) -> Tensor:
        return l1(output, target)

    def _metrics(self, protocol: Protocol, stage: Stage) -> dict[str, Metric]:
        return {"errors": MaskedMeanAbsoluteError()}

    def colorize(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Draw one channel with a colour map, more as red, green and blue (the first three; a missing blue is half)."""
        values = values[None] if values.ndim == 2 else values
        if values.ndim != 3 or values.shape[0] != self.channels:
            message = f"task {self.name!r} draws maps ({self.channels}, H, W), got {values.shape}"
            raise InvalidTargetError(message)
        if self.channels == 1:
            return color_scale(values[0], self.low, self.high)
        units = (values[:3] - self.low) / (self.high - self.low)
        if self.channels == 2:
            units = np.concatenate([units, np.full_like(units[:1], 0.5)])
        valid = np.asarray(np.isfinite(units).all(axis=0))
        return darken_invalid(np.moveaxis(unit_to_byte(units), 0, -1), valid)

    def _swatches(self, maps: Sequence[NDArray[Any]]) -> list[Swatch]:
        low, high = f"{self.low:g}", f"{self.high:g}"
        if self.channels == 1:
            return [Swatch(scale_colors(), high, start=low)]
        levels = np.arange(256, dtype=np.uint8)[None, :, None]
        return [
            Swatch(levels * np.eye(3, dtype=np.uint8)[k], high, start=f"value {k + 1}: {low}")
            for k in range(min(self.channels, 3))
        ]
