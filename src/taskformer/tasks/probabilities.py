"""Probabilities: how files of predictions hold them, 8 bits as the field's evaluators read them, and their mean."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taskformer.errors import InvalidTargetError


def mean_probabilities(outputs: Sequence[Tensor]) -> Tensor:
    """Return the logarithm of the mean class probabilities of logits, each ``(B, K, ...)``."""
    logs = torch.stack([output.float().log_softmax(dim=1) for output in outputs])
    return logs.logsumexp(dim=0) - math.log(len(logs))


def probability_bytes(probability: Tensor) -> NDArray[np.uint8]:
    """Return probabilities times 255 as uint8, truncated as the field's evaluators do."""
    values: NDArray[np.uint8] = (probability.float() * 255).byte().cpu().numpy()
    return values


def logits_of(name: str, stored: NDArray[Any]) -> Tensor:
    """Return log-odds ``(H, W)`` of stored probabilities: floats, or 8-bit or 16-bit integers whose largest means 1.

    Args:
        name: The task, for the message.
        stored: The probabilities ``(H, W)``.

    Raises:
        InvalidTargetError: If they are not probabilities.
    """
    values = stored
    if values.dtype.kind == "u":
        top = np.iinfo(values.dtype).max
        # A trifle more than stored, so that what equals a threshold, as 51 / 255 does .2, reaches it after rounding.
        values = (values + 1e-3).clip(max=top) / top
    values = values.astype(np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        message = f"task {name!r} needs predictions between 0 and 1, or 8 bits, got {values.min()}..{values.max()}"
        raise InvalidTargetError(message)
    return torch.logit(torch.from_numpy(values)).float()
