"""Encoders that timm builds for one image size, and that take any here: BEiT, relative-position ViTs, CoAtNet, Hiera.

Positions are resampled to the map of each image, and stay as they are where the image has the size that timm built for.
Names and shapes of the parameters stay. Imported by :mod:`taskformer.models.backbones` when an encoder is built: it
needs timm, which takes seconds to import.
"""

from typing import Any, cast

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.layers.pos_embed_rel import RelPosBias, RelPosMlp, gen_relative_log_coords, gen_relative_position_index
from timm.models.beit import Attention as BeitAttention
from timm.models.beit import Beit
from timm.models.hiera import Hiera, Reroll
from timm.models.maxxvit import Attention2d
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import Tensor, nn
from torch.nn import functional as F

Size = tuple[int, int]


def relative_bias(table: Tensor, window: Size, grid: Size) -> Tensor:
    """Look up the bias of each pair of places of a map, in a table that is resampled to the map's size.

    Args:
        table: Biases ``((2h-1) * (2w-1) + extra, heads)`` of the relative positions in a map of h x w places; of the
            class token there are three extra ones, or none if there is no such token.
        window: h and w.
        grid: Height and width of the map.

    Returns:
        Biases ``(1, heads, N, N)``, N the number of places and of class tokens.

    Reference:
        The run-time resampling of BEiT in https://github.com/huggingface/transformers (Apache-2.0).
    """
    (h, w), (height, width) = window, grid
    places, extra = table.split([(2 * h - 1) * (2 * w - 1), len(table) - (2 * h - 1) * (2 * w - 1)])
    image = places.T.unflatten(1, (2 * h - 1, 2 * w - 1)).unsqueeze(0)
    resampled = F.interpolate(image, (2 * height - 1, 2 * width - 1), mode="bilinear", align_corners=False)
    table = torch.cat([resampled[0].flatten(1).T, extra])
    index = gen_relative_position_index(grid, class_token=len(extra) > 0, device=table.device)
    return table[index].permute(2, 0, 1).unsqueeze(0)


class AnySizeBias(RelPosBias):
    """Learnt biases of relative positions. Where nobody tells the map's size, ``grid``, it is timm's own window."""

    grid: Size | None = None

    def get_bias(self) -> Tensor:
        """Return what is added to the attention: ``(1, heads, N, N)``."""
        if self.grid in (None, self.window_size):
            return super().get_bias()
        return relative_bias(self.relative_position_bias_table, self.window_size, self.grid)


class AnySizeBeitAttention(BeitAttention):
    """BEiT's attention, which holds such biases itself."""

    grid: Size | None = None

    def _get_rel_pos_bias(self) -> Tensor:
        if self.grid in (None, self.window_size):
            return super()._get_rel_pos_bias()
        return relative_bias(self.relative_position_bias_table, self.window_size, self.grid)


class AnySizeMlp(RelPosMlp):
    """Biases that a small network computes from relative positions: those of a larger map are computed, too."""

    grid: Size | None = None

    def get_bias(self) -> Tensor:
        """Return what is added to the attention: ``(1, heads, N, N)``, 0 for class tokens."""
        if self.grid in (None, self.window_size):
            return super().get_bias()
        like = self.mlp.fc1.weight
        places = gen_relative_log_coords(self.grid, self.pretrained_window_size, self.mode, like.device, like.dtype)
        index = gen_relative_position_index(self.grid, device=like.device)
        bias = self.bias_act(self.mlp(places).flatten(0, 1)[index].permute(2, 0, 1)) * (self.bias_gain or 1)
        return F.pad(bias, (self.prefix_tokens, 0, self.prefix_tokens, 0)).unsqueeze(0)


class AnySizeAttention(Attention2d):
    """CoAtNet's attention within a map ``(B, C, H, W)``."""

    def forward(self, x: Tensor, shared_rel_pos: Tensor | None = None) -> Tensor:
        """Attend; the biases are told the size of the map."""
        if self.rel_pos is not None:
            self.rel_pos.grid = (x.shape[-2], x.shape[-1])
        return super().forward(x, shared_rel_pos)


class _Plain:
    """A plain ViT, whose blocks see the places of the map in a row: the biases are told its size."""

    def forward_intermediates(self, x: Tensor, *args: Any, **options: Any) -> Any:
        """Encode ``(B, 3, H, W)``, see timm."""
        vit = cast(Any, self)
        grid = vit.patch_embed.dynamic_feat_size(x.shape[-2:])
        for module in vit.modules():
            if hasattr(module, "grid"):
                module.grid = grid
        return cast(Any, super()).forward_intermediates(x, *args, **options)


class AnySizeBeit(_Plain, Beit):
    """BEiT and BEiT v2."""


class AnySizeRelPosViT(_Plain, VisionTransformerRelPos):
    """timm's ViTs with relative positions."""


class AnySizeHiera(Hiera):
    """Hiera: the order of its tokens and their positions follow the size of the image, a multiple of mask units."""

    def forward_intermediates(self, x: Tensor, *args: Any, **options: Any) -> Any:
        """Encode ``(B, 3, H, W)``, see timm."""
        size = (x.shape[-2], x.shape[-1])
        self.tokens_spatial_shape = [n // s for n, s in zip(size, self.patch_stride, strict=True)]
        self.mask_spatial_shape = [n // s for n, s in zip(self.tokens_spatial_shape, self.mask_unit_size, strict=True)]
        self.unroll.size = self.tokens_spatial_shape
        order = Reroll(size, self.patch_stride, self.unroll.schedule, self.stage_ends, self.q_pool)
        self.reroll.schedule = order.schedule
        return super().forward_intermediates(x, *args, **options)

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Add positions; those of windows and of the whole image, where they are apart, timm resamples itself."""
        if self.pos_embed_win is not None:
            return super()._pos_embed(x)
        positions: Tensor = resample_abs_pos_embed(self.pos_embed, self.tokens_spatial_shape, num_prefix_tokens=0)
        return x + positions


#: Ours for each of timm's classes.
ANY_SIZE: dict[type[nn.Module], type[nn.Module]] = {
    Beit: AnySizeBeit,
    BeitAttention: AnySizeBeitAttention,
    VisionTransformerRelPos: AnySizeRelPosViT,
    RelPosBias: AnySizeBias,
    RelPosMlp: AnySizeMlp,
    Attention2d: AnySizeAttention,
    Hiera: AnySizeHiera,
}


def let_any_size(encoder: nn.Module) -> None:
    """Change a timm encoder in place, if it is of one of these families."""
    for module in encoder.modules():
        if type(module) in ANY_SIZE:
            module.__class__ = ANY_SIZE[type(module)]
    if isinstance(encoder, _Plain):
        cast(Any, encoder).patch_embed.strict_img_size = False
