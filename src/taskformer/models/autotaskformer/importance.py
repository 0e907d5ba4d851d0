"""What matters most in a plain vision transformer, measured on photographs without labels.

Sub-networks have the first heads and hidden channels of each layer, and some of the layers. A transformer computes the
same whatever the order of its heads and hidden channels; once these are sorted by importance, every sub-network has the
best of them. The idea is EA-ViT's (ICCV 2025); here nothing but the transformer's own features is asked:

* a head's, and a hidden channel's, importance is the mean squared length of what it adds to the tokens;
* a layer's importance is how far the patches' last features turn without it, the mean of one minus the cosine.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taskformer.models.autotaskformer.vit import PlainViT


@dataclass(frozen=True)
class Importance:
    """How much each part of a transformer of L layers matters; the more, the higher.

    Attributes:
        heads: Of the H attention heads of each layer ``(L, H)``.
        hidden: Of the hidden channels of each layer's MLP ``(L, hidden)``.
        layers: Of each layer ``(L,)``.
    """

    heads: Tensor
    hidden: Tensor
    layers: Tensor


@torch.no_grad()
def measure_importance(vit: PlainViT, images: Iterable[Tensor]) -> Importance:
    """Measure how much the parts of a transformer matter.

    Args:
        vit: The transformer; it runs once for each image and once for each image and layer.
        images: Batches ``(B, 3, H, W)`` of one size, ImageNet-normalised.

    Returns:
        Means over all images.
    """
    total, sums = 0, [torch.zeros(())] * 3
    for image in images:
        found = _importance(vit, image)
        total += len(image)
        sums = [before + len(image) * new for before, new in zip(sums, found, strict=True)]
    return Importance(*(each / total for each in sums))


def _importance(vit: PlainViT, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Measure heads, hidden channels and layers on one batch."""
    blocks = vit.encoder.blocks
    heads: list[Tensor] = []
    hidden: list[Tensor] = []
    with ExitStack() as hooks:
        for block in blocks:
            for layer, measure, values in ((block.attn.proj, _of_heads, heads), (block.mlp.fc2, _of_hidden, hidden)):
                hook = partial(_note, values, measure, block)
                hooks.enter_context(layer.register_forward_pre_hook(hook))
        features = _features(vit, image)
    layers = []
    for block in blocks:
        with block.register_forward_hook(lambda _, inputs, __: inputs[0]):  # as if the layer were not there
            layers.append(1 - F.cosine_similarity(features, _features(vit, image), dim=1).mean())
    return torch.stack(heads), torch.stack(hidden), torch.stack(layers)


def _note(values: list[Tensor], measure: Callable[[Any, Tensor], Tensor], block: Any, _: nn.Module, x: Any) -> None:
    """Measure what comes into a layer."""
    values.append(measure(block, x[0]))


@torch.no_grad()
def sort_by_importance(vit: PlainViT, importance: Importance) -> None:
    """Sort heads and hidden channels of each layer in place, most important first, and note the order of the layers.

    The transformer computes what it did before.
    """
    for block, heads, hidden in zip(vit.encoder.blocks, importance.heads, importance.hidden, strict=True):
        _sort(block.attn.qkv, block.attn.proj, _by_rank(heads), parts=3)
        _sort(block.mlp.fc1, block.mlp.fc2, _by_rank(hidden), parts=1)
    vit.layer_order = tuple(_by_rank(importance.layers).tolist())


def _by_rank(importance: Tensor) -> Tensor:
    """Return the numbers of parts, the most important first; equals keep their order."""
    return importance.argsort(descending=True, stable=True)


def _sort(inner: Any, outer: Any, order: Tensor, parts: int) -> None:
    """Sort what lies between two linear layers, groups of channels, of which the first layer has some parts."""
    for values in (inner.weight, inner.bias):
        if values is not None:
            values.copy_(values.unflatten(0, (parts, len(order), -1))[:, order].flatten(0, 2))
    outer.weight.copy_(outer.weight.unflatten(1, (len(order), -1))[:, order].flatten(1))


def _of_heads(block: Any, mixtures: Tensor) -> Tensor:
    """Compute the mean squared length of what each head adds, given all heads' mixtures ``(B, N, H * d)``."""
    heads = block.attn.num_heads
    weight = _scaled(block.attn.proj, block.ls1).unflatten(1, (heads, -1))  # (E, H, d)
    added = torch.einsum("bnhd,ehd->bnhe", mixtures.unflatten(-1, (heads, -1)), weight)
    return added.square().sum(-1).mean((0, 1))


def _of_hidden(block: Any, hidden: Tensor) -> Tensor:
    """Compute the mean squared length of what each hidden channel adds, given them all ``(B, N, hidden)``."""
    return hidden.square().mean((0, 1)) * _scaled(block.mlp.fc2, block.ls2).square().sum(0)


def _scaled(layer: Any, scale: nn.Module) -> Tensor:
    """Return a linear layer's weight times the layer scale behind it."""
    weight: Tensor = layer.weight
    return weight * cast(Tensor, getattr(scale, "gamma", torch.ones(1)))[:, None]


def _features(vit: PlainViT, image: Tensor) -> Tensor:
    """Return the last features of the patches ``(B, E, h, w)``."""
    (features,) = vit.backbone.encode(image)
    return features
