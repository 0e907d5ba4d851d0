"""Files to arrays and back. Reading takes a file's bytes, so that it does not matter where they came from.

Whatever is wrong with a file's content is a :class:`CorruptFileError` that names it.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from taskformer.errors import CorruptFileError, MissingExtraError
from taskformer.files import replacing
from taskformer.pictures import File, read_ids, read_pixels, read_plane, read_rgb, unreadable, what_it_is

__all__ = [
    "File",
    "holds_array",
    "read_array",
    "read_ids",
    "read_json",
    "read_mat",
    "read_npy",
    "read_pixels",
    "read_plane",
    "read_rgb",
    "write_jpg",
    "write_mat",
    "write_npy",
    "write_png",
]

#: Endings of arrays, in small letters.
ARRAY_SUFFIXES = (".npy", ".npz", ".mat")


def holds_array(file: File) -> bool:
    """Whether a file is a numpy or MATLAB array rather than a picture, by its content or else by its ending."""
    what = what_it_is(file.content) or ""
    is_known = any(kind in what for kind in ("numpy", "zip archive", "MATLAB", "HDF5"))
    return is_known or ("picture" not in what and file.path.lower().endswith(ARRAY_SUFFIXES))


def read_array(file: File, names: Sequence[str] = ()) -> NDArray[Any]:
    """Decode an array: .npy, .npz or .mat, by what is in the file.

    Args:
        file: The file.
        names: Names of the variable to take if there are several, the preferred one first.

    Raises:
        CorruptFileError: If it holds no array, or several of other names.
        MissingExtraError: If it is of MATLAB 7.3 and h5py is not installed.
    """
    what = what_it_is(file.content) or ""
    is_mat = any(kind in what for kind in ("MATLAB", "HDF5")) or file.path.lower().endswith(".mat")
    if not is_mat:
        return read_npy(file, names)
    variables = {key: value for key, value in read_mat(file).items() if not key.startswith("__")}
    return _native(np.asarray(_chosen(file, variables, names)))


def read_npy(file: File, names: Sequence[str] = ()) -> NDArray[Any]:
    """Decode an array of numpy's own formats, .npy or .npz; Python objects are refused.

    Args:
        file: The file.
        names: Names of the array to take from an .npz with several, the preferred one first.
    """
    is_archive = "zip archive" in (what_it_is(file.content) or "")
    try:
        loaded = np.load(io.BytesIO(file.content), allow_pickle=False)
        array: NDArray[Any] = loaded[_chosen(file, {key: key for key in loaded.files}, names)] if is_archive else loaded
    except CorruptFileError:
        raise
    except Exception as error:  # numpy and zipfile raise whatever the broken bytes make their parsers stumble over
        raise unreadable(file, "zip archive" if is_archive else "numpy array", error) from error
    return _native(array)


def read_mat(file: File) -> dict[str, Any]:
    """Decode a MATLAB file into its variables; of version 7.3, which is HDF5, only arrays of numbers.

    Raises:
        CorruptFileError: If it is not a MATLAB file.
        MissingExtraError: If it is of version 7.3 and h5py is not installed.
    """
    from scipy.io import loadmat

    what = what_it_is(file.content) or ""
    if "7.3" in what or "HDF5" in what:
        return _read_hdf5(file)
    try:
        variables: dict[str, Any] = loadmat(io.BytesIO(file.content))
    except Exception as error:  # scipy raises whatever the broken bytes make its parser stumble over
        raise unreadable(file, "MATLAB file", error) from error
    return variables


def read_json(file: File) -> Any:
    """Decode JSON."""
    try:
        return json.loads(file.content)
    except ValueError as error:
        raise unreadable(file, "JSON file", error) from error


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
    from scipy.io import savemat

    with replacing(path) as temporary:
        savemat(temporary, variables, do_compression=True)


def _native(array: NDArray[Any]) -> NDArray[Any]:
    """Bring numbers into this machine's byte order, which torch needs."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _chosen(file: File, variables: dict[str, Any], names: Sequence[str]) -> Any:
    """Return the variable of the first of these names, or the only one there is."""
    found = [variables[name] for name in names if name in variables]
    if not found and len(variables) == 1:
        found = list(variables.values())
    if not found:
        wanted = f"one called {' or '.join(map(repr, names))}, or only one" if names else "only one"
        msg = f"{file.path} holds the variables {', '.join(variables) or 'none'}; expected {wanted}"
        raise CorruptFileError(msg)
    return found[0]


def _read_hdf5(file: File) -> dict[str, Any]:
    """Read the arrays of a MATLAB 7.3 file, which stores columns first."""
    try:
        import h5py
    except ImportError as error:
        package, extra = "h5py", "prepare"
        raise MissingExtraError(package, extra) from error
    try:
        with h5py.File(io.BytesIO(file.content)) as stored:
            wrong = [name for name, item in stored.items() if not name.startswith("#") and not _is_numbers(item)]
            variables = {name: item[()].T for name, item in stored.items() if _is_numbers(item)}
    except (OSError, RuntimeError, KeyError) as error:
        raise unreadable(file, "MATLAB 7.3 file", error) from error
    if wrong:
        msg = f"{file.path} is a MATLAB 7.3 file whose {wrong[0]!r} is not an array of numbers; save it with -v7"
        raise CorruptFileError(msg)
    return variables


def _is_numbers(item: Any) -> bool:
    """Whether an item of an HDF5 file is an array of numbers, not a struct or references to cells."""
    return getattr(item, "dtype", np.dtype(object)).kind in "biuf"
