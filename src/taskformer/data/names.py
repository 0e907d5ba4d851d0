"""How files are found by name: hidden ones are left out, endings match in any case, lists may begin with a BOM."""

import codecs
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from taskformer.errors import CorruptFileError


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, as the ``._x.jpg`` that macOS leaves beside each ``x.jpg``."""
    return name.startswith(".")


def ends_with(name: str, endings: Sequence[str]) -> bool:
    """Whether a name ends with one of these endings, in any case."""
    return name.lower().endswith(tuple(ending.lower() for ending in endings))


def files_in(folder: Path, endings: Sequence[str]) -> Iterator[Path]:
    """Find the visible files of a folder with one of these endings, in no order; none where there is no folder."""
    if folder.is_dir():
        for name in os.listdir(folder):  # noqa: PTH208  # a Path only for what is wanted: folders may hold millions
            if not is_hidden(name) and ends_with(name, endings) and (folder / name).is_file():
                yield folder / name


def names_in(folder: Path, ending: str) -> list[str]:
    """List what stands before the ending in the names of a folder's visible files, sorted."""
    return sorted(path.name[: -len(ending)] for path in files_in(folder, [ending]))


def folders_in(folder: Path) -> list[str]:
    """List the names of the visible folders in a folder, sorted; none where there is no folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not is_hidden(entry.name) and entry.is_dir())


def existing(path: Path) -> Path:
    """Return a file's path, or where only one with its ending in capitals or small letters exists, that one's."""
    if path.exists():
        return path
    others = (path.with_suffix(case) for case in (path.suffix.upper(), path.suffix.lower(), path.suffix.title()))
    return next((other for other in others if other.exists()), path)


def read_text(path: Path) -> str:
    """Read a text file of UTF-8, or of UTF-16 as Windows' tools write it; a byte order mark is left out.

    Raises:
        CorruptFileError: If it is neither.
    """
    content = path.read_bytes()
    is_wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if is_wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        msg = f"{path} is not a text file in UTF-8 ({error.reason} at byte {error.start})"
        raise CorruptFileError(msg) from error


def read_lines(path: Path) -> list[str]:
    """Read a list, one entry per line; empty lines and spaces around entries are left out.

    Raises:
        CorruptFileError: If it is not text.
    """
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def uniform_hash(name: str) -> float:
    """Return a number in [0, 1) that depends on nothing but the name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6]) / 2**48


def examples(names: Sequence[str], shown: int = 3) -> str:
    """Join the first few names for a sentence."""
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")
