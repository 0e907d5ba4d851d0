"""How pixels move and what that does to their values: pure functions on arrays.

Integer maps are invalid at 255, float maps at NaN.
"""

from typing import Any, Literal, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from taskformer.tasks import IGNORE_INDEX, Task

Array: TypeAlias = NDArray[Any]
#: Where in a new pixel the old one is looked up: at its ``center``, as images are interpolated, or at its upper left
#: ``corner``, as OpenCV's ``INTER_NEAREST`` does.
Sampling: TypeAlias = Literal["center", "corner"]
#: A task's ``geometry`` if it has pixels.
Kind: TypeAlias = Literal["label", "value", "lines", "depth", "inverse_depth", "vector"]

#: All rows, or all columns.
ALL = slice(None)

#: How many times more pixels than the window a whole image may have and still be resized faster as a whole.
_WHOLE_IS_FASTER = 6
_SUM = np.ones((1, 3), np.float32)
_BYTE_TO_UNIT = (np.arange(256) / 127.5 - 1).astype(np.float32)


def map_kind(task: Task) -> Kind | None:
    """Return how a task's map moves with the image, or None if its target is about the whole image."""
    return None if task.geometry == "image" else task.geometry


def mirror(pixels: Array, kind: Kind | None = None) -> Array:
    """Mirror an image, or a map of this kind, left and right; the x of vectors is negated."""
    if pixels.ndim == 2:
        return pixels[:, ::-1]
    mirrored = np.asarray(cv2.flip(pixels, 1))  # numpy is slow at moving groups of three
    if kind == "vector":
        mirrored[..., 0] *= -1
    return mirrored


def rotate_normals(normals: Array, matrix: Array) -> Array:
    """Turn x and y of vectors ``(..., 3)`` by the ``(2, 2)`` rotation that moved the pixels."""
    turned = normals.copy()
    turned[..., :2] = normals[..., :2] @ matrix.T.astype(normals.dtype)
    return turned


def zoom_depth(depth: Array, scale: float) -> Array:
    """Divide depth in metres by the factor by which the image grew: what looks larger is closer."""
    return np.divide(depth, scale, dtype=depth.dtype)


def zoom_values(pixels: Array, kind: Kind, scale: float) -> Array:
    """Correct the values of a map whose image grew by this factor."""
    if kind == "depth":
        return zoom_depth(pixels, scale)
    return zoom_depth(pixels, 1 / scale) if kind == "inverse_depth" else pixels


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


def zoom_image(image: Array, height: int, width: int, rows: slice = ALL, columns: slice = ALL) -> Array:
    """Resize an image bilinearly, also where it shrinks, as the published recipes do.

    Args:
        image: ``(H, W, 3)`` uint8.
        height: Height of the resized image.
        width: Width of the resized image.
        rows: Rows of the resized image that are wanted; only these are computed where that is faster.
        columns: Columns of the resized image that are wanted.

    Returns:
        The window; its values depend on it by at most one grey level.
    """
    top, bottom, _ = rows.indices(height)
    left, right, _ = columns.indices(width)
    if height * width < _WHOLE_IS_FASTER * (bottom - top) * (right - left):
        return pick(np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)), rows, columns)
    down, across = image.shape[0] / height, image.shape[1] / width
    source = np.array([[across, 0, (left + 0.5) * across - 0.5], [0, down, (top + 0.5) * down - 0.5]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(
        cv2.warpAffine(image, source, (right - left, bottom - top), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    )


def resize_map(
    pixels: Array,
    kind: Kind,
    height: int,
    width: int,
    rows: slice = ALL,
    columns: slice = ALL,
    sampling: Sampling = "center",
    keep_lines: bool = True,
) -> Array:
    """Resize a map by looking every new pixel up, so that no value is made up.

    Args:
        pixels: The map ``(H, W)`` or ``(H, W, C)``.
        kind: Its kind.
        height: Height of the resized map.
        width: Width of the resized map.
        rows: Rows of the resized map that are wanted; only these are computed.
        columns: Columns of the resized map that are wanted.
        sampling: Where in the new pixel the old one is looked up.
        keep_lines: Whether lines are thickened before they shrink, so that none breaks.
    """
    old_height, old_width = pixels.shape[:2]
    if kind == "lines" and keep_lines:
        pixels = thicken(pixels, -(-old_height // height), -(-old_width // width))
    # Twice `take` is several times faster than picking rows and columns at once.
    chosen: Array = pixels.take(_nearest(old_height, height, sampling)[rows], axis=0)
    return chosen.take(_nearest(old_width, width, sampling)[columns], axis=1)


def _nearest(old: int, new: int, sampling: Sampling) -> NDArray[np.int64]:
    """Return the old position looked up for each new one when a side changes its length."""
    if sampling == "center":
        return ((np.arange(new) + 0.5) * old / new).astype(np.int64)
    places = np.arange(old, dtype=np.float32)[None]  # OpenCV itself, because it rounds in a way of its own
    return np.asarray(cv2.resize(places, (new, 1), interpolation=cv2.INTER_NEAREST)[0], dtype=np.int64)


def thicken(lines: Array, rows: int, columns: int) -> Array:
    """Widen lines so that thin ones survive when only every ``rows``-th row and ``columns``-th column is kept."""
    if rows == columns == 1:
        return lines
    thick = cv2.dilate(np.nan_to_num(lines), np.ones((rows, columns), dtype=np.uint8))
    return np.where(np.isnan(lines), np.float32(np.nan), thick)


def label_edges(labels: NDArray[Any]) -> NDArray[np.float32]:
    """Draw the boundaries between labels ``(H, W)`` as lines of one pixel: 1 there, 0 elsewhere."""
    from skimage.morphology import thin  # imports half of scipy, which takes longer than most commands

    boundaries = cv2.Laplacian(labels.astype(np.float64), cv2.CV_64F) != 0
    lines: NDArray[np.float32] = thin(boundaries).astype(np.float32)  # type: ignore[no-untyped-call]  # it has no types
    return lines


def pad(pixels: Array, borders: tuple[tuple[int, int], tuple[int, int]], fill: float | tuple[int, int, int]) -> Array:
    """Add ``borders`` ((top, bottom), (left, right)) of one value or colour to an image or map."""
    (top, bottom), (left, right) = borders
    if not any((top, bottom, left, right)):
        return pixels
    if isinstance(fill, tuple):  # for which numpy is slow
        return np.asarray(cv2.copyMakeBorder(pixels, top, bottom, left, right, cv2.BORDER_CONSTANT, value=fill))
    height, width = pixels.shape[:2]
    padded = np.full((top + height + bottom, left + width + right, *pixels.shape[2:]), fill, pixels.dtype)
    padded[top : top + height, left : left + width] = pixels
    return padded


def decode_normals(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Turn colours ``(H, W, 3)`` into unit vectors ``v / 127.5 - 1``, see :func:`normal_vectors`."""
    return normal_vectors(cv2.LUT(pixels, _BYTE_TO_UNIT))


def normal_vectors(vectors: Array) -> NDArray[np.float32]:
    """Scale vectors ``(H, W, 3)`` to unit length; NaN where the length is outside [0.5, 1.5]: not a normal."""
    vectors = vectors.astype(np.float32, copy=False)
    length = np.sqrt(cv2.transform(vectors * vectors, _SUM))
    length[~((length >= 0.5) & (length <= 1.5))] = np.nan
    lengths = cv2.merge((length, length, length))  # numpy is slow at broadcasting to three
    unit: NDArray[np.float32] = np.divide(vectors, lengths, dtype=np.float32)
    return unit
