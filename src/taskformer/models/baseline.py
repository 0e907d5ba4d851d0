"""The reference every multi-task model is compared with: the same backbone and a plain convolutional head per task."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from taskformer.errors import require
from taskformer.models.decoders import register_decoder
from taskformer.models.layers import TaskPredictor, TaskProjection


@register_decoder("plain")
class BaselineHead(nn.Module):
    """Fused features, one 1x1 projection and one small predictor per task; no exchange between tasks.

    >>> import torch
    >>> head = BaselineHead({"semseg": 40, "depth": 1}, channels=[24, 48], strides=[8, 16], embed_dim=16)
    >>> features = [torch.randn(2, 24, 8, 12), torch.randn(2, 48, 4, 6)]  # of images of 64 x 96 pixels
    >>> {task: tuple(output.shape) for task, output in head(features, size=(64, 96)).items()}
    {'semseg': (2, 40, 64, 96), 'depth': (2, 1, 64, 96)}

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

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        """Decode feature maps, fine to coarse, to ``{task: (B, C_task, *size)}``."""
        outputs: dict[str, Tensor] = self.predict(self.project(features), size)
        return outputs
