"""The plain multi-task baseline as a LightningModule."""

from functools import partial
from typing import Any

from taskformer.models.decoders import build_head, find_decoder
from taskformer.modules.base import output_channels
from taskformer.modules.dense import DenseModule


class Baseline(DenseModule):
    """An encoder with one decoder per task: the single-task reference with one task, the MTL baseline with several.

    >>> import torch
    >>> model = Baseline({"depth": {}, "normals": {}}, decoder="dpt", backbone="lcnet_050").eval()
    >>> {task: tuple(output.shape) for task, output in model(torch.zeros(1, 3, 64, 96)).items()}
    {'depth': (1, 1, 64, 96), 'normals': (1, 3, 64, 96)}

    Args:
        tasks: Task name to its plain description; filled in from the data module.
        decoder: ``"plain"`` (all maps fused, then two convolutions per task); ``"linear"``, ``"aspp"``, ``"pup"`` (of
            the last map); ``"dpt"``; ``"query"`` (MQTransformer's, whose settings ``--model MQTransformer`` has); or a
            class of your own by its place, ``package.module.Class``.
        embed_dim: Channels inside the decoder, which ``"linear"`` has none of; None: the decoder's own default.
        head_dim: Channels before each task's last layer, for ``"plain"`` and ``"query"``; None: the default.
        kwargs: The encoder and settings of every model, see :class:`~taskformer.modules.dense.DenseModule`.
    """

    def __init__(
        self,
        tasks: dict[str, dict[str, Any]],
        decoder: str = "plain",
        embed_dim: int | None = None,
        head_dim: int | None = None,
        **kwargs: Any,
    ) -> None:
        last_only = getattr(find_decoder(decoder), "last_only", False)
        head = partial(build_head, decoder, output_channels(tasks), embed_dim=embed_dim, head_dim=head_dim)
        super().__init__(tasks, head, last_only=last_only, **kwargs)
