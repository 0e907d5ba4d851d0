"""How pixels move and what that does to their values: pure functions on arrays.

Integer maps are invalid at 255, float maps at NaN.
"""

from typing import Any, Literal, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from taskformer.tasks import IGNORE_INDEX, Edges, Task

Array: TypeAlias = NDArray[Any]
#: A task's ``geometry``, or ``"lines"`` for edge maps, which are thickened before they shrink.
Kind: TypeAlias = Literal["label", "value", "lines", "depth", "vector"]

_BYTE_TO_UNIT = (np.arange(256) / 127.5 - 1).astype(np.float32)


def map_kind(task: Task) -> Kind | None:
    """Return how a task's map moves with the image, or None if its target is about the whole image."""
    if task.geometry == "image":
        return None
    return "lines" if isinstance(task, Edges) else task.geometry


def flip_normals(normals: Array) -> Array:
    """Negate x of the vectors ``(..., 3)`` of a mirrored image (the pixels are moved elsewhere)."""
    flipped: Array = normals * np.array([-1, 1, 1], dtype=normals.dtype)
    return flipped


def rotate_normals(normals: Array, matrix: Array) -> Array:
    """Turn x and y of vectors ``(..., 3)`` by the ``(2, 2)`` rotation that moved the pixels."""
    turned = normals.copy()
    turned[..., :2] = normals[..., :2] @ matrix.T.astype(normals.dtype)
    return turned


def zoom_depth(depth: Array, scale: float) -> Array:
    """Divide depth in metres by the factor by which the image grew: what looks larger is closer."""
    return np.divide(depth, scale, dtype=depth.dtype)


def unit_vectors(vectors: Array) -> Array:
    """Scale vectors ``(..., 3)`` to unit length; those without a direction become NaN."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    valid = length > 1e-6
    return np.where(valid, vectors / np.where(valid, length, 1), np.nan).astype(vectors.dtype)


def invalid_value(pixels: Array) -> float:
    """Return what marks invalid pixels in a map of this type: NaN or 255."""
    return np.nan if pixels.dtype.kind == "f" else IGNORE_INDEX


def pick(pixels: Array, rows: Array | slice, columns: Array | slice) -> Array:
    """Return the pixels of these rows and columns."""
    chosen: Array = pixels[rows, columns]
    return chosen


def resize_image(image: Array, height: int, width: int) -> Array:
    """Resize an image, averaging areas where it shrinks."""
    shrinks = height * width < image.shape[0] * image.shape[1]
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR))


def resize_map(pixels: Array, kind: Kind, height: int, width: int) -> Array:
    """Sample the map at the centres of the new pixels, as the image is (OpenCV's nearest is half a pixel off)."""
    old_height, old_width = pixels.shape[:2]
    if kind == "lines":
        pixels = thicken(pixels, -(-old_height // height), -(-old_width // width))
    rows = ((np.arange(height) + 0.5) * old_height / height).astype(int)
    columns = ((np.arange(width) + 0.5) * old_width / width).astype(int)
    return pick(pixels, rows[:, None], columns)


def thicken(lines: Array, rows: int, columns: int) -> Array:
    """Widen lines so that thin ones survive when only every ``rows``-th row and ``columns``-th column is kept."""
    thick = cv2.dilate(np.nan_to_num(lines), np.ones((rows, columns), dtype=np.uint8))
    return np.where(np.isnan(lines), np.float32(np.nan), thick)


def decode_normals(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Turn colours ``(H, W, 3)`` into unit vectors ``v / 127.5 - 1``, see :func:`normal_vectors`."""
    return normal_vectors(cv2.LUT(pixels, _BYTE_TO_UNIT))


def normal_vectors(vectors: Array) -> NDArray[np.float32]:
    """Scale vectors ``(H, W, 3)`` to unit length; NaN where the length is outside [0.5, 1.5] and so no normal's."""
    vectors = vectors.astype(np.float32)
    squared = np.einsum("hwc,hwc->hw", vectors, vectors)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.where((squared >= 0.25) & (squared <= 2.25), 1 / np.sqrt(squared), np.float32(np.nan))
    unit: NDArray[np.float32] = vectors * scale[..., None].astype(np.float32)
    return unit
