"""Edge scores: a fast one for validation and the benchmark's."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from taskformer.metrics.boundaries import (
    COUNTED,
    average_precision,
    best_point,
    count_matches,
    counts_at_best,
    even_thresholds,
    recall_precision_f,
    suppress,
    thin,
)
from taskformer.metrics.counting import (
    SumMetric,
    at_least,
    count_bins,
    empty_result,
    require_same_shape,
    threshold_bins,
)


class TolerantFMeasure(SumMetric):
    """F-measure of edges with a localisation tolerance, at the best threshold of the whole data set.

    >>> output, target = torch.full((1, 1, 10, 10), -9.0), torch.zeros(1, 1, 10, 10)
    >>> target[..., 3] = 1.0
    >>> output[..., :5, 4] = 9.0  # half of the edge, one pixel away: precision 1, recall 0.5
    >>> measure = TolerantFMeasure()
    >>> measure.update(output, target)
    >>> print(f"{measure.compute()['f_tolerant']:.3f}")
    0.667

    A predicted pixel is right if a true edge lies within the tolerance; a true edge pixel is found if a predicted one
    lies within it. This is a fast approximation for watching a training and it is NOT the odsF of the literature:
    nothing is suppressed or thinned, and a pixel may be matched many times, so thick predictions are not punished
    inside the tolerance.

    Args:
        max_dist: Tolerance as a fraction of the image diagonal, at least 1 pixel is allowed.
        thresholds: Number of thresholds ``k / (thresholds + 1)``.
    """

    names = ("f_tolerant", "threshold")
    predicted: Tensor
    right: Tensor
    found: Tensor

    def __init__(self, max_dist: float = 0.011, thresholds: int = 99) -> None:
        super().__init__()
        self.max_dist = max_dist
        self.thresholds = thresholds
        for name in ("predicted", "right", "found"):
            self.add_sum(name, thresholds + 1)

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add logits and edge maps in [0, 1], both ``(B, 1, H, W)``; pixels of at least 0.5 are edges."""
        require_same_shape(self, output, target)
        radius = max(1.0, self.max_dist * math.hypot(*target.shape[-2:]))
        valid = torch.isfinite(target)
        edge = valid & (target >= 0.5)
        # Where there is no label, a prediction counts neither as wrong nor as finding an edge nearby.
        probability = torch.where(valid, output.float().sigmoid(), 0.0)
        bins = threshold_bins(probability, self.thresholds)
        near_edge = dilate(edge.float(), radius) > 0
        self.predicted += count_bins(bins, valid, self.thresholds + 1)
        self.right += count_bins(bins, valid & near_edge, self.thresholds + 1)
        # A maximum of probabilities reaches a threshold where the thresholded map has a pixel: one dilation for all.
        reachable = threshold_bins(dilate(probability, radius), self.thresholds)
        self.found += count_bins(reachable, edge, self.thresholds + 1)

    def compute(self) -> dict[str, Tensor]:
        """Return the best F-measure, a fraction, and its threshold; 0 if the labels hold no edge at all."""
        if not self.predicted.any():
            return empty_result(self)
        precision = at_least(self.right).double() / at_least(self.predicted).clamp(min=1)
        recall = at_least(self.found).double() / self.found.sum().clamp(min=1)
        f_measure = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
        best, place = f_measure.max(dim=0)
        return {"f_tolerant": best, "threshold": (place + 1).double() / (self.thresholds + 1)}


def dilate(maps: Tensor, radius: float) -> Tensor:
    """Replace each pixel by the maximum over a disc.

    Args:
        maps: Non-negative maps ``(..., H, W)``.
        radius: Radius of the disc in pixels; a pixel exactly at that distance belongs to it.

    Returns:
        Maps of the same shape.
    """
    reach = int(radius)
    height, width = maps.shape[-2:]
    padded = F.pad(maps, (reach, reach, reach, reach))
    # rows holds each pixel's maximum over 2 * half + 1 neighbours of its row; half grows as the disc's rows do.
    rows, half = padded[..., reach : reach + width], 0
    result = torch.zeros_like(maps)
    for offset in range(reach, -1, -1):
        while half < math.isqrt(int(radius**2) - offset**2):
            half += 1
            left, right = padded[..., reach - half :][..., :width], padded[..., reach + half :][..., :width]
            rows = torch.maximum(rows, torch.maximum(left, right))
        for top in {reach - offset, reach + offset}:
            result = torch.maximum(result, rows[..., top : top + height, :])
    return result


class EdgeScores(SumMetric):
    """The boundary benchmark's scores: F-measures of thinned edges matched one to one within a tolerance.

    >>> output, target = torch.full((1, 1, 10, 10), -9.0), torch.zeros(1, 1, 10, 10)
    >>> target[..., 3] = 1.0
    >>> output[..., :5, 4] = 9.0  # half of the edge, one pixel away: precision 1, recall 0.5
    >>> scores = EdgeScores(max_dist=0.1, thresholds=[0.5], nms=False)
    >>> scores.update(output, target)
    >>> print(f"{scores.compute()['odsF']:.3f}")
    0.667

    Matching runs on the CPU: ``update`` copies the maps there and takes from tenths of a second to seconds per image.
    Each image is counted alone and in integers, within the smallest rectangle around its labelled pixels, so that
    nothing depends on batches, padding or processes.

    Args:
        max_dist: Tolerance as a fraction of that rectangle's diagonal; NYUD-v2 uses 0.011, PASCAL-Context 0.0075.
        thresholds: Increasing, in (0, 1]; None takes 0.01, 0.02, ..., 0.99.
        nms: Whether probabilities are first suppressed off the ridges, as SEISM does.
        thin_truth: Whether true edges are thinned first; False takes them as they are.
        as_bytes: Whether probabilities are first truncated to steps of 1/255, as 8-bit files hold them.
    """

    names = ("odsF", "oisF", "ap", "ods_threshold")
    counts: Tensor
    counts_at_best: Tensor
    valid: Tensor

    def __init__(
        self,
        max_dist: float = 0.011,
        thresholds: Sequence[float] | None = None,
        nms: bool = True,
        thin_truth: bool = True,
        as_bytes: bool = False,
    ) -> None:
        super().__init__()
        self.max_dist = max_dist
        self.thresholds = even_thresholds(99) if thresholds is None else np.array(thresholds, np.float64)
        if not (self.thresholds.size and np.diff(self.thresholds, prepend=0).min() > 0 and self.thresholds[-1] <= 1):
            message = f"EdgeScores: thresholds must increase within (0, 1], got {thresholds}"
            raise ValueError(message)
        self.nms = nms
        self.thin_truth = thin_truth
        self.as_bytes = as_bytes
        self.add_sum("counts", len(COUNTED), len(self.thresholds))
        self.add_sum("counts_at_best", len(COUNTED))
        self.add_sum("valid")

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add logits and edge maps in [0, 1], both ``(B, 1, H, W)``; pixels of at least 0.5 are edges."""
        require_same_shape(self, output, target)
        from scipy import ndimage  # which takes a while to import

        valid = torch.isfinite(target)
        self.valid += valid.sum()
        # Where there is no label, nothing is predicted and nothing is to be found.
        probability = torch.where(valid, output.float().sigmoid(), 0.0).double()
        if self.as_bytes:
            probability = (probability * 255).floor() / 255
        edge = valid & (target >= 0.5)
        images = (maps[:, 0].cpu().numpy() for maps in (probability, edge, valid))
        for whole_scores, whole_truth, labelled in zip(*images, strict=True):
            boxes = ndimage.find_objects(labelled.astype(np.uint8))
            if not boxes:
                continue
            scores, truth = whole_scores[boxes[0]], whole_truth[boxes[0]]
            counts = count_matches(
                suppress(scores) if self.nms else scores,
                [thin(truth) if self.thin_truth else truth],
                self.thresholds,
                self.max_dist * math.hypot(*truth.shape),
            )
            self.counts += torch.from_numpy(counts).to(self.device)
            self.counts_at_best += torch.from_numpy(counts_at_best(counts)).to(self.device)

    def compute(self) -> dict[str, Tensor]:
        """Return ODS and OIS F-measure and average precision, fractions, and the threshold of the ODS.

        They are 0 if the labels hold no edge or nothing is predicted.
        """
        if not self.valid:
            return empty_result(self)
        counts = self.counts.cpu().numpy()
        best = best_point(counts, self.thresholds)
        _, _, ois = recall_precision_f(self.counts_at_best.cpu().numpy())
        values = (best.f, float(ois), average_precision(counts), best.threshold)
        return {
            name: torch.tensor(value, dtype=torch.float64, device=self.device)
            for name, value in zip(self.names, values, strict=True)
        }

    def details(self) -> dict[str, Any]:
        """Return ``recall`` and ``precision`` at each threshold; ``best`` is the point whose F-measure is the ODS."""
        counts = self.counts.cpu().numpy()
        recall, precision, _ = recall_precision_f(counts)
        best = best_point(counts, self.thresholds)
        return {
            "thresholds": self.thresholds.tolist(),
            "recall": recall.tolist(),
            "precision": precision.tolist(),
            "best": [best.recall, best.precision],
            "beta_squared": 1.0,
        }
