"""Colours of label maps, values and normals, and what they mean."""

import colorsys
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

#: An image ``(H, W, 3)``.
Picture: TypeAlias = NDArray[np.uint8]

#: A dark blue that is neither a grey value nor a class colour.
INVALID_COLOR = (20, 20, 40)

#: Height of a picture of bars, in pixels.
BAR_HEIGHT = 64
#: Colours that differ as much as can be, also for people who see no red, no green or no blue: Okabe and Ito's first,
#: then each the farthest (CIEDE2000) from those before it and from :data:`INVALID_COLOR` for the eyes that tell them
#: apart worst, as Machado, Oliveira and Fernandes (2009) simulate them.
PALETTE = (
    *((86, 180, 233), (230, 159, 0), (0, 158, 115), (204, 121, 167), (240, 228, 66), (213, 94, 0), (0, 114, 178)),
    *((120, 0, 0), (240, 255, 255), (0, 40, 160), (120, 80, 80), (160, 255, 200), (200, 200, 200), (0, 0, 255)),
    *((160, 200, 120), (120, 120, 255), (200, 0, 0), (120, 40, 80), (240, 200, 240), (255, 255, 160), (80, 80, 120)),
)

_GOLDEN_RATIO = 0.618033988749895


class Swatch(NamedTuple):
    """An entry of a legend: a colour and what it means, or a scale of colours and what its two ends mean.

    Attributes:
        colors: The colour ``(1, 1, 3)``, or the scale ``(1, N, 3)``.
        meaning: What the colour means, or the scale's last.
        start: What the scale's first colour means; empty for a single colour.
    """

    colors: Picture
    meaning: str
    start: str = ""


def swatch(color: Sequence[int] | NDArray[Any], meaning: str) -> Swatch:
    """Make the legend's entry of one RGB colour."""
    return Swatch(np.array(color, dtype=np.uint8).reshape(1, 1, 3), meaning)


def distinct_colors(count: int) -> NDArray[np.uint8]:
    """Make colours that differ from each other and from :data:`INVALID_COLOR`.

    The first are :data:`PALETTE`'s. Beyond them hues walk by the golden ratio, so that colours of neighbouring ids are
    far apart, and brightness and saturation change too. The first colours do not depend on the count.

    Args:
        count: Number of colours.

    Returns:
        RGB colours ``(count, 3)``.
    """
    colors = [*PALETTE[:count]]
    for index in range(len(PALETTE), count):
        hue = (0.6 + index * _GOLDEN_RATIO) % 1
        value = (1.0, 0.75, 0.5)[index % 3]
        saturation = (0.55, 0.9)[index // 3 % 2]
        red, green, blue = (round(255 * share) for share in colorsys.hsv_to_rgb(hue, saturation, value))
        colors.append((red, green, blue))
    return np.array(colors, dtype=np.uint8).reshape(count, 3)


def color_scale(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Draw values with the viridis colour map: purple at ``low`` and below, yellow at ``high`` and above.

    Args:
        values: Map ``(H, W)``, not finite where invalid.
        low: Value at the purple end; may be larger than ``high``.
        high: Value at the yellow end.

    Returns:
        RGB image ``(H, W, 3)``.
    """
    # Importing OpenCV takes a while, and training without pictures does without it.
    import cv2

    levels = unit_to_byte((values.astype(np.float64) - low) / (high - low))
    colors = cv2.applyColorMap(np.ascontiguousarray(levels), cv2.COLORMAP_VIRIDIS)
    return darken_invalid(np.ascontiguousarray(colors[..., ::-1]), np.isfinite(values))


def scale_colors() -> Picture:
    """Return all colours of :func:`color_scale` from low to high ``(1, 256, 3)``."""
    return color_scale(np.arange(256)[None], 0, 255)


def gray_scale(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Draw values in [0, 1], map ``(H, W)``, from black to white."""
    return darken_invalid(np.repeat(unit_to_byte(values)[..., None], 3, axis=-1), np.isfinite(values))


def normal_colors(vectors: NDArray[Any]) -> NDArray[np.uint8]:
    """Draw unit vectors ``(3, H, W)`` as RGB ``(n + 1) / 2``."""
    valid = np.isfinite(vectors).all(axis=0)
    return darken_invalid(np.moveaxis(unit_to_byte((vectors + 1) / 2), 0, -1), valid)


def bars(shares: NDArray[Any]) -> NDArray[np.uint8]:
    """Draw shares in [0, 1] ``(K,)`` as bars ``(64, K, 3)``, each in its own colour: full at 1, empty at 0 or NaN."""
    filled = np.arange(BAR_HEIGHT, 0, -1)[:, None] <= np.round(np.nan_to_num(shares) * BAR_HEIGHT)[None]
    background = np.array(INVALID_COLOR, dtype=np.uint8)
    return np.where(filled[..., None], distinct_colors(len(shares))[None], background)


def darken_invalid(image: NDArray[np.uint8], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the image ``(H, W, 3)`` with :data:`INVALID_COLOR` where ``valid`` ``(H, W)`` is false."""
    return np.where(valid[..., None], image, np.array(INVALID_COLOR, dtype=np.uint8))


def unit_to_byte(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Map [0, 1] to 0..255, clipping what lies outside; values that are not finite become 0."""
    finite = np.where(np.isfinite(values), values, 0)
    return np.asarray(np.round(np.clip(finite, 0, 1) * 255), dtype=np.uint8)
