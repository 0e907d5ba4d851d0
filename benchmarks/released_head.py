"""MQTransformer's released head written out plainly, and how much time and memory ours takes next to it.

Usage: python benchmarks/released_head.py [--channels swin_t] [--size 448 576] [--rounds 9] [--against released] ...

:class:`ReleasedHead` re-states the published computation (arXiv 2205.14354, yangyangxu0/MQTransformer) from its
description, under the names of its state dict, tensors that are never used included. Every step is done as the original
does it: all maps are brought to the finest size and concatenated, tasks run one by one, and the decoder's attention runs
over the images of a batch. It shares no code with the library.
"""

from collections.abc import Mapping, Sequence

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, HEADS, QUERIES, HIDDEN = 256, 4, 64, 64
#: Channels of the encoders' maps.
CHANNELS: dict[str, tuple[int, ...]] = {
    "hrnet_w18": (18, 36, 72, 144),
    "hrnet_w48": (48, 96, 192, 384),
    "swin_t": (96, 192, 384, 768),
    "swin_b": (128, 256, 512, 1024),
    "swin_l": (192, 384, 768, 1536),
}
#: Channels of the tasks' outputs, under the names that they have in the original.
TASKS: dict[str, dict[str, int]] = {
    "nyud": {"semseg": 40, "depth": 1, "normals": 3, "edge": 1},
    "pascal": {"semseg": 21, "human_parts": 7, "sal": 2, "normals": 3, "edge": 1},
}


class ReleasedHead(nn.Module):
    """The head as it was published.

    Args:
        tasks: Task name to output channels.
        channels: Channels of the encoder's maps, the finest first.
    """

    def __init__(self, tasks: Mapping[str, int], channels: Sequence[int]) -> None:
        super().__init__()
        self.bottleneck = nn.ModuleDict({task: Bottleneck() for task in tasks})
        self.final_logits = nn.ModuleDict({task: nn.Conv2d(HIDDEN, out, kernel_size=1) for task, out in tasks.items()})
        self.parts_query_encoder_decoder_blocks = nn.ModuleList([Block(len(tasks))])
        self.patch_embed = PatchEmbed()  # its result is never used
        self.linears = nn.ModuleList(nn.Linear(sum(channels), WIDTH) for _ in tasks)
        for logits in self.final_logits.values():
            nn.init.normal_(logits.weight, std=0.01)
            nn.init.zeros_(logits.bias)

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        """Turn maps ``(B, C_i, H_i, W_i)`` into ``{task: (B, C_task, *size)}``."""
        finest = features[0].shape[-2:]
        fused = torch.cat([upsample(x, finest) for x in features], dim=1).permute(0, 2, 3, 1)  # (B, h, w, sum C_i)
        tokens = [linear(fused).flatten(1, 2) for linear in self.linears]  # T x (B, L, C)
        for block in self.parts_query_encoder_decoder_blocks:
            tokens = block(tokens)
        maps = [x.transpose(1, 2).unflatten(2, finest) for x in tokens]  # T x (B, C, h, w)
        return {
            task: upsample(logits(self.bottleneck[task](x)), size)
            for (task, logits), x in zip(self.final_logits.items(), maps, strict=True)
        }


class Block(nn.Module):
    """Queries gather, exchange and give back.

    Args:
        num_tasks: Number of tasks T.
    """

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.rpn_tokens = nn.ParameterList(small(1, QUERIES, WIDTH) for _ in range(num_tasks))
        self.rpn_qpos = nn.ParameterList(small(1, QUERIES, 1, WIDTH // HEADS) for _ in range(num_tasks))
        self.rpn_kpos = nn.ParameterList(small(1, QUERIES, 1, WIDTH // HEADS) for _ in range(num_tasks))
        self.encoder1 = Encoder()
        self.decoder1 = Decoder()
        self.mhsa_1 = nn.MultiheadAttention(WIDTH, HEADS, dropout=0.1)
        self.drop_path = DropPath(0.5)
        self.norm_layer = nn.LayerNorm(WIDTH)
        self.ffn_mlp = Mlp(ratio=1)

    def forward(self, tokens: list[Tensor]) -> list[Tensor]:
        """Change every task's tokens ``(B, L, C)``."""
        batch = len(tokens[0])
        parts = [
            self.encoder1(x, query.expand(batch, -1, -1), position)
            for x, query, position in zip(tokens, self.rpn_tokens, self.rpn_qpos, strict=True)
        ]
        together = torch.cat(parts, dim=1).transpose(0, 1)  # (T*N, B, C)
        together = together + self.drop_path(self.mhsa_1(together, together, together)[0])
        together = together + self.drop_path(self.ffn_mlp(self.norm_layer(together)))  # the MLP has a norm of its own
        parts = list(together.transpose(0, 1).split(QUERIES, dim=1))
        return [
            F.gelu(self.decoder1(x, part, position))
            for x, part, position in zip(tokens, parts, self.rpn_kpos, strict=True)
        ]


class Encoder(nn.Module):
    """A task's queries attend to its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.enc_attn = Attention()
        self.drop_path = DropPath(0.1)
        self.reason = Reasoning()
        self.enc_ffn = Mlp(ratio=1)

    def forward(self, tokens: Tensor, queries: Tensor, position: Tensor) -> Tensor:
        """Change queries ``(B, N, C)`` by tokens ``(B, L, C)``."""
        queries = queries + self.drop_path(self.enc_attn(queries, tokens, query_position=position))
        queries = self.reason(queries)
        return queries + self.drop_path(self.enc_ffn(queries))


class Decoder(nn.Module):
    """A task's tokens attend to its queries, then each to the same place in the other images of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.attn1 = Attention()
        self.attn2 = Attention()  # never called
        self.rel_pos = RelativePosition()  # never called
        self.ffn1 = Mlp(ratio=3)
        self.ffn2 = Mlp(ratio=3)
        self.drop_path = DropPath(0.1)
        self.mhsa = nn.MultiheadAttention(WIDTH, HEADS)

    def forward(self, tokens: Tensor, queries: Tensor, position: Tensor) -> Tensor:
        """Change tokens ``(B, L, C)`` by queries ``(B, N, C)``."""
        first = tokens + self.drop_path(self.attn1(tokens, queries, key_position=position))
        first = first + self.drop_path(self.ffn1(first))
        across = self.mhsa(first, first, first)[0]  # dimension 0, the images, is the sequence
        second = tokens + self.drop_path(across)  # from the tokens again
        return second + self.drop_path(self.ffn2(second))


class Attention(nn.Module):
    """Attention with a norm each for queries, keys and values; positions are added before it, the same to each head."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_q, self.norm_k, self.norm_v = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.to_q = nn.Linear(WIDTH, WIDTH, bias=False)
        self.to_k = nn.Linear(WIDTH, WIDTH, bias=False)
        self.to_v = nn.Linear(WIDTH, WIDTH, bias=False)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(
        self, query: Tensor, memory: Tensor, query_position: Tensor | None = None, key_position: Tensor | None = None
    ) -> Tensor:
        """Read a memory ``(B, M, C)`` with queries ``(B, N, C)``; positions are ``(1, N or M, 1, C / heads)``."""
        q = heads(self.to_q(self.norm_q(placed(query, query_position))))  # (B, N, heads, d)
        k = heads(self.to_k(self.norm_k(placed(memory, key_position))))
        v = heads(self.to_v(self.norm_v(memory)))
        scores = torch.einsum("bnhd,bmhd->bnhm", q, k) * (WIDTH // HEADS) ** -0.5
        read = torch.einsum("bnhm,bmhd->bnhd", scores.softmax(dim=-1), v)
        return self.proj(read.flatten(2))


class Reasoning(nn.Module):
    """The same linear map for every query."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.linear = nn.Conv1d(WIDTH, WIDTH, kernel_size=1, bias=False)

    def forward(self, queries: Tensor) -> Tensor:
        """Change queries ``(B, N, C)``."""
        return queries + self.linear(self.norm(queries).transpose(1, 2)).transpose(1, 2)


class Mlp(nn.Module):
    """Norm, two layers and a GELU between them."""

    def __init__(self, ratio: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.fc1 = nn.Linear(WIDTH, ratio * WIDTH)
        self.fc2 = nn.Linear(ratio * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Change vectors ``(..., C)``."""
        return self.fc2(F.gelu(self.fc1(self.norm(x))))


class Bottleneck(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(WIDTH, HIDDEN, kernel_size=3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        """Turn ``(B, C, h, w)`` into ``(B, 64, h, w)``."""
        return F.relu(self.bn(self.conv(x)))


class PatchEmbed(nn.Module):
    """Patches of 4x4 tokens; the original computes them and drops them."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Conv2d(WIDTH, WIDTH, kernel_size=4, stride=4)
        self.norm = nn.LayerNorm(WIDTH)


class RelativePosition(nn.Module):
    """Tables of relative positions in patches of 4x4 tokens, which nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.rel_emb_h = small(7, WIDTH // HEADS // 2)
        self.rel_emb_w = small(7, WIDTH // HEADS // 2)


def small(*shape: int) -> nn.Parameter:
    """Return a parameter of small random numbers."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02))


def heads(x: Tensor) -> Tensor:
    """Split channels into heads: ``(B, N, heads, d)``."""
    return x.unflatten(-1, (HEADS, -1))


def placed(x: Tensor, position: Tensor | None) -> Tensor:
    """Add positions ``(1, N, 1, d)`` to every head of ``(B, N, C)``."""
    return x if position is None else (heads(x) + position).flatten(2)


def upsample(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resample ``(B, C, h, w)`` bilinearly."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


@torch.no_grad()
def randomise(module: nn.Module, seed: int = 0) -> None:
    """Give a network numbers that hide nothing: no norm is the identity, no bias and no statistic at its start."""
    generator = torch.Generator().manual_seed(seed)
    for name, values in module.state_dict().items():
        if not values.is_floating_point():
            continue
        noise = torch.randn(values.shape, generator=generator)
        if name.endswith("running_var"):
            values.copy_(noise.abs() + 0.5)
        elif values.ndim == 1:
            values.copy_(0.3 * noise + ("bias" not in name and "mean" not in name))
        else:
            values.copy_(noise / values[0].numel() ** 0.5)
