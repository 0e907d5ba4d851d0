"""The plain multi-task baseline as a LightningModule."""

from functools import partial
from typing import Any

from taskformer.models import BaselineHead
from taskformer.modules.base import output_channels
from taskformer.modules.dense import DenseModule


class Baseline(DenseModule):
    """A backbone with one plain head per task: the single-task reference with one task, the MTL baseline with several.

    Args:
        tasks: Task name to its plain description; filled in from the data module.
        embed_dim: Channels per task after the projection.
        head_dim: Channels before each task's last layer.
        kwargs: The encoder and settings of every model, see :class:`~taskformer.modules.dense.DenseModule`.
    """

    def __init__(
        self, tasks: dict[str, dict[str, Any]], embed_dim: int = 256, head_dim: int = 64, **kwargs: Any
    ) -> None:
        build_head = partial(BaselineHead, output_channels(tasks), embed_dim=embed_dim, head_dim=head_dim)
        super().__init__(tasks, build_head, **kwargs)
