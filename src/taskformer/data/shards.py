"""Shards: a data set's files packed into large chunks that are streamed from a disk or from object storage.

Millions of small files are slow to list, to copy and to read over a network. A shard holds the *original bytes* of the
files of each sample, so that training from shards sees exactly the samples that it would see from the files. Chunks are
written and streamed by litdata (extra ``stream``); a record is one string of bytes: nothing in it is ever unpickled.

``OUT/SPLIT/index.json`` lists the chunks; it is written last, so that a folder that has one is complete. Copy ``OUT``
to a bucket as it is, and give its address (``s3://bucket/x``, ``gs://...``) to the data module as ``shards``.
"""

import json
import logging
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from numpy.typing import NDArray

from taskformer.data.datasets.base import MultiTaskDataset, Sample
from taskformer.data.images import File
from taskformer.errors import (
    ConfigError,
    CorruptFileError,
    DatasetNotFoundError,
    InvalidTargetError,
    MissingExtraError,
)
from taskformer.files import write_json
from taskformer.parallel import default_workers, run_jobs
from taskformer.seeds import run_seed
from taskformer.tasks import build_tasks

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from taskformer.data.datamodules.base import MultiTaskDataModule

logger = logging.getLogger(__name__)

#: Samples that one process packs at a time; what an interrupted run has to do again.
SAMPLES_PER_PART = 256
#: Length of a record's header, little-endian.
_LENGTH = struct.Struct("<I")


class Record(NamedTuple):
    """A sample as it lies in a shard.

    Attributes:
        meta: Facts about it, with its ``id``.
        tasks: The tasks whose files were packed.
        files: The files by key, see :meth:`MultiTaskDataset.files`.
    """

    meta: dict[str, Any]
    tasks: list[str]
    files: dict[str, File]


def pack(record: Record) -> bytes:
    """Turn a record into bytes: length of a JSON header, the header, and the files one after another."""
    names = [[key, file.path, len(file.content)] for key, file in record.files.items()]
    header = json.dumps({"meta": record.meta, "tasks": record.tasks, "files": names}).encode()
    return b"".join([_LENGTH.pack(len(header)), header, *(file.content for file in record.files.values())])


def unpack(content: bytes | memoryview) -> Record:
    """Turn the bytes of :func:`pack` into the record.

    Raises:
        CorruptFileError: If they are not such bytes.
    """
    content = bytes(content)
    try:
        (length,) = _LENGTH.unpack_from(content)
        header = json.loads(content[_LENGTH.size : _LENGTH.size + length])
        start, files = _LENGTH.size + length, {}
        for key, path, size in header["files"]:
            files[key] = File(path, content[start : start + size])
            start += size
        record = Record(header["meta"], header["tasks"], files)
    except (struct.error, ValueError, KeyError, TypeError) as error:
        msg = f"a record of {len(content)} bytes is not one of write_shards ({error}); write the shards again"
        raise CorruptFileError(msg) from error
    if start != len(content):
        msg = (
            f"the record {record.meta.get('id')!r} has {len(content)} bytes instead of {start}; write the shards again"
        )
        raise CorruptFileError(msg)
    return record


def write_shards(
    data: "MultiTaskDataModule",
    out: Path,
    splits: Sequence[str] | None = None,
    chunk_mb: int = 64,
    workers: int | None = None,
) -> None:
    """Pack the files of a data set's tasks into shards. An interrupted run continues.

    Every sample is read as for training first; a broken one stops the run, or is logged and left out if the data
    module's ``on_error`` is ``skip``.

    Args:
        data: The data set, with the tasks to pack.
        out: Folder for the shards, one below it for each split.
        splits: Which splits; all by default.
        chunk_mb: Size of a chunk in megabytes.
        workers: Number of processes; None takes one per processor.

    Raises:
        MissingExtraError: If litdata is not installed.
        CorruptFileError: If a sample cannot be read.
        ConfigError: If the folder holds shards of something else.
    """
    _litdata()
    for split in splits or data.splits():
        dataset = data.dataset(split, build_tasks(data.task_specs), None)
        _write_split(dataset, out / split, {"dataset": data.name, "chunk_mb": chunk_mb}, workers)


def _write_split(dataset: MultiTaskDataset, out: Path, about: dict[str, Any], workers: int | None) -> None:
    # The first and last name stand for all: millions of names would take longer to compare than to pack.
    about |= {"samples": len(dataset), "ends": [dataset.ids[0], dataset.ids[-1]], "tasks": list(dataset.tasks)}
    note = out / "shards.json"
    if not note.exists():
        write_json(note, about)
    elif (found := json.loads(note.read_text("utf-8"))) != about:
        msg = f"{out} holds shards of {found}, not of {about}; choose another folder or delete this one"
        raise ConfigError(msg)
    if (out / "index.json").exists():
        return
    parts = list(range(-(-len(dataset) // SAMPLES_PER_PART)))
    job = partial(_write_part, dataset, out, about["chunk_mb"])
    outcomes = run_jobs(parts, job, default_workers() if workers is None else workers, f"shards of {dataset.split}")
    errors = [outcome.error for outcome in outcomes if outcome.error]
    if errors:
        msg = f"{len(errors)} of {len(parts)} parts of {out} could not be written, the first because of: {errors[0]}"
        raise CorruptFileError(msg)
    indices = [json.loads(_part_index(out, part).read_text("utf-8")) for part in parts]
    filled = [index for index in indices if index["chunks"]]
    if not filled:
        msg = f"no sample of the split {dataset.split!r} in {dataset.root} can be read; see the files logged above"
        raise DatasetNotFoundError(msg)
    chunks = [chunk for index in filled for chunk in index["chunks"]]
    write_json(out / "index.json", {"chunks": chunks, "config": filled[0]["config"]})
    for part in parts:
        _part_index(out, part).unlink()


def _part_index(out: Path, part: int) -> Path:
    return out / f"part-{part}.json"


def _write_part(dataset: MultiTaskDataset, out: Path, chunk_mb: int, part: int) -> None:
    """Pack some samples, unless that was done."""
    from litdata.streaming.writer import BinaryWriter

    if _part_index(out, part).exists():
        return
    with TemporaryDirectory(prefix=".part-", dir=out) as name:
        folder = Path(name)
        writer = BinaryWriter(name, chunk_bytes=chunk_mb << 20)
        position = 0
        for index in range(part * SAMPLES_PER_PART, min((part + 1) * SAMPLES_PER_PART, len(dataset))):
            if (content := _packed(dataset, index)) is not None:
                writer.add_item(position, content)
                position += 1
        writer.done()
        written = list(folder.glob("*.index.json"))  # none without a sample
        about = json.loads(written[0].read_text("utf-8")) if written else {"chunks": []}
        for number, chunk in enumerate(about["chunks"]):
            final = f"chunk-{part}-{number}.bin"
            (folder / chunk["filename"]).replace(out / final)
            chunk["filename"] = final
    write_json(_part_index(out, part), about)


def _packed(dataset: MultiTaskDataset, index: int) -> bytes | None:
    try:
        files, meta = dataset.read_files(index), dataset.meta(index)
        dataset.sample(files, meta)
    except (CorruptFileError, InvalidTargetError, DatasetNotFoundError) as error:
        if dataset.on_error == "raise":
            raise
        logger.warning("left out of the shards: %s", error)
        return None
    relative = {key: File(_relative(file.path, dataset.root), file.content) for key, file in files.items()}
    return pack(Record(meta, list(dataset.tasks), relative))


def _relative(path: str, root: Path) -> str:
    return str(Path(path).relative_to(root)) if Path(path).is_relative_to(root) else path


class ShardedDataset(MultiTaskDataset):
    """A split that lies in shards. Single samples may be asked for; an epoch is better streamed by :func:`stream`.

    Args:
        url: Folder or address of the shards; the split is a folder in it.
        split: Part of the data set.
        *args: What else :class:`MultiTaskDataset` takes; the tasks must be among those that were packed.
        decode: The data set's :meth:`MultiTaskDataset.decode`.
        **kwargs: The same as ``args``, by name.

    Raises:
        MissingExtraError: If litdata is not installed.
        DatasetNotFoundError: If there are no shards.
        ConfigError: If a task was not packed.
    """

    def __init__(
        self,
        url: str,
        split: str,
        *args: Any,
        decode: Callable[[str, Mapping[str, File]], NDArray[Any] | None],
        **kwargs: Any,
    ) -> None:
        self.url = f"{url.rstrip('/')}/{split}"
        self._decode = decode
        super().__init__(url, split, *args, **kwargs)

    def _ids(self) -> "ShardIds":
        self._records = _open(self.url)
        ids = ShardIds(self)
        packed = self.packed_tasks()
        if missing := [name for name in self.tasks if name not in packed]:
            msg = f"the shards {self.url} hold no files for {missing}, only for {packed}; write them with these tasks"
            raise ConfigError(msg)
        return ids

    def packed_tasks(self) -> list[str]:
        """Return the tasks whose files were packed."""
        return self.record(0).tasks

    def record(self, index: int) -> Record:
        """Read one sample's record."""
        return unpack(self._records[index])

    def files(self, index: int) -> dict[str, Path]:
        """Return where the files of a sample came from, relative to the data set's folder."""
        return {key: Path(file.path) for key, file in self.record(index).files.items()}

    def read_files(self, index: int) -> dict[str, File]:
        """Return the files of a sample."""
        return self.record(index).files

    def meta(self, index: int) -> dict[str, Any]:
        """Return the facts that were packed with a sample."""
        return self.record(index).meta

    def raw(self, index: int) -> Sample:
        """Return one sample before the transform, reading its record once."""
        record = self.record(index)
        return self._decode_all(record.files, record.meta)

    def decode(self, key: str, files: Mapping[str, File]) -> NDArray[Any] | None:
        """Turn files into the image or a target, as the data set does."""
        return self._decode(key, files)


class ShardIds(Sequence[str]):
    """The names of the samples of shards, read when they are asked for."""

    def __init__(self, dataset: ShardedDataset) -> None:
        self._dataset = dataset
        self._count = len(dataset._records)

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._count

    @overload
    def __getitem__(self, position: int) -> str: ...
    @overload
    def __getitem__(self, position: slice) -> list[str]: ...
    def __getitem__(self, position: int | slice) -> str | list[str]:
        """Return one name, or a list of some."""
        if isinstance(position, slice):
            return [self[place] for place in range(*position.indices(len(self)))]
        position += self._count if position < 0 else 0
        if not 0 <= position < self._count:
            msg = f"sample {position} of {self._count}"
            raise IndexError(msg)
        return str(self._dataset.record(position).meta["id"])

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return (self[position] for position in range(self._count))


def stream(
    dataset: ShardedDataset,
    batch_size: int,
    num_workers: int,
    shuffle: bool,
    collate: Callable[[list[Sample]], Sample],
    worker_init: Callable[[int], None],
) -> "DataLoader[Sample]":
    """Build a loader that streams chunks in order, split between processes and their workers.

    With ``shuffle`` the order differs in every epoch and an incomplete last batch is left out; chunks are read whole,
    so that the order is random between chunks and within each.

    Args:
        dataset: The samples.
        batch_size: Samples per batch.
        num_workers: Loader processes.
        shuffle: Whether this is for training.
        collate: Makes a batch of samples.
        worker_init: Called in each loader process.
    """
    litdata = _litdata()
    sample = partial(_sample, dataset)
    records = _open(dataset.url, shuffle=shuffle, drop_last=shuffle, seed=run_seed(), transform=sample)
    loader: DataLoader[Sample] = litdata.StreamingDataLoader(
        records,
        batch_size=batch_size,
        num_workers=num_workers,
        shuffle=shuffle,
        drop_last=shuffle,
        collate_fn=collate,
        worker_init_fn=worker_init,
    )
    return loader


def _sample(dataset: ShardedDataset, content: bytes) -> Sample:
    record = unpack(content)
    return dataset.sample(record.files, record.meta)


def _open(url: str, **options: Any) -> Any:
    litdata = _litdata()
    try:
        records = litdata.StreamingDataset(url, **options)
        len(records)
    except (OSError, ValueError, RuntimeError) as error:
        msg = f"there are no shards at {url} ({error}); write them with `taskformer data shard`"
        raise DatasetNotFoundError(msg) from error
    return records


def _litdata() -> Any:
    os.environ.setdefault("LITDATA_DISABLE_VERSION_CHECK", "1")  # else the import asks the internet for a newer version
    try:
        import litdata
    except ImportError as error:
        package, extra = "litdata", "stream"
        raise MissingExtraError(package, extra) from error
    return litdata
