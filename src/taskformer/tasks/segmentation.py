"""Semantic segmentation and human parts."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor
from torchmetrics import Metric

from taskformer.metrics.protocols import Protocol
from taskformer.metrics.segmentation import MeanIoU, SegmentationScores
from taskformer.tasks.base import Stage
from taskformer.tasks.label_map import LabelMapTask
from taskformer.tasks.losses import cross_entropy
from taskformer.tasks.registry import register

HUMAN_PARTS = ("background", "head", "torso", "upper arms", "lower arms", "upper legs", "lower legs")


@register("semseg")
class SemanticSegmentation(LabelMapTask):
    """Which class each pixel belongs to; targets are class ids ``(B, H, W)`` int64, 255 where invalid.

    >>> import torch
    >>> semseg = SemanticSegmentation("semseg", ["wall", "floor", "chair"])
    >>> logits = torch.tensor([0.0, 2.0, 1.0]).view(1, 3, 1, 1)
    >>> semseg.classes[semseg.decode(logits).item()]
    'floor'

    Args:
        name: The task's name.
        classes: Class names in the order of their ids.
        colors: One RGB colour per class, 0..255; distinct colours by default.
        loss_weight: Weight of the task's loss in the sum.
    """

    headline: ClassVar[str] = "mIoU"
    units: ClassVar[dict[str, str]] = {"mIoU": "%", "pixel_accuracy": "%"}

    def __init__(
        self,
        name: str,
        classes: Sequence[str],
        colors: Sequence[Sequence[int]] | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(name, classes, colors, loss_weight)

    def _loss(self, output: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(output, target)

    def _metrics(self, protocol: Protocol, stage: Stage) -> dict[str, Metric]:
        scores = SegmentationScores(
            self.channels, protocol.averaged_classes, protocol.image_means, self.channels in protocol.wrong_void
        )
        return {"segmentation": scores}


@register("human_parts")
class HumanParts(LabelMapTask):
    """Which body part each pixel belongs to; targets are part ids ``(B, H, W)`` int64, 255 where invalid.

    >>> parts = HumanParts("human_parts")
    >>> parts.channels, parts.classes[1]
    (7, 'head')

    Args:
        name: The task's name.
        classes: Part names in the order of their ids; by default the background and the six parts of the literature.
        colors: One RGB colour per part, 0..255; distinct colours by default.
        loss_weight: Weight of the task's loss in the sum.
    """

    headline: ClassVar[str] = "mIoU"
    units: ClassVar[dict[str, str]] = {"mIoU": "%"}

    def __init__(
        self,
        name: str,
        classes: Sequence[str] = HUMAN_PARTS,
        colors: Sequence[Sequence[int]] | None = None,
        loss_weight: float = 2.0,
    ) -> None:
        super().__init__(name, classes, colors, loss_weight)

    def _loss(self, output: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(output, target)

    def _metrics(self, protocol: Protocol, stage: Stage) -> dict[str, Metric]:
        scores = MeanIoU(self.channels, protocol.averaged_classes, protocol.ignore_bare_background)
        return {"segmentation": scores}
