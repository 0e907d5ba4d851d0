"""MQTransformer: task and scale-aware queries gather, exchange and give back what tasks share.

    >>> import torch
    >>> head = MQTransformerHead({"semseg": 40, "depth": 1}, channels=[24, 48], strides=[8, 16], embed_dim=32)
    >>> features = [torch.randn(2, 24, 8, 12), torch.randn(2, 48, 4, 6)]  # of images of 64 x 96 pixels
    >>> {task: tuple(output.shape) for task, output in head(features, size=(64, 96)).items()}
    {'semseg': (2, 40, 64, 96), 'depth': (2, 1, 64, 96)}

Read from top to bottom: :class:`MultiQueryDecoder`, the queries and their rounds of encoder, exchange and decoder;
:class:`MQTransformerHead`, the same between a projection of the backbone's maps and a predictor. The three stages of a
round are in ``stages.py``, what those are made of in ``attention.py``.

Notation of the shape comments: B images, T tasks, S scales, N queries per task and scale, C channels of tokens and
queries, L = h*w tokens of one scale.

A task's tokens, of which there are thousands, are handled one task and, where no gradient is kept, one *tile* of tokens
at a time: what is computed of a tile stays in the processor's caches, and time and memory grow with the number of tasks
and not faster. Maps have their channels last, as matrix products and convolutions want them.

Reference:
    Xu, Li, Yuan, Yang, Zhang. Multi-Task Learning with Multi-Query Transformer for Dense Prediction. arXiv 2205.14354.

The design follows the paper's two perspectives of cross-task attention (different tasks at one scale, different scales
of one task). ``wiring="released"`` is the network of the authors' program instead, as it acts on one image: there an
attention in the decoder runs over the images of the batch, and stochastic depth drops one query for all of them. Here
an image's output never depends on the batch it is in.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taskformer.errors import ConfigError, require
from taskformer.models.decoders import register_decoder
from taskformer.models.layers import TaskPredictor, TaskProjection, pool_rows, resize_rows
from taskformer.models.mqtransformer.attention import MultiHead, normalise
from taskformer.models.mqtransformer.stages import (
    MLP,
    CrossAttention,
    CrossTaskAttention,
    Decoder,
    Encoder,
    ReleasedDecoder,
    Wiring,
)

Merge = Literal["sum", "concat"]
Start = Literal["random", "plain"]


class MultiQueryDecoder(nn.Module):
    """Every task's maps in, one refined map per task out: the queries and the rounds in which they work.

    Args:
        project: Layers that make the maps, for the subclass to call.
        axes: What has queries of its own: ``(S, T)``, or ``(T,)`` where there is one scale.
        width: Channels C of tokens and queries, a multiple of ``num_heads``.
        num_queries: Queries N per task and scale.
        num_heads: Attention heads.
        num_blocks: Encoder - cross-task attention - decoder rounds; queries and tokens carry on between them.
        mlp_ratios: Hidden width of the MLP in encoder, cross-task attention and decoder, over C.
        drop_path: Stochastic depth rate, per sample, of the encoder and decoder.
        cross_drop_path: The same for the cross-task attention.
        cross_attention: See :class:`MQTransformerHead`, as the following.
        merge: How the scales become one.
        wiring: Whose residuals and norms.
        share_encoder: One encoder for all tasks.
        share_decoder: One decoder for all tasks.
        start: What the parameters start as.
        checkpointing: Compute tokens again in the backward pass.
    """

    def __init__(
        self,
        project: nn.Module,
        axes: tuple[int, ...],
        width: int,
        num_queries: int,
        num_heads: int,
        num_blocks: int,
        mlp_ratios: tuple[float, float, float],
        drop_path: float,
        cross_drop_path: float,
        cross_attention: CrossAttention = "separate",
        merge: Merge = "sum",
        wiring: Wiring = "clean",
        share_encoder: bool = True,
        share_decoder: bool = True,
        start: Start = "random",
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.project = project
        *scales, self.num_tasks = axes
        self.num_scales = math.prod(scales)
        self.checkpointing = checkpointing
        encoder_ratio, cross_ratio, decoder_ratio = mlp_ratios
        self.queries = nn.Parameter(torch.empty(*axes, num_queries, width))
        # Positions are one head wide and the same for every head.
        self.query_pos = nn.Parameter(torch.empty(num_blocks, *axes, num_queries, width // num_heads))
        self.key_pos = nn.Parameter(torch.empty(num_blocks, *axes, num_queries, width // num_heads))
        for parameter in (self.queries, self.query_pos, self.key_pos):
            nn.init.trunc_normal_(parameter, std=1.0 if start == "plain" else 0.02)
        blocks = range(num_blocks)
        self.encoders = nn.ModuleList(
            self._per_task(partial(Encoder, width, num_heads, encoder_ratio, drop_path), share_encoder) for _ in blocks
        )
        self.exchanges = nn.ModuleList(
            CrossTaskAttention(width, num_heads, cross_ratio, cross_drop_path, self.num_scales, cross_attention, wiring)
            for _ in blocks
        )
        decoder = {"clean": Decoder, "released": ReleasedDecoder}[wiring]
        self.decoders = nn.ModuleList(
            self._per_task(partial(decoder, width, num_heads, decoder_ratio, drop_path), share_decoder) for _ in blocks
        )
        concatenates = merge == "concat" and self.num_scales > 1
        self.merge = nn.Linear(self.num_scales * width, width) if concatenates else None
        if start == "plain":
            for part in self.modules():
                if isinstance(part, MultiHead | MLP):
                    part.silence()

    def refine(self, maps: Sequence[Sequence[Tensor]]) -> Iterator[Tensor]:
        """Run all rounds.

        Args:
            maps: For each scale, finest first, every task's map ``(B, h, w, C)``.

        Yields:
            Every task's map ``(B, h, w, C)`` at the finest scale, each when it is asked for.
        """
        sizes = [scale[0].shape[1:3] for scale in maps]
        tokens: Iterable[Tensor] = [x.flatten(1, 2) for x in chain(*zip(*maps, strict=True))]  # T*S x (B, L, C)
        del maps  # so that each task's tokens go when they are read
        queries = self._flat(self.queries).unsqueeze(1).unbind()  # T*S x (1, N, C)
        for block, exchange in enumerate(self.exchanges):
            tokens = list(tokens)
            normalised, gathered = self._encode(block, tokens, queries)
            apart = gathered.unflatten(1, (self.num_tasks, -1)).transpose(1, 2)  # (B, S, T, N, C)
            queries = exchange(apart).transpose(1, 2).flatten(1, 2).unbind(1)  # T*S x (B, N, C)
            decoded = tokens = self._decode(block, tokens, normalised, queries)
        for _ in range(self.num_tasks):
            yield self._merged([next(decoded).unflatten(1, size) for size in sizes])  # S x (B, h, w, C)

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that are free of weight decay: queries and positions."""
        return {"queries", "query_pos", "key_pos"}

    def exchanging(self) -> list[str]:
        """List the names of the parameters of queries and of the layers in which they meet tokens and each other."""
        parts = ("queries", "query_pos", "key_pos", "encoders", "exchanges", "decoders")
        return [name for name, _ in self.named_parameters() if name.split(".")[0] in parts]

    def _encode(
        self, block: int, tokens: Sequence[Tensor], queries: Sequence[Tensor]
    ) -> tuple[list[Tensor | None], Tensor]:
        """Gather from the tokens of each task and scale.

        Returns:
            The normalised tokens, where they are to be kept for the decoder, and the queries ``(B, T*S, N, C)``.
        """
        keep = torch.is_grad_enabled() and not self.checkpointing
        positions = self._flat(self.query_pos[block])  # (T*S, N, C)
        kept: list[Tensor | None] = []
        gathered = []
        for i, (x, query) in enumerate(zip(tokens, queries, strict=True)):
            normal = normalise(x)
            gathered.append(self._of_task(self.encoders[block], i)(query, normal, positions[i]))
            kept.append(normal if keep else None)
        return kept, torch.stack(gathered, dim=1)

    def _decode(
        self, block: int, tokens: list[Tensor], normalised: list[Tensor | None], queries: Sequence[Tensor]
    ) -> Iterator[Tensor]:
        """Let the tokens ``(B, L, C)`` of each task and scale read its queries ``(B, N, C)``, and let go of them."""
        positions = self._flat(self.key_pos[block])  # (T*S, N, C)
        for i, each in enumerate(zip(queries, positions, strict=True)):
            decode = self._of_task(self.decoders[block], i)
            yield decode(tokens.pop(0), normalised.pop(0), *each, self.checkpointing)

    def _merged(self, scales: Sequence[Tensor]) -> Tensor:
        """Make one map ``(B, h, w, C)`` of a task's scales, finest first."""
        if self.merge is not None:  # a product with each at its own size is the same as with all, concatenated
            shares = self.merge.weight.chunk(self.num_scales, dim=1)
            biases = (self.merge.bias, *[None] * (self.num_scales - 1))
            scales = [F.linear(*each) for each in zip(scales, shares, biases, strict=True)]
        finest, *coarser = scales
        for x in coarser:
            finest += resize_rows(x, finest.shape[1:3])
        return finest

    def _per_task(self, build: Callable[[], nn.Module], shared: bool) -> nn.Module:
        """Build a stage, or one for each task."""
        return build() if shared else nn.ModuleList(build() for _ in range(self.num_tasks))

    def _of_task(self, stage: nn.Module, index: int) -> nn.Module:
        """Return the stage that serves an index of the flat axis of tasks and scales."""
        return stage[index // self.num_scales] if isinstance(stage, nn.ModuleList) else stage

    def _flat(self, parameter: Tensor) -> Tensor:
        """Flatten queries, or positions repeated for every head, ``([S,] T, N, C)``: ``(T*S, N, C)``."""
        width = self.queries.shape[-1]
        whole = parameter.repeat(*[1] * (parameter.ndim - 1), width // parameter.shape[-1])
        return whole.transpose(0, 1).flatten(0, 1) if whole.ndim > 3 else whole


@register_decoder("query")
class MQTransformerHead(MultiQueryDecoder):
    """Backbone features to one raw map per task.

    Scale-aware queries on two of an encoder's four maps:

    >>> import torch
    >>> head = MQTransformerHead({"depth": 1}, [8, 16, 32, 64], [4, 8, 16, 32], embed_dim=32, scales=[8, 32])
    >>> features = [torch.randn(1, 8 * 2**i, 16 // 2**i, 16 // 2**i) for i in range(4)]
    >>> tuple(head(features, size=(64, 64))["depth"].shape)
    (1, 1, 64, 64)

    Args:
        tasks: Task name to output channels. Task-specific parameters have a task axis in this order.
        channels: Channels of the backbone's feature maps.
        strides: Their strides, ascending.
        embed_dim: Width C of tokens and queries.
        num_queries: Queries N per task and scale.
        num_heads: Attention heads.
        scales: ``"fused"``: one scale, all maps concatenated at the finest stride (the paper's last version and its
            program); or the strides to keep apart, e.g. ``[4, 8, 16, 32]`` (scale-aware queries, its first versions).
        token_stride: Of a fused scale: the backbone's stride at which queries and tokens meet. What the tokens have
            learnt there is upsampled and added to the map of the finest stride. None: the finest one.
        cross_attention: ``"separate"``: tasks at one scale, then scales of one task (the paper's two perspectives);
            ``"joint"``: all at once; ``"none"``: no exchange.
        num_blocks: Encoder - cross-task attention - decoder rounds; queries and features carry on between them.
        encoder_mlp_ratio: Hidden width of the encoder's MLP over C.
        cross_mlp_ratio: Hidden width of the cross-task attention's MLP over C.
        decoder_mlp_ratio: Hidden width of the decoder's MLP over C.
        drop_path: Stochastic depth rate, per sample, of the encoder and decoder.
        cross_drop_path: The same for the cross-task attention.
        head_dim: Channels before each task's last layer.
        wiring: ``"clean"``: pre-norm residual branches throughout. ``"released"``: residuals, norms and biases of the
            authors' program.
        merge: How the scales become one: their ``"sum"``, or concatenated (``"concat"``) and projected.
        share_encoder: One encoder for all tasks, or else one for each.
        share_decoder: One decoder for all tasks, or else one for each.
        start: ``"random"``: everything small and random. ``"plain"``, for the clean wiring: residual branches start at
            zero, and queries and their positions far apart; the head then starts as plain heads do.
        checkpointing: In training, compute the decoder's activations again in the backward pass, tile by tile: 0.4 to
            0.6 of the head's memory for 15 to 30 % more time.

    Raises:
        ConfigError: If a setting is impossible, a scale is not a stride of the backbone, or ``embed_dim`` is not
            a multiple of ``num_heads``.
    """

    project: nn.ModuleList

    def __init__(
        self,
        tasks: Mapping[str, int],
        channels: Sequence[int],
        strides: Sequence[int],
        embed_dim: int = 256,
        num_queries: int = 64,
        num_heads: int = 4,
        scales: Literal["fused"] | Sequence[int] = "fused",
        token_stride: int | None = None,
        cross_attention: CrossAttention = "separate",
        num_blocks: int = 1,
        encoder_mlp_ratio: float = 1.0,
        cross_mlp_ratio: float = 1.0,
        decoder_mlp_ratio: float = 3.0,
        drop_path: float = 0.1,
        cross_drop_path: float = 0.5,
        head_dim: int = 64,
        wiring: Wiring = "clean",
        merge: Merge = "sum",
        share_encoder: bool = True,
        share_decoder: bool = True,
        start: Start = "random",
        checkpointing: bool = False,
    ) -> None:
        counts = {"num_queries": num_queries, "num_heads": num_heads, "num_blocks": num_blocks}
        require("[1, inf)", embed_dim=embed_dim, head_dim=head_dim, **counts)
        ratios = {"encoder": encoder_mlp_ratio, "cross": cross_mlp_ratio, "decoder": decoder_mlp_ratio}
        for name, ratio in ratios.items():  # at least one hidden channel
            require(f"[{1 / embed_dim:g}, inf)", **{f"{name}_mlp_ratio": ratio})
        require("[0, 1)", drop_path=drop_path, cross_drop_path=cross_drop_path)
        require_whole_heads(num_heads, embed_dim=embed_dim)
        if start == "plain" and wiring == "released":
            msg = "start='plain' is for the clean wiring: in the released one not all branches are residuals"
            raise ConfigError(msg)
        # Which backbone maps make up each scale.
        levels = [list(range(len(channels)))] if scales == "fused" else _levels(scales, strides)
        super().__init__(
            nn.ModuleList(TaskProjection([channels[i] for i in level], len(tasks), embed_dim) for level in levels),
            (len(levels), len(tasks)),
            embed_dim,
            **counts,
            mlp_ratios=(encoder_mlp_ratio, cross_mlp_ratio, decoder_mlp_ratio),
            drop_path=drop_path,
            cross_drop_path=cross_drop_path,
            cross_attention=cross_attention,
            wiring=wiring,
            merge=merge,
            share_encoder=share_encoder,
            share_decoder=share_decoder,
            start=start,
            checkpointing=checkpointing,
        )
        self.levels = levels
        self.pooling = _pooling(token_stride, scales, strides)
        self.predict = TaskPredictor(tasks, embed_dim, head_dim)

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        """Decode feature maps, fine to coarse, to ``{task: (B, C_task, *size)}``."""
        return self.decode(self.task_maps(features), size)

    def task_maps(self, features: Sequence[Tensor]) -> list[list[Tensor]]:
        """Make each task's own maps, before any exchange: for each scale, finest first, T x ``(B, h, w, C)``."""
        return [project([features[i] for i in level]) for level, project in zip(self.levels, self.project, strict=True)]

    def decode(self, maps: Sequence[Sequence[Tensor]], size: tuple[int, int]) -> dict[str, Tensor]:
        """Let the tasks exchange, and predict: ``{task: (B, C_task, *size)}`` of what :meth:`task_maps` returned."""
        refined = self.refine(maps) if self.pooling == 1 else self._refine_coarsely(maps[0])
        outputs: dict[str, Tensor] = self.predict(refined, size)
        return outputs

    def _refine_coarsely(self, maps: Sequence[Tensor]) -> Iterator[Tensor]:
        """Refine every task's map ``(B, h, w, C)`` by what its tokens learn at a coarser stride."""
        coarse = [pool_rows(x, self.pooling) for x in maps]
        for x, old, new in zip(maps, coarse, self.refine([coarse]), strict=True):
            yield x + resize_rows(new - old, x.shape[1:3])


def require_whole_heads(num_heads: int, **width: int) -> None:
    """Refuse a width, given under its setting's name, that cannot be divided into attention heads.

    Raises:
        ConfigError: If it does not.
    """
    for name, channels in width.items():
        if channels % num_heads:
            msg = f"{name} must be a multiple of num_heads, got {name}={channels} and num_heads={num_heads}"
            raise ConfigError(msg)


def _pooling(token_stride: int | None, scales: Literal["fused"] | Sequence[int], strides: Sequence[int]) -> int:
    """How many places of the finest map along a side make one token."""
    if token_stride is None:
        return 1
    if scales != "fused" or token_stride not in strides or token_stride % strides[0]:
        msg = (
            f"token_stride is one of the backbone's strides {list(strides)} and goes with scales='fused', got "
            f"token_stride={token_stride} and scales={scales!r}"
        )
        raise ConfigError(msg)
    return token_stride // strides[0]


def _levels(scales: Sequence[int], strides: Sequence[int]) -> list[list[int]]:
    """Index of the backbone map for each scale, finest first."""
    if not scales or not set(scales) <= set(strides):
        msg = f"scales must be 'fused' or some of the backbone's strides {list(strides)}, got {scales!r}"
        raise ConfigError(msg)
    return [[list(strides).index(scale)] for scale in sorted(set(scales))]
