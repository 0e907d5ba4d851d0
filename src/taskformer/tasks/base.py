"""What a task is: everything the rest of the package needs to know about one kind of pixel map."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from taskformer.errors import InvalidTargetError, UnknownNameError
from taskformer.metrics.protocols import PROTOCOLS as _PROTOCOLS
from taskformer.metrics.protocols import Protocol
from taskformer.metrics.units import SHARE

#: How the values of a map change when the image is flipped, rotated or zoomed: class ids and plain values keep
#: theirs, depth is divided by the zoom, inverse depth multiplied, vectors turn with the image. ``image`` targets have
#: no pixels to move.
Geometry = Literal["label", "value", "depth", "inverse_depth", "vector", "image"]

#: What the metrics are for: ``val`` is cheap enough for every epoch, ``test`` has everything.
Stage = Literal["val", "test"]

IGNORE_INDEX = 255
#: Names of the ways to score, see :mod:`taskformer.metrics.protocols`.
PROTOCOLS = tuple(_PROTOCOLS)


class Task(ABC):
    """One task: output channels, loss, metrics, decoding and colours.

    Invalid pixels are 255 in integer targets and NaN in float targets; losses and metrics ignore them, and a batch
    without a valid pixel gives a loss of exactly 0 that still has a gradient path.

    Args:
        name: The task's name, e.g. ``"depth"``; the key of its output, its target and its results.

    Attributes:
        channels: Number of output channels of the network for this task.
        geometry: How target values move with the image, see :data:`Geometry`.
        headline: The metric that stands for the task in comparisons, a key of :meth:`metrics`.
        units: Metric name to unit, for tables; :data:`~taskformer.metrics.units.SHARE` marks shares.
        higher_is_better: Whether a larger headline metric is better.
        loss_weight: Default weight of the task's loss in the sum.
        stores_classes: Whether files of predictions hold class ids, and no values or probabilities.
    """

    stores_classes: ClassVar[bool] = False
    geometry: ClassVar[Geometry]
    headline: ClassVar[str]
    units: ClassVar[dict[str, str]]
    higher_is_better: ClassVar[bool]

    def __init__(self, name: str, channels: int, loss_weight: float = 1.0) -> None:
        self.name = name
        self.channels = channels
        self.loss_weight = loss_weight

    @property
    def plausible(self) -> tuple[float, float]:
        """Smallest and largest median of a map in the task's unit, whatever it shows; by default there is no limit."""
        return -np.inf, np.inf

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Compute the training loss in float32, whatever the precision around it.

        Args:
            output: Raw network output ``(B, channels, H, W)``.
            target: Target map, see the class for its shape and unit.

        Returns:
            A scalar; exactly 0 when no pixel is valid.
        """
        with torch.autocast(output.device.type, enabled=False):
            return self._loss(output.float(), self.check(target, output))

    def metrics(self, protocol: str = "standard", stage: Stage = "val") -> MetricCollection:
        """Build fresh metrics that are fed raw outputs: ``metrics.update(output, target)``.

        Args:
            protocol: ``"standard"``, the mathematically right definitions, or one of :data:`PROTOCOLS` to compare with
                published numbers.
            stage: ``"val"`` leaves out what is too slow for every epoch; ``"test"`` has everything.

        Raises:
            UnknownNameError: If there is no such protocol.
        """
        if protocol not in PROTOCOLS:
            kind = "protocol"
            raise UnknownNameError(kind, protocol, PROTOCOLS)
        return MetricCollection({**self._metrics(_PROTOCOLS[protocol], stage)})

    def better(self, metric: str) -> Literal["higher", "lower", ""]:
        """Say which values of a metric are better; empty for one that does not rate, such as the best threshold."""
        if metric == self.headline:
            return "higher" if self.higher_is_better else "lower"
        if "threshold" in metric:
            return ""
        # All but the headline are shares of what is right, or errors.
        return "higher" if self.units.get(metric) == SHARE else "lower"

    @abstractmethod
    def check(self, target: Tensor, output: Tensor) -> Tensor:
        """Return the target in its canonical shape and type, or raise :class:`InvalidTargetError`."""

    @abstractmethod
    def _loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of a float32 output and a checked target."""

    @abstractmethod
    def _metrics(self, protocol: Protocol, stage: Stage) -> dict[str, Metric]:
        """Build the metrics of a stage by name."""

    @abstractmethod
    def decode(self, output: Tensor) -> Tensor:
        """Turn raw output ``(B, channels, H, W)`` into the map users want: class ids, metres, unit vectors, ..."""

    def store(self, output: Tensor) -> NDArray[Any]:
        """Turn the raw output of one image into what a file of predictions holds.

        Args:
            output: ``(channels, H, W)``, or ``(channels,)`` of a whole image.

        Returns:
            8-bit values, for a PNG, in the formats of the field's evaluators where they have one; or else float32
            ``(H, W)``, ``(H, W, channels)`` or ``(channels,)``.
        """
        values: NDArray[Any] = output.float().cpu().numpy()
        if values.ndim == 1:
            return values
        return values[0] if self.channels == 1 else np.ascontiguousarray(np.moveaxis(values, 0, -1))

    def restore(self, stored: NDArray[Any]) -> Tensor:
        """Turn what :meth:`store` returned, or another program, into a raw output with the same scores.

        Raises:
            InvalidTargetError: If it does not fit the task: in its shape, in its type, or in what its unit must be.
        """
        if stored.dtype.kind != "f":
            span = f" from {stored.min()} to {stored.max()}" if stored.size and stored.dtype.kind in "iub" else ""
            message = (
                f"task {self.name!r} needs predictions in its unit as floating-point numbers, got {stored.dtype}"
                f"{span}; convert them, e.g. millimetres of 16 bits to metres of float32"
            )
            raise InvalidTargetError(message)
        median = float(np.median(finite)) if (finite := stored[np.isfinite(stored)]).size else 0.0
        if median > self.plausible[1]:
            message = f"task {self.name!r} needs predictions in its unit, but their median is {median:g}; convert them"
            raise InvalidTargetError(message)
        values = torch.from_numpy(stored.astype(np.float32))
        image = self.geometry == "image"
        values = values.unsqueeze(-1) if self.channels == 1 and not image and values.ndim == 2 else values
        if values.ndim != (1 if image else 3) or values.shape[-1] != self.channels:
            expected = f"({self.channels},)" if image else f"(height, width, {self.channels})"
            message = f"task {self.name!r} needs predictions of shape {expected}, got {stored.shape}"
            raise InvalidTargetError(message)
        return values if image else values.movedim(-1, 0).contiguous()

    @abstractmethod
    def colorize(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Draw a decoded map or target, ``(H, W)`` or ``(C, H, W)``, as RGB ``(H, W, 3)``; invalid pixels are dark."""

    @abstractmethod
    def constant(self, targets: list[Tensor]) -> Tensor:
        """Return the best constant raw output ``(channels,)`` for these targets, the floor every model must beat."""

    @abstractmethod
    def invalid(self, height: int, width: int) -> Tensor:
        """Return the all-invalid target of one image, for images that lack this task's label."""
