"""Headline metrics alone, for scoring many networks on the same images.

A task's metrics compute several numbers and prepare the targets each time. Here only the number that stands for the
task is computed, and everything that depends on the targets alone is computed once. The values are those of
:meth:`taskformer.tasks.Task.metrics`, the protocol is ``"standard"``.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor

from taskformer.metrics.counting import SumMetric, at_least, class_ious, threshold_bins
from taskformer.metrics.depth import DepthErrors
from taskformer.metrics.edges import TolerantFMeasure, dilate
from taskformer.metrics.normals import AngularError, lengths, unit_vectors
from taskformer.metrics.segmentation import MeanIoU
from taskformer.tasks import IGNORE_INDEX, Task

#: What is kept of a batch's targets.
Prepared = tuple[Tensor, ...]


class Headline(ABC):
    """One task's headline metric, as sums over batches.

    Args:
        task: The task.
    """

    def __init__(self, task: Task) -> None:
        self.task = task

    @abstractmethod
    def prepare(self, target: Tensor) -> Prepared:
        """Compute what depends on a checked target alone."""

    @abstractmethod
    def sums(self, output: Tensor, prepared: Prepared) -> Tensor:
        """Compute one batch's sums ``(n,)`` float64, to be added up, from the raw float32 output."""

    @abstractmethod
    def value(self, sums: Tensor) -> Tensor:
        """Compute the metric from the sums of all batches; NaN if no pixel was valid."""


class ConfusionHeadline(Headline):
    """The mean IoU of the classes that occur, :class:`taskformer.metrics.segmentation.MeanIoU`."""

    def prepare(self, target: Tensor) -> Prepared:
        """Return the place in the confusion matrix of class 0 predicted, behind the matrix where invalid."""
        classes = self.task.channels
        return (torch.where(target == IGNORE_INDEX, classes**2, target * classes).flatten(),)

    def sums(self, output: Tensor, prepared: Prepared) -> Tensor:
        """Count pairs of true and predicted class."""
        classes = self.task.channels
        places = prepared[0] + output.max(dim=1).indices.flatten()
        return torch.bincount(places, minlength=classes**2 + classes)[: classes**2].double()

    def value(self, sums: Tensor) -> Tensor:
        """Return the mean IoU as a fraction."""
        return class_ious(sums.view(self.task.channels, self.task.channels)).nanmean()


class DepthHeadline(Headline):
    """The root of the mean squared error over all pixels, :class:`taskformer.metrics.depth.DepthErrors`."""

    def prepare(self, target: Tensor) -> Prepared:
        """Return the true depth, 0 where invalid, the valid pixels and their number."""
        valid = torch.isfinite(target) & (target > 0)
        return torch.where(valid, target, 0.0), valid, valid.sum().double()

    def sums(self, output: Tensor, prepared: Prepared) -> Tensor:
        """Add up squared errors and pixels."""
        truth, valid, pixels = prepared
        squared = torch.where(valid, output.clamp(min=0) - truth, 0.0).square()
        return torch.stack([squared.sum(dtype=torch.float64), pixels])

    def value(self, sums: Tensor) -> Tensor:
        """Return the error in metres."""
        return (sums[0] / sums[1]).sqrt()


class NormalsHeadline(Headline):
    """The mean angle, :class:`taskformer.metrics.normals.AngularError`."""

    def prepare(self, target: Tensor) -> Prepared:
        """Return the true unit vectors, the valid pixels and their number."""
        valid = torch.isfinite(target).all(dim=1) & (target != 0).any(dim=1)
        return unit_vectors(target), valid, valid.sum().double()

    def sums(self, output: Tensor, prepared: Prepared) -> Tensor:
        """Add up angles and pixels."""
        truth, valid, pixels = prepared
        guess = unit_vectors(output)
        angles = torch.atan2(lengths(guess - truth), lengths(guess + truth))
        return torch.stack([torch.where(valid, angles, 0.0).sum(dtype=torch.float64), pixels])

    def value(self, sums: Tensor) -> Tensor:
        """Return the angle in degrees."""
        return torch.rad2deg(2 * sums[0] / sums[1])


class EdgesHeadline(Headline):
    """The F-measure with a tolerance, :class:`taskformer.metrics.edges.TolerantFMeasure`.

    Args:
        task: The task.
        metric: What its metrics use.
    """

    def __init__(self, task: Task, metric: TolerantFMeasure) -> None:
        super().__init__(task)
        self.max_dist = metric.max_dist
        self.thresholds = metric.thresholds

    def prepare(self, target: Tensor) -> Prepared:
        """Return the valid pixels, an offset for each pixel by its kind, and the indices of edges."""
        valid = torch.isfinite(target)
        edge = valid & (target >= 0.5)
        near = dilate(edge.float(), self._radius(target)) > 0
        kinds = torch.where(valid, near.long(), 2)  # far from an edge, near one, invalid
        return valid, kinds.flatten() * (self.thresholds + 1), edge.flatten().nonzero()[:, 0]

    def sums(self, output: Tensor, prepared: Prepared) -> Tensor:
        """Count by threshold the pixels far from an edge, those near one, and the edges that are found."""
        valid, offsets, edges = prepared
        probability = torch.where(valid, output.sigmoid(), 0.0)
        bins = threshold_bins(probability, self.thresholds).flatten() + offsets
        reachable = dilate(probability, self._radius(output)).flatten()[edges]
        size = self.thresholds + 1
        pixels = torch.bincount(bins, minlength=3 * size)[: 2 * size]
        found = torch.bincount(threshold_bins(reachable, self.thresholds), minlength=size)
        return torch.cat([pixels, found]).double()

    def value(self, sums: Tensor) -> Tensor:
        """Return the best F-measure as a fraction."""
        far, near, found = sums.view(3, -1)
        if not (far.any() or near.any()):
            return torch.full_like(sums[0], math.nan)
        precision = at_least(near) / at_least(far + near).clamp(min=1)
        recall = at_least(found) / found.sum().clamp(min=1)
        f_measure: Tensor = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
        return f_measure.max()

    def _radius(self, maps: Tensor) -> float:
        return max(1.0, self.max_dist * math.hypot(*maps.shape[-2:]))


class MetricHeadline(Headline):
    """Any other metric whose states are sums: they are what is added up.

    Args:
        task: The task.
        metric: The metric that has the headline among its results.
    """

    def __init__(self, task: Task, metric: SumMetric) -> None:
        super().__init__(task)
        self.metric = metric
        metric.compute_with_cache = False  # the states are set from outside

    def prepare(self, target: Tensor) -> Prepared:
        """Return the target."""
        return (target,)

    def sums(self, output: Tensor, prepared: Prepared) -> Tensor:
        """Return the states after one batch."""
        self.metric.to(output.device).reset()
        self.metric.update(output, *prepared)
        return torch.cat([state.flatten().double() for state in self._states().values()])

    def value(self, sums: Tensor) -> Tensor:
        """Return what the metric computes from the states."""
        states = self._states()
        parts = sums.split([state.numel() for state in states.values()])
        for (name, state), part in zip(states.items(), parts, strict=True):
            setattr(self.metric, name, part.view_as(state).to(state.dtype))
        result: Tensor = self.metric.compute()[self.task.headline]
        return result

    def _states(self) -> dict[str, Tensor]:
        return cast(dict[str, Tensor], self.metric.metric_state)


def headline(task: Task) -> Headline:
    """Build what scores a task."""
    metrics = cast(Iterable[SumMetric], task.metrics().values())
    metric = next(metric for metric in metrics if task.headline in metric.names)
    if isinstance(metric, MeanIoU):
        return ConfusionHeadline(task)
    if isinstance(metric, DepthErrors) and not metric.inverse:
        return DepthHeadline(task)
    if isinstance(metric, AngularError):
        return NormalsHeadline(task)
    if isinstance(metric, TolerantFMeasure):
        return EdgesHeadline(task, metric)
    return MetricHeadline(task, metric)
