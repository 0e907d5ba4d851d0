"""What all models of an encoder and a head have in common."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from taskformer.errors import ConfigError, require
from taskformer.models import Backbone, DenseNetwork
from taskformer.models.adapting import Freeze, Lora, encoder_layers, frozen_parts
from taskformer.models.backbones import Form, FrozenPrecision
from taskformer.models.feature_cache import CacheSettings
from taskformer.modules.base import MultiTaskModule, image_tasks, not_negative
from taskformer.modules.groups import as_group


class DenseModule(MultiTaskModule, ABC):
    """Any timm encoder with a head on its feature maps; a model is a subclass that says which head.

    >>> import torch
    >>> from functools import partial
    >>> from taskformer.models import BaselineHead
    >>> class Narrow(DenseModule):
    ...     def __init__(self, tasks, width: int = 8, **kwargs):
    ...         super().__init__(tasks, partial(BaselineHead, {"depth": 1}, embed_dim=width), **kwargs)
    >>> model = Narrow({"depth": {}}, backbone="lcnet_050").eval()
    >>> tuple(model(torch.zeros(1, 3, 64, 96))["depth"].shape)
    (1, 1, 64, 96)

    Args:
        tasks: Task name to its plain description; filled in from the data module.
        build_head: Builds the head, see :class:`taskformer.models.DenseNetwork`.
        last_only: Give the head only the encoder's last map.
        backbone: Name of any timm encoder.
        weights: ``"random"``, ``"timm"`` (downloaded), ``"bundled"`` (offline, EfficientNet-Lite0),
            ``"hub:ORG/REPO[@REVISION][/FILE]"`` (downloaded from the Hugging Face hub) or a file.
        backbone_drop_path: Stochastic depth rate of the backbone.
        backbone_form: ``"segmentation"``: a Swin or HRNet as published dense predictors have it, ``"classification"``:
            as timm does.
        backbone_lr_scale: Learning rate of the backbone over that of the head.
        layer_decay: Factor of the backbone's learning rate from each of its layers to the one before it.
        freeze: What of the backbone's encoder does not train: ``"none"``, ``"all"``, or the stem and so many blocks. It
            runs as in evaluation. What frozen weights came from is noted in checkpoints, which leave them out.
        lora: Low-rank adapters in the encoder, which is frozen but for them.
        patch_size: Side of a plain ViT's patches in pixels, if other than in its name; pretrained ones are resampled.
        normalisation: Mean and deviation, in 0..1 per channel, of the images that a file's weights were trained on,
            e.g. ``[[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]``. None: what timm or the hub says of the weights.
        frozen_precision: How exactly an encoder computes that is frozen as a whole: ``"float32"`` as everything else
            does, or in ``"bfloat16"`` or ``"float16"``.
        feature_cache: Where the maps of such an encoder are kept, so that no image is encoded twice.
        kwargs: Settings of every model, see :class:`~taskformer.modules.base.MultiTaskModule`.
    """

    recipe_settings = (*MultiTaskModule.recipe_settings, "backbone_lr_scale", "backbone_drop_path")

    @abstractmethod  # a model says which head
    def __init__(
        self,
        tasks: dict[str, dict[str, Any]],
        build_head: Callable[[list[int], list[int]], nn.Module],
        last_only: bool = False,
        backbone: str = "resnet18",
        weights: str = "random",
        backbone_drop_path: float = 0.0,
        backbone_form: Form = "classification",
        backbone_lr_scale: float = 1.0,
        layer_decay: float = 1.0,
        freeze: Freeze = "none",
        lora: Lora = Lora(),  # noqa: B008  # groups are immutable
        patch_size: int | None = None,
        normalisation: list[list[float]] | None = None,
        frozen_precision: FrozenPrecision = "float32",
        feature_cache: CacheSettings = CacheSettings(),  # noqa: B008  # immutable too
        **kwargs: Any,
    ) -> None:
        require("[0, 1)", backbone_drop_path=backbone_drop_path)
        require("(0, 1]", layer_decay=layer_decay)
        lora = as_group("lora", Lora, lora)  # checkpoints hold plain types
        cache = as_group("feature_cache", CacheSettings, feature_cache).open()
        encoder = Backbone(
            backbone,
            weights,
            backbone_drop_path,
            last_only,
            backbone_form,
            freeze,
            lora,
            patch_size,
            normalisation,
            frozen_precision,
            cache,
        )
        network = DenseNetwork(encoder, build_head, image_tasks(tasks))
        super().__init__(tasks, network, weights=weights, **kwargs)
        if self.compiles and cache:
            msg = "feature_cache reads files, which a compiled program cannot: set compile to false, or leave it out"
            raise ConfigError(msg)
        self.save_hyperparameters({"lora": asdict(lora)}, logger=False)
        self.backbone_lr_scale = not_negative("backbone_lr_scale", backbone_lr_scale)
        self.layer_decay = layer_decay
        # Found once: a checkpoint is loaded without asking timm or the hub again.
        self.hparams["normalisation"] = encoder.normalisation
        self.note_given()

    @property
    def backbone(self) -> Backbone:
        """The network's encoder."""
        assert isinstance(self.network, DenseNetwork)
        return self.network.backbone

    def given(self) -> dict[str, Tensor]:
        """Return the frozen tensors that the weights give again."""
        return {f"network.backbone.{name}": values for name, values in self.backbone.given().items()}

    def describe_training(self, trainer: Trainer) -> dict[str, Any]:
        """Describe a training, also what of the encoder it trains; None: all of it, as before there was a choice."""
        freeze, lora = self.hparams["freeze"], self.hparams["lora"]
        adapting = {
            "freeze": None if freeze == "none" else freeze,
            "lora": lora if lora["rank"] else None,
            "layer_decay": None if self.layer_decay == 1 else self.layer_decay,
        }
        return super().describe_training(trainer) | adapting

    def on_fit_start(self) -> None:
        """Say if what is frozen has learnt nothing."""
        super().on_fit_start()
        still = {part for whole in frozen_parts(self.backbone.encoder) for part in whole.modules()}
        # Lightning asks whether that is meant; it asks on where there are others.
        warnings.filterwarnings("ignore", message=rf"Found {len(still)} module\(s\) in eval mode")
        adapted = self.hparams["freeze"] != "none" or self.hparams["lora"]["rank"]
        if adapted and self.hparams["weights"] == "random":
            rank_zero_info("the frozen weights of the encoder are random; name trained ones with --model.weights")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Normalise images as those were that the loaded weights were trained on; older checkpoints go by the name."""
        super().on_load_checkpoint(checkpoint)
        normalisation = checkpoint["hyper_parameters"].get("normalisation")
        if normalisation is not None:
            self.backbone.normalise_as(normalisation)
            self.hparams["normalisation"] = normalisation

    def lr_scales(self) -> dict[str, float]:
        """Let the backbone learn at a rate of its own, and its layers at ever lower ones towards the image."""
        scales = dict.fromkeys(
            (f"backbone.{name}" for name, _ in self.backbone.named_parameters()), self.backbone_lr_scale
        )
        if self.layer_decay != 1:
            layers = encoder_layers(self.backbone.encoder)
            last = max(layers.values())
            scales |= {
                f"backbone.encoder.{name}": self.backbone_lr_scale * self.layer_decay ** (last + 1 - layer)
                for name, layer in layers.items()
            }
        return scales
