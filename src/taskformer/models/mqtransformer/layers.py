"""The three stages of an MQTransformer block: shared encoder, cross-task attention, shared decoder."""

from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.nn import functional as F


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


class Encoder(nn.Module):
    """Queries gather from the tokens of their own task and scale; the same weights for all tasks and scales."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.attention = Attention(dim, num_heads)
        self.norm = nn.LayerNorm(dim)
        self.mix = nn.Linear(dim, dim, bias=False)
        self.mlp = MLP(dim, mlp_ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, queries: Tensor, tokens: Tensor, query_pos: Tensor) -> Tensor:
        """Update ``(B*T, N, C)`` queries from ``(B*T, L, C)`` tokens."""
        queries = queries + self.drop_path(self.attention(queries, tokens, query_pos=query_pos))
        queries = queries + self.mix(self.norm(queries))
        result: Tensor = queries + self.drop_path(self.mlp(queries))
        return result


class SelfAttention(nn.Module):
    """One pre-norm transformer layer over a set of queries ``(B, M, C)``."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.attention = Attention(dim, num_heads)
        self.mlp = MLP(dim, mlp_ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, queries: Tensor) -> Tensor:
        """Let all queries of a set attend to each other."""
        queries = queries + self.drop_path(self.attention(queries, queries))
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
        self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float, num_scales: int, mode: str
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
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, queries: Tensor, key_pos: Tensor) -> Tensor:
        """Update ``(B*T, L, C)`` tokens from ``(B*T, N, C)`` queries."""
        tokens = tokens + self.drop_path(self.attention(tokens, queries, key_pos=key_pos))
        result: Tensor = tokens + self.drop_path(self.mlp(tokens))
        return result
