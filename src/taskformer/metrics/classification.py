"""Scores of image classification against soft labels."""

import torch
from torch import Tensor

from taskformer.metrics.counting import SumMetric, empty_result, require_same_shape


class SoftLabelScores(SumMetric):
    """Top-1 and top-5 accuracy of the likeliest class of a soft label, and the cross entropy in nats.

    >>> scores = SoftLabelScores()
    >>> output = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0]])
    >>> target = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]])
    >>> scores.update(output, target)
    >>> scores.compute()["top1"].item()  # right for the first image only
    0.5

    With fewer than five classes ``top5`` looks at all of them. Rows whose label is not finite are ignored.
    """

    names = ("top1", "top5", "cross_entropy")
    entropy: Tensor
    hits: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_sum("entropy", dtype=torch.float64)
        self.add_sum("hits", 2)
        self.add_sum("total")

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add logits and soft labels, both ``(B, K)``."""
        require_same_shape(self, output, target)
        valid = torch.isfinite(target).all(dim=1)
        truth = torch.where(valid[:, None], target.float(), 0.0)
        logits = torch.where(valid[:, None], output.float(), 0.0)
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        hit = (best == truth.argmax(dim=1, keepdim=True)) & valid[:, None]
        self.hits += torch.stack([hit[:, 0].sum(), hit.sum()])
        self.entropy -= (truth * logits.log_softmax(dim=1)).sum(dtype=torch.float64)
        self.total += valid.sum()

    def compute(self) -> dict[str, Tensor]:
        """Return the shares as fractions and the cross entropy in nats."""
        if not self.total:
            return empty_result(self)
        top1, top5 = (self.hits.double() / self.total).unbind()
        return {"top1": top1, "top5": top5, "cross_entropy": self.entropy / self.total}
