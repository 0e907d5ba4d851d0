"""Swin as published dense predictors have it, written out plainly under the names that their checkpoints have."""

import torch
from torch import nn
from torch.nn import functional as F


class PlainSwin(nn.Module):
    """Image ``(B, 3, H, W)`` to the layer-normalised maps of all stages."""

    def __init__(self, width, depths, heads, window):
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.projection = nn.Conv2d(3, width, kernel_size=4, stride=4)
        self.patch_embed.norm = nn.LayerNorm(width)
        self.stages = nn.ModuleList()
        for stage, (depth, count) in enumerate(zip(depths, heads, strict=True)):
            channels = width * 2**stage
            layers = nn.Module()
            layers.blocks = nn.ModuleList(PlainBlock(channels, count, window, shifts=i % 2 == 1) for i in range(depth))
            if stage < len(depths) - 1:
                layers.downsample = nn.Module()
                layers.downsample.norm = nn.LayerNorm(4 * channels)
                layers.downsample.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)
            self.stages.append(layers)
            setattr(self, f"norm{stage}", nn.LayerNorm(channels))

    def forward(self, image):
        x = self.patch_embed.norm(self.patch_embed.projection(image).permute(0, 2, 3, 1))  # (B, H, W, C)
        maps = []
        for stage, layers in enumerate(self.stages):
            for block in layers.blocks:
                x = block(x)
            maps.append(getattr(self, f"norm{stage}")(x).permute(0, 3, 1, 2))
            if hasattr(layers, "downsample"):
                batch, height, width, _ = x.shape
                patches = F.unfold(x.permute(0, 3, 1, 2), kernel_size=2, stride=2).transpose(1, 2)  # channels first
                x = layers.downsample.reduction(layers.downsample.norm(patches))
                x = x.view(batch, height // 2, width // 2, -1)
        return maps


class PlainBlock(nn.Module):
    """Attention of each pixel to those of its window that were its neighbours before the shift, then an MLP."""

    def __init__(self, channels, heads, window, shifts):
        super().__init__()
        self.heads, self.window, self.shift = heads, window, window // 2 if shifts else 0
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attn = nn.Module()
        self.attn.w_msa = w_msa = nn.Module()
        w_msa.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        w_msa.register_buffer("relative_position_index", torch.zeros(window**2, window**2, dtype=torch.int64))
        w_msa.qkv, w_msa.proj = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        first = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Dropout(0.0))
        self.ffn = nn.Module()
        self.ffn.layers = nn.Sequential(first, nn.Linear(4 * channels, channels), nn.Dropout(0.0))

    def forward(self, x):
        x = x + self.attend(self.norm1(x))
        return x + self.ffn.layers(self.norm2(x))

    def attend(self, x):
        """Attend pixel by pixel of the padded map: the mask and the bias of every pair are written down."""
        height, width = x.shape[1:3]
        padded = F.pad(x, (0, 0, 0, -width % self.window, 0, -height % self.window))
        rows, columns = padded.shape[1:3]
        # Where each pixel lies after the shift, the window there, and its place in the window.
        y, x_ = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        new_y, new_x = (y - self.shift) % rows, (x_ - self.shift) % columns
        window = (new_y // self.window * columns + new_x // self.window).flatten()
        # What the shift wraps around must not meet what was far from it.
        wrapped = ((y < self.shift) * 2 + (x_ < self.shift)).flatten()
        allowed = (window[:, None] == window) & (wrapped[:, None] == wrapped)
        side = 2 * self.window - 1
        apart_y = (new_y.flatten()[:, None] - new_y.flatten()).clamp(1 - self.window, self.window - 1)
        apart_x = (new_x.flatten()[:, None] - new_x.flatten()).clamp(1 - self.window, self.window - 1)
        bias = self.attn.w_msa.relative_position_bias_table[
            (apart_y + self.window - 1) * side + apart_x + self.window - 1
        ]
        qkv = self.attn.w_msa.qkv(padded.flatten(1, 2)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, L, d)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias.permute(2, 0, 1)
        # The original subtracts 100 where pixels must not meet in a window.
        far = torch.where(allowed, 0.0, -100.0).masked_fill(window[:, None] != window, -torch.inf)
        mixed = ((scores + far).softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.attn.w_msa.proj(mixed).unflatten(1, (rows, columns))[:, :height, :width]
