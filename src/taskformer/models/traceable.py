"""Networks in a form that ``torch.export`` follows for images of any height and width.

A tracer keeps every size as an expression of the image's height and width. Where an encoder pads a map to whole windows
with nested remainders, these expressions grow until nothing can be said about them; as a number of windows times a
window's side they stay short.
"""

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def traceable(network: nn.Module) -> nn.Module:
    """Copy a network, its outputs unchanged, into one that can be traced for any size of image.

    Args:
        network: Image ``(B, 3, H, W)``, padded to multiples of the strides, to outputs. Swin's shifted windows and
            convolutions with TensorFlow's padding are replaced; other layers stay.
    """
    from timm.layers.conv2d_same import Conv2dSame
    from timm.models.swin_transformer import SwinTransformerBlock  # with torchvision, which takes seconds to import

    copied = copy.deepcopy(network)
    blocks: list[Any] = [module for module in copied.modules() if isinstance(module, SwinTransformerBlock)]
    for block in blocks:
        block._attn = partial(shifted_windows, block)
    layers: list[Any] = [module for module in copied.modules() if isinstance(module, Conv2dSame)]
    for layer in layers:
        layer.forward = partial(same_convolution, layer)
    return copied


def shifted_windows(block: Any, x: Tensor) -> Tensor:
    """Attend within shifted windows as timm's block does.

    Args:
        block: timm's ``SwinTransformerBlock``: its window, shift, mask and attention.
        x: Normalised tokens ``(B, H, W, C)``.

    Returns:
        Tokens ``(B, H, W, C)``.

    Reference:
        Liu et al. Swin Transformer: Hierarchical Vision Transformer using Shifted Windows. ICCV 2021.
    """
    batch, height, width, channels = x.shape
    (h, w), (down, right) = block.window_size, block.shift_size
    rows, columns = (height + h - 1) // h, (width + w - 1) // w
    x = x.roll((-down, -right), (1, 2))
    x = F.pad(x, (0, 0, 0, columns * w - width, 0, rows * h - height))
    apart = x.unflatten(1, (rows, h)).unflatten(3, (columns, w)).transpose(2, 3)  # (B, rows, columns, h, w, C)
    attended = block.attn(apart.reshape(-1, h * w, channels), mask=block.get_attn_mask(x))
    together = attended.view(batch, rows, columns, h, w, channels).transpose(2, 3)
    x = together.reshape(batch, rows * h, columns * w, channels)[:, :height, :width]
    return torch.roll(x, (down, right), (1, 2))


def same_convolution(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """Convolve ``(B, C, H, W)`` with TensorFlow's "same" padding; H and W are multiples of the stride.

    In general the padding depends on the size; for such maps it is a number.
    """
    sides = zip(layer.kernel_size, layer.dilation, layer.stride, strict=True)
    above, left = (max((kernel - 1) * dilation + 1 - stride, 0) for kernel, dilation, stride in sides)
    x = F.pad(x, (left // 2, left - left // 2, above // 2, above - above // 2))
    return F.conv2d(x, layer.weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups)
