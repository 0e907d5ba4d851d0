"""AutoFormer written out plainly and slowly: what the supernet of this library has to equal, and is compared with.

A re-statement of the published computation (AutoFormer, arXiv 2107.00651; microsoft/Cream, commit 4a13c40) from its
description, under the names of its state dict. Every step is done as the original does it: weights are sliced, the rows
of queries, keys and values are interleaved while their bias is contiguous, relative positions are looked up as one
vector for each pair of tokens, and GELU runs in float32. It shares no code with the library.

A *sub-network* is any object with ``embed_dim``, ``depth``, ``mlp_ratio`` and ``num_heads``, the last two per layer.
"""

from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

HEAD_DIM = 64
PATCH_SIZE = 16


@dataclass(frozen=True)
class SubNetwork:
    """One sub-network.

    Attributes:
        embed_dim: Width of the tokens.
        depth: Number of layers.
        mlp_ratio: Per layer, hidden width of the MLP over ``embed_dim``.
        num_heads: Per layer, attention heads of 64 channels.
    """

    embed_dim: int
    depth: int
    mlp_ratio: tuple[float, ...]
    num_heads: tuple[int, ...]


SUPERNETS: dict[str, dict[str, int]] = {
    "tiny": {"embed_dim": 256, "depth": 14, "num_heads": 4},
    "small": {"embed_dim": 448, "depth": 14, "num_heads": 7},
    "base": {"embed_dim": 640, "depth": 16, "num_heads": 10},
}
CHOICES: dict[str, dict[str, tuple[Any, ...]]] = {
    "tiny": {"embed_dim": (192, 216, 240), "depth": (12, 13, 14), "mlp_ratio": (3.5, 4), "num_heads": (3, 4)},
    "small": {"embed_dim": (320, 384, 448), "depth": (12, 13, 14), "mlp_ratio": (3, 3.5, 4), "num_heads": (5, 6, 7)},
    "base": {"embed_dim": (528, 576, 624), "depth": (14, 15, 16), "mlp_ratio": (3, 3.5, 4), "num_heads": (9, 10)},
}
PUBLISHED: dict[str, SubNetwork] = {
    "tiny": SubNetwork(
        embed_dim=192,
        depth=13,
        mlp_ratio=(3.5, 3.5, 3, 3.5, 3, 3, 4, 4, 3.5, 4, 3.5, 4, 3.5),
        num_heads=(3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 4, 3, 3),
    ),
    "small": SubNetwork(
        embed_dim=384,
        depth=13,
        mlp_ratio=(3, 3.5, 3, 3.5, 4, 4, 4, 4, 4, 4, 4, 3.5, 4),
        num_heads=(6, 6, 5, 7, 5, 5, 5, 6, 6, 7, 7, 6, 7),
    ),
    "base": SubNetwork(
        embed_dim=576,
        depth=14,
        mlp_ratio=(3.5, 3.5, 4, 3.5, 4, 3.5, 3.5, 3, 4, 4, 3, 4, 3, 3.5),
        num_heads=(9, 9, 9, 9, 9, 10, 9, 9, 10, 9, 10, 9, 9, 10),
    ),
}


class PlainAutoFormer(nn.Module):
    """The super-network of AutoFormer, run as one sub-network at a time.

    Args:
        embed_dim: Largest width.
        depth: Largest number of layers.
        num_heads: Largest number of heads.
        mlp_ratio: Largest hidden width of the MLPs over ``embed_dim``.
        image_size: Side of the square images, in pixels.
        num_classes: Number of classes.
        global_pool: Classify the mean of the patch tokens; otherwise the class token.
        drop_path: Rate of stochastic depth in the last layer; grows linearly from 0 in the first.
    """

    def __init__(
        self,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float = 4,
        image_size: int = 224,
        num_classes: int = 1000,
        global_pool: bool = True,
        drop_path: float = 0.1,
    ) -> None:
        super().__init__()
        self.global_pool = global_pool
        self.patch_embed_super = PatchEmbed(embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (image_size // PATCH_SIZE) ** 2, embed_dim))
        rates = [drop_path * layer / (depth - 1) for layer in range(depth)]
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio, rate) for rate in rates)
        self.norm = nn.LayerNorm(embed_dim)
        self.head = nn.Linear(embed_dim, num_classes)
        for name, parameter in self.named_parameters():
            if name.endswith(("pos_embed", "cls_token", "table_v", "table_h")):
                nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward_features(self, image: Tensor, sub: Any) -> Tensor:
        """Turn images ``(B, 3, S, S)`` into the vectors ``(B, E)`` that are classified."""
        width = sub.embed_dim
        tokens = self.patch_embed_super(image, width)
        tokens = torch.cat([self.cls_token[..., :width].expand(len(image), -1, -1), tokens], dim=1)
        tokens = tokens + self.pos_embed[..., :width]  # (B, N, E)
        for layer in range(sub.depth):
            tokens = self.blocks[layer](tokens, sub.num_heads[layer], int(width * sub.mlp_ratio[layer]))
        tokens = layer_norm(self.norm, tokens)
        return tokens[:, 1:].mean(dim=1) if self.global_pool else tokens[:, 0]

    def forward_head(self, features: Tensor) -> Tensor:
        """Turn the vectors ``(B, E)`` into logits ``(B, num_classes)``."""
        return F.linear(features, self.head.weight[:, : features.shape[-1]], self.head.bias)

    def forward(self, image: Tensor, sub: Any) -> Tensor:
        """Classify images.

        Args:
            image: Images ``(B, 3, S, S)``.
            sub: The sub-network.

        Returns:
            Logits ``(B, num_classes)``.
        """
        return self.forward_head(self.forward_features(image, sub))


class PatchEmbed(nn.Module):
    """Patches to tokens."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, PATCH_SIZE, PATCH_SIZE)

    def forward(self, image: Tensor, width: int) -> Tensor:
        """Turn images ``(B, 3, S, S)`` into tokens ``(B, P, width)``, row by row."""
        maps = F.conv2d(image, self.proj.weight[:width], self.proj.bias[:width], stride=PATCH_SIZE)
        return maps.flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Attention and MLP, each after a layer normalisation and around a residual connection."""

    def __init__(self, embed_dim: int, num_heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        hidden = int(embed_dim * mlp_ratio)
        self.attn = Attention(embed_dim, num_heads)
        self.attn_layer_norm = nn.LayerNorm(embed_dim)
        self.fc1 = nn.Linear(embed_dim, hidden)
        self.fc2 = nn.Linear(hidden, embed_dim)
        self.ffn_layer_norm = nn.LayerNorm(embed_dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, tokens: Tensor, heads: int, hidden: int) -> Tensor:
        """Change tokens ``(B, N, E)`` with so many heads and hidden channels."""
        width = tokens.shape[-1]
        tokens = tokens + self.drop_path(self.attn(layer_norm(self.attn_layer_norm, tokens), heads))
        inner = F.linear(layer_norm(self.ffn_layer_norm, tokens), *sliced(self.fc1, hidden, width))
        inner = F.gelu(inner.float()).type_as(inner)
        return tokens + self.drop_path(F.linear(inner, *sliced(self.fc2, width, hidden)))


class Attention(nn.Module):
    """Self-attention in which every pair of tokens has a vector of its relative position, for keys and for values."""

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(embed_dim, 3 * HEAD_DIM * num_heads)
        self.rel_pos_embed_k = RelativePosition()
        self.rel_pos_embed_v = RelativePosition()
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, tokens: Tensor, heads: int) -> Tensor:
        """Attend over tokens ``(B, N, E)``."""
        batch, count, width = tokens.shape
        inner = HEAD_DIM * heads
        # Rows 0, 3, 6, .. of the weight make queries, the next ones keys and values. The bias is not interleaved.
        weight = torch.cat([self.qkv.weight[part : 3 * inner : 3, :width] for part in range(3)])
        qkv = F.linear(tokens, weight, self.qkv.bias[: 3 * inner])
        query, key, value = qkv.view(batch, count, 3, heads, HEAD_DIM).permute(2, 0, 3, 1, 4)  # each (B, H, N, 64)

        scale = HEAD_DIM**-0.5
        logits = (query @ key.transpose(-1, -2)) * scale
        logits = logits + torch.einsum("bhqd,qkd->bhqk", query, self.rel_pos_embed_k(count)) * scale
        attention = logits.softmax(dim=-1)
        mixed = attention @ value + torch.einsum("bhqk,qkd->bhqd", attention, self.rel_pos_embed_v(count))
        return F.linear(mixed.transpose(1, 2).reshape(batch, count, inner), *sliced(self.proj, width, inner))


class RelativePosition(nn.Module):
    """A vector for every pair of tokens: the sum of one for their vertical and one for their horizontal distance."""

    def __init__(self, max_distance: int = 14) -> None:
        super().__init__()
        self.max_distance = max_distance
        self.embeddings_table_v = nn.Parameter(torch.zeros(2 * max_distance + 2, HEAD_DIM))
        self.embeddings_table_h = nn.Parameter(torch.zeros(2 * max_distance + 2, HEAD_DIM))

    def forward(self, count: int) -> Tensor:
        """Return the vectors ``(N, N, 64)`` of a class token and a square grid of patches."""
        side = int((count - 1) ** 0.5)
        patches = torch.arange(count - 1, device=self.embeddings_table_v.device)
        rows, columns = self._bucket(patches // side), self._bucket(patches % side)
        return self.embeddings_table_v[rows] + self.embeddings_table_h[columns]

    def _bucket(self, positions: Tensor) -> Tensor:
        """Return table rows ``(N, N)`` of all pairs, 0 where either is the class token."""
        distance = (positions[None, :] - positions[:, None]).clamp(-self.max_distance, self.max_distance)
        return F.pad(distance + self.max_distance + 1, (1, 0, 1, 0))


def sliced(layer: nn.Linear, outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
    """Return the first rows and columns of a layer's weight, and the first entries of its bias."""
    return layer.weight[:outputs, :inputs], layer.bias[:outputs]


def layer_norm(layer: nn.LayerNorm, tokens: Tensor) -> Tensor:
    """Normalise tokens ``(B, N, E)`` with the first entries of a layer's weight and bias."""
    width = tokens.shape[-1]
    return F.layer_norm(tokens, (width,), layer.weight[:width], layer.bias[:width], layer.eps)


@torch.no_grad()
def fill(model: nn.Module) -> None:
    """Give every parameter values that can be written down: waves, around 1 for the weights of normalisations."""
    for number, (name, parameter) in enumerate(sorted(model.named_parameters())):
        wave = 0.05 * torch.sin(0.37 * torch.arange(parameter.numel(), dtype=torch.float64) + number)
        is_scale = name.endswith("layer_norm.weight") or name == "norm.weight"
        parameter.copy_(wave.view_as(parameter) + is_scale)


def wave_images(size: int = 224) -> Tensor:
    """Return two images ``(2, 3, size, size)`` that can be written down, in double precision."""
    return torch.sin(0.01 * torch.arange(2 * 3 * size * size, dtype=torch.float64)).view(2, 3, size, size)


def count_parameters(sub: Any, num_classes: int = 1000, patches: int = 196) -> int:
    """Count the weights that a sub-network uses, as the original counts them."""
    width = sub.embed_dim
    total = (3 * PATCH_SIZE**2 + 1) * width + (patches + 2) * width  # patches; positions and class token
    for heads, ratio in zip(sub.num_heads, sub.mlp_ratio, strict=True):
        inner, hidden = HEAD_DIM * heads, int(width * ratio)
        total += 3 * inner * (width + 1) + (inner + 1) * width  # queries, keys, values; projection
        total += 4 * 30 * HEAD_DIM  # relative positions
        total += 4 * width  # two normalisations
        total += (width + 1) * hidden + (hidden + 1) * width
    return total + 2 * width + (width + 1) * num_classes


def count_macs(sub: Any, num_classes: int = 1000, patches: int = 196) -> int:
    """Count the multiplications of one image's matrix products, convolution included."""
    width, tokens = sub.embed_dim, patches + 1
    total = patches * 3 * PATCH_SIZE**2 * width + width * num_classes
    for heads, ratio in zip(sub.num_heads, sub.mlp_ratio, strict=True):
        inner, hidden = HEAD_DIM * heads, int(width * ratio)
        total += tokens * inner * 4 * width  # queries, keys, values; projection
        total += 4 * tokens**2 * inner  # attention's two products, and the same two with relative positions
        total += 2 * tokens * width * hidden
    return total


def get_complexity(sub: Any, num_classes: int = 1000, patches: int = 196) -> int:
    """Count operations as the original reports them: an estimate with its own view of relative positions and tokens."""
    width, tokens = sub.embed_dim, patches + 2  # one more than there are
    total = width + patches * 3 * PATCH_SIZE**2 * width + (patches + 1) * width // 2
    for heads, ratio in zip(sub.num_heads, sub.mlp_ratio, strict=True):
        inner, hidden = HEAD_DIM * heads, int(width * ratio)
        total += 2 * tokens * width  # normalisations
        total += 4 * tokens * inner * width + 2 * tokens**2 * inner
        total += 28 * tokens**2 + tokens**2 // 2 + tokens * inner // 2  # relative positions
        total += 2 * tokens * width * hidden
    return total + (patches + 1) * width * num_classes
