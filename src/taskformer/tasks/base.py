"""What a task is: everything the rest of the package needs to know about one kind of pixel map."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from taskformer.errors import UnknownNameError

#: How the values of a map change when the image is flipped, rotated or zoomed: class ids and plain values keep
#: theirs, depth is divided by the zoom, inverse depth multiplied, vectors turn with the image. ``image`` targets have
#: no pixels to move.
Geometry = Literal["label", "value", "depth", "inverse_depth", "vector", "image"]

IGNORE_INDEX = 255
PROTOCOLS = ("standard",)


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
        units: Metric name to unit, for tables (``"%"`` marks shares, which are fractions everywhere but in tables).
        higher_is_better: Whether a larger headline metric is better.
        loss_weight: Default weight of the task's loss in the sum.
    """

    geometry: ClassVar[Geometry]
    headline: ClassVar[str]
    units: ClassVar[dict[str, str]]
    higher_is_better: ClassVar[bool]

    def __init__(self, name: str, channels: int, loss_weight: float = 1.0) -> None:
        self.name = name
        self.channels = channels
        self.loss_weight = loss_weight

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

    def metrics(self, protocol: str = "standard") -> MetricCollection:
        """Build fresh metrics that are fed raw outputs: ``metrics.update(output, target)``.

        Args:
            protocol: ``"standard"``, the mathematically right definitions.

        Raises:
            UnknownNameError: If there is no such protocol.
        """
        if protocol not in PROTOCOLS:
            kind = "protocol"
            raise UnknownNameError(kind, protocol, PROTOCOLS)
        return MetricCollection({**self._metrics()})

    @abstractmethod
    def check(self, target: Tensor, output: Tensor) -> Tensor:
        """Return the target in its canonical shape and type, or raise :class:`InvalidTargetError`."""

    @abstractmethod
    def _loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of a float32 output and a checked target."""

    @abstractmethod
    def _metrics(self) -> dict[str, Metric]:
        """Build the metrics by name."""

    @abstractmethod
    def decode(self, output: Tensor) -> Tensor:
        """Turn raw output ``(B, channels, H, W)`` into the map users want: class ids, metres, unit vectors, ..."""

    @abstractmethod
    def colorize(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Draw a decoded map or target, ``(H, W)`` or ``(C, H, W)``, as RGB ``(H, W, 3)``; invalid pixels are dark."""

    @abstractmethod
    def constant(self, targets: list[Tensor]) -> Tensor:
        """Return the best constant raw output ``(channels,)`` for these targets, the floor every model must beat."""

    @abstractmethod
    def invalid(self, height: int, width: int) -> Tensor:
        """Return the all-invalid target of one image, for images that lack this task's label."""
