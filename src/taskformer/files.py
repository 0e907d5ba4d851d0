"""Writing files so that a crash never leaves half of one, and reading tensors so that a damaged file is noticed."""

import json
import os
import pickle
import re
import tempfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from taskformer.errors import ConfigError, WeightsError

#: What torch raises where it cannot read a file.
FAULTS = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    KeyError,
    TypeError,
)
#: How the names of unfinished files begin; those that a killed process leaves behind may be deleted.
UNFINISHED = ".unfinished-"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path`` with its ending; it becomes ``path`` if nothing is raised.

    Raises:
        ConfigError: If there is a folder of that name.
    """
    if path.is_dir():
        msg = f"cannot write {path}: it is a folder; give the name of a file in it"
        raise ConfigError(msg)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f"{UNFINISHED}{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove the unfinished files of killed processes below a folder that nobody writes to now."""
    for path in folder.rglob(f"{UNFINISHED}*"):
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole or not at all; NaN becomes null."""
    write_text(path, json.dumps(_without_nan(value), indent=2) + "\n")


def _without_nan(value: Any) -> Any:
    """Replace NaN, which JSON lacks, by None."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value


def inside(folder: Path, name: str, what: str) -> Path:
    """Return the place of a name below a folder; names that come from data must not lead anywhere else.

    Args:
        folder: The folder.
        name: A relative path in it, e.g. ``"a/b"``.
        what: What the name stands for, for the error.

    Raises:
        ConfigError: If the place is the folder itself or outside.
    """
    if not Path(name).parts or Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
        msg = f"{what} {name!r} is not a place in {folder}; use a name without '..' that does not start with '/'"
        raise ConfigError(msg)
    return folder / name


def read_tensors(path: Path, foreign: bool = False) -> Any:
    """Read what ``torch.save`` wrote, whole and safely: tensors and plain values, never code.

    Args:
        path: A file on this machine.
        foreign: Whether another program's objects beside the tensors become dictionaries, and are not refused.

    Raises:
        WeightsError: If there is no such file, it is damaged or something else, or weights in it are not finite.
    """
    import torch  # takes seconds to import, and this module belongs to every command

    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        msg = f"the checkpoint {str(path)!r} {what}; give a file that training wrote, such as RUN/checkpoints/best.ckpt"
        raise WeightsError(msg)
    objects: list[str] = []
    try:
        reason = _damage(path)
        if reason is None:
            with warnings.catch_warnings():  # what torch warns of is an error below
                warnings.simplefilter("ignore")
                objects = _foreign_objects(path) if foreign else []
                with torch.serialization.safe_globals([(OrderedDict, name) for name in objects]):
                    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        msg = f"{path} cannot be read: {error.strerror}"
        raise WeightsError(msg) from error
    except FAULTS as error:
        named = re.findall(r"GLOBAL (\S+)", str(error)) or objects
        if not named:
            raise WeightsError(_not_whole(path, "torch cannot read it")) from error
        msg = (
            f"{path} holds Python objects ({named[0]}), which are never loaded because they can run code; "
            "save a state dict of tensors"
        )
        raise WeightsError(msg) from error
    if reason is not None:
        raise WeightsError(_not_whole(path, reason))
    _require_finite(checkpoint, path)
    return checkpoint


def _foreign_objects(path: Path) -> list[str]:
    """List the classes and functions of other programs that a file names, if it was written by torch 1.6 or later."""
    import torch  # takes seconds to import, and this module belongs to every command

    return torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else []


def _require_finite(checkpoint: Any, path: Path) -> None:
    """Refuse the checkpoint of a training that has failed."""
    state = checkpoint.get("state_dict", {}) if isinstance(checkpoint, dict) else {}
    for name, values in state.items():
        if values.is_floating_point() and not values.isfinite().all():
            msg = f"{path} holds weights that are not finite ({name}): its training failed; take an earlier checkpoint"
            raise WeightsError(msg)


def _damage(path: Path) -> str | None:
    """Find what is wrong with a checkpoint's bytes: torch writes a CRC-32 of every record, but never compares it."""
    with path.open("rb") as stream:
        start = stream.read(64).lstrip().lower()
    if not start:
        return "it is empty"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page"
    if not start.startswith(b"pk"):  # checkpoints from before torch 1.6 are not archives
        return None
    with zipfile.ZipFile(path) as archive:
        part = archive.testzip()
    return part and f"its part {part} is not what was written"


def _not_whole(path: Path, reason: str) -> str:
    return f"{path} ({path.stat().st_size} bytes) is damaged or not a checkpoint, {reason}; get the file again"
