"""Grouping pixels into segments without names by an embedding of each pixel."""

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from taskformer.errors import ConfigError, InvalidTargetError
from taskformer.metrics.grouping import PairScores, sample_pixels, squared_distances
from taskformer.metrics.protocols import Protocol
from taskformer.tasks.base import IGNORE_INDEX, Geometry, Stage, Task
from taskformer.tasks.colors import INVALID_COLOR, darken_invalid, distinct_colors, unit_to_byte
from taskformer.tasks.losses import number
from taskformer.tasks.registry import register


@register("embedding")
@register("segment_unsup2d")
@register("segment_unsup25d")
class Embedding(Task):
    """Segments whose ids mean nothing but "same" and "other", e.g. superpixels; targets ``(B, H, W)`` int64, 255 none.

    >>> segments = Embedding("segments", channels=8)
    >>> segments.loss(torch.zeros(1, 8, 2, 2), torch.tensor([[[3, 3], [3, 255]]])).item()
    0.0

    The network gives each pixel a point in ``channels`` dimensions, and learns to bring those of one segment within
    ``2 * pull`` of each other and the means of two segments ``2 * push`` apart (De Brabandere, Neven, Van Gool.
    Semantic Instance Segmentation with a Discriminative Loss Function. arXiv 1708.02551, equations 1-4), on a sample
    of the pixels as in Taskonomy. Which pixels follows from the target alone.

    Args:
        name: The task's name.
        channels: Dimensions of the embedding; Taskonomy used 64.
        pull: Distance to its segment's mean within which a pixel is not pulled.
        push: Half the distance of two segments' means beyond which they are not pushed.
        samples: Number of pixels that are sampled from an image.
        loss_weight: Weight of the task's loss in the sum.
    """

    has_pseudo_labels: ClassVar[bool] = False  # points are no segments
    geometry: ClassVar[Geometry] = "label"
    headline: ClassVar[str] = "pair_f"
    units: ClassVar[dict[str, str]] = {"pair_f": "%", "pair_precision": "%", "pair_recall": "%"}
    higher_is_better: ClassVar[bool] = True

    def __init__(
        self,
        name: str,
        channels: int = 64,
        pull: float = 0.5,
        push: float = 1.5,
        samples: int = 300,
        loss_weight: float = 1.0,
    ) -> None:
        if channels < 1 or samples < 2 or not 0 < pull < push:
            message = (
                f"task {name!r} needs channels of at least 1, samples of at least 2 and 0 < pull < push, "
                f"got {channels}, {samples}, {pull} and {push}"
            )
            raise ConfigError(message)
        super().__init__(name, channels, loss_weight)
        self.pull = pull
        self.push = push
        self.samples = samples

    def check(self, target: Tensor, output: Tensor) -> Tensor:
        """Return the segments as ``(B, H, W)`` int64.

        Raises:
            InvalidTargetError: If shape or type do not fit.
        """
        if target.is_floating_point() or target.is_complex():
            message = f"task {self.name!r} needs integer segment ids, got {target.dtype} instead of e.g. int64"
            raise InvalidTargetError(message)
        self._check_shapes(output, target, (output.shape[0], *output.shape[2:]))
        return target.long()

    def _loss(self, output: Tensor, target: Tensor) -> Tensor:
        points, segments = sample_pixels(output, target, self.samples)  # (B, N, C), (B, N)
        member = F.one_hot(segments, IGNORE_INDEX + 1)[..., :IGNORE_INDEX].float()  # (B, N, 255)
        sizes = member.sum(dim=1)  # (B, 255)
        means = member.transpose(1, 2) @ points / sizes.clamp(min=1).unsqueeze(-1)  # (B, 255, C)
        strays = F.relu(_length(points - member @ means) - self.pull).square() * (segments != IGNORE_INDEX)
        pulled = (member.transpose(1, 2) @ strays.unsqueeze(-1)).squeeze(-1) / sizes.clamp(min=1)
        present = sizes > 0
        pairs = (present.unsqueeze(1) & present.unsqueeze(2)).triu(diagonal=1)
        near = F.relu(2 * self.push - _root(squared_distances(means))).square()  # (B, 255, 255)
        pushed = torch.where(pairs, near, 0.0)
        # A light pull to the origin keeps the embedding bounded, with the paper's weight.
        drift = 1e-3 * torch.where(present, _length(means), 0.0)
        losses = (pulled + drift).sum(dim=1) / _count(present) + pushed.sum(dim=(1, 2)) / _count(pairs)
        return losses.sum() / number(present.any(dim=1))

    def _metrics(self, protocol: Protocol, stage: Stage) -> dict[str, Metric]:
        return {"pairs": PairScores(self.push, self.samples)}

    def decode(self, output: Tensor) -> Tensor:
        """Return the embedding ``(B, channels, H, W)`` as float32; pixels closer than ``push`` are of one segment."""
        return output.float()

    def colorize(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """Draw segments ``(H, W)``, a colour each, or the principal components of an embedding ``(channels, H, W)``."""
        if values.ndim == 2:
            palette = np.concatenate([distinct_colors(IGNORE_INDEX), [INVALID_COLOR]]).astype(np.uint8)
            return np.asarray(palette[values.astype(np.int64).clip(0, IGNORE_INDEX)])
        if values.ndim != 3 or values.shape[0] != self.channels:
            message = f"task {self.name!r} draws segments (H, W) or an embedding ({self.channels}, H, W)"
            raise InvalidTargetError(f"{message}, got {values.shape}")
        points = values.reshape(self.channels, -1).astype(np.float64)
        valid = np.isfinite(points).all(axis=0)
        centred = np.where(valid, points, 0) - points[:, valid].mean(axis=1, keepdims=True) if valid.any() else points
        axes = np.linalg.eigh(np.nan_to_num(centred @ centred.T))[1][:, ::-1][:, :3]  # (C, up to 3), largest first
        axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
        shares = np.zeros((3, points.shape[1]))
        shares[: axes.shape[1]] = axes.T @ centred
        low, high = shares.min(axis=1, keepdims=True), shares.max(axis=1, keepdims=True)
        colors = unit_to_byte((shares - low) / np.where(high > low, high - low, 1))
        height, width = values.shape[1:]
        return darken_invalid(colors.T.reshape(height, width, 3), valid.reshape(height, width))

    def constant(self, targets: list[Tensor]) -> Tensor:
        """Return the origin ``(channels,)``: every constant says that all pixels are one segment."""
        del targets
        return torch.zeros(self.channels)

    def invalid(self, height: int, width: int) -> Tensor:
        """Return a map ``(height, width)`` full of 255."""
        return torch.full((height, width), IGNORE_INDEX, dtype=torch.int64)


def _count(mask: Tensor) -> Tensor:
    """Count the true elements of each image ``(B, ...)``, but at least 1."""
    return mask.flatten(1).sum(dim=1).clamp(min=1)


def _length(vectors: Tensor) -> Tensor:
    """Compute lengths along the last axis."""
    return _root(vectors.square().sum(dim=-1))


def _root(squared: Tensor) -> Tensor:
    """Compute square roots with a gradient of 0, not infinity, at 0."""
    return torch.where(squared > 0, torch.where(squared > 0, squared, 1.0).sqrt(), 0.0)
