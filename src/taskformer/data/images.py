"""Files to arrays and back. Reading takes a file's bytes, so that it does not matter where they came from.

Whatever is wrong with a file's content is a :class:`CorruptFileError` that names it.
"""

import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import scipy.io
from numpy.typing import NDArray
from PIL import Image

from taskformer.errors import CorruptFileError
from taskformer.files import replacing

# What its decoders warn of is raised here, with the name of the file.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)


class File(NamedTuple):
    """What a file holds.

    Attributes:
        path: Where it came from, for messages.
        content: Its bytes.
    """

    path: str
    content: bytes


def read_rgb(file: File) -> NDArray[np.uint8]:
    """Decode an image of any kind as RGB ``(H, W, 3)`` uint8; an orientation tag is not obeyed, as labels have none."""
    return _decode(file, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)


def read_pixels(file: File) -> NDArray[Any]:
    """Decode an image as it is stored: ``(H, W)`` or RGB ``(H, W, 3)``, 8 or 16 bits; palettes become colours."""
    pixels = _decode(file, cv2.IMREAD_UNCHANGED)
    if pixels.ndim == 2:
        return pixels
    if pixels.shape[2] < 3:
        return np.ascontiguousarray(pixels[..., 0])
    has_alpha = pixels.shape[2] == 4
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGB if has_alpha else cv2.COLOR_BGR2RGB))


def read_plane(file: File) -> NDArray[Any]:
    """Decode one channel ``(H, W)`` as it is stored: uint8, uint16 or the indices of a palette.

    Raises:
        CorruptFileError: If the file is no image of one channel.
    """
    if _has_palette(file.content):  # OpenCV would turn class ids into colours
        return _decode_palette(file)
    pixels = _decode(file, cv2.IMREAD_UNCHANGED)
    if pixels.ndim == 3 and not (pixels == pixels[..., :1]).all():
        msg = f"{file.path} has {pixels.shape[2]} different channels, a map of one channel was expected"
        raise CorruptFileError(msg)
    return pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., 0])


def read_npy(file: File) -> NDArray[Any]:
    """Decode an array of numpy's own format; Python objects are refused."""
    try:
        array: NDArray[Any] = np.load(io.BytesIO(file.content), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise _corrupt(file, "numpy array", error) from error
    return array


def read_mat(file: File) -> dict[str, Any]:
    """Decode a MATLAB file (before version 7.3) into its variables."""
    try:
        variables: dict[str, Any] = scipy.io.loadmat(io.BytesIO(file.content))
    except Exception as error:  # scipy raises whatever the broken bytes make its parser stumble over
        raise _corrupt(file, "MATLAB file", error) from error
    return variables


def read_json(file: File) -> Any:
    """Decode JSON."""
    try:
        return json.loads(file.content)
    except ValueError as error:
        raise _corrupt(file, "JSON file", error) from error


def write_png(path: Path, pixels: NDArray[Any], palette: NDArray[np.uint8] | None = None) -> None:
    """Write ``(H, W)`` or RGB ``(H, W, 3)`` of 8 or ``(H, W)`` of 16 bits without loss, whole or not at all.

    Args:
        path: The file; missing folders are made.
        pixels: The values.
        palette: RGB colours ``(K, 3)``: the values are their indices.
    """
    image = Image.fromarray(pixels)
    if palette is not None:
        image.putpalette(palette.astype(np.uint8).tobytes())
    with replacing(path) as temporary:
        image.save(temporary, format="PNG")


def write_jpg(path: Path, pixels: NDArray[np.uint8], quality: int = 95) -> None:
    """Write RGB ``(H, W, 3)`` uint8 with loss, whole or not at all."""
    with replacing(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="JPEG", quality=quality)


def write_npy(path: Path, array: NDArray[Any]) -> None:
    """Write an array in numpy's own format, whole or not at all."""
    with replacing(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)


def write_mat(path: Path, variables: dict[str, Any]) -> None:
    """Write a MATLAB 5 file, whole or not at all."""
    with replacing(path) as temporary:
        scipy.io.savemat(temporary, variables, do_compression=True)


def _decode(file: File, flags: int) -> NDArray[Any]:
    try:
        pixels = cv2.imdecode(np.frombuffer(file.content, np.uint8), flags)
    except cv2.error as error:
        raise _corrupt(file, "image", error) from error
    if pixels is None:
        raise _corrupt(file, "image", None)
    return np.asarray(pixels)


def _has_palette(content: bytes) -> bool:
    """Whether this is a PNG of palette indices: colour type 3 in its header (PNG specification, 11.2.2)."""
    return content[:8] == b"\x89PNG\r\n\x1a\n" and content[25:26] == b"\x03"


def _decode_palette(file: File) -> NDArray[np.uint8]:
    try:
        return np.array(Image.open(io.BytesIO(file.content)))
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for broken PNGs
        raise _corrupt(file, "image", error) from error


def _corrupt(file: File, kind: str, error: Exception | None) -> CorruptFileError:
    reason = f": {' '.join(str(error).split())}" if error and str(error) else ""
    return CorruptFileError(
        f"{file.path} ({len(file.content)} bytes) is truncated or no {kind}{reason}; get the file again"
    )
