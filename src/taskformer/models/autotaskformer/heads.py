"""Heads that follow the sampled width: the taps of a vision transformer in, one raw map per task out.

Only the layers that touch the transformer's tokens depend on its width. They are stored at the full width and use the
first columns of their weights, as many as their input has; everything behind them has one size and is shared by all
sub-networks. Where such a head normalises, it uses group or layer norm, whose statistics belong to the image at hand:
nothing has to be recalibrated for a sub-network, and an image's output does not depend on its batch.

The query head has sizes of its own to choose from. A smaller one is a head like it whose every parameter is the first
entries, along all axes, of the larger one's.

Notation of the shape comments: B images, E the sampled width, C a head's own width, K a task's output channels,
(h, w) the grid of patches, T tasks, N queries per task.
"""

import copy
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.flop_counter import flop_registry, register_flop_formula, sdpa_flop

from taskformer.errors import ConfigError, UnknownNameError
from taskformer.models.autotaskformer.layers import SlicedLinear, filled
from taskformer.models.autotaskformer.space import FULL, DecoderSize
from taskformer.models.layers import resize
from taskformer.models.mqtransformer.layers import CrossTaskAttention, Decoder, Encoder

Pair = tuple[int, int]
Taps = Mapping[str, Sequence[Tensor]]
Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)

# torch's operation counter knows the fused attention of GPUs only, and takes the processor's for free.
if (_FUSED := torch.ops.aten._scaled_dot_product_flash_attention_for_cpu) not in flop_registry:
    register_flop_formula(_FUSED, get_raw=True)(sdpa_flop)

LAST = (1.0,)
QUARTERS = (0.25, 0.5, 0.75, 1.0)


class SlicedConv2d(nn.Conv2d):
    """A convolution that holds every narrower one in its first rows and columns."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``(B, any width, h, w)``."""
        result: Tensor = self._conv_forward(x, self.weight[:, : x.shape[1]], self.bias)
        return result

    def narrowed(self, inputs: int, outputs: int) -> nn.Conv2d:
        """Copy a narrower convolution out of this one."""
        height, width = self.kernel_size
        (padding, _), (dilation, _) = cast(Pair, self.padding), cast(Pair, self.dilation)
        plain = nn.Conv2d(inputs, outputs, (height, width), padding=padding, dilation=dilation)
        return filled(plain, self.weight[:outputs, :inputs], cast(Tensor, self.bias)[:outputs])


class TaskDecoder(nn.Module, ABC):
    """One task's own decoder: its taps in, its map out, at whatever resolution the decoder ends with."""

    fractions: ClassVar[tuple[float, ...]] = LAST

    @abstractmethod
    def forward(self, taps: Sequence[Tensor]) -> Tensor:
        """Decode taps ``(B, E, h, w)`` to ``(B, K, h', w')``."""

    @abstractmethod
    def count_macs(self, embed_dim: int, grid: Pair) -> int:
        """Count the multiply-accumulates for one image, for taps of ``embed_dim`` channels on ``grid``."""


class LinearDecoder(TaskDecoder):
    """One 1x1 convolution.

    Args:
        embed_dim: Largest width of the transformer.
        channels: The task's output channels.
    """

    def __init__(self, embed_dim: int, channels: int) -> None:
        super().__init__()
        self.predict = _init_output(SlicedConv2d(embed_dim, channels, kernel_size=1))

    def forward(self, taps: Sequence[Tensor]) -> Tensor:
        """Decode the last tap ``(B, E, h, w)`` to ``(B, K, h, w)``."""
        logits: Tensor = self.predict(taps[-1])
        return logits

    def count_macs(self, embed_dim: int, grid: Pair) -> int:
        """Count the multiply-accumulates for one image."""
        return _weights(self.predict, embed_dim) * math.prod(grid)


class ASPPDecoder(TaskDecoder):
    """The decoder of AdaShare's tables: parallel dilated convolutions, summed.

    Args:
        embed_dim: Largest width of the transformer.
        channels: The task's output channels.
        width: Channels inside a branch.
        rates: Dilation of each branch.
        dropout: Probability of dropping a channel entry, twice in each branch.

    Reference:
        Sun, Panda, Feris, Saenko. AdaShare: Learning What To Share For Efficient Deep Multi-Task Learning.
        NeurIPS 2020; after Chen et al., DeepLab v2.
    """

    def __init__(
        self,
        embed_dim: int,
        channels: int,
        width: int = 1024,
        rates: Sequence[int] = (6, 12, 18, 24),
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                SlicedConv2d(embed_dim, width, kernel_size=3, padding=rate, dilation=rate),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
                nn.Conv2d(width, width, kernel_size=1),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
                _init_output(nn.Conv2d(width, channels, kernel_size=1)),
            )
            for rate in rates
        )

    def forward(self, taps: Sequence[Tensor]) -> Tensor:
        """Decode the last tap ``(B, E, h, w)`` to ``(B, K, h, w)``."""
        return torch.stack([branch(taps[-1]) for branch in self.branches]).sum(0)

    def count_macs(self, embed_dim: int, grid: Pair) -> int:
        """Count the multiply-accumulates for one image: every convolution runs at every patch."""
        return _weights(self, embed_dim) * math.prod(grid)


class PUPDecoder(TaskDecoder):
    """Progressive upsampling: convolutions, each followed by a doubling of the resolution.

    Args:
        embed_dim: Largest width of the transformer.
        channels: The task's output channels.
        width: Channels C inside.
        stages: Doublings; with patches of 16 pixels two of them end at a quarter of the image's resolution.

    Reference:
        Zheng et al. Rethinking Semantic Segmentation from a Sequence-to-Sequence Perspective with Transformers.
        CVPR 2021, SETR-PUP.
    """

    def __init__(self, embed_dim: int, channels: int, width: int = 256, stages: int = 2) -> None:
        super().__init__()
        self.project = _project(embed_dim, width)
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False),
                _norm(width),
                nn.ReLU(inplace=True),
                nn.Upsample(scale_factor=2, mode="bilinear"),
            )
            for _ in range(stages)
        )
        self.predict = _init_output(nn.Conv2d(width, channels, kernel_size=1))

    def forward(self, taps: Sequence[Tensor]) -> Tensor:
        """Decode the last tap ``(B, E, h, w)`` to ``(B, K, h * 2**stages, w * 2**stages)``."""
        x = self.project(taps[-1])
        for stage in self.stages:
            x = stage(x)
        logits: Tensor = self.predict(x)
        return logits

    def count_macs(self, embed_dim: int, grid: Pair) -> int:
        """Count the multiply-accumulates for one image: stage i runs at 4 to the i times as many places."""
        steps = [*self.stages, self.predict]
        per_patch: int = _weights(self.project, embed_dim) + sum(
            _weights(s, embed_dim) << 2 * i for i, s in enumerate(steps)
        )
        return per_patch * math.prod(grid)


class DPTDecoder(TaskDecoder):
    """Four taps spread around the patch grid's resolution and fused from coarse to fine.

    Args:
        embed_dim: Largest width of the transformer.
        channels: The task's output channels.
        width: Channels C inside.

    Reference:
        Ranftl, Bochkovskiy, Koltun. Vision Transformers for Dense Prediction. ICCV 2021. Its taps come at fixed
        layers; here at fractions of the sampled depth.
    """

    fractions: ClassVar[tuple[float, ...]] = QUARTERS

    def __init__(self, embed_dim: int, channels: int, width: int = 128) -> None:
        super().__init__()
        self.project = nn.ModuleList(_project(embed_dim, width) for _ in QUARTERS)
        self.resample = nn.ModuleList(  # the earliest tap becomes the finest map
            [
                nn.ConvTranspose2d(width, width, kernel_size=4, stride=4),
                nn.ConvTranspose2d(width, width, kernel_size=2, stride=2),
                nn.Identity(),
                nn.Conv2d(width, width, kernel_size=3, stride=2, padding=1),
            ]
        )
        self.adapt = nn.ModuleList(ResidualUnit(width) for _ in QUARTERS[:-1])  # nothing is added to the coarsest map
        self.fuse = nn.ModuleList(
            nn.Sequential(ResidualUnit(width), nn.Conv2d(width, width, kernel_size=1)) for _ in QUARTERS
        )
        self.predict = nn.Sequential(
            nn.Conv2d(width, width // 2, kernel_size=3, padding=1, bias=False),
            _norm(width // 2),
            nn.ReLU(inplace=True),
            _init_output(nn.Conv2d(width // 2, channels, kernel_size=1)),
        )

    def forward(self, taps: Sequence[Tensor]) -> Tensor:
        """Decode four taps ``(B, E, h, w)``, earliest first, to ``(B, K, 4 * h, 4 * w)``."""
        maps = [
            resample(project(tap)) for tap, project, resample in zip(taps, self.project, self.resample, strict=True)
        ]
        fused = self.fuse[-1](maps[-1])
        for finer, adapt, fuse in reversed(list(zip(maps, self.adapt, self.fuse, strict=False))):
            fused = fuse(adapt(finer) + resize(fused, finer.shape[-2:]))
        logits: Tensor = self.predict(fused)
        return logits

    def count_macs(self, embed_dim: int, grid: Pair) -> int:
        """Count the multiply-accumulates for one image."""
        patches = math.prod(grid)
        coarse = math.prod(math.ceil(side / 2) for side in grid)
        places = (16 * patches, 4 * patches, patches, coarse)
        resampled_at = (patches, patches, patches, coarse)  # a transposed convolution works at its input's places
        total = _weights(self.project, embed_dim) * patches + _weights(self.predict, embed_dim) * places[0]
        for layers, counts in ((self.resample, resampled_at), (self.adapt, places[:-1]), (self.fuse, places)):
            total += sum(_weights(layer, embed_dim) * n for layer, n in zip(layers, counts, strict=True))
        return total


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
        decoders: Task name to its decoder, all of one kind.
    """

    def __init__(self, decoders: Mapping[str, TaskDecoder]) -> None:
        super().__init__()
        self.decoders = nn.ModuleDict(decoders)
        self.fractions = next(iter(decoders.values())).fractions

    def forward(self, features: Taps) -> dict[str, Tensor]:
        """Decode every task's taps ``(B, E, h, w)`` to ``(B, K, h', w')``."""
        return {task: decoder(features[task]) for task, decoder in self.decoders.items()}

    def count_macs(self, embed_dim: int, grid: Pair) -> int:
        """Count the multiply-accumulates for one image."""
        return sum(cast(TaskDecoder, decoder).count_macs(embed_dim, grid) for decoder in self.decoders.values())


class QueryHead(nn.Module):
    """MQTransformer's decoder on the transformer's taps: tasks exchange through a few queries.

    Each task projects its own taps, which may be its own stream's or shared with other tasks; the encoder, the
    cross-task attention and the decoder are shared and run once over all tasks, folded into the batch.

    Args:
        embed_dim: Largest width of the transformer.
        tasks: Task name to output channels. Task-specific parameters have a task axis in this order.
        width: Width C of tokens and queries.
        num_queries: Queries N per task.
        num_heads: Attention heads.
        num_blocks: Encoder - cross-task attention - decoder rounds.
        encoder_mlp_ratio: Hidden width of the encoder's MLP over C.
        cross_mlp_ratio: Hidden width of the cross-task attention's MLP over C.
        decoder_mlp_ratio: Hidden width of the decoder's MLP over C.
        drop_path: Stochastic depth rate, per sample, of the encoder and decoder.
        cross_drop_path: The same for the cross-task attention.
        upsample: Resolution of the last convolutions over that of the patch grid.
        head_dim: Channels before each task's last layer.
        num_scales: Taps that are read, the last ones.

    Raises:
        ConfigError: If ``width`` does not divide by ``num_heads``, or there are not as many taps.

    Reference:
        Xu, Li, Yuan, Yang, Zhang. Multi-Task Learning with Multi-Query Transformer for Dense Prediction.
        arXiv 2205.14354.
    """

    def __init__(
        self,
        embed_dim: int,
        tasks: Mapping[str, int],
        width: int = 256,
        num_queries: int = 64,
        num_heads: int = 4,
        num_blocks: int = 1,
        encoder_mlp_ratio: float = 1.0,
        cross_mlp_ratio: float = 1.0,
        decoder_mlp_ratio: float = 3.0,
        drop_path: float = 0.1,
        cross_drop_path: float = 0.5,
        upsample: int = 2,
        head_dim: int = 64,
        num_scales: int = len(QUARTERS),
    ) -> None:
        super().__init__()
        if width % num_heads:
            msg = f"width must be a multiple of num_heads, got width={width} and num_heads={num_heads}"
            raise ConfigError(msg)
        if not 1 <= num_scales <= len(QUARTERS):
            msg = f"the query head reads 1 to {len(QUARTERS)} taps, got num_scales={num_scales}"
            raise ConfigError(msg)
        self._like = partial(  # the same but for the sizes that are chosen
            QueryHead,
            tasks=tasks,
            num_blocks=num_blocks,
            encoder_mlp_ratio=encoder_mlp_ratio,
            cross_mlp_ratio=cross_mlp_ratio,
            decoder_mlp_ratio=decoder_mlp_ratio,
            drop_path=drop_path,
            cross_drop_path=cross_drop_path,
            upsample=upsample,
            head_dim=head_dim,
        )
        self._smaller: dict[DecoderSize, QueryHead] = {}
        count = len(tasks)
        self.upsample = upsample
        self.fractions = QUARTERS[-num_scales:]
        taps = [str(tap) for tap in range(len(QUARTERS))][-num_scales:]  # each keeps its name however many are read
        self.project = nn.ModuleDict(
            {task: nn.ModuleDict({tap: _project(embed_dim, width) for tap in taps}) for task in tasks}
        )
        self.queries = nn.Parameter(torch.empty(count, num_queries, width))  # (T, N, C)
        # Positions are one head wide and the same for every head.
        self.query_pos = nn.Parameter(torch.empty(num_blocks, count, num_queries, width // num_heads))
        self.key_pos = nn.Parameter(torch.empty(num_blocks, count, num_queries, width // num_heads))
        for parameter in (self.queries, self.query_pos, self.key_pos):
            nn.init.trunc_normal_(parameter, std=0.02)
        self.encoders = nn.ModuleList(
            Encoder(width, num_heads, encoder_mlp_ratio, drop_path) for _ in range(num_blocks)
        )
        self.exchanges = nn.ModuleList(
            CrossTaskAttention(width, num_heads, cross_mlp_ratio, cross_drop_path, num_scales=1, mode="separate")
            for _ in range(num_blocks)
        )
        self.decoders = nn.ModuleList(
            Decoder(width, num_heads, decoder_mlp_ratio, drop_path) for _ in range(num_blocks)
        )
        self.bottleneck = nn.Sequential(  # all tasks at once, each with its own weights and its own statistics
            nn.Conv2d(count * width, count * head_dim, kernel_size=3, padding=1, groups=count, bias=False),
            nn.GroupNorm(count, count * head_dim),
            nn.ReLU(inplace=True),
        )
        self.predict = nn.ModuleDict(
            {task: _init_output(nn.Conv2d(head_dim, channels, kernel_size=1)) for task, channels in tasks.items()}
        )

    def forward(self, features: Taps, decoder: DecoderSize = FULL) -> dict[str, Tensor]:
        """Decode every task's taps ``(B, E, h, w)`` to ``(B, K, upsample * h, upsample * w)``.

        Args:
            features: Task name to its taps, at least the last ``num_scales``.
            decoder: Sizes, if smaller than this head's.
        """
        if any(decoder):
            smaller = self.smaller(decoder).train(self.training)
            outputs: dict[str, Tensor] = functional_call(smaller, self._first_entries(smaller), (features,))
            return outputs
        maps = torch.stack([self._fuse(task, features[task]) for task in self.project], dim=1)  # (B, T, C, h, w)
        batch, count = maps.shape[:2]
        height, width = maps.shape[-2:]
        tokens = maps.flatten(0, 1).flatten(2).transpose(1, 2)  # (B*T, h*w, C)
        queries = self.queries.repeat(batch, 1, 1)  # (B*T, N, C)
        for block, (encode, exchange, decode) in enumerate(
            zip(self.encoders, self.exchanges, self.decoders, strict=True)
        ):
            query_pos, key_pos = (self._positions(x[block], batch) for x in (self.query_pos, self.key_pos))
            gathered = encode(queries, tokens, query_pos).unflatten(0, (batch, 1, count))  # (B, one scale, T, N, C)
            queries = exchange(gathered).flatten(0, 2)
            tokens = decode(tokens, queries, key_pos)
        decoded = F.gelu(tokens).transpose(1, 2).unflatten(2, (height, width))  # (B*T, C, h, w)
        fine = resize(decoded, (self.upsample * height, self.upsample * width)).unflatten(0, (batch, count))
        hidden = self.bottleneck(fine.flatten(1, 2)).unflatten(1, (count, -1))  # (B, T, head_dim, h', w')
        return {task: layer(hidden[:, i]) for i, (task, layer) in enumerate(self.predict.items())}

    def count_macs(self, embed_dim: int, grid: Pair) -> int:
        """Count the multiply-accumulates for one image."""
        patches = math.prod(grid)
        count, per_task, width = self.queries.shape
        rounds, queries, tokens = len(self.encoders), count * per_task, count * patches
        attention = (
            count * _attention_macs(width, per_task, patches)
            + _attention_macs(width, queries, queries)
            + count * _attention_macs(width, patches, per_task)
        )
        pointwise = sum(  # what is not attention's four projections
            (_weights(stage, embed_dim) - rounds * 4 * width**2) * places
            for stage, places in ((self.encoders, queries), (self.exchanges, queries), (self.decoders, tokens))
        )
        fine = (_weights(self.bottleneck, embed_dim) + _weights(self.predict, embed_dim)) * self.upsample**2
        return rounds * attention + pointwise + (_weights(self.project, embed_dim) + fine) * patches

    def smaller(self, decoder: DecoderSize) -> "QueryHead":
        """Return a smaller head without weights; the same one every time, as building takes long.

        Raises:
            ConfigError: If these weights hold no such head.
        """
        if decoder not in self._smaller:
            self._smaller[decoder] = self._build(decoder)
        return self._smaller[decoder]

    def narrowed(self, decoder: DecoderSize) -> "QueryHead":
        """Copy a smaller head out of this one, for taps as wide as before.

        Raises:
            ConfigError: If these weights hold no such head.
        """
        smaller = self._build(decoder)
        weights = {name: entries.detach().clone() for name, entries in self._first_entries(smaller).items()}
        smaller.load_state_dict(weights, assign=True)
        return smaller

    def check(self, decoder: DecoderSize) -> None:
        """Refuse sizes that these weights do not hold.

        Raises:
            ConfigError: If there is one.
        """
        for what, needed, available in zip(decoder._fields, decoder, self._size(), strict=True):
            if needed > available:
                msg = f"the query decoder's weights hold {what}={available}, an architecture needs {needed}"
                raise ConfigError(msg)
        if decoder.width % self._channels():
            msg = (
                f"the query decoder's width is a multiple of its attention heads' {self._channels()} channels, "
                f"got {decoder.width}"
            )
            raise ConfigError(msg)

    def _build(self, decoder: DecoderSize) -> "QueryHead":
        """Build a head like this, without weights, of other sizes."""
        self.check(decoder)
        size = DecoderSize(*(wanted or own for wanted, own in zip(decoder, self._size(), strict=True)))
        embed_dim = next(self.project.parameters()).shape[1]
        num_heads = size.width // self._channels()  # heads are as wide as before, so that they can learn one thing
        with torch.device("meta"):
            return self._like(embed_dim, num_heads=num_heads, **size._asdict())

    def _size(self) -> DecoderSize:
        _, num_queries, width = self.queries.shape
        return DecoderSize(num_queries, len(self.fractions), width)

    def _channels(self) -> int:
        """Count the channels of one attention head."""
        return self.query_pos.shape[-1]

    def _first_entries(self, smaller: nn.Module) -> dict[str, Tensor]:
        """Cut this head's parameters to the shapes of a smaller one's."""
        own = dict(self.named_parameters())
        return {
            name: own[name][tuple(slice(side) for side in parameter.shape)]
            for name, parameter in smaller.named_parameters()
        }

    def _fuse(self, task: str, taps: Sequence[Tensor]) -> Tensor:
        """Project one task's last taps and add them up: ``(B, C, h, w)``."""
        projections = cast(nn.ModuleDict, self.project[task]).values()
        last = taps[-len(projections) :]
        return torch.stack([project(tap) for project, tap in zip(projections, last, strict=True)]).sum(0)

    def _positions(self, positions: Tensor, batch: int) -> Tensor:
        """Positions ``(T, N, C / heads)`` of one block, repeated for every head and image: ``(B*T, N, C)``."""
        heads = self.queries.shape[-1] // self._channels()
        return positions.repeat(1, 1, heads).repeat(batch, 1, 1)


#: Kinds of dense head. All but ``query``, which lets tasks exchange, are one decoder per task.
HEADS: dict[str, type[TaskDecoder | QueryHead]] = {
    "linear": LinearDecoder,
    "aspp": ASPPDecoder,
    "pup": PUPDecoder,
    "dpt": DPTDecoder,
    "query": QueryHead,
}


class Heads(nn.Module):
    """Every task's head: a dense head for tasks with a map, a linear classifier for tasks with one answer per image.

    Args:
        dense: The dense head of all tasks that have a map, or None if there is no such task.
        image: Task name to its classifier.
        embed_dim: Largest width of the transformer.

    Attributes:
        fractions: Depth fractions of the taps that are read, ascending, the last one 1: tap i is the output after
            layer ``ceil(fractions[i] * depth)``.
        image: The classifiers by task name.
    """

    def __init__(
        self,
        dense: SeparateHead | QueryHead | None,
        image: Mapping[str, nn.Module] | nn.ModuleDict,
        embed_dim: int,
    ) -> None:
        super().__init__()
        self.dense = dense
        self.image = nn.ModuleDict(dict(image.items()))
        self.fractions = LAST if dense is None else dense.fractions
        self.embed_dim = embed_dim

    def forward(self, features: Taps, size: tuple[int, int], decoder: DecoderSize = FULL) -> dict[str, Tensor]:
        """Predict every task from its taps ``(B, E, h, w)``.

        Args:
            features: Task name to its taps, one per fraction, E at most ``embed_dim`` and the same for all.
            size: Height and width of the maps, in pixels.
            decoder: Sizes of the query decoder, as :meth:`check` allows.

        Returns:
            ``(B, K, *size)`` for each dense task, ``(B, K)`` for each image task.
        """
        sizes = (decoder,) if any(decoder) else ()  # only the query head can have any
        maps = {} if self.dense is None else self.dense(features, *sizes)
        outputs = {task: resize(x, size) for task, x in maps.items()}
        outputs |= {task: layer(features[task][-1].mean((2, 3))) for task, layer in self.image.items()}
        return {task: outputs[task] for task in features}

    def narrowed(self, embed_dim: int, decoder: DecoderSize = FULL) -> "Heads":
        """Return a stand-alone copy for one width, with plain layers only and the same outputs.

        Raises:
            ConfigError: As of :meth:`check`.
        """
        self.check(embed_dim, decoder)
        dense = self.dense.narrowed(decoder) if isinstance(self.dense, QueryHead) else self.dense
        heads = Heads(dense, self.image, embed_dim)
        # A deep copy takes what the memo holds for an object: the narrowed layers in the places of the sliced ones.
        memo = {id(layer): layer.narrowed(embed_dim, len(layer.weight)) for layer in _sliced(heads)}
        return copy.deepcopy(heads, memo).train(self.training)

    def count_parameters(self, embed_dim: int, decoder: DecoderSize = FULL) -> int:
        """Count the parameters that a sub-network of width ``embed_dim`` uses."""
        self.check(embed_dim, decoder)
        heads = self._sized(decoder)
        unused = sum(layer.weight[:, embed_dim:].numel() for layer in _sliced(heads))
        return sum(parameter.numel() for parameter in heads.parameters()) - unused

    def count_macs(self, embed_dim: int, grid: Pair, decoder: DecoderSize = FULL) -> int:
        """Count the multiply-accumulates for one image of ``grid`` = (rows, columns) patches at width ``embed_dim``."""
        self.check(embed_dim, decoder)
        dense = self._sized(decoder).dense
        classifiers = _weights(self.image, embed_dim)
        return classifiers if dense is None else classifiers + dense.count_macs(embed_dim, grid)

    def check(self, embed_dim: int, decoder: DecoderSize) -> None:
        """Refuse sizes that these heads do not have.

        Raises:
            ConfigError: If ``embed_dim`` is not between 1 and the largest width, or there is no such query decoder.
        """
        if not 1 <= embed_dim <= self.embed_dim:
            msg = f"embed_dim must be between 1 and {self.embed_dim}, the width of these heads, got {embed_dim}"
            raise ConfigError(msg)
        if isinstance(self.dense, QueryHead):
            self.dense.check(decoder)
        elif any(decoder):
            msg = "queries, scales and decoder width are chosen for the head 'query' of tasks with a map: there is none"
            raise ConfigError(msg)

    def _sized(self, decoder: DecoderSize) -> "Heads":
        """Return what is counted: these heads, or those with a smaller decoder."""
        if isinstance(self.dense, QueryHead) and any(decoder):
            return Heads(self.dense.smaller(decoder), self.image, self.embed_dim)
        return self


def build_heads(
    kind: str, tasks: Mapping[str, int], image_tasks: Collection[str], embed_dim: int, **options: Any
) -> Heads:
    """Build the heads of all tasks.

    Args:
        kind: One of :data:`HEADS`, for the tasks that have a map.
        tasks: Task name to output channels.
        image_tasks: Those of the tasks that have one answer for the whole image.
        embed_dim: Largest width of the transformer.
        options: Keyword arguments of the dense head of this kind.

    Raises:
        UnknownNameError: If there is no such kind, option or task.
    """
    if kind not in HEADS:
        what = "head"
        raise UnknownNameError(what, kind, HEADS)
    head = HEADS[kind]
    known = list(inspect.signature(head).parameters)[2:]  # behind the width and the tasks or channels
    for names, what, allowed in ((options, f"option of the head {kind!r}", known), (image_tasks, "image task", tasks)):
        for name in names:
            if name not in allowed:
                raise UnknownNameError(what, name, allowed)
    classifiers = {task: _init_output(SlicedLinear(embed_dim, tasks[task])) for task in tasks if task in image_tasks}
    maps = {task: channels for task, channels in tasks.items() if task not in image_tasks}
    if not maps:
        return Heads(None, classifiers, embed_dim)
    dense: SeparateHead | QueryHead
    if issubclass(head, QueryHead):
        dense = head(embed_dim, maps, **options)
    else:
        dense = SeparateHead({task: head(embed_dim, channels, **options) for task, channels in maps.items()})
    return Heads(dense, classifiers, embed_dim)


def _project(embed_dim: int, width: int) -> nn.Sequential:
    """Bring a tap of any width to ``width`` channels of one scale, however many channels were summed up for them."""
    return nn.Sequential(SlicedConv2d(embed_dim, width, kernel_size=1), _norm(width))


def _norm(width: int) -> nn.GroupNorm:
    """Build the usual 32 groups, or one where a group would be a single channel."""
    return nn.GroupNorm(32 if width % 32 == 0 and width > 32 else 1, width)


def _init_output(layer: Layer) -> Layer:
    """Start a task's last layer near zero, so that no task's first loss dwarfs the others'."""
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _sliced(module: nn.Module) -> list[SlicedConv2d | SlicedLinear]:
    """List the layers of a module whose weights are cut to the width."""
    return [layer for layer in module.modules() if isinstance(layer, SlicedConv2d | SlicedLinear)]


def _weights(module: nn.Module, embed_dim: int) -> int:
    """Count the weights of a module's matrix products, which are its multiply-accumulates at one place."""
    products = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    total = sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, products))
    return total - sum(layer.weight[:, embed_dim:].numel() for layer in _sliced(module))


def _attention_macs(width: int, queries: int, memory: int) -> int:
    """Count four projections (query and output, key and value), the logits and the weighted sum of the values."""
    return 2 * width * width * (queries + memory) + 2 * queries * memory * width
