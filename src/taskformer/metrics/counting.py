"""What the metrics share: states, counting without synchronising the device, shape checks, the empty result."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class SumMetric(Metric):
    """Base of metrics whose states are sums in 64 bits.

    Attributes:
        names: Keys of the result.
    """

    names: tuple[str, ...]
    full_state_update: bool = False
    is_differentiable: bool = False

    def add_sum(self, name: str, *shape: int, dtype: torch.dtype = torch.int64) -> None:
        """Add a state that starts at 0 and is summed over processes."""
        self.add_state(name, torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum")

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Any:
        # A module around the metric may be cast, as Lightning's "bf16-true" does; sums of pixels must not be.
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, exclude_state)


def count_bins(index: Tensor, valid: Tensor, bins: int) -> Tensor:
    """Count how often each bin occurs among the valid elements.

    ``torch.bincount`` and boolean indexing wait for the device to learn a size; this does not.

    Args:
        index: Integer bins in ``0..bins-1`` where valid, any shape.
        valid: Boolean mask of the same shape.
        bins: Number of bins.

    Returns:
        Counts ``(bins,)`` int64.
    """
    index = torch.where(valid, index, bins).flatten()
    counts = torch.zeros(bins + 1, dtype=torch.int64, device=index.device)
    return counts.scatter_add_(0, index, torch.ones_like(index))[:bins]


def threshold_bins(values: Tensor, thresholds: int) -> Tensor:
    """Count for each value how many of the thresholds ``k / (thresholds + 1)``, ``k = 1..thresholds``, it reaches.

    Args:
        values: Probabilities, any shape.
        thresholds: Number of evenly spaced thresholds inside (0, 1).

    Returns:
        Integers in ``0..thresholds`` of the same shape: ``value >= k / (thresholds + 1)`` is ``bin >= k``.
    """
    edges = torch.arange(1, thresholds + 1, device=values.device, dtype=torch.float32) / (thresholds + 1)
    return torch.bucketize(values.contiguous(), edges, right=True)


def at_least(histogram: Tensor) -> Tensor:
    """Turn a histogram of :func:`threshold_bins` into the number of values that reach each threshold."""
    return histogram.flip(0).cumsum(0).flip(0)[1:]


def mean_iou(confusion: Tensor) -> Tensor:
    """Average the IoUs of the classes of a confusion matrix ``(C, C)``, without the classes that never occur."""
    overlap = confusion.diagonal().double()
    union = confusion.sum(0) + confusion.sum(1) - overlap
    return (overlap / union)[union > 0].mean()


def require_same_shape(metric: SumMetric, output: Tensor, target: Tensor) -> None:
    """Refuse maps that would only fit by silent broadcasting.

    Raises:
        ValueError: If the shapes differ.
    """
    if output.shape != target.shape:
        message = f"{type(metric).__name__}: output {tuple(output.shape)} and target {tuple(target.shape)} must match"
        raise ValueError(message)


def require_label_shape(metric: SumMetric, output: Tensor, target: Tensor, classes: int) -> None:
    """Refuse logits that are not ``(B, classes, H, W)`` or labels that are not ``(B, H, W)``.

    Raises:
        ValueError: If the shapes do not fit.
    """
    expected = (target.shape[0], classes, *target.shape[1:])
    if tuple(output.shape) != expected:
        message = (
            f"{type(metric).__name__}: logits {tuple(output.shape)} do not fit labels {tuple(target.shape)} "
            f"of {classes} classes, expected {expected}"
        )
        raise ValueError(message)


def empty_result(metric: SumMetric) -> dict[str, Tensor]:
    """Return NaN for every name and warn once that nothing was measured."""
    # Before the first update torchmetrics has already warned.
    if metric.update_called:
        message = f"{type(metric).__name__} saw no valid pixel or label, its result is NaN"
        warnings.warn(message, UserWarning, stacklevel=2)
    return {name: torch.tensor(math.nan, device=metric.device) for name in metric.names}
