"""What the metrics share: states, counting without synchronising the device, shape checks, the empty result."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
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

    def sums(self) -> dict[str, NDArray[Any]]:
        """Return the states as arrays, for :meth:`add` in another process."""
        return {name: getattr(self, name).cpu().numpy() for name in self.metric_state}

    def add(self, sums: Mapping[str, NDArray[Any]]) -> None:
        """Add the sums of a metric of the same kind."""
        self.merge_state({name: torch.as_tensor(state, device=self.device) for name, state in sums.items()})
        self._update_count += 1  # torchmetrics counts updates only, and warns without any

    def details(self) -> dict[str, Any]:
        """Return what plots need beyond the scores, in plain lists; nothing by default."""
        return {}

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


def sum_bins(values: Tensor, index: Tensor, bins: int) -> Tensor:
    """Add up values by bin, in 64 bits.

    Args:
        values: Floats of any shape; 0 where they do not count.
        index: Integer bins in ``0..bins-1`` of the same shape.
        bins: Number of bins.

    Returns:
        Sums ``(bins,)`` float64.
    """
    sums = torch.zeros(bins, dtype=torch.float64, device=values.device)
    return sums.scatter_add_(0, index.flatten(), values.flatten().double())


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


def class_ious(confusion: Tensor) -> Tensor:
    """Compute the IoU of each class ``(C,)`` of a confusion matrix ``(C, C)``; NaN for one that never occurs."""
    overlap = confusion.diagonal().double()
    return overlap / (confusion.sum(0) + confusion.sum(1) - overlap)


def within(values: Tensor, limit: Tensor | float, inclusive: bool) -> Tensor:
    """Find the values below a limit; if ``inclusive``, those exactly at it too."""
    return values <= limit if inclusive else values < limit


def image_sums(values: Tensor) -> Tensor:
    """Sum ``(B, ...)`` over all but the images, ``(B,)``, in 64 bits."""
    return values.flatten(1).sum(dim=1, dtype=torch.float64 if values.is_floating_point() else torch.int64)


def image_means(sums: Tensor, counts: Tensor) -> Tensor:
    """Divide the sums of images ``(B,)`` by what they count; 0 for an image without anything to count."""
    return torch.where(counts > 0, sums.double() / counts.clamp(min=1), 0.0)


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
