"""The plain multi-task baseline as a LightningModule."""

from functools import partial
from typing import Any

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch.optim import AdamW

from taskformer.errors import require
from taskformer.models import Backbone, BaselineHead, DenseNetwork
from taskformer.modules.base import MultiTaskModule, image_tasks, output_channels
from taskformer.modules.optimisation import DecayOn
from taskformer.modules.schedules import PolyLR


class Baseline(MultiTaskModule):
    """A backbone with one plain head per task: the single-task reference with one task, the MTL baseline with several.

    Args:
        tasks: Task name to its plain description; filled in from the data module.
        backbone: Name of any timm encoder.
        weights: ``"random"``, ``"timm"`` (downloaded), ``"bundled"`` (offline, EfficientNet-Lite0) or a file.
        embed_dim: Channels per task after the projection.
        backbone_drop_path: Stochastic depth rate of the backbone.
        head_dim: Channels before each task's last layer.
        loss_weights: Weight of some tasks' losses; the others keep their defaults.
        optimizer: Builds the optimizer from parameter groups.
        lr_scheduler: Builds the schedule from the optimizer, stepped after every batch; None: constant rate.
        backbone_lr_scale: Learning rate of the backbone over that of the head.
        weight_decay_on: ``"weights"``: matrices and kernels decay, but not norms, biases, queries, positions and what
            else the network declares; ``"all"``: everything does, as in some published recipes.
    """

    def __init__(
        self,
        tasks: dict[str, dict[str, Any]],
        backbone: str = "resnet18",
        weights: str = "random",
        embed_dim: int = 256,
        backbone_drop_path: float = 0.0,
        head_dim: int = 64,
        loss_weights: dict[str, float] | None = None,
        optimizer: OptimizerCallable = lambda parameters: AdamW(parameters, lr=1e-3, weight_decay=1e-4),
        lr_scheduler: LRSchedulerCallable | None = lambda optimizer: PolyLR(optimizer, power=0.9),
        backbone_lr_scale: float = 1.0,
        weight_decay_on: DecayOn = "weights",
    ) -> None:
        head = partial(BaselineHead, output_channels(tasks), embed_dim=embed_dim, head_dim=head_dim)
        require("[0, 1)", backbone_drop_path=backbone_drop_path)
        network = DenseNetwork(Backbone(backbone, weights, backbone_drop_path), head, image_tasks(tasks))
        super().__init__(tasks, network, loss_weights, optimizer, lr_scheduler, backbone_lr_scale, weight_decay_on)
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
