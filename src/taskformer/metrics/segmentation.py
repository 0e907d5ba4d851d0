"""Mean intersection over union and pixel accuracy of class maps."""

from typing import Any

import torch
from torch import Tensor

from taskformer.metrics.counting import (
    SumMetric,
    class_ious,
    count_bins,
    empty_result,
    image_means,
    image_sums,
    require_label_shape,
)
from taskformer.metrics.protocols import Averaged


class MeanIoU(SumMetric):
    """Mean IoU from one confusion matrix of the whole data set (the mean of the images' IoUs is another number).

    >>> output = torch.eye(2)[[0, 0, 1, 1]].T.view(1, 2, 1, 4)  # logits of classes 0, 0, 1 and 1
    >>> target = torch.tensor([[[0, 1, 1, 255]]])
    >>> metric = MeanIoU(num_classes=2)
    >>> metric.update(output, target)
    >>> metric.compute()["mIoU"].item()  # 1 / 2 for both classes
    0.5

    Equal to torchmetrics' macro ``MulticlassJaccardIndex`` by default, but it does not wait for the device in
    ``update`` and is NaN when nothing was measured.

    Args:
        num_classes: Number of classes.
        averaged: The classes whose IoUs are averaged: those ``present`` in predictions or labels, ``all`` (0 for one
            that is not; on a full validation set the two agree, on a small subset they do not), or those that were
            ``hit``, which leaves out the worst failures.
        ignore_bare_background: Whether images whose labels are all 0 or invalid are left out.
        ignore_index: Label of invalid pixels.
    """

    names: tuple[str, ...] = ("mIoU",)
    confusion: Tensor

    def __init__(
        self,
        num_classes: int,
        averaged: Averaged = "present",
        ignore_bare_background: bool = False,
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.averaged = averaged
        self.ignore_bare_background = ignore_bare_background
        self.void = ignore_index
        # Rows are true classes, columns predicted ones.
        self.add_sum("confusion", num_classes, num_classes)

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add logits ``(B, num_classes, H, W)`` and labels ``(B, H, W)``."""
        require_label_shape(self, output, target, self.num_classes)
        # On a CPU argmax over channels is five times slower than max, which finds the same indices.
        self._count(output.max(dim=1).indices, target.long())

    def _count(self, labels: Tensor, target: Tensor) -> None:
        """Add predicted and true classes ``(B, H, W)``."""
        valid = target != self.void
        if self.ignore_bare_background:
            valid = valid & (valid & (target != 0)).flatten(1).any(dim=1)[:, None, None]
        pairs = count_bins(target * self.num_classes + labels, valid, self.num_classes**2)
        self.confusion += pairs.view(self.num_classes, self.num_classes)

    def compute(self) -> dict[str, Tensor]:
        """Return the scores as fractions."""
        if not self.confusion.any():
            return empty_result(self)
        return self.scores()

    def scores(self) -> dict[str, Tensor]:
        """Compute the scores of a confusion matrix that is not empty."""
        ious = self.per_class()
        counted = {
            "present": ious.isfinite(),
            "all": torch.ones_like(ious, dtype=torch.bool),
            "hit": self.confusion.diagonal() > 0,
        }[self.averaged]
        return {"mIoU": torch.where(counted, ious.nan_to_num(0.0), 0.0).sum() / counted.sum().clamp(min=1)}

    def details(self) -> dict[str, Any]:
        """Return the ``confusion`` matrix in pixels: a list for each true class, with the predicted ones in it."""
        return {"confusion": self.confusion.tolist()}

    def per_class(self) -> Tensor:
        """Return the IoU of each class ``(num_classes,)`` as a fraction, NaN for a class that never occurred."""
        return class_ious(self.confusion)


class SegmentationScores(MeanIoU):
    """Mean IoU and pixel accuracy.

    >>> output = torch.eye(2)[[0, 0, 1, 1]].T.view(1, 2, 1, 4)  # logits of classes 0, 0, 1 and 1
    >>> target = torch.tensor([[[0, 1, 1, 255]]])
    >>> metric = SegmentationScores(num_classes=2)
    >>> metric.update(output, target)
    >>> print(f"{metric.compute()['pixel_accuracy']:.3f}")  # 2 of 3 labelled pixels
    0.667

    Args:
        num_classes: Number of classes.
        averaged: See :class:`MeanIoU`.
        image_means: Whether the pixel accuracy is the mean of the images' accuracies instead of one over all pixels.
        void_is_wrong: Whether pixels without label count as wrong in the pixel accuracy; only with ``image_means``.
        ignore_index: Label of invalid pixels.
    """

    names = ("mIoU", "pixel_accuracy")
    accuracy: Tensor
    images: Tensor

    def __init__(
        self,
        num_classes: int,
        averaged: Averaged = "present",
        image_means: bool = False,
        void_is_wrong: bool = False,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(num_classes, averaged, ignore_index=ignore_index)
        self.image_means = image_means
        self.void_is_wrong = void_is_wrong
        self.add_sum("accuracy", dtype=torch.float64)
        self.add_sum("images")

    def _count(self, labels: Tensor, target: Tensor) -> None:
        super()._count(labels, target)
        if self.image_means:
            counted = torch.ones_like(target) if self.void_is_wrong else target != self.void
            pixels = image_sums(counted)
            self.accuracy += image_means(image_sums(labels == target), pixels).sum()
            self.images += (pixels > 0).sum()

    def scores(self) -> dict[str, Tensor]:
        """Compute the scores of a confusion matrix that is not empty."""
        pixels = self.confusion.diagonal().sum().double() / self.confusion.sum()
        return {**super().scores(), "pixel_accuracy": self.accuracy / self.images if self.image_means else pixels}
