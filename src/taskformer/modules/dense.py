"""What all models of an encoder and a head have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import nn

from taskformer.errors import require
from taskformer.models import Backbone, DenseNetwork
from taskformer.models.backbones import Form
from taskformer.modules.base import MultiTaskModule, image_tasks, not_negative


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
        weights: ``"random"``, ``"timm"`` (downloaded), ``"bundled"`` (offline, EfficientNet-Lite0) or a file.
        backbone_drop_path: Stochastic depth rate of the backbone.
        backbone_form: ``"segmentation"``: a Swin or HRNet as published dense predictors have it, ``"classification"``:
            as timm does.
        backbone_lr_scale: Learning rate of the backbone over that of the head.
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
        **kwargs: Any,
    ) -> None:
        require("[0, 1)", backbone_drop_path=backbone_drop_path)
        encoder = Backbone(backbone, weights, backbone_drop_path, last_only, backbone_form)
        network = DenseNetwork(encoder, build_head, image_tasks(tasks))
        super().__init__(tasks, network, weights=weights, **kwargs)
        self.backbone_lr_scale = not_negative("backbone_lr_scale", backbone_lr_scale)

    def lr_scales(self) -> dict[str, float]:
        """Let the backbone learn at a rate of its own."""
        assert isinstance(self.network, DenseNetwork)
        backbone = set(self.network.backbone.parameters())
        return {name: self.backbone_lr_scale for name, p in self.network.named_parameters() if p in backbone}
