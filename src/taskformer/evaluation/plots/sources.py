"""What plots are drawn from: the files of a run folder."""

import csv
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from taskformer.errors import ConfigError
from taskformer.evaluation.details import DETAILS, Details, Floats, read_details

#: Files of a run folder.
CURVES, METRICS = Path("logs", "fit", "metrics.csv"), "metrics.json"

#: Steps and values of each logged name.
Curves: TypeAlias = dict[str, tuple[Floats, Floats]]


@dataclass(frozen=True)
class Run:
    """What a run folder says that can be drawn.

    Attributes:
        name: What the run is called in legends.
        folder: Its folder.
        curves: What the training logged: optimizer steps and values, each ``(N,)``, by name.
        headlines: The metric that stands for each task.
        units: Unit of each task's metrics.
        details: What the test left, see :mod:`taskformer.evaluation.details`.
    """

    name: str
    folder: Path
    curves: Curves
    headlines: dict[str, str]
    units: dict[str, dict[str, str]]
    details: dict[str, Details]


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Read run folders; runs whose folders have the same name are called by their paths.

    Raises:
        ConfigError: If one is no run folder, or a file in it is broken.
    """
    paths = [Path(folder) for folder in folders]
    names = [path.resolve().name for path in paths]
    alike = len(set(names)) < len(names)
    return [_read_run(path, str(path) if alike else name) for path, name in zip(paths, names, strict=True)]


def _read_run(folder: Path, name: str) -> Run:
    """Read a run folder."""
    if not any((folder / file).is_file() for file in (CURVES, DETAILS)):
        what = f"has neither {CURVES} nor {DETAILS}" if folder.is_dir() else "does not exist"
        msg = f"the run {str(folder)!r} {what}; `taskformer fit` writes the first, `taskformer test` the second"
        raise ConfigError(msg)
    headlines, units = _read_metrics(folder / METRICS)
    return Run(name, folder, _read_curves(folder / CURVES), headlines, units, read_details(folder))


def _read_curves(path: Path) -> Curves:
    """Read the curves, without values that are not finite and rows that were cut when their process was killed."""
    if not path.is_file():
        return {}
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with path.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            if None in row or None in row.values():
                continue
            step = float(row.pop("step"))
            for name, value in row.items():
                if value and name != "epoch" and math.isfinite(float(value)):
                    points[name].append((step, float(value)))
    return {name: (steps, values) for name, found in points.items() for steps, values in [np.array(found).T]}


def _read_metrics(path: Path) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Read the headline of each task and the units of its metrics.

    Runs of earlier versions do not say them: the headline was the first metric.
    """
    if not path.is_file():
        return {}, {}
    headlines: dict[str, str] = {}
    units: dict[str, dict[str, str]] = {}
    try:
        for record in json.loads(path.read_text(encoding="utf-8")).values():
            headlines |= record.get("headline", {name: next(iter(scores)) for name, scores in record["tasks"].items()})
            units |= record.get("units", {})
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        msg = f"{path} is no file of results ({error}); `taskformer test {path.parent}` writes it again"
        raise ConfigError(msg) from error
    return headlines, units
