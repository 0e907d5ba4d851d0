"""Colours of label maps, values and normals, and sheets of pictures."""

import colorsys
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

#: An image ``(H, W, 3)``.
Picture: TypeAlias = NDArray[np.uint8]

#: A dark blue that is neither a grey value nor a class colour.
INVALID_COLOR = (20, 20, 40)

#: Height of a picture of bars, in pixels.
BAR_HEIGHT = 64
#: Height of a sheet's headings and width of the lines between its pictures, in pixels.
HEADER, GAP = 16, 2

_GOLDEN_RATIO = 0.618033988749895


def distinct_colors(count: int) -> NDArray[np.uint8]:
    """Make bright colours that differ from each other and from :data:`INVALID_COLOR`.

    Hues walk by the golden ratio, so that colours of neighbouring ids are far apart; brightness and saturation
    change too. The first colours do not depend on the count.

    Args:
        count: Number of colours.

    Returns:
        RGB colours ``(count, 3)``.
    """
    colors = []
    for index in range(count):
        hue = (0.6 + index * _GOLDEN_RATIO) % 1
        value = (1.0, 0.75, 0.5)[index % 3]
        saturation = (0.55, 0.9)[index // 3 % 2]
        colors.append(colorsys.hsv_to_rgb(hue, saturation, value))
    return np.asarray(np.round(np.array(colors).reshape(count, 3) * 255), dtype=np.uint8)


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


def contact_sheet(
    headings: Sequence[str], rows: Sequence[Sequence[Picture]], width: int, captions: Sequence[str] = ()
) -> Image.Image:
    """Lay pictures out in rows and columns of one width.

    Args:
        headings: The heading of each column.
        rows: The pictures; the first of a row gives the height of all.
        width: Width of each picture in pixels.
        captions: The caption in the first picture of each row; none by default.

    Returns:
        The sheet.
    """
    heights = [round(width * row[0].shape[0] / row[0].shape[1]) for row in rows]
    sheet = Image.new("RGB", ((width + GAP) * len(headings) - GAP, HEADER + sum(heights) + GAP * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, heading in enumerate(headings):
        draw.text((column * (width + GAP) + 3, 2), heading, fill="black")
    top = HEADER
    for number, (row, height) in enumerate(zip(rows, heights, strict=True)):
        for column, picture in enumerate(row):
            tile = Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR)
            if captions and column == 0:
                ImageDraw.Draw(tile).text((3, 2), captions[number], fill="white", stroke_width=1, stroke_fill="black")
            sheet.paste(tile, (column * (width + GAP), top))
        top += height + GAP
    return sheet
