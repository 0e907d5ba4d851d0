"""The base of tasks whose targets are maps of class ids, such as semantic segmentation."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MetricCollection

from taskformer.errors import ConfigError, InvalidTargetError
from taskformer.metrics.units import SHARE
from taskformer.tasks.base import IGNORE_INDEX, ClassCounts, Geometry, Task
from taskformer.tasks.colors import INVALID_COLOR, Swatch, distinct_colors, swatch
from taskformer.tasks.losses import kl_divergence
from taskformer.tasks.probabilities import mean_probabilities

#: Difference between the best and the other logits of a constant prediction.
MARGIN = 10.0
#: Colour of what is none of the things that a task is about.
BACKGROUND_COLOR = (60, 60, 60)


def class_names(task: str, classes: Sequence[object]) -> list[str]:
    """Return the names of a task's classes as text, also those that YAML reads as numbers because they lack quotes.

    Raises:
        ConfigError: If a name is neither text nor a number.
    """
    for place, name in enumerate(classes):
        if not isinstance(name, str | int | float):
            message = f"task {task!r}: class {place} needs a name, got {name!r}"
            raise ConfigError(message)
    return [str(name) for name in classes]


class LabelMapTask(Task):
    """A task whose target is a map of class ids ``(B, H, W)`` int64 with 255 where there is no label.

    >>> from taskformer.tasks import Saliency  # such a task
    >>> Saliency("saliency").invalid(height=1, width=2).tolist()  # the target of an image without a label
    [[255, 255]]

    Args:
        name: The task's name.
        classes: Class names in the order of their ids.
        colors: One RGB colour per class, 0..255; distinct colours by default.
        loss_weight: Weight of the task's loss in the sum.
    """

    geometry: ClassVar[Geometry] = "label"
    stores_classes: ClassVar[bool] = True
    difference_unit: ClassVar[str] = SHARE
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
        self._check_shapes(output, target, (output.shape[0], *output.shape[2:]))
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

    def details(self, metrics: MetricCollection) -> dict[str, Any]:
        """Return also the names of the ``classes``."""
        return {**super().details(metrics), "classes": list(self.classes)}

    def _distance(self, output: Tensor, teacher: Tensor) -> Tensor:
        """Compute the Kullback-Leibler divergence of the class probabilities in nats."""
        return kl_divergence(output, teacher)

    def averaged(self, outputs: Sequence[Tensor]) -> Tensor:
        """Return the logarithm of the mean class probabilities."""
        return mean_probabilities(outputs)

    def decode(self, output: Tensor) -> Tensor:
        """Turn logits ``(B, channels, H, W)`` into class ids ``(B, H, W)`` int64."""
        return output.argmax(dim=1)

    def pseudo_label(self, output: Tensor, confidence: float = 0.0) -> Tensor:
        """Return class ids ``(B, H, W)`` int64, 255 where the class is less probable than ``confidence``."""
        probability, label = output.float().softmax(dim=1).max(dim=1)
        return torch.where(probability >= confidence, label, IGNORE_INDEX)

    def stored_label(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Return class ids ``(H, W)``: those that are stored, or the likelier one of two."""
        if not self.stores_classes:
            return self.restore(stored).argmax(dim=0).numpy()
        label = self._plane(stored)
        if reason := self.wrong_classes(label):
            raise InvalidTargetError(reason)
        return label

    def store(self, output: Tensor) -> NDArray[Any]:
        """Return class ids ``(H, W)`` uint8."""
        return output.argmax(dim=0).byte().cpu().numpy()

    def restore(self, stored: NDArray[Any]) -> Tensor:
        """Return logits ``(channels, H, W)`` whose maximum is at the stored class ids ``(H, W)``."""
        labels = self._plane(stored)
        if not ((labels >= 0) & (labels < self.channels) & (labels == np.floor(labels))).all():
            message = f"task {self.name!r} needs class ids 0..{self.channels - 1} as predictions, got other values"
            raise InvalidTargetError(message)
        return F.one_hot(torch.from_numpy(labels.astype(np.int64)), self.channels).movedim(-1, 0).float()

    def difference(self, first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
        """Return 1 where the class is another one, 0 where it is the same, NaN where one of the two has none."""
        first, second = self._plane(first), self._plane(second)
        unknown = (first == IGNORE_INDEX) | (second == IGNORE_INDEX)
        return np.where(unknown, np.nan, (first != second).astype(np.float64))

    def colorize(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Draw class ids ``(H, W)`` or ``(1, H, W)`` as RGB ``(H, W, 3)``; ids without a class are dark."""
        labels = self._plane(values)
        known = (labels >= 0) & (labels < self.channels)
        image = np.full((*labels.shape, 3), INVALID_COLOR, dtype=np.uint8)
        image[known] = self.colors[labels[known].astype(np.int64)]
        return image

    def _swatches(self, maps: Sequence[NDArray[Any]]) -> list[Swatch]:
        shown = np.unique(np.concatenate([map_.ravel() for map_ in maps])) if maps else np.arange(self.channels)
        names = enumerate(zip(self.colors, self.classes, strict=True))
        return [swatch(color, name) for k, (color, name) in names if k in shown]

    def constant(self, targets: list[Tensor]) -> Tensor:
        """Return logits ``(channels,)`` of the most frequent class."""
        logits = torch.zeros(self.channels)
        logits[self._class_totals(targets).argmax()] = MARGIN
        return logits

    def invalid(self, height: int, width: int) -> Tensor:
        """Return a map ``(height, width)`` full of 255."""
        return torch.full((height, width), IGNORE_INDEX, dtype=torch.int64)

    def wrong_classes(self, target: NDArray[Any]) -> str | None:
        """Say which class ids of a stored target ``(H, W)`` do not exist; None if all do."""
        if target.dtype.kind not in "iub":
            return f"holds {target.dtype}, labels of {self.name!r} must be whole numbers"
        wrong = ((target < 0) | (target >= self.channels)) & (target != IGNORE_INDEX)
        if not wrong.any():
            return None
        ids = ", ".join(map(str, np.unique(target[wrong])[:10]))
        return f"has the class ids {ids}; there are 0..{self.channels - 1}, and 255 where there is no label"

    def count_classes(self, target: NDArray[Any]) -> ClassCounts:
        """Count the pixels of each class in a stored target ``(H, W)``."""
        pixels = np.bincount(target[self.valid(target)].astype(np.int64), minlength=self.channels)
        return ClassCounts(pixels.astype(np.float64), (pixels > 0).astype(np.int64))

    def _class_totals(self, targets: Sequence[Tensor]) -> NDArray[np.float64]:
        """Count the pixels of each class ``(channels,)`` in label maps of any sizes."""
        counts = (self.count_classes(target.cpu().numpy()).pixels for target in targets)
        return sum(counts, np.zeros(self.channels))
