"""Mean intersection over union and pixel accuracy of class maps."""

from torch import Tensor

from taskformer.metrics.counting import SumMetric, count_bins, empty_result, mean_iou, require_label_shape


class MeanIoU(SumMetric):
    """Mean IoU from one confusion matrix of the whole data set (mean IoUs of images are another number).

    Equal to torchmetrics' macro ``MulticlassJaccardIndex``, but it does not wait for the device in ``update`` and is
    NaN when nothing was measured. Classes absent from both predictions and targets are left out of the mean. Some
    evaluators of the field count them as 0; on a full validation set the two agree, on a small subset they do not.

    Args:
        num_classes: Number of classes.
        ignore_index: Label of invalid pixels.
    """

    names: tuple[str, ...] = ("mIoU",)
    confusion: Tensor

    def __init__(self, num_classes: int, ignore_index: int = 255) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.void = ignore_index
        # Rows are true classes, columns predicted ones.
        self.add_sum("confusion", num_classes, num_classes)

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add logits ``(B, num_classes, H, W)`` and labels ``(B, H, W)``."""
        require_label_shape(self, output, target, self.num_classes)
        # On a CPU argmax over channels is five times slower than max, which finds the same indices.
        labels = output.max(dim=1).indices
        pairs = count_bins(target.long() * self.num_classes + labels, target != self.void, self.num_classes**2)
        self.confusion += pairs.view(self.num_classes, self.num_classes)

    def compute(self) -> dict[str, Tensor]:
        """Return the scores as fractions."""
        if not self.confusion.any():
            return empty_result(self)
        return self.scores()

    def scores(self) -> dict[str, Tensor]:
        """Compute the scores of a confusion matrix that is not empty."""
        return {"mIoU": mean_iou(self.confusion)}


class SegmentationScores(MeanIoU):
    """Mean IoU and pixel accuracy from one confusion matrix."""

    names = ("mIoU", "pixel_accuracy")

    def scores(self) -> dict[str, Tensor]:
        """Compute the scores of a confusion matrix that is not empty."""
        accuracy = self.confusion.diagonal().sum().double() / self.confusion.sum()
        return {**super().scores(), "pixel_accuracy": accuracy}
