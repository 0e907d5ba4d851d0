"""ImageNet's normalisation of images, which all encoders here are trained with, and its inverse.

Example:
    >>> import torch
    >>> grey = torch.full((3, 1, 1), 0.5)
    >>> normalise(grey).flatten()
    tensor([0.0655, 0.1964, 0.4178])
    >>> denormalise(normalise(grey)).flatten()
    tensor([0.5000, 0.5000, 0.5000])
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taskformer.errors import InvalidTargetError

#: Mean and standard deviation of ImageNet's red, green and blue, in 0..1.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

_MEAN, _STD = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))


def normalise(pixels: Tensor) -> Tensor:
    """Normalise RGB in 0..1 ``(..., 3, H, W)`` with ImageNet's mean and standard deviation."""
    return (pixels - _MEAN) / _STD


def denormalise(image: Tensor) -> Tensor:
    """Return the RGB in 0..1 ``(..., 3, H, W)`` of a normalised image on any device."""
    return image * _STD.to(image.device) + _MEAN.to(image.device)


#: What each 8-bit value of each channel is after normalisation ``(3, 256)``.
_TABLE = normalise(torch.arange(256).div(255).expand(3, 1, 256)).squeeze(1).numpy()


def normalise_bytes(image: NDArray[Any]) -> Tensor:
    """Turn uint8 RGB ``(H, W, 3)`` into a normalised float32 tensor ``(3, H, W)`` that shares no memory with it.

    Raises:
        InvalidTargetError: If the image is anything else, for instance normalised already.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        msg = f"images must stay uint8 RGB (H, W, 3), they are normalised last; got {image.dtype} {image.shape}"
        raise InvalidTargetError(msg)
    normalised = np.empty((3, *image.shape[:2]), dtype=np.float32)
    for channel, values, place in zip(np.moveaxis(image, -1, 0), _TABLE, normalised, strict=True):
        np.take(values, np.ascontiguousarray(channel), out=place, mode="clip")  # quicker than computing each value
    return torch.from_numpy(normalised)
