"""Salient objects."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from taskformer.metrics.protocols import Protocol
from taskformer.metrics.saliency import SaliencyScores
from taskformer.tasks.base import Stage
from taskformer.tasks.label_map import BACKGROUND_COLOR, LabelMapTask
from taskformer.tasks.losses import balanced_cross_entropy
from taskformer.tasks.probabilities import logits_of, probability_bytes
from taskformer.tasks.registry import register


@register("saliency")
class Saliency(LabelMapTask):
    """Which pixels belong to a salient object; targets ``(B, H, W)`` int64 are 0, 1, or 255 where invalid.

    >>> saliency = Saliency("saliency")
    >>> saliency.decode(torch.tensor([2.0, -1.0]).view(1, 2, 1, 1)).item(), saliency.classes
    (0, ['background', 'salient'])

    Args:
        name: The task's name.
        loss_weight: Weight of the task's loss in the sum.
    """

    headline: ClassVar[str] = "maxF"
    stores_classes: ClassVar[bool] = False
    other_names: ClassVar[Sequence[str]] = ("sal",)
    stored_ids: ClassVar[Sequence[int | list[int]] | None] = (0, [1, 255])
    units: ClassVar[dict[str, str]] = {"maxF": "%", "max_mIoU": "%", "mIoU": "%"}

    def __init__(self, name: str, loss_weight: float = 5.0) -> None:
        super().__init__(name, ("background", "salient"), (BACKGROUND_COLOR, (255, 255, 255)), loss_weight)

    def _loss(self, output: Tensor, target: Tensor) -> Tensor:
        return balanced_cross_entropy(output, target)

    def _metrics(self, protocol: Protocol, stage: Stage) -> dict[str, Metric]:
        return {"saliency": SaliencyScores(protocol.saliency_thresholds)}

    def store(self, output: Tensor) -> NDArray[Any]:
        """Return the probability of being salient times 255, ``(H, W)`` uint8."""
        return probability_bytes(output.float().softmax(dim=0)[1])

    def restore(self, stored: NDArray[Any]) -> Tensor:
        """Return logits ``(2, H, W)`` of stored probabilities ``(H, W)``."""
        logits = logits_of(self.name, self._plane(stored))
        return torch.stack([torch.zeros_like(logits), logits])

    def constant(self, targets: list[Tensor]) -> Tensor:
        """Return logits ``(2,)`` whose softmax is the share of salient pixels."""
        background, salient = self._class_totals(targets).tolist()
        share = salient / max(background + salient, 1)
        # Inside the metric's thresholds, where predicting everything salient still counts.
        return torch.tensor([0.0, torch.logit(torch.tensor(share), eps=0.06).item()])
