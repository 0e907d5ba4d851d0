"""A whole network: backbone, head, and the padding that lets it take any image size."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol, cast

from torch import Tensor, nn

from taskformer.models.backbones import Backbone
from taskformer.models.layers import enough_values, pad_to_multiples, undecayed


class ExchangingHead(Protocol):
    """A head whose tasks have maps of their own before they exchange what they know."""

    def task_maps(self, features: Sequence[Tensor]) -> list[list[Tensor]]:
        """Make each task's own maps, for each scale."""

    def decode(self, maps: Sequence[Sequence[Tensor]], size: tuple[int, int]) -> dict[str, Tensor]:
        """Let the tasks exchange, and predict."""


class DenseNetwork(nn.Module):
    """Image to one raw map per task at the image's own resolution, for any height and width.

    >>> import torch
    >>> from taskformer.models import BaselineHead
    >>> def head(channels, strides):
    ...     return BaselineHead({"depth": 1, "scene": 5}, channels, strides, embed_dim=16)
    >>> network = DenseNetwork(Backbone("test_resnet"), head, image_tasks=["scene"]).eval()
    >>> {task: tuple(output.shape) for task, output in network(torch.zeros(1, 3, 50, 70)).items()}
    {'depth': (1, 1, 50, 70), 'scene': (1, 5)}

    Args:
        backbone: The encoder.
        head: Builds the head from the backbone's ``channels`` and ``strides``; the head maps
            ``(features, size) -> {task: (B, C_task, *size)}``.
        image_tasks: Tasks with one answer for the whole image (classification): the mean of their map.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: Callable[[list[int], list[int]], nn.Module],
        image_tasks: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.image_tasks = frozenset(image_tasks)
        self.head = head(backbone.channels, backbone.strides)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Predict raw outputs from ``(B, 3, H, W)`` ImageNet-normalised: ``(B, C_task, H, W)``, or ``(B, C_task)``.

        Raises:
            ConfigError: If a batch norm trains on one value.
        """
        with enough_values(image):
            features, size = self._features(image)
            return self._cropped(self.head(features, size), image)

    def deep_predictions(self, image: Tensor, auxiliary: Sequence[nn.Module]) -> list[dict[str, Tensor]]:
        """Predict also from what the tasks have before they exchange anything, to supervise it.

        Args:
            image: ``(B, 3, H, W)`` ImageNet-normalised.
            auxiliary: For each scale of the head what predicts from it: ``(maps of all tasks, size)`` to outputs.

        Returns:
            The outputs of :meth:`forward`, and those of each scale.

        Raises:
            ConfigError: If a batch norm trains on one value.
        """
        head = cast("ExchangingHead", self.head)
        with enough_values(image):
            features, size = self._features(image)
            maps = head.task_maps(features)
            early = [predict(scale, size) for predict, scale in zip(auxiliary, maps, strict=True)]
            return [self._cropped(outputs, image) for outputs in (head.decode(maps, size), *early)]

    def _features(self, image: Tensor) -> tuple[list[Tensor], tuple[int, int]]:
        """Compute the backbone's maps of the padded image, and its size."""
        padded = pad_to_multiples(image, self.backbone.step)
        return self.backbone(padded), (padded.shape[-2], padded.shape[-1])

    def _cropped(self, outputs: Mapping[str, Tensor], image: Tensor) -> dict[str, Tensor]:
        """Cut the padding off, and make one answer of each map that is about the whole image."""
        height, width = image.shape[-2:]
        maps = {task: output[..., :height, :width] for task, output in outputs.items()}
        return {task: x.mean((2, 3)) if task in self.image_tasks else x for task, x in maps.items()}

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that encoder and head declare as free of weight decay."""
        return undecayed(self)
