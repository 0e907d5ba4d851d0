"""Classification of whole images against soft labels."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from taskformer.errors import ConfigError, InvalidTargetError
from taskformer.metrics.classification import SoftLabelScores
from taskformer.metrics.protocols import Protocol
from taskformer.tasks.base import Geometry, Stage, Task
from taskformer.tasks.colors import INVALID_COLOR, distinct_colors
from taskformer.tasks.losses import soft_cross_entropy
from taskformer.tasks.maps import check_shapes, class_names
from taskformer.tasks.registry import register

BAR_HEIGHT = 64


@register("classification")
@register("class_object")
@register("class_scene")
class Classification(Task):
    """What an image shows; outputs ``(B, K)`` logits, targets ``(B, K)`` float32 that sum to 1, NaN without label.

    Args:
        name: The task's name.
        classes: Class names in the order of their ids.
        loss_weight: Weight of the task's loss in the sum.
    """

    geometry: ClassVar[Geometry] = "image"
    headline: ClassVar[str] = "top1"
    units: ClassVar[dict[str, str]] = {"top1": "%", "top5": "%", "cross_entropy": "nats"}
    higher_is_better: ClassVar[bool] = True

    def __init__(self, name: str, classes: Sequence[str], loss_weight: float = 1.0) -> None:
        if isinstance(classes, str) or len(classes) < 2:
            message = f"task {name!r} needs a list of at least 2 class names, got {classes!r}"
            raise ConfigError(message)
        super().__init__(name, len(classes), loss_weight)
        self.classes = class_names(name, classes)

    def check(self, target: Tensor, output: Tensor) -> Tensor:
        """Return the soft labels as ``(B, K)`` float32.

        Raises:
            InvalidTargetError: If shape or type do not fit.
        """
        if not target.is_floating_point():
            message = f"task {self.name!r} needs soft labels, one probability per class, got {target.dtype}"
            raise InvalidTargetError(message)
        check_shapes(self, output, target, tuple(output.shape))
        return target.float()

    def _loss(self, output: Tensor, target: Tensor) -> Tensor:
        return soft_cross_entropy(output, target)

    def _metrics(self, protocol: Protocol, stage: Stage) -> dict[str, Metric]:
        return {"scores": SoftLabelScores()}

    def decode(self, output: Tensor) -> Tensor:
        """Return class probabilities ``(B, K)`` float32."""
        return output.float().softmax(dim=1)

    def colorize(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Draw the probabilities ``(K,)`` of one image as bars ``(64, K, 3)``, one column per class."""
        if values.shape != (self.channels,):
            message = f"task {self.name!r} draws {self.channels} probabilities, got {values.shape}"
            raise InvalidTargetError(message)
        heights = np.nan_to_num(values) * BAR_HEIGHT
        filled = np.arange(BAR_HEIGHT, 0, -1)[:, None] <= np.round(heights)[None]
        background = np.array(INVALID_COLOR, dtype=np.uint8)
        return np.where(filled[..., None], distinct_colors(self.channels)[None], background)

    def constant(self, targets: list[Tensor]) -> Tensor:
        """Return the log of the mean label ``(K,)``, which minimises the cross entropy."""
        rows = torch.cat(
            [torch.empty(0, self.channels), *(t.float().cpu().reshape(-1, self.channels) for t in targets)]
        )
        mean = rows[torch.isfinite(rows).all(dim=1)].double().mean(dim=0)
        return mean.nan_to_num(0.0).clamp(min=1e-6).log().float()

    def invalid(self, height: int, width: int) -> Tensor:
        """Return a label ``(K,)`` full of NaN; the size of the image does not matter."""
        del height, width
        return torch.full((self.channels,), torch.nan)
