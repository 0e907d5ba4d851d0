"""Decoders: an encoder's feature maps in, one task's map out. They know an encoder by channels and strides only.

    >>> import torch
    >>> head = build_head("dpt", {"semseg": 40, "depth": 1}, channels=[24, 48], strides=[8, 16], embed_dim=16)
    >>> features = [torch.randn(2, 24, 8, 12), torch.randn(2, 48, 4, 6)]  # of images of 64 x 96 pixels
    >>> {task: tuple(output.shape) for task, output in head(features, size=(64, 96)).items()}
    {'semseg': (2, 40, 64, 96), 'depth': (2, 1, 64, 96)}

The same classes serve every encoder: convolutional pyramids, hierarchical and plain vision transformers
(``--model Baseline --model.decoder dpt``), and the supernet, which only replaces the convolutions that read the maps by
sliced ones. A new decoder is one class in a file of its own under :func:`register_decoder`;
``--model.decoder package.module.Class`` names it without any import.

Notation of the shape comments: B images, C_i channels of map i, C a decoder's own width, K a task's output channels.
"""

import inspect
import math
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taskformer.errors import ConfigError, UnknownNameError, require
from taskformer.models.layers import near_zero, resize, undecayed

Maps = Sequence[Tensor]
DecoderClass = TypeVar("DecoderClass", bound=type[nn.Module])

#: The known decoders: :class:`TaskDecoder` classes, of which every task gets one, and heads of all tasks at once, which
#: are built from ``(tasks, channels, strides)`` and map ``(features, size)`` to ``{task: map}``.
DECODERS: dict[str, type[nn.Module]] = {}


def register_decoder(name: str) -> Callable[[DecoderClass], DecoderClass]:
    """Make a decoder known under a name.

    Example:
        >>> @register_decoder("shallow")
        ... class Shallow(TaskDecoder):
        ...     def __init__(self, channels, strides, outputs, width=32):
        ...         super().__init__()
        ...         self.hidden = nn.Conv2d(channels[0], width, kernel_size=3, padding=1)
        ...         self.predict = nn.Conv2d(width, outputs, kernel_size=1)
        ...
        ...     def forward(self, maps):
        ...         return self.predict(self.hidden(maps[0]).relu())
        >>> head = build_head("shallow", {"depth": 1}, channels=[24, 48], strides=[8, 16])
        >>> del DECODERS["shallow"]
    """

    def decorate(decoder: DecoderClass) -> DecoderClass:
        DECODERS[name] = decoder
        return decoder

    return decorate


class TaskDecoder(nn.Module, ABC):
    """One task's own decoder: maps in, its map out, at whatever resolution the decoder ends with.

    >>> decoder = LinearDecoder(channels=[24, 48], strides=[8, 16], outputs=40)  # the simplest one
    >>> tuple(decoder([torch.zeros(2, 24, 8, 12), torch.zeros(2, 48, 4, 6)]).shape)
    (2, 40, 4, 6)

    A subclass is built from the maps' ``channels`` and ``strides``, the task's ``outputs`` and its own settings, whose
    usual name for the channels inside is ``width``. To work in the supernet too, it takes ``conv``, the class of the
    convolutions that read the maps.

    Attributes:
        last_only: It reads only the encoder's last map. Otherwise it gets maps of growing strides or, in the supernet,
            four of equal strides, earliest layer first.
    """

    last_only: ClassVar[bool] = False

    @abstractmethod
    def forward(self, maps: Maps) -> Tensor:
        """Decode maps ``(B, C_i, h_i, w_i)`` to ``(B, K, h, w)``."""


@register_decoder("linear")
class LinearDecoder(TaskDecoder):
    """One 1x1 convolution on the last map.

    Args:
        channels: Channels of the maps.
        strides: Their strides.
        outputs: The task's output channels K.
        conv: Class of the convolutions that read the maps.
    """

    last_only: ClassVar[bool] = True

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], outputs: int, conv: type[nn.Conv2d] = nn.Conv2d
    ) -> None:
        super().__init__()
        self.predict = near_zero(conv(channels[-1], outputs, kernel_size=1))

    def forward(self, maps: Maps) -> Tensor:
        """Decode the last map ``(B, C_i, h, w)`` to ``(B, K, h, w)``."""
        logits: Tensor = self.predict(maps[-1])
        return logits


@register_decoder("aspp")
class ASPPDecoder(TaskDecoder):
    """The decoder of AdaShare's tables: parallel dilated convolutions on the last map, summed.

    Args:
        channels: Channels of the maps.
        strides: Their strides.
        outputs: The task's output channels K.
        width: Channels inside a branch.
        rates: Dilation of each branch.
        dropout: Probability of dropping a channel entry, twice in each branch.
        conv: Class of the convolutions that read the maps.

    Reference:
        Sun, Panda, Feris, Saenko. AdaShare: Learning What To Share For Efficient Deep Multi-Task Learning.
        NeurIPS 2020; after Chen et al., DeepLab v2.
    """

    last_only: ClassVar[bool] = True

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        outputs: int,
        width: int = 1024,
        rates: Sequence[int] = (6, 12, 18, 24),
        dropout: float = 0.5,
        conv: type[nn.Conv2d] = nn.Conv2d,
    ) -> None:
        super().__init__()
        require("[1, inf)", width=width, rates=rates)
        self.branches = nn.ModuleList(
            nn.Sequential(
                conv(channels[-1], width, kernel_size=3, padding=rate, dilation=rate),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
                nn.Conv2d(width, width, kernel_size=1),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
                near_zero(nn.Conv2d(width, outputs, kernel_size=1)),
            )
            for rate in rates
        )

    def forward(self, maps: Maps) -> Tensor:
        """Decode the last map ``(B, C_i, h, w)`` to ``(B, K, h, w)``."""
        return torch.stack([branch(maps[-1]) for branch in self.branches]).sum(0)


@register_decoder("pup")
class PUPDecoder(TaskDecoder):
    """Progressive upsampling of the last map: convolutions, each followed by a doubling of the resolution.

    Args:
        channels: Channels of the maps.
        strides: Their strides.
        outputs: The task's output channels K.
        width: Channels C inside.
        stages: Doublings; None: as many as end at a quarter of the image's resolution.
        conv: Class of the convolutions that read the maps.

    Reference:
        Zheng et al. Rethinking Semantic Segmentation from a Sequence-to-Sequence Perspective with Transformers.
        CVPR 2021, SETR-PUP.
    """

    last_only: ClassVar[bool] = True

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        outputs: int,
        width: int = 256,
        stages: int | None = None,
        conv: type[nn.Conv2d] = nn.Conv2d,
    ) -> None:
        super().__init__()
        require("[1, inf)", width=width)
        require("[0, inf)", stages=stages)
        doublings = max(0, round(math.log2(strides[-1] / 4))) if stages is None else stages
        self.project = projection(channels[-1], width, conv)
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False),
                _norm(width),
                nn.ReLU(inplace=True),
                nn.Upsample(scale_factor=2, mode="bilinear"),
            )
            for _ in range(doublings)
        )
        self.predict = near_zero(nn.Conv2d(width, outputs, kernel_size=1))

    def forward(self, maps: Maps) -> Tensor:
        """Decode the last map ``(B, C_i, h, w)`` to ``(B, K, h * 2**stages, w * 2**stages)``."""
        x = self.project(maps[-1])
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.predict(x)
        return logits


@register_decoder("dpt")
class DPTDecoder(TaskDecoder):
    """Maps of growing strides, fused from coarse to fine.

    Where all maps have one stride, as a plain transformer's layers do, they are spread around it first: of four maps
    the earliest becomes four times as fine, the last half as fine.

    Args:
        channels: Channels of the maps.
        strides: Their strides, ascending or all equal.
        outputs: The task's output channels K.
        width: Channels C inside.
        conv: Class of the convolutions that read the maps.

    Reference:
        Ranftl, Bochkovskiy, Koltun. Vision Transformers for Dense Prediction. ICCV 2021.
    """

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        outputs: int,
        width: int = 128,
        conv: type[nn.Conv2d] = nn.Conv2d,
    ) -> None:
        super().__init__()
        require("[2, inf)", width=width)
        count = len(channels)
        self.project = nn.ModuleList(projection(each, width, conv) for each in channels)
        one_stride = count > 1 and len(set(strides)) == 1
        self.resample = nn.ModuleList(
            _resampling(width, doublings=count - 2 - i if one_stride else 0) for i in range(count)
        )
        self.adapt = nn.ModuleList(ResidualUnit(width) for _ in channels[:-1])  # nothing is added to the coarsest map
        self.fuse = nn.ModuleList(
            nn.Sequential(ResidualUnit(width), nn.Conv2d(width, width, kernel_size=1)) for _ in channels
        )
        self.predict = nn.Sequential(
            nn.Conv2d(width, width // 2, kernel_size=3, padding=1, bias=False),
            _norm(width // 2),
            nn.ReLU(inplace=True),
            near_zero(nn.Conv2d(width // 2, outputs, kernel_size=1)),
        )

    def forward(self, maps: Maps) -> Tensor:
        """Decode maps ``(B, C_i, h_i, w_i)`` to ``(B, K, h, w)`` at the finest stride, once they are spread."""
        spread = [resample(project(x)) for x, project, resample in zip(maps, self.project, self.resample, strict=True)]
        fused = self.fuse[-1](spread[-1])
        for finer, adapt, fuse in reversed(list(zip(spread, self.adapt, self.fuse, strict=False))):
            fused = fuse(adapt(finer) + resize(fused, finer.shape[-2:]))
        logits: Tensor = self.predict(fused)
        return logits


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions, each after a ReLU, added to the input.

    Args:
        channels: Channels in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.second = nn.Conv2d(channels, channels, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Refine ``(B, C, h, w)``."""
        result: Tensor = x + self.second(F.relu(self.first(F.relu(x))))
        return result


class SeparateHead(nn.Module):
    """A decoder of its own for every task.

    Args:
        decoders: Task name to its decoder.
    """

    def __init__(self, decoders: Mapping[str, TaskDecoder]) -> None:
        super().__init__()
        self.tasks = list(decoders)
        self.decoders = nn.ModuleDict(decoders)

    def forward(self, features: Maps | Mapping[str, Maps], size: tuple[int, int]) -> dict[str, Tensor]:
        """Decode maps ``(B, C_i, h_i, w_i)``, shared or every task's own, to ``{task: (B, K, *size)}``."""
        own = features if isinstance(features, Mapping) else dict.fromkeys(self.decoders, features)
        return {task: resize(decoder(own[task]), size) for task, decoder in self.decoders.items()}

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that decoders declare as free of weight decay."""
        return undecayed(self.decoders, "decoders.")


def find_decoder(name: str) -> type[nn.Module]:
    """Return a decoder's class by its name, or by its place ``package.module.Class``.

    Raises:
        UnknownNameError: If nothing is registered under the name.
        ConfigError: If there is no decoder at that place.
    """
    if "." not in name:
        if name not in DECODERS:
            kind = "decoder"
            raise UnknownNameError(kind, name, DECODERS)
        return DECODERS[name]
    try:
        decoder = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        known = ", ".join(sorted(DECODERS))
        msg = f"cannot import the decoder {name!r}: {error}; give one of {known}, or package.module.Class"
        raise ConfigError(msg) from error
    if not (isinstance(decoder, type) and issubclass(decoder, nn.Module)):
        msg = f"a decoder is a subclass of torch.nn.Module, {name!r} is {decoder!r}"
        raise ConfigError(msg)
    return decoder


def build_head(
    decoder: str,
    tasks: Mapping[str, int],
    channels: Sequence[int],
    strides: Sequence[int],
    embed_dim: int | None = None,
    head_dim: int | None = None,
) -> nn.Module:
    """Build the decoders of all tasks: a module ``(features, size) -> {task: map}``.

    Args:
        decoder: One of :data:`DECODERS`, or the place of a class.
        tasks: Task name to output channels.
        channels: Channels of the maps.
        strides: Their strides.
        embed_dim: Channels inside; None: the decoder's default.
        head_dim: Channels before each task's last layer, for decoders that have it; None: the decoder's default.

    Raises:
        UnknownNameError: If there is no such decoder.
        ConfigError: If it has no such setting, or the setting is impossible.
    """
    kind = find_decoder(decoder)
    names = {"embed_dim": "width" if issubclass(kind, TaskDecoder) else "embed_dim", "head_dim": "head_dim"}
    given = {name: value for name, value in (("embed_dim", embed_dim), ("head_dim", head_dim)) if value is not None}
    for name, value in given.items():
        if names[name] not in inspect.signature(kind).parameters:
            msg = f"the decoder {decoder!r} has no {name}, got {value}; leave it out"
            raise ConfigError(msg)
    options = {names[name]: value for name, value in given.items()}
    if issubclass(kind, TaskDecoder):
        return SeparateHead({task: kind(channels, strides, outputs, **options) for task, outputs in tasks.items()})
    return kind(tasks, channels, strides, **options)


def projection(channels: int, width: int, conv: type[nn.Conv2d] = nn.Conv2d) -> nn.Sequential:
    """Bring a map to ``width`` channels of one scale, however many channels each is a sum of."""
    return nn.Sequential(conv(channels, width, kernel_size=1), _norm(width))


def _resampling(width: int, doublings: int) -> nn.Module:
    """Build the layer that doubles the resolution that many times; -1 halves it."""
    if doublings < 0:
        return nn.Conv2d(width, width, kernel_size=3, stride=2, padding=1)
    factor = 2**doublings
    return nn.ConvTranspose2d(width, width, kernel_size=factor, stride=factor) if doublings else nn.Identity()


def _norm(width: int) -> nn.GroupNorm:
    """Build the usual 32 groups, or one where a group would be a single channel."""
    return nn.GroupNorm(32 if width % 32 == 0 and width > 32 else 1, width)
