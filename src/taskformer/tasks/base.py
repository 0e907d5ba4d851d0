"""What a task is: everything the rest of the package needs to know about one kind of pixel map."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection

from taskformer.errors import InvalidTargetError, UnknownNameError
from taskformer.metrics.counting import SumMetric
from taskformer.metrics.protocols import PROTOCOLS as _PROTOCOLS
from taskformer.metrics.protocols import Protocol
from taskformer.metrics.units import SHARE
from taskformer.tasks.colors import INVALID_COLOR, Swatch, swatch

#: How the values of a map change when the image is flipped, rotated or zoomed: class ids, plain values and lines keep
#: theirs, depth is divided by the zoom, inverse depth multiplied, vectors turn with the image. Lines can be thickened
#: before they shrink. ``image`` targets have no pixels to move.
Geometry = Literal["label", "value", "lines", "depth", "inverse_depth", "vector", "image"]

#: What the metrics are for: ``val`` is cheap enough for every epoch, ``test`` has everything.
Stage = Literal["val", "test"]

IGNORE_INDEX = 255
#: Names of the ways to score, see :mod:`taskformer.metrics.protocols`.
PROTOCOLS = tuple(_PROTOCOLS)


class ClassCounts(NamedTuple):
    """How often one target holds each class.

    >>> from taskformer.tasks import SemanticSegmentation
    >>> semseg = SemanticSegmentation("semseg", ["wall", "floor", "chair"])
    >>> counts = semseg.count_classes(np.array([[0, 0], [1, 255]]))
    >>> counts.pixels.tolist(), counts.images.tolist()
    ([2.0, 1.0, 0.0], [1, 1, 0])

    Attributes:
        pixels: Pixels of each class ``(K,)`` float64; for a label of the whole image its probabilities.
        images: Whether the target shows the class, 0 or 1 ``(K,)`` int64; for a label of the whole image only the
            likeliest class has 1.
    """

    pixels: NDArray[np.float64]
    images: NDArray[np.int64]


class Task(ABC):
    """One task: output channels, loss, metrics, decoding, colours, and what its targets may hold.

    >>> from taskformer.tasks import build_task
    >>> task = build_task("semseg", {"classes": ["wall", "floor", "chair"]})
    >>> output, target = torch.zeros(1, task.channels, 2, 2), torch.tensor([[[0, 1], [2, 255]]])
    >>> print(f"{task.loss(output, target):.3f}")
    1.099
    >>> metrics = task.metrics()
    >>> metrics.update(output, target)
    >>> print(f"{metrics.compute()[task.headline]:.3f}")
    0.111

    Invalid pixels are 255 in integer targets and NaN in float targets; losses and metrics ignore them, and a batch
    without a valid pixel gives a loss of exactly 0 that still has a gradient path.

    Whatever another part of the package wants to know about a task is asked here; a task overrides the defaults that do
    not suit it. Losses and metrics take tensors, channels first; the methods about *stored* targets take the arrays
    that data sets give: ``(H, W)`` or ``(H, W, C)``, or ``(K,)`` of a whole image.

    Args:
        name: The task's name, e.g. ``"depth"``; the key of its output, its target and its results.

    Attributes:
        channels: Number of output channels of the network for this task.
        geometry: How target values move with the image, see :data:`Geometry`.
        headline: The metric that stands for the task in comparisons, a key of :meth:`metrics`.
        units: Metric name to unit, for tables; :data:`~taskformer.metrics.units.SHARE` marks shares.
        higher_is_better: Whether a larger headline metric is better.
        loss_weight: Default weight of the task's loss in the sum.
        classes: Names of the classes in the order of their ids; empty for a task without classes.
        limits: Smallest and largest possible value, in the task's unit; class ids have none.
        stores_classes: Whether files hold class ids rather than values or probabilities.
        stored_ids: For each class the value, or values, that mean it in a file unless its owner says otherwise; None
            where the ids themselves are stored.
        other_names: Names that other programs give to the folders and arrays of the task's predictions.
        about_camera: Whether a target describes the camera, so that it is wrong as soon as pixels move.
        difference_unit: Unit of :meth:`difference`.
        slow_test: Whether what only ``test`` computes of it takes long, so that it can be left out.
        has_pseudo_labels: Whether a prediction can stand for a label, see :meth:`pseudo_label`.
    """

    classes: Sequence[str] = ()
    limits: ClassVar[tuple[float, float]] = (-np.inf, np.inf)
    stores_classes: ClassVar[bool] = False
    stored_ids: ClassVar[Sequence[int | list[int]] | None] = None
    other_names: ClassVar[Sequence[str]] = ()
    about_camera: ClassVar[bool] = False
    slow_test: ClassVar[bool] = False
    difference_unit: ClassVar[str] = ""
    has_pseudo_labels: ClassVar[bool] = True
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
        """Smallest and largest plausible median of a map, in the task's unit; without limits by default."""
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

    def distance(self, output: Tensor, teacher: Tensor) -> Tensor:
        """Compare the raw outputs of a network with those of a larger one, for distillation, in float32.

        No target is needed, so every pixel counts.

        Args:
            output: Raw output ``(B, channels, H, W)``, or ``(B, channels)`` of a task about the whole image.
            teacher: The larger network's output, the same shape; it gets no gradient.

        Returns:
            A scalar, 0 for equal outputs; by default the mean absolute difference in the output's unit.
        """
        with torch.autocast(output.device.type, enabled=False):
            return self._distance(output.float(), teacher.detach().float())

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

    def details(self, metrics: MetricCollection) -> dict[str, Any]:
        """Return what plots of an evaluation need beyond its scores, in plain types and over all processes.

        Args:
            metrics: What :meth:`metrics` built, after the evaluation.

        Returns:
            The ``headline`` metric, its ``unit``, and what the metrics add, e.g. a confusion matrix.
        """
        found: dict[str, Any] = {"headline": self.headline, "unit": self.units[self.headline]}
        for metric in metrics.values():
            if isinstance(metric, SumMetric):
                with metric.sync_context():
                    found |= metric.details()
        return found

    @classmethod
    def better(cls, metric: str) -> Literal["higher", "lower", ""]:
        """Say which values of a metric are better; empty for one that does not rate, such as the best threshold."""
        if metric == cls.headline:
            return "higher" if cls.higher_is_better else "lower"
        if "threshold" in metric:
            return ""
        # All but the headline are shares of what is right, or errors.
        return "higher" if cls.units.get(metric) == SHARE else "lower"

    @abstractmethod
    def check(self, target: Tensor, output: Tensor) -> Tensor:
        """Return the target in its canonical shape and type, or raise :class:`InvalidTargetError`."""

    @abstractmethod
    def _loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Compute the loss of a float32 output and a checked target."""

    def _distance(self, output: Tensor, teacher: Tensor) -> Tensor:
        """Compute the distance of two float32 outputs."""
        return F.l1_loss(output, teacher)

    @abstractmethod
    def _metrics(self, protocol: Protocol, stage: Stage) -> dict[str, Metric]:
        """Build the metrics of a stage by name."""

    def mirrored(self, output: Tensor) -> Tensor:
        """Turn the raw output of an image mirrored left and right into the image's own; of a whole image it stays."""
        if self.geometry == "image":
            return output
        output = output.flip(-1)
        return torch.cat([-output[:, :1], output[:, 1:]], dim=1) if self.geometry == "vector" else output

    def unzoomed(self, output: Tensor, scale: float) -> Tensor:
        """Turn the raw output of an image enlarged by a factor, resampled to its size, into the image's own."""
        if self.geometry == "depth":  # what looks larger is closer
            return output * scale
        return output / scale if self.geometry == "inverse_depth" else output

    def averaged(self, outputs: Sequence[Tensor]) -> Tensor:
        """Average raw outputs of one image, float32: of values their mean, of classes that of their probabilities."""
        return torch.stack([output.float() for output in outputs]).mean(dim=0)

    @abstractmethod
    def decode(self, output: Tensor) -> Tensor:
        """Turn raw output ``(B, channels, H, W)`` into the map users want: class ids, metres, unit vectors, ..."""

    def pseudo_label(self, output: Tensor, confidence: float = 0.0) -> Tensor:
        """Turn a teacher's raw output into a target, invalid where the teacher is not sure.

        Args:
            output: Raw output ``(B, channels, H, W)``, or ``(B, channels)`` of whole images.
            confidence: Probability of what is predicted below which there is no label. A task without probabilities
                has no confidence: all that it predicts counts, which is the default here.

        Returns:
            The target; a student that answers as its teacher does has the least loss.
        """
        del confidence
        return self.decode(output)

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

    def difference(self, first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
        """Say how far two decoded maps are apart at each pixel.

        Args:
            first: ``(H, W)`` or ``(C, H, W)``.
            second: Another one of that shape.

        Returns:
            ``(H, W)`` in the task's ``difference_unit``, NaN where one of the two is; by default the mean absolute
            difference of the channels.
        """
        apart = np.abs(first.astype(np.float64) - second)
        return np.asarray(apart.mean(axis=0) if apart.ndim == 3 else apart)

    def stored_label(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Turn what a file of predictions holds into a stored target, see :meth:`pseudo_label`.

        Raises:
            InvalidTargetError: If it does not fit the task.
        """
        label: NDArray[Any] = self.pseudo_label(self.restore(stored).unsqueeze(0))[0].numpy()
        if label.ndim < 3:
            return label
        return label[0] if len(label) == 1 else np.ascontiguousarray(np.moveaxis(label, 0, -1))

    @abstractmethod
    def colorize(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Draw a decoded map or target, ``(H, W)`` or ``(C, H, W)``, as RGB ``(H, W, 3)``; invalid pixels are dark."""

    def legend(self, *maps: NDArray[Any]) -> list[Swatch]:
        """Say what the colours of :meth:`colorize` mean.

        Args:
            maps: The maps that were drawn; of the classes only those that they show are listed, without maps all.

        Returns:
            A colour for each class, or a scale with its ends' values, and the dark of pixels without a label if the
            maps have any; empty where colours mean nothing by themselves.
        """
        unknown = any((map_ == IGNORE_INDEX if map_.dtype.kind in "iu" else np.isnan(map_)).any() for map_ in maps)
        return [*self._swatches(maps), *([swatch(INVALID_COLOR, "no label")] if unknown else [])]

    def _swatches(self, maps: Sequence[NDArray[Any]]) -> list[Swatch]:
        """List what the colours of valid pixels in these maps mean; nothing by default."""
        del maps
        return []

    @abstractmethod
    def constant(self, targets: list[Tensor]) -> Tensor:
        """Return the best constant raw output ``(channels,)`` for these targets, the floor every model must beat."""

    @abstractmethod
    def invalid(self, height: int, width: int) -> Tensor:
        """Return the all-invalid target of one image, for images that lack this task's label."""

    def settle(self, target: Tensor) -> Tensor:
        """Return what counts of one image's target after its augmentation; all of it by default.

        A task may declare the target invalid where nothing is left of what it is about.
        """
        return target

    # Stored targets

    def misfit(self, target: NDArray[Any]) -> str | None:
        """Say what is wrong with the type, axes or channels of a stored target; None if they are right."""
        if self.geometry == "label":
            fits, expected = target.dtype.kind in "iu" and target.ndim == 2, "integers (H, W)"
        elif self.geometry == "image":
            fits, expected = target.dtype.kind == "f" and target.shape == (self.channels,), f"floats ({self.channels},)"
        else:
            channels = target.shape[2] if target.ndim == 3 else 1
            fits = target.dtype.kind == "f" and target.ndim in (2, 3) and channels == self.channels
            expected = f"floats (H, W) with {self.channels} channels"
        return None if fits else f"the {self.name} map is {target.dtype} {target.shape}, expected {expected}"

    def valid(self, target: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which pixels ``(H, W)`` of a stored target have a label; of a whole image one value ``()``."""
        if self.geometry == "label":
            return np.asarray(target != IGNORE_INDEX)
        labelled = ~np.isnan(target)
        return np.asarray(labelled.all(axis=-1) if target.ndim in (1, 3) else labelled)

    def wrong_classes(self, target: NDArray[Any]) -> str | None:
        """Say which class ids of a stored target do not exist; None if all do, or the task has no classes."""
        del target
        return None

    def wrong_values(self, target: NDArray[Any]) -> Iterator[str]:
        """Say which valid values of a stored target are impossible, in one sentence for each kind of mistake."""
        if reason := self.wrong_classes(target):
            yield reason
        values = target[self.valid(target)]
        if (infinite := np.isinf(values)).any():
            yield f"{infinite.sum()} values are infinite"
            values = values[~infinite]
        low, high = self.limits
        if (wrong := values[(values < low) | (values > high)]).size:
            yield f"{wrong.size} values lie outside [{low:g}, {high:g}], e.g. {wrong[0]:g}"

    def doubtful_median(self, target: NDArray[Any]) -> str | None:
        """Say if the values of a stored target are probably not in the task's unit: far too large or too small."""
        values = target[np.isfinite(target)] if target.dtype.kind == "f" else target[:0]
        low, high = self.plausible
        if not values.size or low <= (median := float(np.median(values))) <= high:
            return None
        return f"the median is {median:g}, from {low:g} to {high:g} was expected: is it in the unit of {self.name!r}?"

    def count_classes(self, target: NDArray[Any]) -> ClassCounts | None:
        """Count the classes of a stored target; None if the task has none."""
        del target
        return None

    def quantities(self, target: NDArray[Any]) -> NDArray[Any]:
        """Return the valid values ``(N,)`` of a stored target if their mean has a meaning; none of ids and vectors."""
        values: NDArray[Any] = target[self.valid(target)].ravel()
        return values[:0] if self.geometry in ("label", "vector") else values

    # For subclasses

    def _check_shapes(self, output: Tensor, target: Tensor, expected: tuple[int, ...]) -> None:
        """Refuse an output or a target that does not have the task's shape.

        Raises:
            InvalidTargetError: If a shape does not fit.
        """
        if output.shape[1] != self.channels:
            message = f"task {self.name!r} has {self.channels} channels, got an output of shape {tuple(output.shape)}"
            raise InvalidTargetError(message)
        if tuple(target.shape) != expected:
            message = (
                f"task {self.name!r}: the target must have shape {expected} for an output of shape "
                f"{tuple(output.shape)}, got {tuple(target.shape)}"
            )
            raise InvalidTargetError(message)

    def _plane(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return the ``(H, W)`` plane of a map ``(H, W)`` or ``(1, H, W)``.

        Raises:
            InvalidTargetError: If the map has another shape.
        """
        values = np.asarray(values)
        if values.ndim == 3 and values.shape[0] == 1:
            values = values[0]
        if values.ndim != 2:
            message = f"task {self.name!r} draws maps (H, W) or (1, H, W), got {values.shape}"
            raise InvalidTargetError(message)
        return values
