"""Bringing raw outputs back to a photograph's own resolution."""

import torch
from torch import Tensor

from taskformer.models.layers import resize
from taskformer.tasks import Task

#: Values of an enlarged raw output above which it is decoded in bands of rows: 256 MiB.
MAX_VALUES = 2**26


def decode_at(task: Task, output: Tensor, height: int, width: int) -> Tensor:
    """Decode a raw output at another resolution, in bands of rows where all classes of all pixels would not fit.

    Args:
        task: The task.
        output: ``(B, channels, h, w)``, or ``(B, channels)`` of whole images.
        height: Height of the maps.
        width: Width of the maps.

    Returns:
        The decoded maps ``(B, height, width)`` or ``(B, C, height, width)``; of whole images as they are.
    """
    if output.ndim != 4:
        return task.decode(output)
    rows = max(1, MAX_VALUES // (output.shape[0] * output.shape[1] * width))
    if rows >= height:
        return task.decode(resize(output, (height, width)))
    bands = torch.arange(height, device=output.device).split(rows)
    return torch.cat([task.decode(resize(_at_rows(output, band, height), (len(band), width))) for band in bands], -2)


def _at_rows(x: Tensor, rows: Tensor, height: int) -> Tensor:
    """Compute some rows of ``(B, C, h, w)`` resampled bilinearly to ``(B, C, height, w)``."""
    place = ((rows + 0.5) * (x.shape[-2] / height) - 0.5).clamp(0, x.shape[-2] - 1)
    above = place.long()
    below = (above + 1).clamp(max=x.shape[-2] - 1)
    return torch.lerp(x[..., above, :], x[..., below, :], (place - above).to(x.dtype)[:, None])
