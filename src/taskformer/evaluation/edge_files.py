"""Files of edges, predicted and true, also as the Berkeley benchmark (BSDS) has them."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse

from taskformer.data.images import File, holds_array, read_array, read_mat, read_plane
from taskformer.errors import CorruptFileError, MissingExtraError
from taskformer.metrics.boundaries import Floats, Mask

#: How far probabilities may be from [0, 1], by rounding.
ROUNDING = 1e-6
#: Variables of MATLAB files that hold edges themselves.
PLAIN_NAMES = ("Boundaries", "edges", "edge")
#: How MATLAB files of version 7.3 begin, perhaps after a header of their own.
HDF5, HDF5_WITHIN = b"\x89HDF\r\n\x1a\n", 1024


def read_probability(path: Path) -> Floats:
    """Read a predicted edge map ``(H, W)`` in [0, 1]; whole numbers are shares of the largest of their type."""
    file = File(str(path), path.read_bytes())
    values: NDArray[Any] = read_array(file) if holds_array(file) else read_plane(file)
    if values.dtype.kind not in "bufi":
        msg = f"{path} must be a map of probabilities, got values of type {values.dtype}"
        raise CorruptFileError(msg)
    if values.dtype.kind == "u":
        values = values / np.iinfo(values.dtype).max
    values = values.astype(np.float64)
    if values.ndim != 2 or not ((values >= -ROUNDING) & (values <= 1 + ROUNDING)).all():
        msg = f"{path} must be a map (height, width) of probabilities in [0, 1], got shape {values.shape}" + (
            f" with values {values.min():.4g}..{values.max():.4g}" if values.size else ""
        )
        raise CorruptFileError(msg)
    return values.clip(0, 1)


def read_truths(path: Path) -> list[Mask]:
    """Read true edges, ``(H, W)`` of every annotator.

    A MATLAB file, of any version, holds ``groundTruth``: an array, or a cell or struct of several, each with the field
    ``Boundaries`` or an array itself; or else one array called as in :data:`PLAIN_NAMES`.

    Raises:
        CorruptFileError: If it holds something else.
    """
    file = File(str(path), path.read_bytes())
    if not holds_array(file):
        return [read_plane(file) > 0]
    variables = _read_hdf5(file) if HDF5 in file.content[:HDF5_WITHIN] else read_mat(file)
    names = [name for name in ("groundTruth", *PLAIN_NAMES) if name in variables]
    drawn = list(_arrays(variables[names[0]])) if names else []
    if not drawn:
        there = ", ".join(name for name in variables if not name.startswith(("_", "#"))) or "nothing"
        msg = f"{path} does not hold groundTruth{{k}}.Boundaries as BSDS has it, nor one array of edges, but {there}"
        raise CorruptFileError(msg)
    for array in drawn:
        values = np.unique(array)
        if array.ndim != 2 or array.dtype.kind not in "buif" or not 0 < values.size <= 2 or values[0] != 0:
            msg = (
                f"{path}: an annotator's edges must be a map (height, width) of 0 and one other value, "
                f"got {array.dtype} of shape {array.shape} with {values.size} different values"
            )
            raise CorruptFileError(msg)
    return [array > 0 for array in drawn]


def _arrays(value: Any) -> Iterator[NDArray[Any]]:
    """Find the annotators' arrays in cells and structs, however nested."""
    if isinstance(value, dict):
        yield from _arrays(value.get("Boundaries", []))
    elif isinstance(value, list):
        for item in value:
            yield from _arrays(item)
    elif issparse(value):
        yield value.toarray()
    elif value.dtype.names:  # a struct, or an array of them
        for item in value.ravel():
            yield from _arrays(dict(zip(value.dtype.names, item, strict=True)))
    elif value.dtype.kind == "O":  # a cell
        yield from _arrays(value.ravel().tolist())
    else:
        yield value


def _read_hdf5(file: File) -> dict[str, Any]:
    """Read a MATLAB file of version 7.3: structs as dictionaries, cells as lists, arrays of numbers as such.

    Raises:
        MissingExtraError: If h5py is not installed.
        CorruptFileError: If the file cannot be read.
    """
    try:
        import h5py
    except ImportError as error:
        package, extra = "h5py", "prepare"
        raise MissingExtraError(package, extra) from error

    def convert(item: Any) -> Any:
        if isinstance(item, h5py.Group):
            return {name: convert(part) for name, part in item.items()}
        if h5py.check_ref_dtype(item.dtype):
            return [convert(item.file[reference]) for reference in item[()].ravel()]
        return item[()].T  # columns come first there

    try:
        with h5py.File(io.BytesIO(file.content)) as stored:
            return {name: convert(item) for name, item in stored.items() if not name.startswith("#")}
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        msg = f"{file.path} ({len(file.content)} bytes) cannot be read as a MATLAB 7.3 file ({error})"
        raise CorruptFileError(msg) from error
