"""Layers of the vision transformer: plain ones, and the sliced ones of the supernet that hold every narrower layer.

A sliced layer uses the first rows and columns of its weights; how many columns follows from the input's width. Layout
and numerics are AutoFormer's, so that its weights give its outputs; relative positions are computed another way.

Reference:
    Chen, Peng, Fu, Ling. AutoFormer: Searching Transformers for Visual Recognition. ICCV 2021. arXiv 2107.00651.
    Released code (MIT): github.com/microsoft/Cream, AutoFormer.
"""

import copy
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Self, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taskformer.models.layers import after, stochastic_depth

Affine = TypeVar("Affine", nn.Linear, nn.LayerNorm, nn.Conv2d)
Pair = tuple[int, int]


@dataclass(frozen=True)
class Variant:
    """In what transformers of the same sizes differ; the defaults are AutoFormer's.

    Args:
        prefix: Tokens before the patches': a class token, or none, and timm's register tokens. All of them have the
            class token's relative positions.
        norm_eps: What layer norms add to variances.
        aligned_bias: Whether heads take the entries of queries', keys' and values' bias that belong to their rows of
            the weight, as other transformers' do; see :class:`SlicedQKV`.
    """

    prefix: int = 1
    norm_eps: float = 1e-5
    aligned_bias: bool = False


AUTOFORMER = Variant()


class SlicedLinear(nn.Linear):
    """A linear layer that holds every narrower one in its first rows and columns."""

    def forward(self, x: Tensor, outputs: int | None = None) -> Tensor:
        """Map ``(..., any width)`` to the first ``outputs`` channels (None: all)."""
        return F.linear(x, *self.sliced(x.shape[-1], outputs or self.out_features))

    def sliced(self, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
        """Return the weight ``(outputs, inputs)`` and the bias of a narrower layer."""
        return self.weight[:outputs, :inputs], self.bias[:outputs]

    def narrowed(self, inputs: int, outputs: int) -> nn.Linear:
        """Copy a narrower layer out of this one."""
        return filled(nn.Linear(inputs, outputs), *self.sliced(inputs, outputs))


class SlicedQKV(SlicedLinear):
    """Query, key and value in one layer, in AutoFormer's layout.

    Rows of the weight are interleaved (q, k, v, q, k, v, ...), entries of AutoFormer's bias are not: with fewer heads,
    entries of the key's and the value's bias come from another place. Its weights were trained that way.

    Args:
        inputs: Channels of the tokens.
        outputs: Channels of queries, keys and values together.
        aligned_bias: Whether the bias is interleaved like the rows: the first heads keep their own entries.
    """

    def __init__(self, inputs: int, outputs: int, aligned_bias: bool = False) -> None:
        super().__init__(inputs, outputs)
        self.aligned_bias = aligned_bias

    def sliced(self, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
        """Return the weight ``(outputs, inputs)``, all of q's rows first, then k's and v's, and the bias."""
        bias = self.bias[:outputs]
        return parted(self.weight[:outputs, :inputs]), parted(bias) if self.aligned_bias else bias


class SlicedNorm(nn.LayerNorm):
    """A layer norm over the input's width, however narrow."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``(..., any width)``."""
        width = x.shape[-1]
        return F.layer_norm(x, (width,), self.weight[:width], self.bias[:width], self.eps)

    def narrowed(self, width: int) -> nn.LayerNorm:
        """Copy a narrower norm out of this one."""
        return filled(nn.LayerNorm(width, eps=self.eps), self.weight[:width], self.bias[:width])


class SlicedConv2d(nn.Conv2d):
    """A convolution that holds every narrower one in its first rows and columns."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``(B, any width, h, w)``."""
        result: Tensor = self._conv_forward(x, self.weight[:, : x.shape[1]], self.bias)
        return result

    def narrowed(self, inputs: int, outputs: int) -> nn.Conv2d:
        """Copy a narrower convolution out of this one."""
        kernel, stride, padding, dilation = (
            cast(Pair, side) for side in (self.kernel_size, self.stride, self.padding, self.dilation)
        )
        plain = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=self.bias is not None)
        return filled(plain, self.weight[:outputs, :inputs], None if self.bias is None else self.bias[:outputs])


class Grid(NamedTuple):
    """What attention knows about the grid of patches; P further tokens come before them, mostly one, the class token.

    A token's *place* is one-hot in three parts: is it one before the patches, in which row is it, in which column.

    Attributes:
        height: Patches h from top to bottom.
        width: Patches w from left to right.
        places: The place of each token, ``(P + h*w, 1 + h + w)``.
        vectors: For each token and each part of a place the number of the vector between them in
            :meth:`RelativePositions.table`, ``(P + h*w, 1 + h + w)``.
    """

    height: int
    width: int
    places: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, height: int, width: int, max_relative: int, like: Tensor, prefix: int = 1) -> Self:
        """Describe a grid with ``prefix`` tokens before it; ``like`` gives device and type."""
        rows, columns = (torch.eye(count, device=like.device, dtype=like.dtype) for count in (height, width))
        patches = torch.cat([_rows(rows, width), columns.repeat(height, 1)], dim=1)
        places = torch.block_diag(patches.new_ones(prefix, 1), patches)
        vertical, horizontal = (_distances(count, max_relative, like.device) for count in (height, width))
        first, none = 2 + 2 * max_relative, 3 + 4 * max_relative  # the first horizontal vector, the one of zeros
        # From patches: the class token's vector, then those by distance.
        to_rows = 1 + _rows(vertical, width)  # (h*w, h)
        to_columns = first + horizontal.repeat(height, 1)  # (h*w, w)
        from_patches = torch.cat([torch.zeros_like(to_rows[:, :1]), to_rows, to_columns], dim=1)
        # From the class token: its vector to every token once, as every patch has one row.
        from_class = from_patches.new_zeros(prefix, 1 + height + width)
        from_class[:, 1 + height :] = none
        return cls(height, width, places, torch.cat([from_class, from_patches]))


class RelativePositions(nn.Module):
    """A learned vector for every vertical and every horizontal distance, clamped, and one pair for the class token.

    Args:
        head_dim: Channels d.
        max_relative: Distance from which on all are equal.

    Attributes:
        vertical: Row 0: from or to the class token; then distances ``-max_relative .. max_relative``.
        horizontal: The same.
    """

    def __init__(self, head_dim: int, max_relative: int) -> None:
        super().__init__()
        self.vertical = nn.Parameter(torch.empty(2 * max_relative + 2, head_dim))
        self.horizontal = nn.Parameter(torch.empty(2 * max_relative + 2, head_dim))
        for table in (self.vertical, self.horizontal):
            nn.init.trunc_normal_(table, std=0.02)

    def towards(self, queries: Tensor, grid: Grid) -> Tensor:
        """Multiply each query ``(B, heads, N, d)`` with its vectors to every place: ``(B, heads, N, 1 + h + w)``."""
        products = queries @ self.table().T
        return products.gather(-1, grid.vectors.expand(*queries.shape[:2], -1, -1))

    def mixed(self, attention: Tensor, grid: Grid) -> Tensor:
        """Sum each token's vectors to every place, weighted by ``(B, heads, N, 1 + h + w)``: ``(B, heads, N, d)``."""
        table = self.table()
        weights = attention.new_zeros(*attention.shape[:3], len(table))
        return weights.scatter_add(-1, grid.vectors.expand_as(attention), attention) @ table

    def table(self) -> Tensor:
        """Return all vectors: the class token's, then by vertical, then by horizontal distance, then zeros."""
        own = self.vertical[:1] + self.horizontal[:1]
        return torch.cat([own, self.vertical[1:], self.horizontal[1:], torch.zeros_like(own)])


class RelativeAttention(nn.Module):
    """Self-attention with relative positions on keys and values.

    AutoFormer adds a vector to every key and every value that depends on the pair of tokens, N * N * d numbers. As
    that vector is a vertical plus a horizontal one, a query need only be multiplied with the few different vectors,
    and the attention need only be known per row and column of the grid. Keys and values therefore get the one-hot
    place of their token as further channels, and queries get those products: exactly the same, much cheaper.

    Args:
        head_dim: Channels d of one head.
        max_relative: See :class:`RelativePositions`.
    """

    def __init__(self, head_dim: int, max_relative: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.keys = RelativePositions(head_dim, max_relative)
        self.values = RelativePositions(head_dim, max_relative)

    def forward(self, qkv: Tensor, grid: Grid) -> Tensor:
        """Attend within ``(B, N, 3 * heads * d)``; returns ``(B, N, heads * d)``."""
        q, k, v = split_heads(qkv, self.head_dim)
        attend = attend_fused if qkv.is_cuda else attend_by_products
        mixture, attention = attend(q, k, v, self.keys.towards(q, grid), grid.places.to(q.dtype))
        result: Tensor = mixture + self.values.mixed(attention, grid)
        return result.transpose(1, 2).flatten(2)


class PlainAttention(nn.Module):
    """Self-attention that knows nothing of positions, called like :class:`RelativeAttention`.

    Args:
        head_dim: Channels d of one head.
    """

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim

    def forward(self, qkv: Tensor, grid: Grid) -> Tensor:
        """Attend within ``(B, N, 3 * heads * d)``; returns ``(B, N, heads * d)``."""
        return F.scaled_dot_product_attention(*split_heads(qkv, self.head_dim)).transpose(1, 2).flatten(2)


def attention_with(head_dim: int, max_relative: int) -> RelativeAttention | PlainAttention:
    """Build the attention with relative positions up to a distance, or with none for 0."""
    return RelativeAttention(head_dim, max_relative) if max_relative else PlainAttention(head_dim)


def split_heads(qkv: Tensor, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split ``(B, N, 3 * heads * d)`` into queries, keys and values ``(B, heads, N, d)``."""
    q, k, v = qkv.unflatten(-1, (3, -1, head_dim)).permute(2, 0, 3, 1, 4).contiguous()
    return q, k, v


def attend_fused(q: Tensor, k: Tensor, v: Tensor, biases: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Attend in one kernel that never holds N * N numbers.

    Args:
        q: Queries ``(B, heads, N, d)``.
        k: Keys.
        v: Values.
        biases: For each query and place, what is added to its products with the keys there, ``(B, heads, N, P)``.
        places: The place of each token, one-hot in several parts, ``(N, P)``.

    Returns:
        The mixture of the values ``(B, heads, N, d)``, and how much of it is from each place ``(B, heads, N, P)``.
    """
    d = q.shape[-1]
    expanded = places.expand(*q.shape[:2], -1, -1)
    attended = F.scaled_dot_product_attention(
        torch.cat([q, biases], -1), torch.cat([k, expanded], -1), torch.cat([v, expanded], -1), scale=d**-0.5
    )
    return attended[..., :d], attended[..., d:]


def attend_by_products(q: Tensor, k: Tensor, v: Tensor, biases: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Do as :func:`attend_fused` in separate products: faster on a CPU, and torch's operation counter sees them."""
    scale = q.shape[-1] ** -0.5
    heads = q.shape[:2]
    q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    logits = torch.baddbmm(biases.flatten(0, 1) @ places.T, q, k.transpose(1, 2), beta=scale, alpha=scale)
    attention = logits.softmax(dim=-1)
    return (attention @ v).unflatten(0, heads), (attention @ places).unflatten(0, heads)


def gelu(x: Tensor) -> Tensor:
    """Return the exact GELU computed in float32 whatever the input's type, as AutoFormer does."""
    return F.gelu(x.float()).type_as(x)


class Attention(nn.Module):
    """Pre-norm residual self-attention, mostly with relative positions.

    Args:
        embed_dim: Width E of the tokens.
        num_heads: Attention heads.
        head_dim: Channels of one head.
        max_relative: See :class:`RelativePositions`; 0: without relative positions.
        drop_path: Stochastic depth rate, per sample.
    """

    def __init__(self, embed_dim: int, num_heads: int, head_dim: int, max_relative: int, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim)
        self.qkv = nn.Linear(embed_dim, 3 * num_heads * head_dim)
        self.relative = attention_with(head_dim, max_relative)
        self.proj = nn.Linear(num_heads * head_dim, embed_dim)
        self.drop_path = stochastic_depth(drop_path)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Update tokens ``(B, N, E)``."""
        result: Tensor = x + self.drop_path(self.proj(self.relative(self.qkv(self.norm(x)), grid)))
        return result


class MLP(nn.Module):
    """Pre-norm residual MLP of one hidden layer.

    Args:
        embed_dim: Width E of the tokens.
        hidden: Width of the hidden layer.
        drop_path: Stochastic depth rate, per sample.
    """

    def __init__(self, embed_dim: int, hidden: int, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(embed_dim)
        self.fc1 = nn.Linear(embed_dim, hidden)
        self.fc2 = nn.Linear(hidden, embed_dim)
        self.drop_path = stochastic_depth(drop_path)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:  # the grid: called like an attention
        """Update tokens ``(B, N, E)``."""
        result: Tensor = x + self.drop_path(after(gelu, self.fc2, self.fc1(self.norm(x))))
        return result


class SuperAttention(nn.Module):
    """All :class:`Attention` layers of up to this many channels and heads. Arguments as there."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        head_dim: int,
        max_relative: int,
        drop_path: float,
        variant: Variant = AUTOFORMER,
    ) -> None:
        super().__init__()
        self.max_relative = max_relative
        self.norm = SlicedNorm(embed_dim, variant.norm_eps)
        self.qkv = initialised(SlicedQKV(embed_dim, 3 * num_heads * head_dim, variant.aligned_bias))
        self.relative = attention_with(head_dim, max_relative)
        self.proj = initialised(SlicedLinear(num_heads * head_dim, embed_dim))
        self.drop_path = stochastic_depth(drop_path)

    def forward(self, x: Tensor, grid: Grid, width: int) -> Tensor:
        """Update tokens ``(B, N, E)`` with the first ``width`` heads."""
        qkv = self.qkv(self.norm(x), 3 * width * self.relative.head_dim)
        result: Tensor = x + self.drop_path(self.proj(self.relative(qkv, grid), x.shape[-1]))
        return result

    def narrowed(self, embed_dim: int, num_heads: int) -> Attention:
        """Copy one layer out of this one."""
        head_dim = self.relative.head_dim
        plain = Attention(embed_dim, num_heads, head_dim, self.max_relative, self.drop_path.drop_prob)
        plain.norm = self.norm.narrowed(embed_dim)
        plain.qkv = self.qkv.narrowed(embed_dim, 3 * num_heads * head_dim)
        plain.relative = copy.deepcopy(self.relative)
        plain.proj = self.proj.narrowed(num_heads * head_dim, embed_dim)
        return plain


class SuperMLP(nn.Module):
    """All :class:`MLP` layers of up to this many channels. Arguments as there."""

    def __init__(self, embed_dim: int, hidden: int, drop_path: float, variant: Variant = AUTOFORMER) -> None:
        super().__init__()
        self.norm = SlicedNorm(embed_dim, variant.norm_eps)
        self.fc1 = initialised(SlicedLinear(embed_dim, hidden))
        self.fc2 = initialised(SlicedLinear(hidden, embed_dim))
        self.drop_path = stochastic_depth(drop_path)

    def forward(self, x: Tensor, grid: Grid, width: int) -> Tensor:  # the grid: called like an attention
        """Update tokens ``(B, N, E)`` through the first ``width`` hidden channels."""
        out = partial(self.fc2, outputs=x.shape[-1])
        result: Tensor = x + self.drop_path(after(gelu, out, self.fc1(self.norm(x), width)))
        return result

    def narrowed(self, embed_dim: int, hidden: int) -> MLP:
        """Copy one layer out of this one."""
        plain = MLP(embed_dim, hidden, self.drop_path.drop_prob)
        plain.norm = self.norm.narrowed(embed_dim)
        plain.fc1 = self.fc1.narrowed(embed_dim, hidden)
        plain.fc2 = self.fc2.narrowed(hidden, embed_dim)
        return plain


class Stem(nn.Module):
    """Image to tokens: patches, P further tokens before them (mostly one, the class token), learned positions.

    Args:
        embed_dim: Width E of the tokens.
        patch_size: Side of a patch in pixels.
        grid: Patches (h, w) that the positions are stored for; other grids get them resampled.
        prefix: P, the number of tokens before the patches.
    """

    def __init__(self, embed_dim: int, patch_size: int, grid: tuple[int, int], prefix: int = 1) -> None:
        super().__init__()
        self.grid = grid
        self.prefix = prefix
        self.project = nn.Conv2d(3, embed_dim, kernel_size=patch_size, stride=patch_size)
        self.cls_token = nn.Parameter(torch.empty(1, prefix, embed_dim))
        self.pos_embed = nn.Parameter(torch.empty(1, prefix + grid[0] * grid[1], embed_dim))
        for parameter in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, image: Tensor) -> Tensor:
        """Turn ``(B, 3, H, W)``, whole patches, into tokens ``(B, P + h*w, E)``."""
        return self._tokens(self.project(image), self.cls_token, self.pos_embed)

    def _tokens(self, patches: Tensor, cls_token: Tensor, pos_embed: Tensor) -> Tensor:
        batch, _, height, width = patches.shape
        tokens = torch.cat([cls_token.expand(batch, -1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
        return tokens + resample_positions(pos_embed, self.grid, (height, width), self.prefix)


class SuperStem(Stem):
    """All stems of up to this many channels."""

    def forward(self, image: Tensor, embed_dim: int | None = None) -> Tensor:
        """Turn ``(B, 3, H, W)``, whole patches, into tokens ``(B, P + h*w, embed_dim)``."""
        weight, bias, cls_token, pos_embed = self._sliced(embed_dim or self.cls_token.shape[-1])
        return self._tokens(F.conv2d(image, weight, bias, self.project.stride), cls_token, pos_embed)

    def narrowed(self, embed_dim: int) -> Stem:
        """Copy one stem out of this one."""
        weight, bias, cls_token, pos_embed = self._sliced(embed_dim)
        plain = Stem(embed_dim, weight.shape[-1], self.grid, self.prefix)
        filled(plain.project, weight, bias)
        plain.cls_token = nn.Parameter(cls_token.detach().clone())
        plain.pos_embed = nn.Parameter(pos_embed.detach().clone())
        return plain

    def _sliced(self, width: int) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        bias = self.project.bias
        return (
            self.project.weight[:width],
            None if bias is None else bias[:width],
            self.cls_token[..., :width],
            self.pos_embed[..., :width],
        )


def resample_positions(pos_embed: Tensor, grid: tuple[int, int], new_grid: tuple[int, int], prefix: int = 1) -> Tensor:
    """Resample learned positions ``(1, P + h*w, E)`` bicubically to another grid; the first P tokens keep theirs."""
    if grid == new_grid:
        return pos_embed
    maps = pos_embed[:, prefix:].transpose(1, 2).unflatten(2, grid)  # (1, E, h, w)
    resampled = F.interpolate(maps, new_grid, mode="bicubic", align_corners=False)
    return torch.cat([pos_embed[:, :prefix], resampled.flatten(2).transpose(1, 2)], dim=1)


def initialised(layer: SlicedLinear) -> SlicedLinear:
    """Start a layer as AutoFormer does."""
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


@torch.no_grad()
def filled(layer: Affine, weight: Tensor, bias: Tensor | None) -> Affine:
    """Copy weights into a layer, which takes on their device and type."""
    layer.to(weight.device, weight.dtype)
    layer.weight.copy_(weight)
    if layer.bias is not None and bias is not None:
        layer.bias.copy_(bias)
    return layer


def parted(rows: Tensor) -> Tensor:
    """Sort rows (q, k, v, q, k, v, ...) by kind: all of q's first, then k's and v's."""
    result: Tensor = rows.unflatten(0, (-1, 3)).transpose(0, 1).flatten(0, 1)
    return result


def interleaved(rows: Tensor) -> Tensor:
    """Undo :func:`parted`."""
    result: Tensor = rows.unflatten(0, (3, -1)).transpose(0, 1).flatten(0, 1)
    return result


def _rows(values: Tensor, width: int) -> Tensor:
    """Repeat what each row of the grid has, ``(h, n)``, for all patches in it: ``(h*w, n)``."""
    return values[:, None].expand(-1, width, -1).flatten(0, 1)


def _distances(count: int, max_relative: int, device: torch.device) -> Tensor:
    """Return the clamped distance from each of some places to each, from 0 on: ``(count, count)``."""
    places = torch.arange(count, device=device)
    return (places - places[:, None]).clamp(-max_relative, max_relative) + max_relative
