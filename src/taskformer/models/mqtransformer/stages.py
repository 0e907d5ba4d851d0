"""The three stages of a round of MQTransformer, each in the clean and in the released wiring.

Queries gather from tokens (:class:`Encoder`), exchange (:class:`CrossTaskAttention`), and are read by the tokens
(:class:`Decoder`). Their attentions are in ``attention.py``; ``head.py`` puts the rounds together.

Notation of the shape comments: B images, T tasks, S scales, N queries per task and scale, C channels of tokens and
queries, L tokens of one scale.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from taskformer.models.layers import after, stochastic_depth, zero
from taskformer.models.mqtransformer.attention import (
    Attention,
    Gathering,
    Memory,
    Reading,
    attention_weights,
    normalise,
)

CrossAttention = Literal["separate", "joint", "none"]
Wiring = Literal["clean", "released"]

#: Tokens that are decoded at a time: on a CPU what its caches hold, else what keeps all cores busy.
CPU_TILE, TILE = 2048, 65536


class Encoder(nn.Module):
    """Queries gather from the tokens of one task and scale."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.attention = Gathering(dim, num_heads)
        self.norm = nn.LayerNorm(dim)
        self.mix = nn.Linear(dim, dim, bias=False)
        self.mlp = MLP(dim, mlp_ratio)
        self.drop_path = stochastic_depth(drop_path)

    def forward(self, queries: Tensor, tokens: Tensor, query_pos: Tensor) -> Tensor:
        """Update queries ``(B or 1, N, C)`` from normalised tokens ``(B, L, C)``: ``(B, N, C)``."""
        queries = queries + self.drop_path(self.attention(queries + query_pos, tokens))
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
        mode: ``"separate"``: all tasks of one scale, then all scales of one task; ``"joint"``: everything at once;
            ``"none"``: every task keeps its queries to itself.
        wiring: Whose norms and biases.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        drop_path: float,
        num_scales: int,
        mode: CrossAttention,
        wiring: Wiring = "clean",
    ) -> None:
        super().__init__()
        self.joint = mode == "joint"
        layer = {"clean": SelfAttention, "released": ReleasedSelfAttention}[wiring]
        separate_scales = num_scales > 1 and mode == "separate"
        self.between_tasks = None if mode == "none" else layer(dim, num_heads, mlp_ratio, drop_path)
        self.between_scales = layer(dim, num_heads, mlp_ratio, drop_path) if separate_scales else None

    def forward(self, queries: Tensor) -> Tensor:
        """Update queries ``(B, S, T, N, C)``."""
        batch, scales, tasks, count, _ = queries.shape
        result = queries
        if self.between_tasks is not None and self.joint:
            result = self.between_tasks(queries.flatten(1, 3)).view_as(queries)  # over (B, S*T*N, C)
        elif self.between_tasks is not None:
            same_scale = self.between_tasks(queries.reshape(batch * scales, tasks * count, -1))  # (B*S, T*N, C)
            result = same_scale.view(batch, scales, tasks, count, -1)
        if self.between_scales is not None:
            same_task = self.between_scales(result.transpose(1, 2).reshape(batch * tasks, scales * count, -1))
            result = same_task.view(batch, tasks, scales, count, -1).transpose(1, 2)
        return result


class Decoder(nn.Module):
    """Tokens of one task and scale read what its queries now know."""

    #: Residual branches.
    branches = 2

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.attention = Reading(dim, num_heads)
        self.mlp = MLP(dim, mlp_ratio)
        self.drop_path = stochastic_depth(drop_path)

    def forward(
        self, tokens: Tensor, normalised: Tensor | None, queries: Tensor, key_pos: Tensor, checkpointing: bool = False
    ) -> Tensor:
        """Update tokens.

        Args:
            tokens: ``(B, L, C)``.
            normalised: The same, normalised; None: they are normalised tile by tile.
            queries: ``(B, N, C)``.
            key_pos: Their positions ``(N, C)``.
            checkpointing: Keep nothing but the tokens for the backward pass.
        """
        drops = self._drops(tokens.shape[0], tokens)
        memory = self.attention.remember(queries, key_pos, drops[0])
        if torch.compiler.is_compiling() or not (checkpointing or not torch.is_grad_enabled()):
            return self._read(tokens, normalised, memory, drops)
        tile = max(1, (CPU_TILE if tokens.is_cpu else TILE) // tokens.shape[0])
        if not torch.is_grad_enabled():
            return torch.cat([self._read(x, None, memory, drops) for x in tokens.split(tile, dim=1)], dim=1)
        tiles = [
            checkpoint(self._read, x, None, memory, drops, use_reentrant=False, preserve_rng_state=False)
            for x in tokens.split(tile, dim=1)
        ]
        return torch.cat(tiles, dim=1)

    def _read(
        self, tokens: Tensor, normalised: Tensor | None, memory: Memory, drops: Sequence[Tensor | None]
    ) -> Tensor:
        """Update tokens ``(B, L, C)`` one by one; none sees another."""
        normalised = normalise(tokens) if normalised is None else normalised
        tokens = self.attention(tokens, normalised, memory, drops[0])
        return add(tokens, self.mlp(tokens), drops[1])

    def _drops(self, batch: int, like: Tensor) -> list[Tensor | None]:
        """Draw each image's factor ``(B, 1, 1)`` of each residual branch, once for all of its tokens."""
        if not self.training or not self.drop_path.drop_prob:
            return [None] * self.branches
        return [self.drop_path(like.new_ones(batch, 1, 1)) for _ in range(self.branches)]


class ReleasedDecoder(Decoder):
    """The decoder of the released program, as it acts on one image.

    Its second attention runs over the images of the batch. Over one image it is a linear map, ``out(value(tokens))``;
    its residual starts from the tokens as they were.
    """

    branches = 4

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__(dim, num_heads, mlp_ratio, drop_path)
        self.value, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.last_mlp = MLP(dim, mlp_ratio)

    def _read(
        self, tokens: Tensor, normalised: Tensor | None, memory: Memory, drops: Sequence[Tensor | None]
    ) -> Tensor:
        """Update tokens ``(B, L, C)``."""
        read = super()._read(tokens, normalised, memory, drops)
        weight = self.out.weight @ self.value.weight  # two maps are one
        bias = self.out.weight @ self.value.bias + self.out.bias
        tokens = add(tokens, F.linear(read, weight, bias), drops[2])
        return add(tokens, self.last_mlp(tokens), drops[3])


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

    def weights(self, queries: Tensor) -> Tensor:
        """Return how much each query reads of each other: ``(B, h, M, M)``."""
        return self.attention.weights(queries, queries)


class ReleasedSelfAttention(nn.Module):
    """The layer of the released program: attention without a norm before it, two norms before the MLP."""

    #: Rate at which attention weights are dropped.
    dropout = 0.1

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q, self.to_v, self.out = (nn.Linear(dim, dim) for _ in range(3))
        self.to_k = nn.Linear(dim, dim, bias=False)  # a bias would drop out of the softmax
        self.norm = nn.LayerNorm(dim)
        self.mlp = MLP(dim, mlp_ratio)
        self.drop_path = stochastic_depth(drop_path)

    def forward(self, queries: Tensor) -> Tensor:
        """Let all queries of a set attend to each other."""
        q, k, v = (self._heads(to(queries)) for to in (self.to_q, self.to_k, self.to_v))
        attended = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        queries = queries + self.drop_path(self.out(attended.transpose(1, 2).flatten(2)))
        result: Tensor = queries + self.drop_path(self.mlp(self.norm(queries)))
        return result

    def weights(self, queries: Tensor) -> Tensor:
        """Return how much each query reads of each other: ``(B, h, M, M)``."""
        return attention_weights(self._heads(self.to_q(queries)), self._heads(self.to_k(queries)))

    def _heads(self, x: Tensor) -> Tensor:
        """Split ``(B, M, C)`` into heads ``(B, h, M, d)``."""
        heads: Tensor = x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return heads


class MLP(nn.Sequential):
    """Layer norm, expansion, GELU, projection.

    Args:
        dim: Width C.
        ratio: Hidden width over C.
    """

    def __init__(self, dim: int, ratio: float) -> None:
        hidden = int(dim * ratio)
        super().__init__(nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def silence(self) -> None:
        """Start with zero as the result."""
        zero(cast(nn.Linear, self[-1]))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., C)`` to ``(..., C)``."""
        norm, expand, _, project = self
        assert isinstance(norm, nn.LayerNorm)
        assert isinstance(expand, nn.Linear)
        assert isinstance(project, nn.Linear)
        # Tensors, not modules: what is computed again must see the parameters of this call, also of a functional one.
        normal = partial(F.layer_norm, normalized_shape=norm.normalized_shape, weight=norm.weight, bias=norm.bias)
        hidden = after(normal, partial(F.linear, weight=expand.weight, bias=expand.bias), x)
        return after(F.gelu, partial(F.linear, weight=project.weight, bias=project.bias), hidden)


def add(x: Tensor, branch: Tensor, factor: Tensor | None) -> Tensor:
    """Add a residual branch, times each image's factor ``(B, 1, 1)``, in the branch's memory."""
    return (branch if factor is None else branch.mul_(factor)).add_(x)
