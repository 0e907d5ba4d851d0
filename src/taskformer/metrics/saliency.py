"""Maximal F-measure and IoU of salient objects."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from taskformer.metrics.counting import SumMetric, class_ious, count_bins, empty_result, require_label_shape
from taskformer.metrics.protocols import STEPS

#: Thresholds of the maximal IoU: .2, .25, ... .9.
IOU_STEPS = STEPS[3:18]


class SaliencyScores(SumMetric):
    """Maximal F-measure and maximal mean IoU over thresholds, and mean IoU of the two classes at probability 0.5.

    >>> log_odds = torch.tensor([-2.0, 2.0, -2.0, 2.0]).view(1, 1, 1, 4)
    >>> output = torch.cat([torch.zeros_like(log_odds), log_odds], dim=1)
    >>> target = torch.tensor([[[0, 1, 1, 255]]])
    >>> scores = SaliencyScores()
    >>> scores.update(output, target)
    >>> print(f"{scores.compute()['maxF']:.4f}")  # precision 1 and recall 1 / 2: 1.3 * 0.5 / (0.3 + 0.5)
    0.8125

    For ``maxF`` the true positives, predicted positives and positives of each threshold are added up over the whole
    data set before precision and recall are formed; without any salient pixel it is 0. ``max_mIoU`` is the maximum over
    thresholds .2, .25, ... .9 of the mean over images of the salient pixels' IoU, which is 1 for an image without any,
    predicted or true (Vandenhende et al., MTI-Net: ECCV 2020, who require probabilities above the threshold). A pixel
    is predicted salient if its probability reaches the threshold.

    Args:
        thresholds: Thresholds of the F-measure; .05, .10, ... .95 as in the literature.
        beta_squared: Weight of recall against precision; 0.3 is the convention of saliency detection.
        ignore_index: Label of invalid pixels.
    """

    names = ("maxF", "max_mIoU", "mIoU")
    edges: Tensor
    histograms: Tensor
    ious: Tensor
    images: Tensor
    confusion: Tensor

    def __init__(self, thresholds: Sequence[float] = STEPS, beta_squared: float = 0.3, ignore_index: int = 255) -> None:
        super().__init__()
        self.beta_squared = beta_squared
        self.void = ignore_index
        edges = sorted({*thresholds, *IOU_STEPS})
        self.f_places = [edges.index(threshold) for threshold in thresholds]
        self.iou_places = [edges.index(threshold) for threshold in IOU_STEPS]
        self.register_buffer("edges", torch.tensor(edges), persistent=False)
        # Background and salient pixels by the number of thresholds that they reach.
        self.add_sum("histograms", 2, len(edges) + 1)
        self.add_sum("ious", len(edges), dtype=torch.float64)
        self.add_sum("images")
        self.add_sum("confusion", 2, 2)

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add logits ``(B, 2, H, W)`` of background and salient, and labels ``(B, H, W)``."""
        require_label_shape(self, output, target, classes=2)
        log_odds = output[:, 1].float() - output[:, 0].float()
        valid = target != self.void
        label = target.long()
        bins = torch.bucketize(log_odds.sigmoid(), self.edges, right=True)
        images, width = len(target), len(self.edges) + 1
        place = torch.arange(images, device=target.device)[:, None, None] * 2 + label
        histograms = count_bins(place * width + bins, valid, images * 2 * width).view(images, 2, width)
        self.histograms += histograms.sum(0)
        hits, predicted, positives = _counts(histograms)
        union = predicted + positives - hits
        seen = valid.flatten(1).any(dim=1)
        self.ious += torch.where(union > 0, hits / union.clamp(min=1).double(), seen[:, None].double()).sum(0)
        self.images += seen.sum()
        self.confusion += count_bins(label * 2 + (log_odds > 0), valid, 4).view(2, 2)

    def compute(self) -> dict[str, Tensor]:
        """Return the scores as fractions."""
        if not self.images:
            return empty_result(self)
        return {
            "maxF": self._f_measures()[self.f_places].max(),
            "max_mIoU": (self.ious / self.images)[self.iou_places].max(),
            "mIoU": class_ious(self.confusion).nanmean(),
        }

    def details(self) -> dict[str, Any]:
        """Return the ``confusion`` matrix at 0.5, and ``recall`` and ``precision`` at each threshold.

        ``best`` is the point of the curve whose F-measure, with ``beta_squared``, is ``maxF``.
        """
        hits, predicted, positives = _counts(self.histograms)
        recall, precision = hits / positives.clamp(min=1), hits / predicted.clamp(min=1)
        place = self.f_places[int(self._f_measures()[self.f_places].argmax())]
        return {
            "confusion": self.confusion.tolist(),
            "thresholds": self.edges.tolist(),
            "recall": recall.tolist(),
            "precision": precision.tolist(),
            "best": [recall[place].item(), precision[place].item()],
            "beta_squared": self.beta_squared,
        }

    def _f_measures(self) -> Tensor:
        """Return the F-measure at each threshold ``(T,)``."""
        hits, predicted, positives = _counts(self.histograms)
        # F = (1 + b) P R / (b P + R) with both fractions multiplied out, so that nothing divides by 0.
        weighted = self.beta_squared * positives.double() + predicted
        return (1 + self.beta_squared) * hits.double() / weighted.clamp(min=1e-9)


def _counts(histograms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count true positives and predicted positives of each threshold, and positives, in histograms.

    Args:
        histograms: ``(..., 2, T + 1)``.

    Returns:
        ``(..., T)``, ``(..., T)`` and ``(..., 1)``.
    """
    reached = histograms.flip(-1).cumsum(-1).flip(-1)[..., 1:]
    return reached[..., 1, :], reached.sum(-2), histograms[..., 1, :].sum(-1, keepdim=True)
