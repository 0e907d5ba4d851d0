"""Pictures of any kind to arrays: the one reader of training, evaluation and prediction.

A file is decoded from its bytes, whatever its name: PNG, JPEG, TIFF, WebP, BMP, GIF, PPM, TGA, JPEG 2000, AVIF, and
what else OpenCV knows. Pillow reads the header and what OpenCV would change (palettes, CMYK, few bits); OpenCV, which
is faster and keeps 16 bits, decodes all else. Of an animation or a file with several pages the first is taken.
"""

import io
import warnings
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from taskformer.errors import CorruptFileError, DatasetNotFoundError, InvalidImageError

# What its decoders complain about is raised here, with the name of the file.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

#: Endings by which photographs are found in folders, in small letters.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".tga", ".jp2", ".avif"),
)
#: What one photograph may be given as, see :func:`as_rgb`.
Photograph: TypeAlias = str | Path | Image.Image | NDArray[Any] | Tensor
#: What a file's orientation tag is obeyed for, see :func:`turned`.
Orientation: TypeAlias = Literal["stored", "image", "both"]

#: What Pillow may open: not all that it can, as some of its readers start other programs.
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "TGA", "JPEG2000", "AVIF")
#: Formats and modes that OpenCV decodes as they are stored.
_OPENCV_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "PPM")
_OPENCV_MODES = ("L", "LA", "I", "I;16", "I;16B", "F", "RGB", "RGBA")
_ORIENTATION_TAG = 0x0112
_BITS_TAG = 258
#: How far floats may be outside [0, 1], as resampling leaves them.
_ROUNDING = 1e-3

#: How files of other kinds begin, and what they are.
_KINDS = (
    (b"\x93NUMPY", "a numpy array (.npy)"),
    (b"PK\x03\x04", "a zip archive, as .npz is"),
    (b"MATLAB 7.3", "a MATLAB 7.3 file"),
    (b"MATLAB 5.0", "a MATLAB file"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"II*\x00", "a TIFF picture"),
    (b"MM\x00*", "a TIFF picture"),
    (b"v/1\x01", "OpenEXR, which cannot be read (convert it to TIFF or .npy)"),
    (b"%PDF", "a PDF document"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"version https://git-lfs", "a pointer of Git LFS instead of the file itself (`git lfs pull` gets it)"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
    *((b"\x80" + bytes([version]), "a Python pickle, which is code and is never opened") for version in range(2, 6)),
)
_HEIF = (b"heic", b"heix", b"hevc", b"mif1", b"msf1")


class File(NamedTuple):
    """What a file holds.

    Attributes:
        path: Where it came from, for messages.
        content: Its bytes.
    """

    path: str
    content: bytes


def read_rgb(file: File, upright: bool = False) -> NDArray[np.uint8]:
    """Decode a picture of any kind as a photograph.

    Greys and palettes become colours, 16 bits are scaled to 8, transparent pixels are laid over white, and floats are
    taken from 0 (black) to 1 (white).

    Args:
        file: The file.
        upright: Whether an orientation tag is obeyed, as viewers do. Labels were made for the pixels as they are
            stored.

    Returns:
        RGB ``(H, W, 3)``.

    Raises:
        CorruptFileError: If it is not a picture, or not one that can be seen.
    """
    levels = _decode(file, seen=True)
    try:
        rgb = _photograph(levels)
    except InvalidImageError as error:
        msg = f"{file.path} is not a photograph: {error}"
        raise CorruptFileError(msg) from error
    return turned(rgb, orientation(file)) if upright else rgb


def read_pixels(file: File) -> NDArray[Any]:
    """Decode the values of a map as they are stored.

    Args:
        file: The file. Transparency is dropped, palettes become colours, fewer than 8 bits are scaled to 8.

    Returns:
        ``(H, W)`` or RGB ``(H, W, 3)``, of the type that is stored.

    Raises:
        CorruptFileError: If it is not a picture.
    """
    pixels = _decode(file)
    return pixels if pixels.ndim == 2 else pixels[..., :3]


def read_plane(file: File) -> NDArray[Any]:
    """Decode the grey levels ``(H, W)`` of a map of one channel as :func:`read_pixels` does; not for class ids.

    Raises:
        CorruptFileError: If it is not a picture of one channel.
    """
    pixels = read_pixels(file)
    if pixels.ndim == 3 and not (pixels == pixels[..., :1]).all():
        msg = f"{file.path} has {pixels.shape[2]} different channels, a map of one channel was expected"
        raise CorruptFileError(msg)
    return pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., 0])


def read_ids(file: File) -> NDArray[Any]:
    """Decode the numbers ``(H, W)`` that a map of classes stores: indices of palettes, 1, 2 and 4 bits as they are.

    Raises:
        CorruptFileError: If it is not a picture of one channel.
    """
    image = _open(file)
    if image is not None and image.mode in ("P", "PA"):
        indices = _load(file, image)
        return indices if indices.ndim == 2 else np.ascontiguousarray(indices[..., 0])
    levels = read_plane(file)
    bits = 8 if image is None else _bits(file, image)
    return levels // (255 // (2**bits - 1)) if bits < 8 else levels


def read_picture(path: str | Path) -> NDArray[np.uint8]:
    """Read a photograph that has no labels, RGB ``(H, W, 3)``, upright as viewers show it.

    Raises:
        DatasetNotFoundError: If the file cannot be read.
        CorruptFileError: If it is not a picture, or not one that can be seen.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        msg = f"{path} cannot be read ({error.strerror}); expected a photograph"
        raise DatasetNotFoundError(msg) from error
    return read_rgb(File(str(path), content), upright=True)


def as_rgb(image: Photograph) -> NDArray[np.uint8]:
    """Take a photograph in any usual form.

    Args:
        image: A file's path; an image of Pillow, whose orientation tag is obeyed; an array ``(H, W)``, ``(H, W, 1)``,
            RGB ``(H, W, 3)`` or RGBA ``(H, W, 4)``; or a tensor, as usual channels first: ``(H, W)``, ``(1, H, W)``,
            ``(3, H, W)`` or ``(4, H, W)``. Values are 8 or 16 bits without a sign, or floats in [0, 1].

    Returns:
        RGB ``(H, W, 3)``, the same whatever the form.

    Raises:
        InvalidImageError: If it is something else.
        CorruptFileError: If it is a file that is not a picture.
        DatasetNotFoundError: If there is no such file.
    """
    if isinstance(image, str | Path):
        return read_picture(image)
    if isinstance(image, Image.Image):
        levels = _to_array(image)
        return turned(_photograph(levels), _tag(image))  # Pillow turns a TIFF as it loads it, and drops the tag
    if isinstance(image, Tensor):
        if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[0] not in (1, 3, 4)):
            msg = f"a tensor of one photograph is (3, H, W), (1, H, W), (4, H, W) or (H, W), got {tuple(image.shape)}"
            raise InvalidImageError(msg)
        values = image.detach().cpu()
        values = values.float() if values.is_floating_point() else values
        return _photograph(values.numpy() if values.ndim == 2 else values.movedim(0, -1).numpy())
    if not isinstance(image, np.ndarray):
        msg = f"a photograph is a path, an image of Pillow, an array or a tensor, got {type(image).__name__}"  # type: ignore[unreachable]  # users give anything
        raise InvalidImageError(msg)
    return _photograph(image)


def orientation(file: File) -> int:
    """Return a picture's orientation tag: 1 (upright, also without a tag) to 8, see :func:`turned`."""
    image = _open(file)
    return 1 if image is None else _tag(image)


def _tag(image: Image.Image) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tag = image.getexif().get(_ORIENTATION_TAG, 1)
        except Exception:  # Pillow raises whatever the broken bytes of a tag make it stumble over
            return 1
    return tag if tag in range(1, 9) else 1


def turned(pixels: NDArray[Any], tag: int, vectors: bool = False) -> NDArray[Any]:
    """Turn stored pixels upright.

    Args:
        pixels: ``(H, W, ...)``.
        tag: The orientation tag (Exif 2.32, 4.6.4): 1 upright, 2 mirrored, 3 upside down, 6 and 8 lying, ...
        vectors: Whether the channels are x (right), y (down) and z, which turn with the image.
    """
    flip_rows, flip_columns = tag in (3, 4, 6, 7), tag in (2, 3, 7, 8)
    upright = pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
    if vectors:
        upright = upright * np.array([-1 if flip_columns else 1, -1 if flip_rows else 1, 1], dtype=pixels.dtype)
    if tag >= 5:
        upright = upright.swapaxes(0, 1)
        upright = upright[..., [1, 0, 2]] if vectors else upright
    return np.ascontiguousarray(upright)


def what_it_is(content: bytes) -> str | None:
    """Recognise other kinds of files by how they begin; None if it is none of those."""
    if not content:
        return "empty"
    if content[4:8] == b"ftyp" and content[8:12] in _HEIF:
        return "HEIF (.heic), which cannot be read (convert it to JPEG)"
    if content[512:520] == b"\x89HDF\r\n\x1a\n":  # after the header that MATLAB puts before it
        return "a MATLAB 7.3 file"
    start = content[:64].lstrip().lower()
    return next((kind for begin, kind in _KINDS if content.startswith(begin) or start.startswith(begin)), None)


def unreadable(file: File, expected: str, error: Exception | None = None) -> CorruptFileError:
    """Say why a file's content cannot be the ``"picture"``, ``"numpy array"``, ... that was expected of it."""
    what = what_it_is(file.content)
    if what is not None and expected not in what:
        return CorruptFileError(f"{file.path} is {what}; expected a {expected}")
    reason = f": {' '.join(str(error).split())}" if error and str(error) else ""
    return CorruptFileError(
        f"{file.path} ({len(file.content)} bytes) is truncated or not a {expected}{reason}; get the file again"
    )


def _open(file: File) -> Image.Image | None:
    """Read a picture's header; None if Pillow does not know it.

    Raises:
        CorruptFileError: If it is larger than any photograph, a "decompression bomb".
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd tags, and of sizes that are only half of those refused
        try:
            return Image.open(io.BytesIO(file.content), formats=_FORMATS)
        except Image.DecompressionBombError as error:
            msg = f"{file.path} has more pixels than can be read ({error}); make it smaller"
            raise CorruptFileError(msg) from error
        except Exception:  # Pillow raises whatever the broken bytes make its parsers stumble over
            return None


def _decode(file: File, seen: bool = False) -> NDArray[Any]:
    """Decode ``(H, W)``, RGB ``(H, W, 3)`` or RGBA ``(H, W, 4)`` as deep as stored.

    Args:
        file: The file.
        seen: Whether to decode what viewers show: a colour that means transparent has alpha 0, and white is 255.
    """
    image = _open(file)
    if image is None:
        return _by_opencv(file)
    if seen and "transparency" in image.info:
        return _load(file, image, "RGBA")
    if _suits_opencv(file, image, seen):
        pixels = _as_stored(_by_opencv(file), _tag_of_tiff(image))
        # Some files have a fourth channel that means nothing.
        return pixels if pixels.ndim == 2 or image.has_transparency_data else pixels[..., :3]
    return _load(file, image, _mode_of(image))


def _suits_opencv(file: File, image: Image.Image, seen: bool) -> bool:
    """Whether OpenCV decodes what is stored, or seen, and changes nothing."""
    if image.format not in _OPENCV_FORMATS or image.mode not in _OPENCV_MODES or _bits(file, image) < 8:
        return False
    if image.format == "TIFF":
        return image.mode != "RGBA"  # it would multiply colours by their alpha
    if image.format == "PNG":
        return not getattr(image, "is_animated", False)  # it would make room for the sizes of all frames
    # In PPM any number may stand for white.
    return not (seen and image.format == "PPM" and isinstance(getattr(image, "tile", [(None,)])[0][-1], tuple))


def _by_opencv(file: File) -> NDArray[Any]:
    try:
        pixels = cv2.imdecode(np.frombuffer(file.content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise unreadable(file, "picture", error) from error
    if pixels is None:
        raise unreadable(file, "picture")
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB)
    return np.asarray(pixels)


def _load(file: File, image: Image.Image, mode: str | None = None) -> NDArray[Any]:
    """Decode what Pillow has opened, in another of its modes if one is given."""
    tag = _tag_of_tiff(image)  # before it is loaded
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            pixels = np.array(image if mode in (None, image.mode) else image.convert(mode))
        except Exception as error:  # Pillow raises whatever the broken bytes make its decoders stumble over
            raise unreadable(file, "picture", error) from error
    return _as_stored(pixels, tag)


def _tag_of_tiff(image: Image.Image) -> int:
    """Return the orientation tag that decoders obey whether one wants it or not; to look at others may take long."""
    return _tag(image) if image.format == "TIFF" else 1


def _as_stored(pixels: NDArray[Any], tag: int) -> NDArray[Any]:
    """Turn pixels back that a decoder has turned upright."""
    return turned(pixels, {6: 8, 8: 6}.get(tag, tag)) if tag > 1 else pixels


def _mode_of(image: Image.Image) -> str:
    """Return the mode of Pillow in which an image is an array of grey levels or colours."""
    if image.mode in ("L", "I", "I;16", "I;16B", "I;16L", "F", "RGB", "RGBA"):
        return image.mode
    if image.mode == "1":
        return "L"
    return "RGBA" if image.has_transparency_data else "RGB"


def _to_array(image: Image.Image) -> NDArray[Any]:
    """Turn an image of Pillow into an array as :func:`_decode` gives."""
    mode = "RGBA" if "transparency" in image.info else _mode_of(image)
    try:
        return np.array(image if mode == image.mode else image.convert(mode))
    except Exception as error:  # a file that is only read now, or colours that cannot be converted
        msg = f"the image of Pillow (mode {image.mode}) cannot be turned into RGB: {error}"
        raise InvalidImageError(msg) from error


def _bits(file: File, image: Image.Image) -> int:
    """Return the bits of each value if they are fewer than 8."""
    if image.mode == "1":
        return 1
    if image.mode != "L":
        return 8
    if image.format == "PNG":
        return min(file.content[24], 8)  # PNG specification, 11.2.2
    bits: tuple[int, ...] = getattr(image, "tag_v2", {}).get(_BITS_TAG, (8,))  # of a TIFF
    return min(*bits, 8)


def _photograph(levels: NDArray[Any]) -> NDArray[np.uint8]:
    """Turn grey levels or colours into RGB ``(H, W, 3)`` of 8 bits, what is transparent over white."""
    channels = levels.shape[2] if levels.ndim == 3 else 1
    if levels.ndim not in (2, 3) or channels not in (1, 3, 4) or 0 in levels.shape:
        msg = f"expected (H, W), (H, W, 1), RGB (H, W, 3) or RGBA (H, W, 4), got {levels.shape}"
        raise InvalidImageError(msg)
    pixels = _eight_bits(levels)
    if channels == 4:
        alpha = pixels[..., 3:].astype(np.uint16)
        pixels = ((pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    elif channels == 1:
        pixels = np.repeat(pixels.reshape(*levels.shape[:2], 1), 3, axis=2)
    return np.ascontiguousarray(pixels)


def _eight_bits(levels: NDArray[Any]) -> NDArray[np.uint8]:
    if levels.dtype == np.uint8:
        return levels
    if levels.dtype.newbyteorder("=") == np.uint16:
        return ((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if levels.dtype == np.bool_:
        return levels.astype(np.uint8) * np.uint8(255)
    if levels.dtype.kind != "f":
        msg = f"expected values of 8 or 16 bits without a sign, or floats in [0, 1], got {levels.dtype}"
        raise InvalidImageError(msg)
    low, high = float(levels.min()), float(levels.max())
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # also of NaN
        msg = f"floats must be within [0, 1], from black to white, and not normalised; got {low:g} to {high:g}"
        raise InvalidImageError(msg)
    pixels: NDArray[np.uint8] = np.rint(np.clip(levels, 0, 1) * 255).astype(np.uint8)
    return pixels
