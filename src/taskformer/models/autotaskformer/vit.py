"""Plain vision transformers of timm as the start of a supernet: sizes, weights, and what is most important in them.

The largest sub-network computes what timm's model does: layer scale and the normalisation of the image are folded into
the weights next to them, class and register tokens and their positions into one set of tokens before the patches.

Reference:
    Dosovitskiy et al. An Image is Worth 16x16 Words. ICLR 2021; timm's ``VisionTransformer`` (Apache-2.0), used as a
    library.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import nextafter
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from taskformer.errors import ConfigError
from taskformer.files import read_tensors, replacing
from taskformer.models.autotaskformer.layers import Variant, interleaved
from taskformer.models.autotaskformer.supernet import Supernet
from taskformer.models.backbones import Backbone

#: Largest difference between the features of the supernet and those of timm's model, over the largest feature.
TOLERANCE = 1e-3
#: The norms that are layer norms, and what they are called.
NORMS = ("LayerNorm", "LayerNormFp32")


@dataclass(frozen=True)
class VitShape:
    """The sizes of a plain vision transformer.

    Args:
        embed_dim: Width of the tokens.
        depth: Layers.
        num_heads: Attention heads of each layer.
        head_dim: Channels of one head.
        hidden: Hidden channels of each layer's MLP.
        patch_size: Side of a patch in pixels.
        variant: In what it differs from other transformers of these sizes.
    """

    embed_dim: int
    depth: int
    num_heads: int
    head_dim: int
    hidden: int
    patch_size: int
    variant: Variant

    @property
    def mlp_ratio(self) -> float:
        """Hidden channels over the width; the product of the two is not below the hidden channels."""
        ratio = self.hidden / self.embed_dim
        return ratio if int(self.embed_dim * ratio) == self.hidden else nextafter(ratio, ratio + 1)


class PlainViT:
    """A plain vision transformer of timm, with weights.

    >>> vit = PlainViT("deit_tiny_patch16_224")
    >>> vit.shape.embed_dim, vit.shape.depth, vit.shape.num_heads, vit.shape.mlp_ratio
    (192, 12, 3, 4.0)

    Args:
        name: Its name in timm.
        weights: Where they come from, see :class:`~taskformer.models.backbones.Backbone`; or a file of :meth:`save`.
        normalisation: What images they were trained on, see there; None: what the weights say of it.

    Attributes:
        encoder: timm's model.
        shape: Its sizes.
        layer_order: Its layers from the most to the least important; as they come, if nothing is known of that.

    Raises:
        ConfigError: If it has parts that the supernet has not.
        UnknownNameError: If timm has no such model.
        WeightsError: If the weights cannot be found or do not fit.
    """

    def __init__(
        self, name: str, weights: str = "random", normalisation: Sequence[Sequence[float]] | None = None
    ) -> None:
        told = _told(weights)
        normalisation = normalisation or told.get("normalisation")
        self.backbone = Backbone(name, weights, last_only=True, normalisation=normalisation).eval()
        self.encoder: Any = self.backbone.encoder
        reason = next(_obstacles(self.encoder), None)
        if reason:
            msg = (
                f"a supernet cannot start from {name!r}: it has {reason}; choose a plain ViT, such as "
                "'deit_tiny_patch16_224', 'vit_small_patch16_224' or 'vit_small_patch14_dinov2'"
            )
            raise ConfigError(msg)
        block = self.encoder.blocks[0]
        variant = Variant(self.encoder.num_prefix_tokens, self.encoder.norm.eps, aligned_bias=True)
        self.name = name
        self.layer_order = tuple(told.get("layer_order", range(len(self.encoder.blocks))))
        self.shape = VitShape(
            self.encoder.embed_dim,
            len(self.encoder.blocks),
            block.attn.num_heads,
            block.attn.head_dim,
            block.mlp.fc1.out_features,
            self.encoder.patch_embed.patch_size[0],
            variant,
        )

    @torch.no_grad()
    def fill(self, supernet: Supernet) -> None:
        """Fill a supernet's stem, norm and all copies of all units, and set its order of layers.

        Relative positions start at zero, where they change nothing. Positions and patches are resampled to the
        supernet's as timm does it.

        Args:
            supernet: A supernet whose weights have these sizes.

        Raises:
            ConfigError: If sizes differ, or the largest sub-network does not compute what timm's model does.
        """
        state = {**self._stem(*supernet.stem.grid, supernet.patch_size), **_affine("norm", self.encoder.norm)}
        for layer, block in enumerate(self.encoder.blocks):
            state |= _attention(f"units.{2 * layer}.0", block) | _mlp(f"units.{2 * layer + 1}.0", block)
        own = dict(supernet.named_parameters())
        state |= {name: torch.zeros_like(own[name]) for name in own if ".0.relative." in name}  # of the shared copies
        misfits = [
            f"{name} {tuple(x.shape)}" for name, x in state.items() if name not in own or own[name].shape != x.shape
        ]
        if misfits:
            msg = f"the supernet's weights are not of the sizes of {self.name!r}, which has {', '.join(misfits[:3])}"
            raise ConfigError(msg)
        for name, values in state.items():
            own[name].copy_(values)
        supernet.layer_order = self.layer_order
        supernet.warm_start_copies()
        if supernet.patch_size == self.shape.patch_size:
            self._compare(supernet)

    def save(self, path: Path) -> None:
        """Write the weights under timm's names, the order of the layers, and what images the weights want."""
        told = {"layer_order": list(self.layer_order), "normalisation": self.backbone.normalisation}
        with replacing(path) as temporary:
            torch.save({"state_dict": self.encoder.state_dict()} | told, temporary)

    def _stem(self, rows: int, columns: int, patch_size: int) -> dict[str, Tensor]:
        """Return what turns an image of our normalisation, of some patches of some size, into tokens."""
        from timm.layers.patch_embed import resample_patch_embed  # with torchvision, which takes seconds to import

        project = self.encoder.patch_embed.proj
        weight = resample_patch_embed(project.weight, [patch_size, patch_size])
        bias = (weight * self.backbone.shift).sum((1, 2, 3)) + _bias(project)
        patches = weight.new_zeros(1, rows, columns, self.shape.embed_dim)
        tokens = self.encoder._pos_embed(patches)  # class token, registers and positions, however they are added up
        prefix = self.shape.variant.prefix
        return {
            "stem.project.weight": weight * self.backbone.scale,
            "stem.project.bias": bias,
            "stem.cls_token": tokens[:, :prefix],
            "stem.pos_embed": torch.cat([torch.zeros_like(tokens[:, :prefix]), tokens[:, prefix:]], dim=1),
        }

    def _compare(self, supernet: Supernet) -> None:
        """Make sure that nothing of timm's model was overlooked."""
        rows, columns = supernet.stem.grid  # other sizes are resampled in another way
        size = (rows * supernet.patch_size, columns * supernet.patch_size)
        image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
        training = supernet.training
        found = next(iter(supernet.eval().features(image).values()))[-1]
        supernet.train(training)
        (expected,) = self.backbone.encode(image)
        error = ((found - expected).abs().max() / expected.abs().max()).item()
        if not error < TOLERANCE:
            msg = (
                f"a supernet cannot start from {self.name!r}: features differ from timm's by {error:.0%}, so that the "
                "model has parts that the supernet has not; choose a plain ViT"
            )
            raise ConfigError(msg)


def _told(weights: str) -> dict[str, Any]:
    """Return what a file of :meth:`PlainViT.save` says beside the weights; nothing, if it is anything else."""
    path = Path(weights)
    content = read_tensors(path) if path.is_file() and path.suffix.lower() != ".safetensors" else None
    return content if isinstance(content, dict) else {}


def _obstacles(encoder: Any) -> Iterator[str]:
    """Say what a transformer has that the supernet has not."""
    from timm.layers.patch_embed import PatchEmbed
    from timm.models.vision_transformer import VisionTransformer

    if not isinstance(encoder, VisionTransformer):
        yield f"timm's class {type(encoder).__name__} and not VisionTransformer"
        return
    if type(encoder.patch_embed) is not PatchEmbed or len(set(encoder.patch_embed.patch_size)) > 1:
        yield "no stem of one convolution with square patches"
    if not isinstance(encoder.norm_pre, nn.Identity) or not isinstance(encoder.patch_embed.norm, nn.Identity):
        yield "a norm before its layers"
    if type(encoder.norm).__name__ not in NORMS:
        yield "no layer norm after its layers"
    for block in encoder.blocks:
        yield from _obstacles_in(block)


def _obstacles_in(block: Any) -> Iterator[str]:
    """Say what a layer has that the supernet has not."""
    from timm.layers.attention import Attention
    from timm.layers.mlp import Mlp
    from timm.models.vision_transformer import Block

    if type(block) is not Block:
        yield f"layers of the kind {type(block).__name__}"
        return
    if type(block.norm1).__name__ not in NORMS or type(block.norm2).__name__ not in NORMS:
        yield f"norms of the kind {type(block.norm1).__name__}"
    if type(block.attn) is not Attention:
        yield f"attention of the kind {type(block.attn).__name__}"
    elif not all(isinstance(part, nn.Identity) for part in (block.attn.q_norm, block.attn.k_norm, block.attn.norm)):
        yield "norms inside its attention"
    elif block.attn.gate is not None:
        yield "gates in its attention"
    if type(block.mlp) is not Mlp:
        yield f"MLPs of the kind {type(block.mlp).__name__}"
    elif not isinstance(block.mlp.norm, nn.Identity):
        yield "norms inside its MLPs"
    elif not (isinstance(block.mlp.act, nn.GELU) and block.mlp.act.approximate == "none"):
        yield f"the activation {block.mlp.act}, not the exact GELU,"


def _attention(unit: str, block: Any) -> dict[str, Tensor]:
    qkv = block.attn.qkv
    return {
        **_affine(f"{unit}.norm", block.norm1),
        f"{unit}.qkv.weight": interleaved(qkv.weight),
        f"{unit}.qkv.bias": interleaved(_bias(qkv)),
        **_scaled(f"{unit}.proj", block.attn.proj, block.ls1),
    }


def _mlp(unit: str, block: Any) -> dict[str, Tensor]:
    return {
        **_affine(f"{unit}.norm", block.norm2),
        **_affine(f"{unit}.fc1", block.mlp.fc1),
        **_scaled(f"{unit}.fc2", block.mlp.fc2, block.ls2),
    }


def _affine(name: str, layer: Any) -> dict[str, Tensor]:
    return {f"{name}.weight": layer.weight, f"{name}.bias": _bias(layer)}


def _scaled(name: str, layer: Any, scale: nn.Module) -> dict[str, Tensor]:
    """Fold a layer scale into the linear layer before it."""
    gamma = cast(Tensor, getattr(scale, "gamma", torch.ones(())))
    return {f"{name}.weight": layer.weight * gamma.reshape(-1, 1), f"{name}.bias": _bias(layer) * gamma}


def _bias(layer: Any) -> Tensor:
    """Return a layer's bias, zeros if it has none."""
    return torch.zeros(len(layer.weight)) if layer.bias is None else layer.bias
