"""The base of tasks whose targets are maps of floating-point values, such as depth and surface normals."""

from collections.abc import Sequence

import torch
from torch import Tensor

from taskformer.errors import InvalidTargetError
from taskformer.tasks.base import Task


class ValueMapTask(Task):
    """A task whose target is a float map ``(B, channels, H, W)`` with NaN where there is no label.

    >>> from taskformer.tasks import Depth  # such a task
    >>> Depth("depth").invalid(height=1, width=2).tolist()  # the target of an image without a label
    [[[nan, nan]]]
    """

    def check(self, target: Tensor, output: Tensor) -> Tensor:
        """Return the map as ``(B, channels, H, W)`` float32; with one channel that axis may be missing.

        Raises:
            InvalidTargetError: If shape or type do not fit.
        """
        if not target.is_floating_point():
            message = f"task {self.name!r} needs float values with NaN where there is no label, got {target.dtype}"
            raise InvalidTargetError(message)
        if self.channels == 1 and target.ndim == output.ndim - 1:
            target = target.unsqueeze(1)
        self._check_shapes(output, target, tuple(output.shape))
        return target.float()

    def decode(self, output: Tensor) -> Tensor:
        """Return the output ``(B, channels, H, W)`` as float32."""
        return output.float()

    def values(self, targets: Sequence[Tensor]) -> Tensor:
        """Gather the pixels of maps ``(..., channels, H, W)`` of any sizes as rows ``(N, channels)`` float32."""
        rows = [target.float().movedim(-3, -1).reshape(-1, self.channels) for target in targets]
        return torch.cat([torch.empty(0, self.channels), *(row.cpu() for row in rows)])

    def invalid(self, height: int, width: int) -> Tensor:
        """Return a map ``(channels, height, width)`` full of NaN."""
        return torch.full((self.channels, height, width), torch.nan)

    def constant(self, targets: list[Tensor]) -> Tensor:
        """Return each channel's median ``(channels,)``, which minimises the mean absolute error."""
        return medians(self.values(targets))


def medians(rows: Tensor) -> Tensor:
    """Return the median of the finite values of each column of rows ``(N, C)``; 0 without any."""
    columns = [column[torch.isfinite(column)] for column in rows.unbind(dim=1)]
    return torch.stack([column.median() if column.numel() else torch.tensor(0.0) for column in columns])
