"""Semantic or occlusion edges."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from taskformer.errors import ConfigError
from taskformer.metrics.edges import EdgeScores, TolerantFMeasure
from taskformer.metrics.protocols import Protocol
from taskformer.tasks.base import IGNORE_INDEX, Geometry, Stage
from taskformer.tasks.colors import Swatch, gray_scale
from taskformer.tasks.losses import binary_kl_divergence, edge_cross_entropy
from taskformer.tasks.probabilities import logits_of, probability_bytes
from taskformer.tasks.registry import register
from taskformer.tasks.value_map import ValueMapTask


@register("edges")
class Edges(ValueMapTask):
    """Edges; targets ``(B, 1, H, W)`` float32 in [0, 1], NaN where invalid.

    >>> Edges("edges", positive_weight=0.8).decode(torch.zeros(1, 1, 1, 2)).flatten().tolist()
    [0.5, 0.5]

    The defaults are those of NYUD-v2; PASCAL-Context uses a weight of 0.95 and a distance of 0.0075.

    Args:
        name: The task's name.
        positive_weight: Weight of edges in the loss, in (0, 1); the rest has ``1 - positive_weight``.
        max_dist: Tolerance of the F-measures as a fraction of the image diagonal.
        loss_weight: Weight of the task's loss in the sum.
    """

    geometry: ClassVar[Geometry] = "lines"
    limits: ClassVar[tuple[float, float]] = (0.0, 1.0)
    other_names: ClassVar[Sequence[str]] = ("edge",)
    slow_test: ClassVar[bool] = True  # the boundary benchmark
    headline: ClassVar[str] = "f_tolerant"
    units: ClassVar[dict[str, str]] = {
        "f_tolerant": "%",
        "threshold": "",
        "odsF": "%",
        "oisF": "%",
        "ap": "%",
        "ods_threshold": "",
    }
    higher_is_better: ClassVar[bool] = True

    def __init__(
        self, name: str, positive_weight: float = 0.8, max_dist: float = 0.011, loss_weight: float = 50.0
    ) -> None:
        if not (0 < positive_weight < 1 and max_dist >= 0):
            message = (
                f"task {name!r} needs positive_weight in (0, 1) and max_dist of at least 0, "
                f"got {positive_weight} and {max_dist}"
            )
            raise ConfigError(message)
        super().__init__(name, 1, loss_weight)
        self.positive_weight = positive_weight
        self.max_dist = max_dist

    @property
    def plausible(self) -> tuple[float, float]:
        """Most pixels are not edges; where most are, black and white are swapped."""
        return 0.0, 0.5

    def check(self, target: Tensor, output: Tensor) -> Tensor:
        """Return edges as ``(B, 1, H, W)`` float32; integer maps of 0, 1 and 255 (invalid) are accepted."""
        if not target.is_floating_point():
            target = torch.where(target == IGNORE_INDEX, torch.nan, target.float())
        return super().check(target, output)

    def _loss(self, output: Tensor, target: Tensor) -> Tensor:
        return edge_cross_entropy(output, target, self.positive_weight)

    def _distance(self, output: Tensor, teacher: Tensor) -> Tensor:
        """Compute the Kullback-Leibler divergence of the probabilities of edge or no edge, in nats."""
        return binary_kl_divergence(output, teacher)

    def _metrics(self, protocol: Protocol, stage: Stage) -> dict[str, Metric]:
        quick: dict[str, Metric] = {"tolerant": TolerantFMeasure(self.max_dist)}
        if stage == "val":
            return quick
        benchmark = EdgeScores(
            self.max_dist,
            protocol.edge_thresholds,
            nms=protocol.edge_nms,
            thin_truth=protocol.edge_thin_truth,
            as_bytes=protocol.edge_bytes,
        )
        return {**quick, "benchmark": benchmark}

    def averaged(self, outputs: Sequence[Tensor]) -> Tensor:
        """Return the log-odds of the mean probability of an edge."""
        logits = torch.stack([output.float() for output in outputs])
        return F.logsigmoid(logits).logsumexp(dim=0) - F.logsigmoid(-logits).logsumexp(dim=0)

    def decode(self, output: Tensor) -> Tensor:
        """Return the probability of an edge ``(B, 1, H, W)`` float32."""
        return output.float().sigmoid()

    def pseudo_label(self, output: Tensor, confidence: float = 0.0) -> Tensor:
        """Return the probability of an edge ``(B, 1, H, W)`` without the loss's weight of edges; NaN where unsure.

        A network that learns with ``positive_weight`` says too often that there is an edge: its odds are
        ``positive_weight / (1 - positive_weight)`` times those of the labels. A student that learned from these odds
        with the same loss would say it again as much too often.
        """
        logits = output.float()
        excess = math.log(self.positive_weight / (1 - self.positive_weight))
        sure = torch.maximum(logits, -logits).sigmoid() >= confidence
        return torch.where(sure, (logits - excess).sigmoid(), torch.nan)

    def store(self, output: Tensor) -> NDArray[Any]:
        """Return the probability of an edge times 255, ``(H, W)`` uint8."""
        return probability_bytes(self.decode(output)[0])

    def restore(self, stored: NDArray[Any]) -> Tensor:
        """Return logits ``(1, H, W)`` of stored probabilities ``(H, W)``."""
        return logits_of(self.name, self._plane(stored)).unsqueeze(0)

    def colorize(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Draw probabilities or edges in [0, 1] in white on black."""
        return gray_scale(self._plane(values))

    def _swatches(self, maps: Sequence[NDArray[Any]]) -> list[Swatch]:
        return [Swatch(gray_scale(np.linspace(0, 1, 256)[None]), "certain edge", start="none")]

    def constant(self, targets: list[Tensor]) -> Tensor:
        """Return the logit ``(1,)`` of the share of edge pixels."""
        values = self.values(targets)
        share = values[torch.isfinite(values)].double().mean().nan_to_num(0.0)
        # Inside the metric's thresholds, where predicting edges everywhere still counts.
        return torch.logit(share, eps=0.02).float().view(1)
