"""MQTransformer in one file: task and scale-aware queries gather, exchange and give back what tasks share.

    >>> import torch
    >>> head = MQTransformerHead({"semseg": 40, "depth": 1}, channels=[24, 48], strides=[8, 16], embed_dim=32)
    >>> features = [torch.randn(2, 24, 8, 12), torch.randn(2, 48, 4, 6)]  # of images of 64 x 96 pixels
    >>> {task: tuple(output.shape) for task, output in head(features, size=(64, 96)).items()}
    {'semseg': (2, 40, 64, 96), 'depth': (2, 1, 64, 96)}

Read from top to bottom: :class:`MultiQueryDecoder`, the queries and their rounds of encoder, exchange and decoder;
:class:`MQTransformerHead`, the same between a projection of the backbone's maps and a predictor; the three stages of a
round; what these are made of.

Notation of the shape comments: B images, T tasks, S scales, N queries per task and scale, C channels of tokens and
queries, L = h*w tokens of one scale. All tasks run folded into the batch, never one by one.

Reference:
    Xu, Li, Yuan, Yang, Zhang. Multi-Task Learning with Multi-Query Transformer for Dense Prediction. arXiv 2205.14354.

The design follows the paper's two perspectives of cross-task attention (different tasks at one scale, different scales
of one task). It leaves out two quirks of the released code: an attention in the decoder that runs over the images
of the batch, and stochastic depth that drops one query for all of them. Here an image's output never depends on the
batch it is in.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taskformer.errors import ConfigError, require
from taskformer.models.decoders import register_decoder
from taskformer.models.layers import TaskPredictor, TaskProjection, resize, stochastic_depth

CrossAttention = Literal["separate", "joint"]


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
        cross_attention: ``"separate"``: tasks at one scale, then scales of one task; ``"joint"``: all at once.
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
    ) -> None:
        super().__init__()
        self.project = project
        num_scales = axes[0] if len(axes) > 1 else 1
        encoder_ratio, cross_ratio, decoder_ratio = mlp_ratios
        self.queries = nn.Parameter(torch.empty(*axes, num_queries, width))
        # Positions are one head wide and the same for every head.
        self.query_pos = nn.Parameter(torch.empty(num_blocks, *axes, num_queries, width // num_heads))
        self.key_pos = nn.Parameter(torch.empty(num_blocks, *axes, num_queries, width // num_heads))
        for parameter in (self.queries, self.query_pos, self.key_pos):
            nn.init.trunc_normal_(parameter, std=0.02)
        blocks = range(num_blocks)
        self.encoders = nn.ModuleList(Encoder(width, num_heads, encoder_ratio, drop_path) for _ in blocks)
        self.exchanges = nn.ModuleList(
            CrossTaskAttention(width, num_heads, cross_ratio, cross_drop_path, num_scales, cross_attention)
            for _ in blocks
        )
        self.decoders = nn.ModuleList(Decoder(width, num_heads, decoder_ratio, drop_path) for _ in blocks)

    def refine(self, maps: Sequence[Tensor]) -> Tensor:
        """Run all rounds.

        Args:
            maps: For each scale, finest first, every task's map ``(B, T, C, h, w)``.

        Returns:
            Every task's map ``(B, T, C, h, w)`` at the finest scale.
        """
        batch, num_tasks = maps[0].shape[:2]
        tokens = [x.flatten(0, 1).flatten(2).transpose(1, 2) for x in maps]  # S x (B*T, L, C)
        queries = self._folded(self.queries, batch)  # S x (B*T, N, C)
        for block, (encode, exchange, decode) in enumerate(
            zip(self.encoders, self.exchanges, self.decoders, strict=True)
        ):
            query_pos, key_pos = (self._folded(x[block], batch) for x in (self.query_pos, self.key_pos))
            gathered = [encode(*each) for each in zip(queries, tokens, query_pos, strict=True)]
            apart = torch.stack([q.unflatten(0, (batch, num_tasks)) for q in gathered], dim=1)  # (B, S, T, N, C)
            queries = [q.flatten(0, 1) for q in exchange(apart).unbind(1)]
            tokens = [decode(*each) for each in zip(tokens, queries, key_pos, strict=True)]
        finest, *coarser = [x.transpose(1, 2).unflatten(2, m.shape[-2:]) for x, m in zip(tokens, maps, strict=True)]
        for x in coarser:
            finest = finest + resize(x, finest.shape[-2:])
        refined: Tensor = F.gelu(finest).unflatten(0, (batch, num_tasks))
        return refined

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that are free of weight decay: queries and positions."""
        return {"queries", "query_pos", "key_pos"}

    def _folded(self, parameter: Tensor, batch: int) -> list[Tensor]:
        """Repeat queries or positions ``([S,] T, N, C or one head's)`` for every head and image: S x ``(B*T, N, C)``.

        Tasks are folded into the batch.
        """
        width = self.queries.shape[-1]
        whole = parameter.repeat(*[1] * (parameter.ndim - 1), width // parameter.shape[-1])
        scales = whole.unbind() if whole.ndim > 3 else [whole]
        return [scale.repeat(batch, 1, 1) for scale in scales]


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
        scales: ``"fused"``: one scale, all maps concatenated at the finest stride (the released model's wiring); or
            the strides to keep apart, e.g. ``[4, 8, 16, 32]`` (scale-aware queries).
        cross_attention: ``"separate"``: tasks at one scale, then scales of one task; ``"joint"``: all at once.
        num_blocks: Encoder - cross-task attention - decoder rounds; queries and features carry on between them.
        encoder_mlp_ratio: Hidden width of the encoder's MLP over C.
        cross_mlp_ratio: Hidden width of the cross-task attention's MLP over C.
        decoder_mlp_ratio: Hidden width of the decoder's MLP over C.
        drop_path: Stochastic depth rate, per sample, of the encoder and decoder.
        cross_drop_path: The same for the cross-task attention.
        head_dim: Channels before each task's last layer.

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
        cross_attention: CrossAttention = "separate",
        num_blocks: int = 1,
        encoder_mlp_ratio: float = 1.0,
        cross_mlp_ratio: float = 1.0,
        decoder_mlp_ratio: float = 3.0,
        drop_path: float = 0.1,
        cross_drop_path: float = 0.5,
        head_dim: int = 64,
    ) -> None:
        counts = {"num_queries": num_queries, "num_heads": num_heads, "num_blocks": num_blocks}
        require("[1, inf)", embed_dim=embed_dim, head_dim=head_dim, **counts)
        ratios = {"encoder": encoder_mlp_ratio, "cross": cross_mlp_ratio, "decoder": decoder_mlp_ratio}
        for name, ratio in ratios.items():  # at least one hidden channel
            require(f"[{1 / embed_dim:g}, inf)", **{f"{name}_mlp_ratio": ratio})
        require("[0, 1)", drop_path=drop_path, cross_drop_path=cross_drop_path)
        require_whole_heads(num_heads, embed_dim=embed_dim)
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
        )
        self.levels = levels
        self.predict = TaskPredictor(tasks, embed_dim, head_dim)

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        """Decode feature maps, fine to coarse, to ``{task: (B, C_task, *size)}``."""
        maps = [
            project([features[i] for i in level])  # (B, T, C, h, w)
            for level, project in zip(self.levels, self.project, strict=True)
        ]
        outputs: dict[str, Tensor] = self.predict(self.refine(maps), size)
        return outputs


class Encoder(nn.Module):
    """Queries gather from the tokens of their own task and scale; the same weights for all tasks and scales."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.attention = Attention(dim, num_heads)
        self.norm = nn.LayerNorm(dim)
        self.mix = nn.Linear(dim, dim, bias=False)
        self.mlp = MLP(dim, mlp_ratio)
        self.drop_path = stochastic_depth(drop_path)

    def forward(self, queries: Tensor, tokens: Tensor, query_pos: Tensor) -> Tensor:
        """Update ``(B*T, N, C)`` queries from ``(B*T, L, C)`` tokens."""
        queries = queries + self.drop_path(self.attention(queries, tokens, query_pos=query_pos))
        queries = queries + self.mix(self.norm(queries))
        result: Tensor = queries + self.drop_path(self.mlp(queries))
        return result


class CrossTaskAttention(nn.Module):
    """Queries exchange between tasks and scales; the cost does not depend on the image size.

    Args:
        dim: Width C.
        num_heads: Attention heads.
        mlp_ratio: Hidden width of the MLPs over C.
        drop_path: Stochastic depth rate, per sample.
        num_scales: Scales S; with one there is nothing to exchange between scales.
        mode: ``"separate"``: all tasks of one scale, then all scales of one task; ``"joint"``: everything at once.
    """

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float, num_scales: int, mode: CrossAttention
    ) -> None:
        super().__init__()
        self.joint = mode == "joint"
        self.between_tasks = SelfAttention(dim, num_heads, mlp_ratio, drop_path)
        separate_scales = num_scales > 1 and not self.joint
        self.between_scales = SelfAttention(dim, num_heads, mlp_ratio, drop_path) if separate_scales else None

    def forward(self, queries: Tensor) -> Tensor:
        """Update queries ``(B, S, T, N, C)``."""
        batch, scales, tasks, count, _ = queries.shape
        result: Tensor
        if self.joint:
            result = self.between_tasks(queries.flatten(1, 3)).view_as(queries)  # over (B, S*T*N, C)
            return result
        same_scale = self.between_tasks(queries.reshape(batch * scales, tasks * count, -1))  # (B*S, T*N, C)
        result = same_scale.view(batch, scales, tasks, count, -1)
        if self.between_scales is None:
            return result
        same_task = self.between_scales(result.transpose(1, 2).reshape(batch * tasks, scales * count, -1))
        result = same_task.view(batch, tasks, scales, count, -1).transpose(1, 2)
        return result


class Decoder(nn.Module):
    """Tokens read what their task's queries now know; the same weights for all tasks and scales."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.attention = Attention(dim, num_heads)
        self.mlp = MLP(dim, mlp_ratio)
        self.drop_path = stochastic_depth(drop_path)

    def forward(self, tokens: Tensor, queries: Tensor, key_pos: Tensor) -> Tensor:
        """Update ``(B*T, L, C)`` tokens from ``(B*T, N, C)`` queries."""
        tokens = tokens + self.drop_path(self.attention(tokens, queries, key_pos=key_pos))
        result: Tensor = tokens + self.drop_path(self.mlp(tokens))
        return result


class SelfAttention(nn.Module):
    """One pre-norm transformer layer over a set of queries ``(B, M, C)``."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.attention = Attention(dim, num_heads)
        self.mlp = MLP(dim, mlp_ratio)
        self.drop_path = stochastic_depth(drop_path)

    def forward(self, queries: Tensor) -> Tensor:
        """Let all queries of a set attend to each other."""
        queries = queries + self.drop_path(self.attention(queries, queries))
        result: Tensor = queries + self.drop_path(self.mlp(queries))
        return result


class Attention(nn.Module):
    """Pre-norm multi-head attention of queries ``(B, N, C)`` over a memory ``(B, M, C)``.

    Each of query, key and value has its own layer norm and bias-free projection; positions are added before the norm.

    Args:
        dim: Width C.
        num_heads: Attention heads.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_q, self.norm_k, self.norm_v = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.out = nn.Linear(dim, dim)

    def forward(
        self, query: Tensor, memory: Tensor, query_pos: Tensor | None = None, key_pos: Tensor | None = None
    ) -> Tensor:
        """Attend; positions, where given, have the shape of what they are added to."""
        q = self.to_q(self.norm_q(query if query_pos is None else query + query_pos))
        k = self.to_k(self.norm_k(memory if key_pos is None else memory + key_pos))
        v = self.to_v(self.norm_v(memory))
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))  # (B, heads, N or M, d)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)  # (B, N, C)
        result: Tensor = self.out(attended)
        return result


class MLP(nn.Sequential):
    """Layer norm, expansion, GELU, projection.

    Args:
        dim: Width C.
        ratio: Hidden width over C.
    """

    def __init__(self, dim: int, ratio: float) -> None:
        hidden = int(dim * ratio)
        super().__init__(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))


def require_whole_heads(num_heads: int, **width: int) -> None:
    """Refuse a width, given under its setting's name, that cannot be divided into attention heads.

    Raises:
        ConfigError: If it does not.
    """
    for name, channels in width.items():
        if channels % num_heads:
            msg = f"{name} must be a multiple of num_heads, got {name}={channels} and num_heads={num_heads}"
            raise ConfigError(msg)


def _levels(scales: Sequence[int], strides: Sequence[int]) -> list[list[int]]:
    """Index of the backbone map for each scale, finest first."""
    if not scales or not set(scales) <= set(strides):
        msg = f"scales must be 'fused' or some of the backbone's strides {list(strides)}, got {scales!r}"
        raise ConfigError(msg)
    return [[list(strides).index(scale)] for scale in sorted(set(scales))]
