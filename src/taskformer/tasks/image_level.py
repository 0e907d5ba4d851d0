"""The base of tasks whose targets are about the whole image, such as image classification."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taskformer.errors import InvalidTargetError
from taskformer.tasks.base import Geometry, Task
from taskformer.tasks.colors import bars


class ImageLevelTask(Task):
    """A task whose target is a row of floats ``(B, channels)`` with NaN where there is no label.

    >>> from taskformer.tasks import Classification  # such a task
    >>> scene = Classification("scene", ["kitchen", "bath"])
    >>> scene.invalid(height=480, width=640).tolist()  # the target of an image without a label
    [nan, nan]
    """

    geometry: ClassVar[Geometry] = "image"

    def check(self, target: Tensor, output: Tensor) -> Tensor:
        """Return the target as ``(B, channels)`` float32.

        Raises:
            InvalidTargetError: If shape or type do not fit.
        """
        if not target.is_floating_point():
            message = f"task {self.name!r} needs {self.channels} float values (float32) per image, got {target.dtype}"
            raise InvalidTargetError(message)
        self._check_shapes(output, target, tuple(output.shape))
        return target.float()

    def decode(self, output: Tensor) -> Tensor:
        """Return the output ``(B, channels)`` as float32."""
        return output.float()

    def values(self, targets: Sequence[Tensor]) -> Tensor:
        """Gather targets ``(..., channels)`` as rows ``(N, channels)`` float32."""
        rows = [target.float().cpu().reshape(-1, self.channels) for target in targets]
        return torch.cat([torch.empty(0, self.channels), *rows])

    def invalid(self, height: int, width: int) -> Tensor:
        """Return a row ``(channels,)`` full of NaN; the size of the image does not matter."""
        del height, width
        return torch.full((self.channels,), torch.nan)

    def _bars(self, values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
        """Draw the values ``(channels,)`` of one image as bars from ``low`` to ``high``.

        Raises:
            InvalidTargetError: If the values have another shape.
        """
        if values.shape != (self.channels,):
            message = f"task {self.name!r} draws {self.channels} numbers, got {values.shape}"
            raise InvalidTargetError(message)
        return bars((values - low) / (high - low))
