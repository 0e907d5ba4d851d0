"""How colours change: pure functions on 8-bit images."""

import cv2
import numpy as np

from taskformer.data.geometry import Array

#: All 8-bit values.
_LEVELS = np.arange(256, dtype=np.float32)
#: Steps of a full turn in OpenCV's 8-bit hue.
_TURN = 180


def distort(
    image: Array,
    shift: float | None = None,
    contrast: float | None = None,
    saturation: float | None = None,
    turn: int | None = None,
    contrast_first: bool = True,
) -> Array:
    """Change brightness, contrast, saturation and hue one after the other; None leaves one out.

    Every step ends in 8 bits, clipped and truncated, and each of the two colour steps goes to HSV and back by itself,
    as in the published recipes.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
        shift: Added to all values.
        contrast: Factor of all values.
        saturation: Factor of the saturation.
        turn: Steps of 2 degrees by which the hue turns.
        contrast_first: Whether the contrast changes before the colours, or after them.
    """
    if shift is not None:
        image = _mapped(image, _LEVELS + shift)
    if contrast is not None and contrast_first:
        image = _mapped(image, _LEVELS * contrast)
    if saturation is not None:
        image = _in_hsv(image, saturation=_LEVELS * saturation)
    if turn is not None:
        image = _in_hsv(image, hue=(_LEVELS + turn) % _TURN)
    if contrast is not None and not contrast_first:
        image = _mapped(image, _LEVELS * contrast)
    return image


def _in_hsv(image: Array, hue: Array = _LEVELS, saturation: Array = _LEVELS) -> Array:
    """Replace the levels of an image's hue (0..179) and saturation."""
    levels = np.stack([hue, saturation, _LEVELS], axis=-1)[None]
    return np.asarray(cv2.cvtColor(_mapped(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), levels), cv2.COLOR_HSV2RGB))


def _mapped(image: Array, levels: Array) -> Array:
    """Look the new value of each level up, clipped and truncated to 8 bits."""
    return np.asarray(cv2.LUT(image, levels.clip(0, 255).astype(np.uint8)))
