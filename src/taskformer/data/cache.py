"""Decoded samples on disk: built once, then mapped into memory instead of decoding the files again.

A cache is one file: the raw samples one after the other, each at the start of a page, then where each one lies, then a
few facts in JSON, at last the length of those. Nothing in it is ever executed.
"""

import hashlib
import json
import math
import mmap
import os
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from taskformer._version import __version__
from taskformer.data.datasets.base import IMAGE, MultiTaskDataset, Sample
from taskformer.data.loading import worker_init
from taskformer.errors import ConfigError, CorruptFileError, DatasetNotFoundError, InvalidTargetError
from taskformer.files import replacing
from taskformer.parallel import progress_bar

#: Bytes of the numbers that say how long a piece of JSON is.
_LENGTH = 8
#: Arrays start at multiples of this many bytes, samples at those of the system's pages, as mapping them needs.
_ALIGNMENT = 64
_PAGE = mmap.ALLOCATIONGRANULARITY
#: What a data set has but its decoded samples do not depend on.
_IRRELEVANT = ("transform", "cache", "on_error", "substitutes", "turns", "predictions", "tasks", "_logged")


class DecodedCache:
    """The decoded samples of a split, from :meth:`build`. Each is mapped when it is asked for and released after use.

    Args:
        path: The file.
        key: The key of what it must have been built from, see :func:`cache_key`.

    Raises:
        ConfigError: If it was built from something else.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self.key = key
        with path.open("rb") as stream:
            facts = _read_facts(stream)
            if facts.get("key") != key:
                msg = f"another run has replaced {path} by a cache of other data or settings; start again"
                raise ConfigError(msg)
            stream.seek(facts["ranges"])
            self._ranges = np.frombuffer(stream.read(16 * facts["samples"]), np.int64).reshape(-1, 2)
            self._file = os.dup(stream.fileno())
        weakref.finalize(self, os.close, self._file)

    @classmethod
    def find(cls, folder: Path, dataset: MultiTaskDataset, gigabytes: float) -> Self | None:
        """Return the cache of this data set, or None if there is none that was built from exactly these files."""
        path = cache_path(folder, dataset)
        if not path.exists():
            return None
        with path.open("rb") as stream:
            facts = _read_facts(stream)
        samples = min(facts.get("samples", 0), len(dataset))
        key = cache_key(fingerprint(dataset, gigabytes), (file_facts(dataset, index) for index in range(samples)))
        return cls(path, key) if facts.get("key") == key else None

    @classmethod
    def build(cls, folder: Path, dataset: MultiTaskDataset, gigabytes: float, workers: int = 0) -> Self:
        """Return the cache of this data set, built now if there is none.

        One of the same folder and split that was built from other files or settings is replaced. A broken file stops
        the building or is left to be skipped, as the data set's ``on_error`` says.

        Args:
            folder: Where caches lie.
            dataset: What to decode, in its order.
            gigabytes: Size (in 10^9 bytes) at which the building stops; later samples are not in the cache.
            workers: Processes that decode; 0 decodes in this one.

        Raises:
            CorruptFileError: If a file is broken.
            InvalidTargetError: If it holds class ids that do not exist.
            DatasetNotFoundError: If a file is missing.
        """
        found = cls.find(folder, dataset, gigabytes)
        if found is not None:
            return found
        path, options = cache_path(folder, dataset), fingerprint(dataset, gigabytes)
        bar = progress_bar(f"decode {dataset.split}", len(dataset))
        with replacing(path) as temporary, temporary.open("wb") as stream, bar as advance:
            ranges: list[tuple[int, int]] = []
            files: list[str] = []
            loader = DataLoader(_Packed(dataset), batch_size=None, num_workers=workers, worker_init_fn=worker_init)
            for facts, sample in loader:
                if isinstance(sample, Exception) and dataset.on_error == "raise":
                    raise sample
                start = _round_up(stream.tell(), _PAGE)
                if isinstance(sample, Tensor) and start + len(sample) > gigabytes * 1e9:
                    break
                files.append(facts)
                ranges.append(_write(stream, start, sample) if isinstance(sample, Tensor) else (0, 0))
                advance()
            key = cache_key(options, files)
            _write_facts(stream, ranges, key)
        return cls(path, key)

    def __len__(self) -> int:
        """Return how many samples of the split it covers, counted from the first."""
        return len(self._ranges)

    def get(self, index: int) -> Sample | None:
        """Return ``{"image", "targets"}`` of a sample as read-only arrays, or None if it is not in the cache."""
        start, length = self._ranges[index].tolist() if index < len(self) else (0, 0)
        if not length:
            return None
        return _unpack(mmap.mmap(self._file, length, access=mmap.ACCESS_READ, offset=start))

    def __reduce__(self) -> tuple[type[Self], tuple[Path, str]]:
        # A process that was not forked opens the file anew, and sees if it was replaced since.
        return type(self), (self.path, self.key)


def cache_path(folder: Path, dataset: MultiTaskDataset) -> Path:
    """Return where the cache of a data set lies: one file for each class, root and split."""
    root = hashlib.sha256(str(dataset.root.resolve()).encode()).hexdigest()[:12]
    return folder / f"{type(dataset).__name__}-{dataset.split}-{root}.samples"


def cache_key(options: str, files: Iterable[str]) -> str:
    """Return the key of a cache's content, from the :func:`fingerprint` and the samples' :func:`file_facts`."""
    digest = hashlib.sha256(options.encode())
    for facts in files:
        digest.update(facts.encode())
    return digest.hexdigest()


def fingerprint(dataset: MultiTaskDataset, gigabytes: float) -> str:
    """Return a hash of everything but the files that decides what a cache holds: options, tasks, images, size limit."""
    options = {name: value for name, value in vars(dataset).items() if name not in _IRRELEVANT}
    tasks = {name: (type(task), task.channels) for name, task in dataset.tasks.items()}
    digest = hashlib.sha256()
    _feed(digest, (__version__, type(dataset), options, tasks, gigabytes))
    return digest.hexdigest()


def file_facts(dataset: MultiTaskDataset, index: int) -> str:
    """Return the names, sizes and modification times of a sample's files, which show that one has changed."""
    return json.dumps([(key, str(path), *_size_and_time(path)) for key, path in dataset.paths(index).items()])


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _feed(digest: Any, value: Any) -> None:
    """Add plain values, however nested, to a hash; of any other object its name or that of its type."""
    parts = _parts(value)
    if parts is not None:
        digest.update(b"[")
        for part in parts:
            _feed(digest, part)
        digest.update(b"]")
    elif value is None or isinstance(value, str | bytes | int | float | Path | np.generic | Enum):
        digest.update(f"{value!r},".encode())
    else:
        digest.update(f"{getattr(value, '__qualname__', type(value).__qualname__)},".encode())


def _parts(value: Any) -> Iterable[Any] | None:
    """Return the elements of a collection in a fixed order, or None if the value is not a collection."""
    if is_dataclass(value) and not isinstance(value, type):
        value = vars(value)
    if isinstance(value, Mapping):
        return sorted(value.items(), key=lambda item: str(item[0]))
    if isinstance(value, set | frozenset):
        return sorted(value, key=str)
    if isinstance(value, partial):
        return value.func, value.args, value.keywords
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.tolist()
    return value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else None


class _Packed(Dataset[tuple[str, Tensor | Exception]]):
    """What loader processes send: the facts about a sample's files, and its bytes or what is wrong with it."""

    def __init__(self, dataset: MultiTaskDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[str, Tensor | Exception]:
        facts = file_facts(self.dataset, index)  # before they are read: a later change must not go unnoticed
        try:
            return facts, torch.from_numpy(_pack(self.dataset.raw(index)))
        except (CorruptFileError, InvalidTargetError, DatasetNotFoundError) as error:
            return facts, error


def _pack(sample: Sample) -> NDArray[np.uint8]:
    """Put a raw sample into bytes: the length of a description in JSON, that, and the arrays."""
    arrays = {IMAGE: sample[IMAGE], **sample["targets"]}
    sizes = [_round_up(array.nbytes, _ALIGNMENT) for array in arrays.values()]
    offsets = np.cumsum([0, *sizes]).tolist()
    entries = [
        (name, array.dtype.str, array.shape, offset)
        for (name, array), offset in zip(arrays.items(), offsets, strict=False)
    ]
    header = json.dumps(entries).encode()
    first = _round_up(_LENGTH + len(header), _ALIGNMENT)
    packed = np.zeros(first + offsets[-1], np.uint8)
    packed[: _LENGTH + len(header)] = np.frombuffer(len(header).to_bytes(_LENGTH, "little") + header, np.uint8)
    for array, offset in zip(arrays.values(), offsets, strict=False):
        packed[first + offset :][: array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)
    return packed


def _unpack(content: mmap.mmap) -> Sample:
    """Return the arrays of :func:`_pack`, which stay where they are."""
    end = _LENGTH + int.from_bytes(content[:_LENGTH], "little")
    first = _round_up(end, _ALIGNMENT)
    arrays = {
        name: np.frombuffer(content, dtype, math.prod(shape), first + offset).reshape(shape)
        for name, dtype, shape, offset in json.loads(content[_LENGTH:end])
    }
    return {IMAGE: arrays.pop(IMAGE), "targets": arrays}


def _write(stream: BinaryIO, start: int, sample: Tensor) -> tuple[int, int]:
    """Write a sample; returns where, and its length."""
    stream.seek(start)
    stream.write(sample.numpy().data)
    return start, len(sample)


def _write_facts(stream: BinaryIO, ranges: Sequence[tuple[int, int]], key: str) -> None:
    """Finish a cache: the start and length of each sample (length 0: none), the facts, and their length."""
    facts = json.dumps({"key": key, "samples": len(ranges), "ranges": stream.tell()}).encode()
    stream.write(np.array(ranges, np.int64).tobytes() + facts + len(facts).to_bytes(_LENGTH, "little"))


def _read_facts(stream: BinaryIO) -> dict[str, Any]:
    """Return the facts at the end of a cache; an empty dictionary if the file is not a whole cache."""
    try:
        stream.seek(-_LENGTH, os.SEEK_END)
        length = int.from_bytes(stream.read(), "little")
        stream.seek(-_LENGTH - length, os.SEEK_END)
        facts = json.loads(stream.read(length))
    except (OSError, ValueError, OverflowError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
