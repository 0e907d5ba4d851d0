"""MQTransformer as a LightningModule."""

from functools import partial
from typing import Any, Literal

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch.optim import AdamW

from taskformer.errors import require
from taskformer.models import Backbone, DenseNetwork, MQTransformerHead
from taskformer.modules.base import MultiTaskModule, image_tasks, output_channels
from taskformer.modules.optimisation import DecayOn
from taskformer.modules.schedules import PolyLR


class MQTransformer(MultiTaskModule):
    """Multi-Query Transformer: shared encoder, cross-task attention over queries, shared decoder.

    Args:
        tasks: Task name to its plain description; filled in from the data module.
        backbone: Name of any timm encoder.
        weights: ``"random"``, ``"timm"`` (downloaded), ``"bundled"`` (offline, EfficientNet-Lite0) or a file.
        embed_dim: Width of tokens and queries.
        num_queries: Queries per task and scale.
        num_heads: Attention heads.
        scales: ``"fused"`` (one scale) or the backbone strides to keep apart, e.g. ``[4, 8, 16, 32]``.
        cross_attention: ``"separate"`` (tasks at one scale, then scales of one task) or ``"joint"``.
        num_blocks: Encoder - exchange - decoder rounds.
        encoder_mlp_ratio: Hidden width of the encoder's MLP over ``embed_dim``.
        cross_mlp_ratio: Hidden width of the cross-task attention's MLP over ``embed_dim``.
        decoder_mlp_ratio: Hidden width of the decoder's MLP over ``embed_dim``.
        drop_path: Stochastic depth rate of encoder and decoder.
        cross_drop_path: Stochastic depth rate of the cross-task attention.
        backbone_drop_path: Stochastic depth rate of the backbone.
        head_dim: Channels before each task's last layer.
        loss_weights: Weight of some tasks' losses; the others keep their defaults.
        optimizer: Builds the optimizer from parameter groups.
        lr_scheduler: Builds the schedule from the optimizer, stepped after every batch; None: constant rate.
        backbone_lr_scale: Learning rate of the backbone over that of the head.
        weight_decay_on: ``"weights"``: matrices and kernels decay, but not norms, biases, queries, positions and what
            else the network declares; ``"all"``: everything does, as in some published recipes.

    Reference:
        Xu, Li, Yuan, Yang, Zhang. Multi-Task Learning with Multi-Query Transformer for Dense Prediction.
        arXiv 2205.14354.
    """

    def __init__(
        self,
        tasks: dict[str, dict[str, Any]],
        backbone: str = "resnet18",
        weights: str = "random",
        embed_dim: int = 256,
        num_queries: int = 64,
        num_heads: int = 4,
        scales: Literal["fused"] | list[int] = "fused",
        cross_attention: Literal["separate", "joint"] = "separate",
        num_blocks: int = 1,
        encoder_mlp_ratio: float = 1.0,
        cross_mlp_ratio: float = 1.0,
        decoder_mlp_ratio: float = 3.0,
        drop_path: float = 0.1,
        cross_drop_path: float = 0.5,
        backbone_drop_path: float = 0.0,
        head_dim: int = 64,
        loss_weights: dict[str, float] | None = None,
        optimizer: OptimizerCallable = lambda parameters: AdamW(parameters, lr=1e-3, weight_decay=1e-4),
        lr_scheduler: LRSchedulerCallable | None = lambda optimizer: PolyLR(optimizer, power=0.9),
        backbone_lr_scale: float = 1.0,
        weight_decay_on: DecayOn = "weights",
    ) -> None:
        head = partial(
            MQTransformerHead,
            output_channels(tasks),
            embed_dim=embed_dim,
            num_queries=num_queries,
            num_heads=num_heads,
            scales=scales,
            cross_attention=cross_attention,
            num_blocks=num_blocks,
            encoder_mlp_ratio=encoder_mlp_ratio,
            cross_mlp_ratio=cross_mlp_ratio,
            decoder_mlp_ratio=decoder_mlp_ratio,
            drop_path=drop_path,
            cross_drop_path=cross_drop_path,
            head_dim=head_dim,
        )
        require("[0, 1)", backbone_drop_path=backbone_drop_path)
        network = DenseNetwork(Backbone(backbone, weights, backbone_drop_path), head, image_tasks(tasks))
        super().__init__(tasks, network, loss_weights, optimizer, lr_scheduler, backbone_lr_scale, weight_decay_on)
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"])
