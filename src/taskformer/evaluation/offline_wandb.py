"""Runs that wandb has kept offline, read back without an account.

wandb itself only uploads its ``.wandb`` files. Each is a log in LevelDB's format of wandb's own protobuf messages.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from taskformer.errors import ConfigError

#: A message that wandb keeps; protobuf makes the class when it is imported.
Record: TypeAlias = Any

#: LevelDB's log has blocks of this many bytes, with a header before each piece of a record.
BLOCK, HEADER = 32768, 7
#: What wandb writes before the log.
MAGIC = b":W&B"
#: Kinds of pieces: a whole record, and the first and last of several.
WHOLE, FIRST, LAST = 1, 2, 4


@dataclass
class OfflineRun:
    """A run as ``wandb sync`` would show it, from the segments that its commands have left.

    Attributes:
        id: wandb's id of the run.
        name: Its name.
        project: Its project.
        group: Its group.
        job_type: The kind of its first command.
        tags: Its tags.
        notes: Its notes.
        config: The configuration.
        labels: Names of the classes of each mask, ``{"semseg target": {0: "wall"}}``.
        summary: One value of each key: the best, ``{"min": value}``, where one is defined, or else the last.
        history: What was logged, one dictionary for each step.
        summaries: How wandb sums up a key, e.g. ``{"val/loss": ["min"]}``.
        artifacts: Name and kind of each artifact; wandb makes one of each table.
        staged: Where the files of artifacts lie until they are uploaded, by their paths in them.
        files: The folder of files of each segment, in their order.
    """

    id: str
    name: str = ""
    project: str = ""
    group: str = ""
    job_type: str = ""
    tags: list[str] = field(default_factory=list)
    notes: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    labels: dict[str, dict[int, str]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summaries: dict[str, list[str]] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)
    staged: dict[str, Path] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)

    def values(self, key: str) -> list[Any]:
        """Return what was logged of a key, in its order."""
        return [row[key] for row in self.history if key in row]

    def file(self, path: str) -> Path:
        """Return where a file of the run lies that the history or summary names.

        Raises:
            ConfigError: If there is none.
        """
        found = next((folder / path for folder in reversed(self.files) if (folder / path).is_file()), None)
        if found is None:
            msg = f"the run {self.id} has no file {path!r}; was its folder moved without `files`?"
            raise ConfigError(msg)
        return found

    def table(self, key: str) -> list[dict[str, Any]]:
        """Return the rows of a table, pictures as their files.

        Raises:
            ConfigError: If there is no such table.
        """
        entry = self.summary.get(key)
        if not isinstance(entry, dict) or "path" not in entry:
            tables = [name for name, value in self.summary.items() if isinstance(value, dict) and "path" in value]
            msg = f"the run {self.id} has no table {key!r}; there are {', '.join(tables) or 'none'}"
            raise ConfigError(msg)
        whole = self.staged.get(f"{key}.table.json", Path())  # the file that the run itself has lacks pictures
        file = whole if whole.is_file() else self.file(entry["path"])
        content = json.loads(file.read_text(encoding="utf-8"))
        return [dict(zip(content["columns"], map(self._cell, row), strict=True)) for row in content["data"]]

    def _cell(self, value: Any) -> Any:
        return self.staged[value["path"]] if isinstance(value, dict) and value.get("path") in self.staged else value


def read_offline_runs(folder: str | Path) -> list[OfflineRun]:
    """Read all offline runs below a folder, e.g. a run folder or ``runs``.

    wandb writes the ends of its files when its process ends, or on ``wandb.teardown()``.

    Args:
        folder: Folder in which, at any depth, wandb's ``offline-run-*`` lie.

    Returns:
        The runs in the order in which they began. Segments of the same id are one run, in which steps go on.

    Raises:
        ConfigError: If there are none, or a file is not wandb's.
    """
    segments = sorted(
        ((path, list(_records(path))) for path in Path(folder).rglob("offline-run-*/*.wandb")), key=_started
    )
    if not segments:
        msg = f"there is no offline run of wandb below {folder}; train with --config configs/logger/wandb.yaml and "
        raise ConfigError(f"{msg}WANDB_MODE=offline")
    runs: dict[str, OfflineRun] = {}
    for path, records in segments:
        id = next(record.run.run_id for record in records if record.HasField("run"))
        run = runs.setdefault(id, OfflineRun(id))
        run.files.append(path.parent / "files")
        first_step = run.history[-1]["_step"] + 1 if run.history else 0
        for record in records:
            _add(run, record, first_step)
    return list(runs.values())


def _started(segment: tuple[Path, list[Record]]) -> int:
    """Return when a segment began."""
    path, records = segment
    for record in records:
        if record.HasField("run"):
            started: int = record.run.start_time.ToNanoseconds()
            return started
    msg = (
        f"{path} names no run: wandb has not written it yet, which it does when its process ends or on "
        f"`wandb.teardown()`, or was killed before; in that case delete {path.parent}"
    )
    raise ConfigError(msg)


def _add(run: OfflineRun, record: Record, first_step: int) -> None:
    """Add what a record says to a run."""
    kind = record.WhichOneof("record_type")
    if kind == "run":
        told = record.run
        run.name, run.project = told.display_name or run.name, told.project or run.project
        run.group, run.job_type = told.run_group or run.group, told.job_type or run.job_type
        run.tags, run.notes = list(told.tags) or run.tags, told.notes or run.notes
        _configure(run, told.config.update)
    elif kind == "config":
        _configure(run, record.config.update)
    elif kind == "summary":
        _update(run.summary, record.summary.update)
    elif kind == "history":
        row: dict[str, Any] = {}
        _update(row, record.history.item)
        run.history.append(row | {"_step": first_step + record.history.step.num})
    elif kind == "metric" and record.metric.name:
        fields = record.metric.summary.ListFields()
        run.summaries[record.metric.name] = [descriptor.name for descriptor, _ in fields]
    elif kind == "artifact":
        run.artifacts[record.artifact.name] = record.artifact.type
        run.staged |= {each.path: Path(each.local_path) for each in record.artifact.manifest.contents}


def _configure(run: OfflineRun, items: Iterable[Any]) -> None:
    """Set what items say of the configuration, with which wandb keeps the names of classes."""
    _update(run.config, items)
    masks = run.config.pop("_wandb", {}).get("mask/class_labels", {})
    for mask in masks.values():
        name = mask["key"].rpartition("_wandb_delimeter_")[2]
        run.labels[name] = {int(number): label for number, label in mask["value"].items()}


def _update(target: dict[str, Any], items: Iterable[Any]) -> None:
    """Set what items of a record say; a nested key is a path."""
    for item in items:
        *path, last = list(item.nested_key) or [item.key]
        place = target
        for key in path:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)


def _records(path: Path) -> Iterator[Record]:
    """Yield the records of a file, up to one that was cut when its process was killed."""
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    if not data.startswith(MAGIC):
        msg = f"{path} is no file of wandb: it does not begin with {MAGIC.decode()}"
        raise ConfigError(msg)
    position, parts = HEADER, b""
    while position + HEADER <= len(data):
        if (left := BLOCK - position % BLOCK) < HEADER:  # too little room for a header
            position += left
            continue
        length, piece = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        position += HEADER + length
        if position > len(data) or not piece:
            return
        content = data[position - length : position]
        parts = content if piece in (WHOLE, FIRST) else parts + content
        if piece in (WHOLE, LAST):
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]  # protobuf makes it
            record.ParseFromString(parts)
            yield record
