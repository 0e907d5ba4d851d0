"""A few numbers about the whole image."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from taskformer.errors import ConfigError
from taskformer.metrics.protocols import Protocol
from taskformer.metrics.regression import MaskedMeanAbsoluteError
from taskformer.tasks.base import Stage
from taskformer.tasks.image_level import ImageLevelTask
from taskformer.tasks.losses import l1
from taskformer.tasks.registry import register
from taskformer.tasks.value_map import medians


@register("image_vector")
@register("room_layout")
@register("vanishing_point")
class ImageVector(ImageLevelTask):
    """Numbers about the whole image; outputs and targets ``(B, channels)`` float32, NaN without label.

    >>> vanishing = ImageVector("vanishing_point", channels=3)
    >>> vanishing.colorize(np.array([-1.0, 0.0, 1.0])).shape  # a bar for each number
    (64, 3, 3)

    Such numbers often describe the camera, so they become wrong when the pixels of the image move.

    Args:
        name: The task's name.
        channels: How many numbers.
        value_range: Values at the bottom and top of the bars in pictures; losses and metrics have no range.
        loss_weight: Weight of the task's loss in the sum.
    """

    about_camera: ClassVar[bool] = True
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

    def _loss(self, output: Tensor, target: Tensor) -> Tensor:
        return l1(output, target)

    def _metrics(self, protocol: Protocol, stage: Stage) -> dict[str, Metric]:
        return {"errors": MaskedMeanAbsoluteError()}

    def colorize(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Draw the numbers ``(channels,)`` of one image as bars ``(64, channels, 3)``."""
        return self._bars(values, self.low, self.high)

    def constant(self, targets: list[Tensor]) -> Tensor:
        """Return each number's median ``(channels,)``, which minimises the mean absolute error."""
        return medians(self.values(targets))
