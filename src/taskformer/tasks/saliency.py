"""Salient objects."""

from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from taskformer.metrics.saliency import SaliencyScores
from taskformer.tasks.losses import balanced_cross_entropy
from taskformer.tasks.maps import LabelMapTask
from taskformer.tasks.registry import register


@register("saliency")
class Saliency(LabelMapTask):
    """Which pixels belong to a salient object; targets ``(B, H, W)`` int64 are 0, 1, or 255 where invalid.

    Args:
        name: The task's name.
        loss_weight: Weight of the task's loss in the sum.
    """

    headline: ClassVar[str] = "maxF"
    units: ClassVar[dict[str, str]] = {"maxF": "%", "mIoU": "%"}

    def __init__(self, name: str, loss_weight: float = 5.0) -> None:
        super().__init__(name, ("background", "salient"), ((60, 60, 60), (255, 255, 255)), loss_weight)

    def _loss(self, output: Tensor, target: Tensor) -> Tensor:
        return balanced_cross_entropy(output, target)

    def _metrics(self) -> dict[str, Metric]:
        return {"saliency": SaliencyScores()}

    def constant(self, targets: list[Tensor]) -> Tensor:
        """Return logits ``(2,)`` whose softmax is the share of salient pixels."""
        background, salient = self.class_counts(targets).tolist()
        share = salient / max(background + salient, 1)
        # Inside the metric's thresholds, where predicting everything salient still counts.
        return torch.tensor([0.0, torch.logit(torch.tensor(share), eps=0.06).item()])
