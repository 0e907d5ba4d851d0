"""Maximal F-measure and mean IoU of salient objects."""

from torch import Tensor

from taskformer.metrics.counting import (
    SumMetric,
    at_least,
    count_bins,
    empty_result,
    mean_iou,
    require_label_shape,
    threshold_bins,
)


class SaliencyScores(SumMetric):
    """Maximal F-measure over thresholds, and mean IoU of the two classes at probability 0.5.

    The true positives, predicted positives and positives of each threshold are added up over the whole data set
    before precision and recall are formed (other evaluators average precision and recall of images). A pixel is
    predicted salient if its probability reaches the threshold; without any salient pixel ``maxF`` is 0.

    Args:
        thresholds: Number of thresholds ``k / (thresholds + 1)``; 19 gives .05, .10, ... .95 as in the literature.
        beta_squared: Weight of recall against precision; 0.3 is the convention of saliency detection.
        ignore_index: Label of invalid pixels.
    """

    names = ("maxF", "mIoU")
    histograms: Tensor
    confusion: Tensor

    def __init__(self, thresholds: int = 19, beta_squared: float = 0.3, ignore_index: int = 255) -> None:
        super().__init__()
        self.thresholds = thresholds
        self.beta_squared = beta_squared
        self.void = ignore_index
        self.add_sum("histograms", 2, thresholds + 1)
        self.add_sum("confusion", 2, 2)

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add logits ``(B, 2, H, W)`` of background and salient, and labels ``(B, H, W)``."""
        require_label_shape(self, output, target, classes=2)
        log_odds = output[:, 1].float() - output[:, 0].float()
        valid = target != self.void
        label = target.long()
        bins = threshold_bins(log_odds.sigmoid(), self.thresholds)
        width = self.thresholds + 1
        self.histograms += count_bins(label * width + bins, valid, 2 * width).view(2, width)
        self.confusion += count_bins(label * 2 + (log_odds > 0), valid, 4).view(2, 2)

    def compute(self) -> dict[str, Tensor]:
        """Return the scores as fractions."""
        if not self.histograms.any():
            return empty_result(self)
        positives = self.histograms[1].sum()
        true_positives = at_least(self.histograms[1]).double()
        predicted = at_least(self.histograms.sum(0))
        # F = (1 + b) P R / (b P + R) with both fractions multiplied out, so that nothing divides by 0.
        f_measure = (1 + self.beta_squared) * true_positives
        f_measure = f_measure / (self.beta_squared * positives + predicted).clamp(min=1e-9)
        return {"maxF": f_measure.max(), "mIoU": mean_iou(self.confusion)}
