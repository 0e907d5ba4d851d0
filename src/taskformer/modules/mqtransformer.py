"""MQTransformer as a LightningModule."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from taskformer.errors import require
from taskformer.models import DenseNetwork, MQTransformerHead
from taskformer.models.layers import TaskPredictor
from taskformer.models.mqtransformer import MultiQueryDecoder
from taskformer.modules.base import not_negative, output_channels
from taskformer.modules.dense import DenseModule
from taskformer.modules.evaluating import Batch


class MQTransformer(DenseModule):
    """Multi-Query Transformer: shared encoder, cross-task attention over queries, shared decoder.

    >>> import torch
    >>> model = MQTransformer({"depth": {}, "normals": {}}, embed_dim=32, backbone="lcnet_050").eval()
    >>> {task: tuple(output.shape) for task, output in model(torch.zeros(1, 3, 64, 96)).items()}
    {'depth': (1, 1, 64, 96), 'normals': (1, 3, 64, 96)}

    Args:
        tasks: Task name to its plain description; filled in from the data module.
        embed_dim: Width of tokens and queries.
        num_queries: Queries per task and scale.
        num_heads: Attention heads.
        scales: ``"fused"`` (one scale) or the backbone strides to keep apart, e.g. ``[4, 8, 16, 32]``.
        token_stride: Of a fused scale: the stride at which queries and tokens meet; None: the finest one.
        cross_attention: ``"separate"`` (tasks at one scale, then scales of one task), ``"joint"`` or ``"none"``.
        num_blocks: Encoder - exchange - decoder rounds.
        encoder_mlp_ratio: Hidden width of the encoder's MLP over ``embed_dim``.
        cross_mlp_ratio: Hidden width of the cross-task attention's MLP over ``embed_dim``.
        decoder_mlp_ratio: Hidden width of the decoder's MLP over ``embed_dim``.
        drop_path: Stochastic depth rate of encoder and decoder.
        cross_drop_path: Stochastic depth rate of the cross-task attention.
        head_dim: Channels before each task's last layer.
        wiring: ``"clean"``, or ``"released"`` for residuals, norms and biases of the authors' program.
        merge: How scales become one: ``"sum"`` or ``"concat"``.
        share_encoder: One query encoder for all tasks, or else one for each.
        share_decoder: One decoder for all tasks, or else one for each.
        start: ``"random"``, or ``"plain"``: residual branches start at zero, and the head as plain heads do.
        query_lr_scale: Learning rate of queries and of the layers in which they meet tokens and each other, over that
            of the rest of the head. Convolutions with norms learn well at rates at which attention does not.
        checkpointing: Compute the decoder's activations twice in training: less memory for more time.
        auxiliary_weight: Deep supervision, as InvPT's: weight of the losses of predictions from each task's own maps,
            before the exchange (with several scales their mean), over that of the final ones; 0: none. What predicts
            them trains with the network, and is no part of it.
        kwargs: The encoder and settings of every model, see :class:`~taskformer.modules.dense.DenseModule`.

    Reference:
        Xu, Li, Yuan, Yang, Zhang. Multi-Task Learning with Multi-Query Transformer for Dense Prediction.
        arXiv 2205.14354.
    """

    def __init__(
        self,
        tasks: dict[str, dict[str, Any]],
        embed_dim: int = 256,
        num_queries: int = 64,
        num_heads: int = 4,
        scales: Literal["fused"] | list[int] = "fused",
        token_stride: int | None = None,
        cross_attention: Literal["separate", "joint", "none"] = "separate",
        num_blocks: int = 1,
        encoder_mlp_ratio: float = 1.0,
        cross_mlp_ratio: float = 1.0,
        decoder_mlp_ratio: float = 3.0,
        drop_path: float = 0.1,
        cross_drop_path: float = 0.5,
        head_dim: int = 64,
        wiring: Literal["clean", "released"] = "clean",
        merge: Literal["sum", "concat"] = "sum",
        share_encoder: bool = True,
        share_decoder: bool = True,
        start: Literal["random", "plain"] = "random",
        query_lr_scale: float = 1.0,
        checkpointing: bool = False,
        auxiliary_weight: float = 0.0,
        **kwargs: Any,
    ) -> None:
        build_head = partial(
            MQTransformerHead,
            output_channels(tasks),
            embed_dim=embed_dim,
            num_queries=num_queries,
            num_heads=num_heads,
            scales=scales,
            token_stride=token_stride,
            cross_attention=cross_attention,
            num_blocks=num_blocks,
            encoder_mlp_ratio=encoder_mlp_ratio,
            cross_mlp_ratio=cross_mlp_ratio,
            decoder_mlp_ratio=decoder_mlp_ratio,
            drop_path=drop_path,
            cross_drop_path=cross_drop_path,
            head_dim=head_dim,
            wiring=wiring,
            merge=merge,
            share_encoder=share_encoder,
            share_decoder=share_decoder,
            start=start,
            checkpointing=checkpointing,
        )
        super().__init__(tasks, build_head, last_only=False, **kwargs)
        require("[0, inf)", auxiliary_weight=auxiliary_weight)
        self.auxiliary_weight = auxiliary_weight
        self.query_lr_scale = not_negative("query_lr_scale", query_lr_scale)
        #: Makes the network's and the auxiliary predictions, compiled while a Trainer runs if that is asked for.
        self._compiled_deep: Callable[..., list[dict[str, Tensor]]] | None = None
        if self.auxiliary_weight:
            count = 1 if scales == "fused" else len(scales)
            predictors = (TaskPredictor(output_channels(tasks), embed_dim, head_dim) for _ in range(count))
            self.scaffold["auxiliary"] = nn.ModuleList(predictors)

    def lr_scales(self) -> dict[str, float]:
        """Let queries and their layers learn at a rate of their own, beside the backbone."""
        head = cast("MultiQueryDecoder", self._dense.head)
        return super().lr_scales() | {f"head.{name}": self.query_lr_scale for name in head.exchanging()}

    def setup(self, stage: str) -> None:
        """Let the Trainer's runs compute as they are asked to."""
        super().setup(stage)
        if self.compiles and self.auxiliary_weight:
            self._compiled_deep = torch.compile(self._dense.deep_predictions)

    def teardown(self, stage: str) -> None:
        """Compute plainly again."""
        super().teardown(stage)
        self._compiled_deep = None

    def predictions(self, image: Tensor) -> list[dict[str, Tensor]]:
        """Predict what a training step supervises, with deep supervision also from each task's own maps."""
        if not self.auxiliary_weight:
            return super().predictions(image)
        auxiliary = cast("nn.ModuleList", self.scaffold["auxiliary"])
        return (self._compiled_deep or self._dense.deep_predictions)(image, [*auxiliary])

    def objectives(self, predictions: Sequence[Mapping[str, Tensor]], batch: Batch) -> dict[str, Tensor]:
        """Compute the losses that a training step balances; those of auxiliary predictions are in their tasks'."""
        losses = super().objectives(predictions, batch)
        if auxiliary := [self.task_losses(outputs, batch["targets"]) for outputs in predictions[1:]]:
            for name in self.tasks:
                mean = torch.stack([each[name] for each in auxiliary]).mean()
                losses[name] = losses[name] + self.auxiliary_weight * mean
        return losses

    @property
    def _dense(self) -> DenseNetwork:
        assert isinstance(self.network, DenseNetwork)
        return self.network
