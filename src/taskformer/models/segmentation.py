"""Swin and HRNet as published dense predictors have them; timm's are built to classify images of one size.

Imported by :mod:`taskformer.models.backbones` when a form is asked for: it needs timm, which takes seconds to import.
"""

import re
from collections.abc import Mapping

from timm.models.hrnet import HighResolutionNet
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from torch import Tensor, nn
from torch.nn import functional as F

from taskformer.errors import ConfigError

#: Names of mmsegmentation's Swin to timm's, replaced one after the other.
_SWIN_NAMES = {
    r"^patch_embed\.projection\.": "patch_embed.proj.",
    r"^stages\.": "layers.",
    r"\.attn\.w_msa\.": ".attn.",
    r"\.ffn\.layers\.0\.0\.": ".mlp.fc1.",
    r"\.ffn\.layers\.1\.": ".mlp.fc2.",
}
#: Tensors that follow from others, and counters of batch norms that nothing reads.
_DERIVED = ("relative_position_index", "attn_mask", "num_batches_tracked")


class PaddedBlock(SwinTransformerBlock):
    """A Swin block that pads a map to whole windows before it shifts them, and shifts them in maps of any size."""

    def _attn(self, x: Tensor) -> Tensor:
        """Attend within the windows of a map ``(B, H, W, C)``."""
        height, width = x.shape[1:3]
        down, right = -height % self.window_size[0], -width % self.window_size[1]
        padded = F.pad(x, (0, 0, 0, right, 0, down))
        attended: Tensor = super()._attn(padded)  # type: ignore[no-untyped-call]  # timm says no types
        return attended[:, :height, :width]


def change_to_segmentation(encoder: nn.Module, name: str) -> bool:
    """Change a timm encoder in place; names and shapes of its parameters stay.

    Swin: windows are shifted in every stage, also in the last, whose map is one window when images are classified, and
    maps are padded before that. HRNet: branches are brought to one size bilinearly, not by repeating pixels.

    Args:
        encoder: The timm model.
        name: Its name, for the message.

    Returns:
        Whether published networks normalise each of its maps: those with a Swin do.

    Raises:
        ConfigError: If it is of another kind.
    """
    if isinstance(encoder, SwinTransformer):
        for block in encoder.modules():
            if isinstance(block, SwinTransformerBlock):
                block.__class__ = PaddedBlock
                block.shift_size = block.target_shift_size
        return True
    if isinstance(encoder, HighResolutionNet):
        for layer in encoder.modules():
            if isinstance(layer, nn.Upsample):
                layer.mode, layer.align_corners = "bilinear", False
        return False
    msg = f"only Swin and HRNet have a form for segmentation, got the encoder {name!r}; leave the form as it is"
    raise ConfigError(msg)


def named_as_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a published dense predictor's encoder to those of ``Backbone(..., form="segmentation")``.

    HRNet has the same names. Swin's come as in mmsegmentation or as in the original; both merge patches at the end of a
    stage, timm at the start of the next one, and mmsegmentation orders what it merges by channels first.

    Args:
        state: The encoder's state dict, without a prefix.
    """
    rename = _swin_tensor if "patch_embed.norm.weight" in state else _same_tensor
    kept = {name: values for name, values in state.items() if not name.endswith(_DERIVED)}
    return dict(rename(name, values) for name, values in kept.items())


def _same_tensor(name: str, values: Tensor) -> tuple[str, Tensor]:
    """Return a tensor of an encoder whose names are timm's."""
    return f"encoder.{name}", values


def _swin_tensor(name: str, values: Tensor) -> tuple[str, Tensor]:
    """Return a tensor of a Swin under our name."""
    if level := re.match(r"norm(\d)\.(.*)", name):
        return f"map_norms.{level[1]}.{level[2]}", values
    if ".downsample." in name:
        if name.startswith("stages."):
            values = _positions_first(values)
        name = re.sub(r"\.(\d+)\.", lambda stage: f".{int(stage[1]) + 1}.", name, count=1)
    for theirs, ours in _SWIN_NAMES.items():
        name = re.sub(theirs, ours, name)
    return f"encoder.{name}", values


def _positions_first(values: Tensor) -> Tensor:
    """Bring the inputs ``(..., 4C)`` of a merging of 2x2 patches from the order (channel, y, x) to (x, y, channel)."""
    ordered: Tensor = values.unflatten(-1, (-1, 2, 2)).transpose(-1, -3).flatten(-3)
    return ordered
