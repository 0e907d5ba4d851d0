"""Features of one encoder as what those of another are to become like."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taskformer.errors import ConfigError
from taskformer.models import Backbone, DenseNetwork
from taskformer.models.layers import pad_to_multiples

FeatureDistance = Literal["cosine", "l2"]


class Guide:
    """An encoder whose features teach.

    Args:
        backbone: The encoder.
        encode: Makes its maps of an image: the backbone itself, or :meth:`Backbone.encode`, without what is trained
            on top of timm's part.

    Attributes:
        channels: Channels of each map.
        strides: Stride of each map, in pixels.
    """

    def __init__(self, backbone: Backbone, encode: Callable[[Tensor], list[Tensor]]) -> None:
        self.backbone = backbone.requires_grad_(False).eval()
        self.encode = encode
        probe = torch.zeros(1, 3, backbone.step, 2 * backbone.step, device=backbone.scale.device)
        with torch.no_grad():
            maps = encode(probe)
        self.channels = [x.shape[1] for x in maps]
        self.strides = [probe.shape[-1] // x.shape[-1] for x in maps]

    def nearest(self, stride: int) -> int:
        """Return the last map of those whose stride is nearest."""
        return min(range(len(self.strides)), key=lambda level: (abs(math.log2(self.strides[level] / stride)), -level))

    @torch.no_grad()
    def map(self, image: Tensor, level: int) -> Tensor:
        """Return a map ``(B, C, h, w)`` of images of any size."""
        return self.encode(pad_to_multiples(image, self.backbone.step))[level]


class FeatureTeacher:
    """Compare a map of a network's encoder, after a learnt 1x1 projection, with one of a guide's.

    Args:
        network: The network that learns.
        guide: The encoder that teaches.
        own: Which map of the network's, from 0, the finest, on; negative from the coarsest on.
        its: Which map of the guide's; None: the last one of the nearest stride.
        distance: One minus the cosine, or the mean squared difference.

    Attributes:
        projection: From the network's channels to the guide's.

    Raises:
        ConfigError: If the network has no such maps, or the guide not this one.
    """

    def __init__(
        self,
        network: nn.Module,
        guide: Guide,
        own: int = -1,
        its: int | None = None,
        distance: FeatureDistance = "cosine",
    ) -> None:
        backbone = backbone_of(network, "the model that learns features")
        level = _place("feature_level", own, backbone.strides)
        self.stride = backbone.strides[level]
        self.guide = guide
        self.level = guide.nearest(self.stride) if its is None else _place("encoder_level", its, guide.strides)
        self.distance = distance
        self.projection = nn.Conv2d(backbone.channels[level], guide.channels[self.level], kernel_size=1)
        self._watched = (backbone, level)
        self._own: list[Tensor] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep the map that the network makes meanwhile."""
        backbone, level = self._watched
        self._own = []
        hook = backbone.register_forward_hook(lambda *call: self._own.append(call[-1][level]))
        yield
        hook.remove()

    def look(self, image: Tensor) -> Tensor:
        """Return the guide's map ``(B, C, h, w)`` at the cells of the network's that show something of the image."""
        stride = self.guide.strides[self.level]
        return at_cells(self.guide.map(image, self.level).float(), stride, image.shape[-2:], self.stride)

    def distance_from(self, guiding: Tensor) -> Tensor:
        """Compare the map that the network made while it was watched with the guide's of the same images."""
        own = self._own.pop()
        with torch.autocast(own.device.type, enabled=False):
            own, guiding = (x.to(self.projection.weight.dtype) for x in (own, guiding))
            own = self.projection(own[..., : guiding.shape[-2], : guiding.shape[-1]])
            if self.distance == "l2":
                return F.mse_loss(own, guiding)
            return 1 - F.cosine_similarity(own, guiding, dim=1).mean()


def backbone_of(network: object, whose: str) -> Backbone:
    """Return the encoder of a network.

    Raises:
        ConfigError: If it has none with feature maps, as a supernet.
    """
    if not isinstance(network, DenseNetwork):
        msg = f"{whose} has no encoder with feature maps but is a {type(network).__name__}; choose one with a backbone"
        raise ConfigError(msg)
    return network.backbone


def at_cells(features: Tensor, stride: int, size: tuple[int, int] | torch.Size, cell: int) -> Tensor:
    """Resample a map at the centres of the cells of another, from the upper left corner of the image on.

    Where the map is finer, it is averaged first. The two may have been made of images padded differently.

    Args:
        features: ``(B, C, h, w)``.
        stride: Side in pixels of what each of its values stands for.
        size: Height and width of the image.
        cell: Side in pixels of the other map's cells.

    Returns:
        ``(B, C, ceil(height / cell), ceil(width / cell))``.
    """
    if (finer := cell // stride) > 1:
        features = F.avg_pool2d(features, finer, ceil_mode=True, count_include_pad=False)
        stride *= finer
    rows, columns = (
        (torch.arange(math.ceil(side / cell), device=features.device) + 0.5) * cell / (stride * length) * 2 - 1
        for side, length in zip(size, features.shape[-2:], strict=True)
    )
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).to(features)
    grid = grid.expand(len(features), *grid.shape)
    return F.grid_sample(features, grid, padding_mode="border", align_corners=False)


def _place(name: str, level: int, strides: list[int]) -> int:
    """Return the place of a map in a list, which a negative number counts from the end.

    Raises:
        ConfigError: If there is no such map.
    """
    if not -len(strides) <= level < len(strides):
        msg = f"distillation.{name} {level}: there are {len(strides)} maps, of the strides {strides}"
        raise ConfigError(msg)
    return level % len(strides)
