"""The reference every multi-task model is compared with: the same backbone and a plain convolutional head per task."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from taskformer.errors import require
from taskformer.models.layers import TaskPredictor, TaskProjection


class BaselineHead(nn.Module):
    """Fused features, one 1x1 projection and one small predictor per task; no exchange between tasks.

    With one task it is the single-task reference of delta_m, with several the plain multi-task baseline.

    Args:
        tasks: Task name to output channels.
        channels: Channels of the backbone's feature maps.
        strides: Their strides, ascending.
        embed_dim: Channels per task after the projection.
        head_dim: Channels before each task's last layer.

    Raises:
        ConfigError: If a width is below 1.
    """

    def __init__(
        self,
        tasks: Mapping[str, int],
        channels: Sequence[int],
        strides: Sequence[int],
        embed_dim: int = 256,
        head_dim: int = 64,
    ) -> None:
        super().__init__()
        require("[1, inf)", embed_dim=embed_dim, head_dim=head_dim)
        self.project = TaskProjection(channels, len(tasks), embed_dim)
        self.predict = TaskPredictor(tasks, embed_dim, head_dim)

    def forward(self, features: list[Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        """Decode feature maps, fine to coarse, to ``{task: (B, C_task, *size)}``."""
        outputs: dict[str, Tensor] = self.predict(F.gelu(self.project(features)), size)
        return outputs
