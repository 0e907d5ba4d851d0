"""What tasks with integer label maps share, and what tasks with float maps share."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from taskformer.errors import ConfigError, InvalidTargetError
from taskformer.tasks.base import IGNORE_INDEX, Geometry, Task
from taskformer.tasks.colors import INVALID_COLOR, distinct_colors

#: Difference of the best and the other logits of a constant prediction.
MARGIN = 10.0


def class_names(task: str, classes: Sequence[object]) -> list[str]:
    """Return the names of a task's classes as text; numbers, which YAML makes of unquoted ones, too.

    Raises:
        ConfigError: If one is something else.
    """
    for place, name in enumerate(classes):
        if not isinstance(name, str | int | float):
            message = f"task {task!r}: class {place} needs a name, got {name!r}"
            raise ConfigError(message)
    return [str(name) for name in classes]


class LabelMapTask(Task):
    """A task whose target is a map of class ids ``(B, H, W)`` int64 with 255 where there is no label.

    Args:
        name: The task's name.
        classes: Class names in the order of their ids.
        colors: One RGB colour per class, 0..255; distinct colours by default.
        loss_weight: Weight of the task's loss in the sum.
    """

    geometry: ClassVar[Geometry] = "label"
    stores_classes: ClassVar[bool] = True
    higher_is_better: ClassVar[bool] = True

    def __init__(
        self, name: str, classes: Sequence[str], colors: Sequence[Sequence[int]] | None, loss_weight: float
    ) -> None:
        if isinstance(classes, str) or not 2 <= len(classes) <= IGNORE_INDEX:
            message = f"task {name!r} needs a list of 2 to {IGNORE_INDEX} class names, got {classes!r}"
            raise ConfigError(message)
        super().__init__(name, len(classes), loss_weight)
        self.classes = class_names(name, classes)
        palette = distinct_colors(self.channels) if colors is None else np.asarray(colors)
        if palette.shape != (self.channels, 3) or palette.min() < 0 or palette.max() > 255:
            message = f"task {name!r} has {self.channels} classes and needs as many RGB colors 0..255, got {colors!r}"
            raise ConfigError(message)
        self.colors = palette.astype(np.uint8)

    def check(self, target: Tensor, output: Tensor) -> Tensor:
        """Return the labels as ``(B, H, W)`` int64.

        Any integer type and a channel axis of 1 are accepted. Class ids are only compared with the number of classes
        on the CPU, because elsewhere that would wait for the device.

        Raises:
            InvalidTargetError: If shape, type or class ids do not fit.
        """
        if target.is_floating_point() or target.is_complex():
            message = f"task {self.name!r} needs integer labels, got {target.dtype}"
            raise InvalidTargetError(message)
        if target.ndim == output.ndim and target.shape[1] == 1:
            target = target[:, 0]
        check_shapes(self, output, target, (output.shape[0], *output.shape[2:]))
        target = target.long()
        if target.device.type == "cpu":
            wrong = target[(target != IGNORE_INDEX) & ((target < 0) | (target >= self.channels))]
            if wrong.numel():
                message = (
                    f"task {self.name!r} has {self.channels} classes (ids 0..{self.channels - 1}, {IGNORE_INDEX} where "
                    f"there is no label), got labels {wrong.unique().tolist()[:10]}"
                )
                raise InvalidTargetError(message)
        return target

    def decode(self, output: Tensor) -> Tensor:
        """Turn logits ``(B, channels, H, W)`` into class ids ``(B, H, W)`` int64."""
        return output.argmax(dim=1)

    def store(self, output: Tensor) -> NDArray[Any]:
        """Return class ids ``(H, W)`` uint8."""
        return output.argmax(dim=0).byte().cpu().numpy()

    def restore(self, stored: NDArray[Any]) -> Tensor:
        """Return logits ``(channels, H, W)`` whose maximum is at the stored class ids ``(H, W)``."""
        labels = plane(self, stored)
        if not ((labels >= 0) & (labels < self.channels) & (labels == np.floor(labels))).all():
            message = f"task {self.name!r} needs class ids 0..{self.channels - 1} as predictions, got other values"
            raise InvalidTargetError(message)
        return F.one_hot(torch.from_numpy(labels.astype(np.int64)), self.channels).movedim(-1, 0).float()

    def colorize(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Draw class ids ``(H, W)`` or ``(1, H, W)`` as RGB ``(H, W, 3)``; ids without a class are dark."""
        labels = plane(self, values)
        known = (labels >= 0) & (labels < self.channels)
        image = np.full((*labels.shape, 3), INVALID_COLOR, dtype=np.uint8)
        image[known] = self.colors[labels[known].astype(np.int64)]
        return image

    def class_counts(self, targets: Sequence[Tensor]) -> Tensor:
        """Count the pixels of each class ``(channels,)`` int64 in label maps of any sizes."""
        counts = torch.zeros(self.channels, dtype=torch.int64)
        for target in targets:
            labels = target[target != IGNORE_INDEX].long().cpu()
            counts += torch.bincount(labels, minlength=self.channels)
        return counts

    def constant(self, targets: list[Tensor]) -> Tensor:
        """Return logits ``(channels,)`` of the most frequent class."""
        logits = torch.zeros(self.channels)
        logits[self.class_counts(targets).argmax()] = MARGIN
        return logits

    def invalid(self, height: int, width: int) -> Tensor:
        """Return a map ``(height, width)`` full of 255."""
        return torch.full((height, width), IGNORE_INDEX, dtype=torch.int64)


class ValueMapTask(Task):
    """A task whose target is a float map ``(B, channels, H, W)`` with NaN where there is no label."""

    def check(self, target: Tensor, output: Tensor) -> Tensor:
        """Return the map as ``(B, channels, H, W)`` float32; with one channel that axis may be missing.

        Raises:
            InvalidTargetError: If shape or type do not fit.
        """
        if not target.is_floating_point():
            message = f"task {self.name!r} needs float values with NaN where there is no label, got {target.dtype}"
            raise InvalidTargetError(message)
        if self.channels == 1 and target.ndim == output.ndim - 1:
            target = target.unsqueeze(1)
        check_shapes(self, output, target, tuple(output.shape))
        return target.float()

    def decode(self, output: Tensor) -> Tensor:
        """Return the output ``(B, channels, H, W)`` as float32."""
        return output.float()

    def values(self, targets: Sequence[Tensor]) -> Tensor:
        """Gather the pixels of maps ``(..., channels, H, W)`` of any sizes as rows ``(N, channels)`` float32."""
        rows = [target.float().movedim(-3, -1).reshape(-1, self.channels) for target in targets]
        return torch.cat([torch.empty(0, self.channels), *(row.cpu() for row in rows)])

    def invalid(self, height: int, width: int) -> Tensor:
        """Return a map ``(channels, height, width)`` full of NaN."""
        return torch.full((self.channels, height, width), torch.nan)


def probability_bytes(probability: Tensor) -> NDArray[np.uint8]:
    """Return probabilities times 255 as uint8, truncated as the field's evaluators do."""
    values: NDArray[np.uint8] = (probability.float() * 255).byte().cpu().numpy()
    return values


def logits_of(task: Task, stored: NDArray[Any]) -> Tensor:
    """Return log-odds ``(H, W)`` of stored probabilities: float, or shares of the largest number of 8 or 16 bits.

    Raises:
        InvalidTargetError: If they are no probabilities of shape ``(H, W)``.
    """
    values = plane(task, stored)
    if values.dtype.kind == "u":
        top = np.iinfo(values.dtype).max
        # A trifle more than stored, so that what equals a threshold, as 51 / 255 does .2, reaches it after rounding.
        values = (values + 1e-3).clip(max=top) / top
    values = values.astype(np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        message = f"task {task.name!r} needs predictions between 0 and 1, or 8 bits, got {values.min()}..{values.max()}"
        raise InvalidTargetError(message)
    return torch.logit(torch.from_numpy(values)).float()


def check_shapes(task: Task, output: Tensor, target: Tensor, expected: tuple[int, ...]) -> None:
    """Refuse an output or a target that does not have the task's shape.

    Raises:
        InvalidTargetError: If a shape does not fit.
    """
    if output.shape[1] != task.channels:
        message = f"task {task.name!r} has {task.channels} channels, got an output of shape {tuple(output.shape)}"
        raise InvalidTargetError(message)
    if tuple(target.shape) != expected:
        message = (
            f"task {task.name!r}: the target must have shape {expected} for an output of shape "
            f"{tuple(output.shape)}, got {tuple(target.shape)}"
        )
        raise InvalidTargetError(message)


def plane(task: Task, values: NDArray[Any]) -> NDArray[Any]:
    """Return the ``(H, W)`` plane of a map ``(H, W)`` or ``(1, H, W)``.

    Raises:
        InvalidTargetError: If the map has another shape.
    """
    values = np.asarray(values)
    if values.ndim == 3 and values.shape[0] == 1:
        values = values[0]
    if values.ndim != 2:
        message = f"task {task.name!r} draws maps (H, W) or (1, H, W), got {values.shape}"
        raise InvalidTargetError(message)
    return values
