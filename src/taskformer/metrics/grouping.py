"""How well an embedding of the pixels groups them into segments that have no names."""

import torch
from torch import Tensor

from taskformer.metrics.counting import SumMetric, empty_result

#: Steps of the R2 sequence (Roberts 2018): points k * STEPS mod 1 cover a square evenly for every number of points.
STEPS = (0.7548776662466927, 0.5698402909980532)


class PairScores(SumMetric):
    """Whether close embeddings belong to one segment: precision, recall and F-measure over pairs of sampled pixels.

    >>> output = torch.tensor([0.0, 1.0, 5.0, 9.0]).view(1, 1, 1, 4)  # an embedding in one dimension
    >>> target = torch.tensor([[[1, 1, 2, 2]]])
    >>> scores = PairScores(distance=2.0, samples=4)
    >>> scores.update(output, target)
    >>> scores.compute()["pair_recall"].item()  # of two pairs of one segment one is close
    0.5

    Args:
        distance: Two pixels whose embeddings are closer than this are predicted to belong to one segment.
        samples: Number of pixels that are sampled from an image; all their pairs count.
        ignore_index: Segment id of pixels without label.
    """

    names = ("pair_f", "pair_precision", "pair_recall")
    hits: Tensor
    said: Tensor
    true: Tensor

    def __init__(self, distance: float, samples: int, ignore_index: int = 255) -> None:
        super().__init__()
        self.distance = distance
        self.samples = samples
        self.ignore_index = ignore_index
        for name in ("hits", "said", "true"):
            self.add_sum(name)

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add embeddings ``(B, C, H, W)`` and segments ``(B, H, W)``."""
        points, segments = sample_pixels(output.float(), target, self.samples, self.ignore_index)
        valid = segments != self.ignore_index
        pairs = (valid.unsqueeze(1) & valid.unsqueeze(2)).triu(diagonal=1)
        same = (segments.unsqueeze(1) == segments.unsqueeze(2)) & pairs
        close = (squared_distances(points) < self.distance**2) & pairs
        self.hits += (same & close).sum()
        self.said += close.sum()
        self.true += same.sum()

    def compute(self) -> dict[str, Tensor]:
        """Return the shares as fractions."""
        if not self.true:
            return empty_result(self)
        return {
            "pair_f": 2 * self.hits.double() / (self.said + self.true),
            "pair_precision": self.hits.double() / self.said.clamp(min=1),
            "pair_recall": self.hits.double() / self.true,
        }


def sample_pixels(output: Tensor, target: Tensor, count: int, ignore_index: int = 255) -> tuple[Tensor, Tensor]:
    """Sample pixels spread evenly over each image; all of them if there are no more than ``count``.

    Which ones follows from the image's target alone, so it does not depend on the other images of the batch. Nothing
    here waits for the device.

    Args:
        output: ``(B, C, H, W)``.
        target: ``(B, H, W)`` int64, 255 where invalid.
        count: How many pixels.
        ignore_index: Segment id of pixels without label.

    Returns:
        Outputs ``(B, N, C)``, 0 where invalid, and targets ``(B, N)``.
    """
    height, width = target.shape[-2:]
    if height * width <= count:
        index = torch.arange(height * width, device=target.device).expand(len(target), -1)
    else:
        # A tensor of STEPS would be copied to the device, which waits for it.
        places = torch.arange(count, dtype=torch.float64, device=target.device)
        # Shifted by a number that any change of the target changes.
        shift = target.sum(dim=(1, 2)).double()[:, None]
        rows, columns = ((places * step + (shift * step).frac()).frac() for step in STEPS)  # (B, N)
        index = (rows * height).long() * width + (columns * width).long()  # (B, N)
    segments = target.flatten(1).gather(1, index)
    points = output.flatten(2).gather(2, index.unsqueeze(1).expand(-1, output.shape[1], -1)).transpose(1, 2)
    return torch.where((segments != ignore_index).unsqueeze(-1), points, 0.0), segments


def squared_distances(points: Tensor) -> Tensor:
    """Compute the squared distances between all points of an image, ``(B, N, C)`` to ``(B, N, N)``.

    A matrix product is quicker than ``torch.cdist``, whose gradient walks through all pairs.
    """
    squared = points.square().sum(dim=-1)
    return (squared.unsqueeze(1) + squared.unsqueeze(2) - 2 * points @ points.transpose(1, 2)).clamp(min=0)
