"""What a run says of itself: the record of an evaluation, and the scores of single images."""

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray

from taskformer.errors import ConfigError
from taskformer.evaluation.report import METRICS
from taskformer.tasks.registry import task_class

Split = Literal["test", "val"]
#: A metric of a task.
Key = tuple[str, str]
#: ``{(task, metric): (ids, values)}``
Columns = dict[Key, tuple[list[str], NDArray[np.float64]]]
#: Settings of the data that change no result.
PLACES = ("root", "num_workers", "cache_dir", "cache_gb")


@dataclass(frozen=True)
class ScoredRun:
    """An evaluated run.

    Attributes:
        name: What tables call it.
        split: What it was evaluated on.
        record: What ``metrics.json`` says of that.
        seed: The seed of its training; None if nobody knows.
        settings: Text that is the same for runs that differ in their seed alone; None if nobody knows.
        folder: The run folder; None of a run that is elsewhere.
        images: The scores of single images, with the images' identifiers; empty where they were not kept.
    """

    name: str
    split: Split
    record: Mapping[str, Any]
    seed: int | None = None
    settings: str | None = None
    folder: Path | None = None
    images: Columns = field(default_factory=dict)

    @property
    def facts(self) -> dict[str, Any]:
        """What was evaluated and how, see :func:`~taskformer.evaluation.references.run_facts`; of old runs less."""
        facts: dict[str, Any] = {"split": self.split, **self.record.get("facts", {})}
        return facts | {"protocol": self.record["protocol"]}

    @property
    def initialisation(self) -> str:
        """What its network was filled with before the training."""
        return str(self.facts.get("initialisation", "unknown"))

    def scores(self) -> dict[Key, float]:
        """Return the metrics of the whole split; where nothing is valid, NaN."""
        tasks = self.record.get("tasks", {})
        return {
            (task, metric): math.nan if value is None else float(value)
            for task, metrics in tasks.items()
            for metric, value in metrics.items()
        }

    def better(self, key: Key) -> str:
        """Say which values of a metric are better: ``"higher"``, ``"lower"`` or, if it does not rate, ``""``."""
        return str(self.record["better"].get(key[0], {}).get(key[1], ""))

    def unit(self, key: Key) -> str:
        """Return the unit of a metric."""
        units = self.record.get("units", {}).get(key[0]) or getattr(task_class(key[0]), "units", {})
        return str(units.get(key[1], ""))

    def is_headline(self, key: Key) -> bool:
        """Whether a metric stands for its task; where neither the run nor the task says which one does, all do."""
        headline = self.record.get("headline", {}).get(key[0]) or getattr(task_class(key[0]), "headline", key[1])
        return bool(headline == key[1])


def read_run(folder: Path, split: Split, name: str | None = None) -> ScoredRun:
    """Read an evaluated run.

    Args:
        folder: The run folder.
        split: Which evaluation.
        name: What tables call it; None: its folder.

    Raises:
        ConfigError: If it was not evaluated, or a file is damaged.
    """
    record = read_records(folder).get(split)
    if not isinstance(record, dict) or not {"protocol", "better"} <= record.keys():  # the latter of very old versions
        command = "test" if split == "test" else "validate"
        msg = f"{folder} has no {split} results; get them with `taskformer {command} {folder}`"
        raise ConfigError(msg)
    seed, settings = _settings(folder, record)
    images = _read_images(folder, record["per_image"]) if record.get("per_image") else {}
    return ScoredRun(name or str(folder), split, record, seed, settings, folder, images)


def read_records(folder: Path) -> dict[str, Any]:
    """Read what a run's evaluations found, ``{split: record}``.

    Raises:
        ConfigError: If the folder is no run's, or has no results.
    """
    path = folder / METRICS
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        reason = "has no results; get them with `taskformer test" if folder.is_dir() else "does not exist"
        msg = f"{folder} {reason}" + (f" {folder}`" if folder.is_dir() else "; give run folders, such as runs/demo")
        raise ConfigError(msg) from error
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be read as results ({error}); get them again with `taskformer test {folder}`"
        raise ConfigError(msg) from error
    return found if isinstance(found, dict) else {}


def _settings(folder: Path, record: Mapping[str, Any]) -> tuple[int | None, str | None]:
    """Return a run's seed, and all else that decides its results, in one text."""
    path = folder / "config.yaml"
    if not path.is_file():
        return None, None
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    data = dict(config.get("data") or {})
    if isinstance(options := data.get("init_args"), dict):
        data["init_args"] = {key: value for key, value in options.items() if key not in PLACES}
    return config.get("seed_everything"), settings_text([config.get("model"), data, record.get("facts")])


def settings_text(settings: Any) -> str:
    """Write plain settings as a text that is the same for the same settings."""
    return json.dumps(settings, sort_keys=True, default=str)


def _read_images(folder: Path, file: str) -> Columns:
    """Read the scores of single images.

    Raises:
        ConfigError: If the table is missing or damaged.
    """
    columns: dict[Key, tuple[list[str], list[float]]] = {}
    try:
        with (folder / file).open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                ids, values = columns.setdefault((row["task"], row["metric"]), ([], []))
                ids.append(row["id"])
                values.append(float(row["value"]))
        if len({tuple(ids) for ids, _ in columns.values()}) > 1:
            msg = "its metrics are of different images"
            raise ValueError(msg)
    except (OSError, KeyError, ValueError, TypeError) as error:
        msg = (
            f"{folder} has no scores of single images that can be read ({file}: {error}); test it again with "
            f"`taskformer test {folder} --results.per_image true`"
        )
        raise ConfigError(msg) from error
    return {key: (ids, np.array(values)) for key, (ids, values) in columns.items()}
