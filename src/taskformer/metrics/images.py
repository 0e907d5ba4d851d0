"""The scores of every image alone, on the way to those of all of them."""

import warnings

import torch
from torch import Tensor
from torchmetrics import MetricCollection

#: The metrics of each image of a batch.
ImageResults = list[dict[str, float]]


def update_by_image(metrics: MetricCollection, output: Tensor, target: Tensor) -> ImageResults:
    """Update metrics with a batch, image by image, and return what they are of each image alone.

    Every image is counted once: what the metrics sum up is what ``metrics.update(output, target)`` adds, integers to
    the last bit. That matters where counting is slow, as the matching of edges is.

    >>> from taskformer.metrics import MaskedMeanAbsoluteError
    >>> metrics = MetricCollection({"mae": MaskedMeanAbsoluteError()})
    >>> output, target = torch.zeros(2, 1, 4, 4), torch.tensor([1.0, 3.0]).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    >>> update_by_image(metrics, output, target), float(metrics.compute()["mae"])
    ([{'mae': 1.0}, {'mae': 3.0}], 2.0)

    Args:
        metrics: What is updated.
        output: Raw outputs ``(B, channels, ...)``, float32.
        target: Checked targets of the same images.

    Returns:
        ``[{metric: value}]``; NaN where an image has no label, or nothing that is to be found.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the metrics warn of every NaN
        found = [metrics(output[k : k + 1], target[k : k + 1]) for k in range(len(output))]
    # The device is asked once, not for every value.
    table = torch.stack([torch.stack([value.double() for value in values.values()]) for values in found]).tolist()
    return [dict(zip(values, row, strict=True)) for values, row in zip(found, table, strict=True)]
