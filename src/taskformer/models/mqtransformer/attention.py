"""Attention between a few queries and very many tokens, with as little work per token as there can be.

Queries and tokens meet in two directions: :class:`Gathering`, queries attend to tokens, and :class:`Reading`, tokens
attend to queries. Both are :class:`Attention`, the plain form for queries among themselves, computed in another order:

* The three norms of the tokens differ in their affine parts only, which are moved into the projections. The tokens are
  normalised once, without affine parts (:func:`normalise`).
* A product of tokens, a projection and queries is the same whichever factor goes first. Where the queries of all heads
  are no more than the channels, the projection is multiplied into the queries (*absorbed*): the tokens, a thousand
  times as many, are then never projected at all.
* What is constant along the keys drops out of a softmax: keys need no bias. Attention weights sum to one: a bias of the
  values passes through unchanged.

No forward pass forms the weights of its attention in full. Each class's ``weights`` computes them, of the same
arguments, for whoever looks inside.

Notation of the shape comments: B images, N queries, L tokens, C channels, h heads of d channels.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taskformer.models.layers import zero


def normalise(tokens: Tensor) -> Tensor:
    """Bring each token ``(..., C)`` to mean 0 and variance 1: a layer norm without scale and shift."""
    return F.layer_norm(tokens, tokens.shape[-1:])


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """Return how much each query ``(B, h, N, d)`` reads of each key ``(B, h, L, d)``: ``(B, h, N, L)``."""
    scores: Tensor = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    return scores.softmax(-1)


class MultiHead(nn.Module):
    """The parameters of all attentions: a norm and a projection each for query, key and value, and one of the result.

    Args:
        dim: Width C.
        num_heads: Attention heads.

    Attributes:
        obsolete: Names of tensors that older weights hold and that never had an effect.
    """

    obsolete = ("norm_k.bias",)

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        # A shift of the keys' norm would add the same number to all of a query's scores.
        self.norm_q, self.norm_k, self.norm_v = nn.LayerNorm(dim), nn.LayerNorm(dim, bias=False), nn.LayerNorm(dim)
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.out = nn.Linear(dim, dim)

    def silence(self) -> None:
        """Start with zero as the result."""
        zero(self.out)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        """Leave out of older weights what is obsolete."""
        for name in self.obsolete:
            state_dict.pop(f"{prefix}{name}", None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _absorbs(self, count: int) -> bool:
        """Tell whether to multiply projections into this many queries and not into the tokens."""
        return count * self.num_heads <= self.to_q.in_features

    def _heads(self, x: Tensor) -> Tensor:
        """Split ``(B, N, C)`` into heads ``(B, h, N, d)``."""
        heads: Tensor = x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return heads

    def _joined(self, attended: Tensor) -> Tensor:
        """Join heads ``(B, h, N, d)`` and project to ``(B, N, C)``."""
        result: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return result

    def _per_head(self, weight: Tensor) -> Tensor:
        """Split a projection ``(C, C)`` by its outputs: ``(h, d, C)``."""
        heads: Tensor = weight.unflatten(0, (self.num_heads, -1))
        return heads


class Attention(MultiHead):
    """Pre-norm multi-head attention of queries ``(B, N, C)`` over a memory ``(B, M, C)``, in the plain order.

    >>> tuple(Attention(dim=8, num_heads=2)(torch.zeros(1, 3, 8), torch.zeros(1, 5, 8)).shape)
    (1, 3, 8)
    """

    def forward(self, query: Tensor, memory: Tensor) -> Tensor:
        """Attend."""
        q = self._heads(self.to_q(self.norm_q(query)))
        k = self._heads(self.to_k(self.norm_k(memory)))
        v = self._heads(self.to_v(self.norm_v(memory)))
        return self._joined(F.scaled_dot_product_attention(q, k, v))

    def weights(self, query: Tensor, memory: Tensor) -> Tensor:
        """Return how much each query reads of each entry of the memory: ``(B, h, N, M)``."""
        return attention_weights(
            self._heads(self.to_q(self.norm_q(query))), self._heads(self.to_k(self.norm_k(memory)))
        )


class Gathering(MultiHead):
    """Queries ``(B, N, C)`` attend to normalised tokens ``(B, L, C)``."""

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """Attend; ``queries`` may be the same for all images, ``(1, N, C)``."""
        q = self._heads(self.to_q(self.norm_q(queries)))
        keys = self.to_k.weight * self.norm_k.weight
        values, shift = self.to_v.weight * self.norm_v.weight, self.to_v.weight @ self.norm_v.bias
        if not self._absorbs(q.shape[2]):
            k, v = self._heads(F.linear(tokens, keys)), self._heads(F.linear(tokens, values, shift))
            return self._joined(F.scaled_dot_product_attention(q.expand(k.shape[0], -1, -1, -1), k, v))
        scaled = q * q.shape[-1] ** -0.5 @ self._per_head(keys)  # (B, h, N, C)
        weights = (scaled.flatten(1, 2) @ tokens.transpose(1, 2)).softmax(-1)  # (B, h*N, L)
        seen = (weights @ tokens).unflatten(1, (self.num_heads, -1))  # (B, h, N, C)
        return self._joined(seen @ self._per_head(values).transpose(1, 2) + shift.view(self.num_heads, 1, -1))

    def weights(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """Return how much each query gathers from each token: ``(B, h, N, L)``."""
        q = self._heads(self.to_q(self.norm_q(queries)))
        return attention_weights(q, self._heads(F.linear(tokens, self.to_k.weight * self.norm_k.weight)))


class Memory(NamedTuple):
    """What tokens read: the queries of one task, ready to be multiplied with tokens.

    Attributes:
        keys: Absorbed ``(B, h*N, C)``, or by head ``(B, h, N, d)``.
        shift: Absorbed: what the shift of the tokens' norm adds to the scores, ``(B, 1, h*N)``.
        values: Absorbed ``(B, h*N, C)``, or by head ``(B, h, N, d)``.
    """

    keys: Tensor
    shift: Tensor | None
    values: Tensor


class Reading(MultiHead):
    """Normalised tokens ``(B, L, C)`` attend to queries ``(B, N, C)``."""

    def remember(self, queries: Tensor, key_pos: Tensor, drop_path: Tensor | None) -> Memory:
        """Prepare the queries.

        Args:
            queries: ``(B, N, C)``.
            key_pos: Their positions, ``(N, C)``.
            drop_path: Factor of each image's branch, ``(B, 1, 1)``.
        """
        k = self._heads(self.to_k(self.norm_k(queries + key_pos)))
        v = self._heads(self.to_v(self.norm_v(queries)))
        if not self._absorbs(k.shape[2]):
            return Memory(k, None, v)
        k = k * k.shape[-1] ** -0.5
        keys = k @ self._per_head(self.to_q.weight * self.norm_q.weight)  # (B, h, N, C)
        shift = k @ self._per_head((self.to_q.weight @ self.norm_q.bias).unsqueeze(1))  # (B, h, N, 1)
        # Each head's weights sum to one, so that every head can bring its share of the bias.
        values = v @ self._per_head(self.out.weight.T) + self.out.bias / self.num_heads  # (B, h, N, C)
        values = values.flatten(1, 2)
        return Memory(
            keys.flatten(1, 2), shift.flatten(1).unsqueeze(1), values if drop_path is None else values * drop_path
        )

    def forward(self, residual: Tensor, tokens: Tensor, memory: Memory, drop_path: Tensor | None) -> Tensor:
        """Add to ``residual`` ``(B, L, C)`` what the normalised tokens read."""
        if memory.shift is None:
            weight = self.to_q.weight
            q = self._heads(F.linear(tokens, weight * self.norm_q.weight, weight @ self.norm_q.bias))
            attended = self._joined(F.scaled_dot_product_attention(q, memory.keys, memory.values))
            return residual + (attended if drop_path is None else attended * drop_path)
        scores = torch.baddbmm(memory.shift, tokens, memory.keys.transpose(1, 2))  # (B, L, h*N)
        weights = scores.unflatten(-1, (self.num_heads, -1)).softmax(-1).flatten(2)
        return torch.baddbmm(residual, weights, memory.values)

    def weights(self, tokens: Tensor, queries: Tensor, key_pos: Tensor) -> Tensor:
        """Return how much each normalised token reads of each query at its position: ``(B, h, L, N)``."""
        weight = self.to_q.weight
        q = self._heads(F.linear(tokens, weight * self.norm_q.weight, weight @ self.norm_q.bias))
        return attention_weights(q, self._heads(self.to_k(self.norm_k(queries + key_pos))))
