"""The Multi-Query Transformer head: task and scale-aware queries gather, exchange and give back what tasks share.

Reference:
    Xu, Li, Yuan, Yang, Zhang. Multi-Task Learning with Multi-Query Transformer for Dense Prediction. arXiv 2205.14354.

The design follows the paper's two perspectives of cross-task attention (different tasks at one scale, different scales
of one task). It leaves out two accidents of the released code: an attention in the decoder that runs over the images
of the batch, and stochastic depth that drops one query for all of them. Here an image's output never depends on the
batch it is in.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taskformer.errors import ConfigError, require
from taskformer.models.layers import TaskPredictor, TaskProjection, resize
from taskformer.models.mqtransformer.layers import CrossTaskAttention, Decoder, Encoder


class MQTransformerHead(nn.Module):
    """Backbone features to one raw map per task.

    Notation of the shape comments: B images, T tasks, S scales, N queries per task and scale, C = ``embed_dim``,
    L = H*W tokens of one scale. All tasks run folded into the batch, never one by one.

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
        ConfigError: If a setting is impossible, a scale is not a stride of the backbone, or ``embed_dim`` does not
            divide by ``num_heads``.
    """

    def __init__(
        self,
        tasks: Mapping[str, int],
        channels: Sequence[int],
        strides: Sequence[int],
        embed_dim: int = 256,
        num_queries: int = 64,
        num_heads: int = 4,
        scales: Literal["fused"] | Sequence[int] = "fused",
        cross_attention: Literal["separate", "joint"] = "separate",
        num_blocks: int = 1,
        encoder_mlp_ratio: float = 1.0,
        cross_mlp_ratio: float = 1.0,
        decoder_mlp_ratio: float = 3.0,
        drop_path: float = 0.1,
        cross_drop_path: float = 0.5,
        head_dim: int = 64,
    ) -> None:
        super().__init__()
        counts = {"num_queries": num_queries, "num_heads": num_heads, "num_blocks": num_blocks}
        require("[1, inf)", embed_dim=embed_dim, head_dim=head_dim, **counts)
        ratios = {"encoder": encoder_mlp_ratio, "cross": cross_mlp_ratio, "decoder": decoder_mlp_ratio}
        for name, ratio in ratios.items():  # at least one hidden channel
            require(f"[{1 / embed_dim:g}, inf)", **{f"{name}_mlp_ratio": ratio})
        require("[0, 1)", drop_path=drop_path, cross_drop_path=cross_drop_path)
        if embed_dim % num_heads:
            msg = f"embed_dim must be a multiple of num_heads, got embed_dim={embed_dim} and num_heads={num_heads}"
            raise ConfigError(msg)
        # Which backbone maps make up each scale.
        self.levels = [list(range(len(channels)))] if scales == "fused" else _levels(scales, strides)
        count = len(self.levels)
        self.project = nn.ModuleList(
            TaskProjection([channels[i] for i in level], len(tasks), embed_dim) for level in self.levels
        )
        head_width = embed_dim // num_heads
        self.queries = nn.Parameter(torch.empty(count, len(tasks), num_queries, embed_dim))  # (S, T, N, C)
        # Positions are one head wide and the same for every head.
        self.query_pos = nn.Parameter(torch.empty(num_blocks, count, len(tasks), num_queries, head_width))
        self.key_pos = nn.Parameter(torch.empty(num_blocks, count, len(tasks), num_queries, head_width))
        for parameter in (self.queries, self.query_pos, self.key_pos):
            nn.init.trunc_normal_(parameter, std=0.02)
        self.encoders = nn.ModuleList(
            Encoder(embed_dim, num_heads, encoder_mlp_ratio, drop_path) for _ in range(num_blocks)
        )
        self.exchanges = nn.ModuleList(
            CrossTaskAttention(embed_dim, num_heads, cross_mlp_ratio, cross_drop_path, count, cross_attention)
            for _ in range(num_blocks)
        )
        self.decoders = nn.ModuleList(
            Decoder(embed_dim, num_heads, decoder_mlp_ratio, drop_path) for _ in range(num_blocks)
        )
        self.predict = TaskPredictor(tasks, embed_dim, head_dim)

    def forward(self, features: list[Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        """Decode feature maps, fine to coarse, to ``{task: (B, C_task, *size)}``."""
        maps = [
            project([features[i] for i in level])  # (B, T, C, H_s, W_s)
            for level, project in zip(self.levels, self.project, strict=True)
        ]
        batch, num_tasks = maps[0].shape[:2]
        tokens = [x.flatten(0, 1).flatten(2).transpose(1, 2) for x in maps]  # S x (B*T, L_s, C)
        queries = self.queries.unsqueeze(0).expand(batch, -1, -1, -1, -1)  # (B, S, T, N, C)
        for block, (encode, exchange, decode) in enumerate(
            zip(self.encoders, self.exchanges, self.decoders, strict=True)
        ):
            gathered = [
                encode(_fold(queries[:, s]), x, _fold(self._positions(self.query_pos, block, s, batch)))
                for s, x in enumerate(tokens)
            ]
            queries = torch.stack([q.unflatten(0, (batch, num_tasks)) for q in gathered], dim=1)  # (B, S, T, N, C)
            queries = exchange(queries)
            tokens = [
                decode(x, _fold(queries[:, s]), _fold(self._positions(self.key_pos, block, s, batch)))
                for s, x in enumerate(tokens)
            ]
        decoded = [x.transpose(1, 2).unflatten(2, m.shape[-2:]) for x, m in zip(tokens, maps, strict=True)]
        finest = decoded[0]  # (B*T, C, H, W)
        for coarser in decoded[1:]:
            finest = finest + resize(coarser, finest.shape[-2:])
        outputs: dict[str, Tensor] = self.predict(F.gelu(finest).unflatten(0, (batch, num_tasks)), size)
        return outputs

    def _positions(self, positions: Tensor, block: int, scale: int, batch: int) -> Tensor:
        """Positions of one block and scale, repeated for every head and image: ``(B, T, N, C)``."""
        heads = self.queries.shape[-1] // positions.shape[-1]
        return positions[block, scale].repeat(1, 1, heads).expand(batch, -1, -1, -1)


def _fold(x: Tensor) -> Tensor:
    """Fold tasks into the batch: ``(B, T, N, C)`` -> ``(B*T, N, C)``."""
    return x.flatten(0, 1)


def _levels(scales: Sequence[int], strides: Sequence[int]) -> list[list[int]]:
    """Index of the backbone map for each scale, finest first."""
    if not scales or not set(scales) <= set(strides):
        msg = f"scales must be 'fused' or some of the backbone's strides {list(strides)}, got {scales!r}"
        raise ConfigError(msg)
    return [[list(strides).index(scale)] for scale in sorted(set(scales))]
