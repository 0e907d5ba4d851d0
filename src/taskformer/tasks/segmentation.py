"""Semantic segmentation and human parts."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from taskformer.errors import ConfigError
from taskformer.metrics.protocols import Protocol
from taskformer.metrics.segmentation import MeanIoU, SegmentationScores
from taskformer.tasks.base import IGNORE_INDEX, Stage
from taskformer.tasks.colors import distinct_colors
from taskformer.tasks.label_map import BACKGROUND_COLOR, LabelMapTask
from taskformer.tasks.losses import class_weighted_cross_entropy, cross_entropy
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
        class_weights: How much a pixel of each class counts in the loss, a weighted mean; all the same by default.

    Raises:
        ConfigError: If there is not one weight above 0 for each class.
    """

    headline: ClassVar[str] = "mIoU"
    units: ClassVar[dict[str, str]] = {"mIoU": "%", "pixel_accuracy": "%"}

    def __init__(
        self,
        name: str,
        classes: Sequence[str],
        colors: Sequence[Sequence[int]] | None = None,
        loss_weight: float = 1.0,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(name, classes, colors, loss_weight)
        if class_weights is not None and not (len(class_weights) == self.channels and min(class_weights) > 0):
            message = f"task {name!r} needs one of class_weights above 0 for each of {self.channels} classes"
            raise ConfigError(f"{message}, got {class_weights}")
        self.class_weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)

    def _loss(self, output: Tensor, target: Tensor) -> Tensor:
        if self.class_weights is None:
            return cross_entropy(output, target)
        return class_weighted_cross_entropy(output, target, self.class_weights.to(output.device, non_blocking=True))

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
        colors: One RGB colour per part, 0..255; by default grey for the first and distinct colours for the others.
        loss_weight: Weight of the task's loss in the sum.
        needs_people: Whether an image that shows no part, or none any more once it is cropped, has no label instead of
            being all background, as in the literature on PASCAL-Context.
    """

    headline: ClassVar[str] = "mIoU"
    units: ClassVar[dict[str, str]] = {"mIoU": "%"}

    def __init__(
        self,
        name: str,
        classes: Sequence[str] = HUMAN_PARTS,
        colors: Sequence[Sequence[int]] | None = None,
        loss_weight: float = 2.0,
        needs_people: bool = False,
    ) -> None:
        others = distinct_colors(len(classes) - 1).tolist() if classes else []
        super().__init__(name, classes, colors or [BACKGROUND_COLOR, *others], loss_weight)
        self.needs_people = needs_people

    def settle(self, target: Tensor) -> Tensor:
        """Return the part ids ``(H, W)``, all 255 if a person is needed and no part is there."""
        shown = ((target != 0) & (target != IGNORE_INDEX)).any()
        return target if shown or not self.needs_people else self.invalid(*target.shape)

    def _loss(self, output: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(output, target)

    def _metrics(self, protocol: Protocol, stage: Stage) -> dict[str, Metric]:
        scores = MeanIoU(self.channels, protocol.averaged_classes, protocol.ignore_bare_background)
        return {"segmentation": scores}
