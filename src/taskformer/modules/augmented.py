"""Test-time augmentation: the average of what a network says of an image as it is, mirrored, and at other sizes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor
from torch.nn import functional as F

from taskformer.errors import ConfigError, require
from taskformer.models.layers import resize
from taskformer.tasks import Task


class Predictor(Protocol):
    """What predicts raw outputs of tasks: a model."""

    @property
    def tasks(self) -> Mapping[str, Task]:
        """Its tasks by name."""

    def __call__(self, image: Tensor) -> Mapping[str, Tensor]:
        """Predict raw outputs of images ``(B, 3, H, W)``."""


@dataclass(frozen=True)
class TTA:
    """In which ways a network sees an image whose outputs are averaged; by default as it is, once.

    >>> print(TTA(flip=True, scales=(0.75, 1.0)))
    flips, scales 0.75 and 1

    Attributes:
        flip: Also see it mirrored, left and right, at every scale.
        scales: Factors by which it is enlarged.
    """

    flip: bool = False
    scales: Sequence[float] = (1.0,)

    def __post_init__(self) -> None:
        require("(0, inf)", scales=tuple(self.scales))
        if not self.scales:
            msg = "test-time scales are at least one number, e.g. [0.75, 1, 1.25], got none"
            raise ConfigError(msg)

    @property
    def views(self) -> list[tuple[float, bool]]:
        """The scale of each view, and whether it is mirrored."""
        return [(scale, mirrored) for scale in self.scales for mirrored in (False, True)[: 1 + self.flip]]

    @property
    def facts(self) -> dict[str, Any] | None:
        """Say in plain types what was averaged; None where nothing was."""
        plain = self.views == [(1.0, False)]
        return None if plain else {"flip": self.flip, "scales": [float(scale) for scale in self.scales]}

    def __str__(self) -> str:
        """Say in words what is averaged."""
        scales = f"scales {' and '.join(f'{scale:g}' for scale in self.scales)}"
        return f"flips, {scales}" if self.flip else scales


def augmented(
    module: Predictor, flip: bool = False, scales: Sequence[float] = (1.0,)
) -> Callable[[Tensor], Mapping[str, Tensor]]:
    """Average a model's outputs over flips and scales of the image.

    What a flip and a scale do to the values of a task is what they do to its targets in training: the x of vectors is
    negated, depth is divided by the zoom. Each task averages what its values mean, see
    :meth:`taskformer.tasks.Task.averaged`. A task about the camera only has the view as it is.

    Args:
        module: The model.
        flip: Also see the image mirrored.
        scales: Factors by which the image is enlarged.

    Returns:
        Images ``(B, 3, H, W)`` to raw outputs at that size; the model itself where there is nothing to average.

    Raises:
        ConfigError: If a scale is not above 0, there is none, or a task about the camera never sees the image as it is.
    """
    tta = TTA(flip, scales)
    if tta.facts is None:
        return module
    views = tta.views
    still = next((name for name, task in module.tasks.items() if task.about_camera), None)
    if still and (1.0, False) not in views:
        msg = f"{still} is about the camera and needs the image as it is: add the scale 1 to {list(scales)}"
        raise ConfigError(msg)

    def predict(image: Tensor) -> dict[str, Tensor]:
        found = [(view, _seen(module, image, *view)) for view in views]
        return {
            name: task.averaged(
                [outputs[name] for view, outputs in found if view == (1.0, False) or not task.about_camera]
            )
            for name, task in module.tasks.items()
        }

    return predict


def _seen(module: Predictor, image: Tensor, scale: float, mirrored: bool) -> dict[str, Tensor]:
    """Predict the outputs of one view, as those of the image."""
    size = image.shape[-2:]
    view = image.flip(-1) if mirrored else image
    if scale != 1:
        seen = [max(1, round(side * scale)) for side in size]
        view = F.interpolate(view, size=seen, mode="bilinear", align_corners=False, antialias=True)
    outputs = {}
    for name, output in module(view).items():
        task = module.tasks[name]
        values = task.unzoomed(resize(output, size) if output.ndim == 4 else output, scale)
        outputs[name] = task.mirrored(values) if mirrored else values
    return outputs
