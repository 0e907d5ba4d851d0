"""Classification of whole images against soft labels."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from taskformer.errors import ConfigError
from taskformer.metrics.classification import SoftLabelScores
from taskformer.metrics.protocols import Protocol
from taskformer.tasks.base import ClassCounts, Stage
from taskformer.tasks.image_level import ImageLevelTask
from taskformer.tasks.label_map import class_names
from taskformer.tasks.losses import kl_divergence, soft_cross_entropy
from taskformer.tasks.probabilities import mean_probabilities
from taskformer.tasks.registry import register


@register("classification")
@register("class_object")
@register("class_scene")
class Classification(ImageLevelTask):
    """What an image shows; outputs ``(B, K)`` logits, targets ``(B, K)`` float32 that sum to 1, NaN without label.

    >>> scene = Classification("scene", ["kitchen", "bath"])
    >>> scene.decode(torch.zeros(1, 2)).tolist()
    [[0.5, 0.5]]

    Args:
        name: The task's name.
        classes: Class names in the order of their ids.
        loss_weight: Weight of the task's loss in the sum.
    """

    limits: ClassVar[tuple[float, float]] = (0.0, 1.0)
    headline: ClassVar[str] = "top1"
    units: ClassVar[dict[str, str]] = {"top1": "%", "top5": "%", "cross_entropy": "nats"}
    higher_is_better: ClassVar[bool] = True

    def __init__(self, name: str, classes: Sequence[str], loss_weight: float = 1.0) -> None:
        if isinstance(classes, str) or len(classes) < 2:
            message = f"task {name!r} needs a list of at least 2 class names, got {classes!r}"
            raise ConfigError(message)
        super().__init__(name, len(classes), loss_weight)
        self.classes = class_names(name, classes)

    def _loss(self, output: Tensor, target: Tensor) -> Tensor:
        return soft_cross_entropy(output, target)

    def _metrics(self, protocol: Protocol, stage: Stage) -> dict[str, Metric]:
        return {"scores": SoftLabelScores()}

    def _distance(self, output: Tensor, teacher: Tensor) -> Tensor:
        """Compute the Kullback-Leibler divergence of the class probabilities in nats."""
        return kl_divergence(output, teacher)

    def averaged(self, outputs: Sequence[Tensor]) -> Tensor:
        """Return the logarithm of the mean class probabilities."""
        return mean_probabilities(outputs)

    def decode(self, output: Tensor) -> Tensor:
        """Return class probabilities ``(B, K)`` float32."""
        return output.float().softmax(dim=1)

    def pseudo_label(self, output: Tensor, confidence: float = 0.0) -> Tensor:
        """Return class probabilities ``(B, K)``, NaN of an image whose likeliest class is below ``confidence``."""
        probabilities = self.decode(output)
        sure = probabilities.amax(dim=1, keepdim=True) >= confidence
        return torch.where(sure, probabilities, torch.nan)

    def stored_label(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Return class probabilities ``(K,)``, also where these are stored and not logits."""
        is_distribution = stored.size and stored.min() >= 0 and abs(stored.sum() - 1) < 1e-3
        return stored.astype(np.float32) if is_distribution else super().stored_label(stored)

    def colorize(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Draw the probabilities ``(K,)`` of one image as bars ``(64, K, 3)``, one column per class."""
        return self._bars(values, 0.0, 1.0)

    def constant(self, targets: list[Tensor]) -> Tensor:
        """Return the log of the mean label ``(K,)``, which minimises the cross entropy."""
        rows = self.values(targets)
        mean = rows[torch.isfinite(rows).all(dim=1)].double().mean(dim=0)
        return mean.nan_to_num(0.0).clamp(min=1e-6).log().float()

    def count_classes(self, target: NDArray[Any]) -> ClassCounts:
        """Return the probabilities of a stored target ``(K,)``, and which class is the likeliest."""
        likeliest = [np.argmax(target)] if self.valid(target) else []
        return ClassCounts(np.nan_to_num(target).astype(np.float64), np.bincount(likeliest, minlength=self.channels))
