"""Single-task results to compare with: which entry belongs to a run, and how much better or worse the run is.

An entry is a JSON file that ``taskformer baselines`` writes: ``facts`` says what the single-task runs were, ``tasks``
has each task's headline metric. A run is compared only with an entry whose facts are all its own.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskformer.errors import ConfigError
from taskformer.modules.base import MultiTaskModule, Results
from taskformer.tasks import Task
from taskformer.tasks.improvement import improvements

#: What makes a sub-network of a supernet, where there is no backbone with a name. How tasks share it is left out: a
#: single task has nobody to share with.
SUBNET_SETTINGS = ("space", "embed_dims", "depths", "mlp_ratios", "num_heads", "head_dim", "patch_size")

Facts = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """A run against single-task runs of the same facts.

    Attributes:
        source: File of the single-task results.
        improvement: Relative improvement of each task's headline metric in percent.
        delta_m: Their mean.
    """

    source: Path
    improvement: dict[str, float]
    delta_m: float


def run_facts(module: MultiTaskModule, data: Any, split: str, images: int) -> Facts:
    """Gather what a run and its single-task baselines must have in common, in plain types.

    Args:
        module: The model that was evaluated.
        data: Its data module, or None.
        split: The split that it was evaluated on.
        images: How many images that were.
    """
    return {
        "data": data.name if data else "unknown",
        "split": split,
        "images": images,
        "holdout": data.holdout if data else 0.0,
        "backbone": _backbone(module.hparams),
        # Of a file its name, for folders differ between machines.
        "initialisation": Path(module.hparams["weights"]).name,
        "input_size": module.train_size.tolist(),
        "protocol": module.protocol,
    }


def compare_with_baselines(source: Path, facts: Facts, tasks: Mapping[str, Task], results: Results) -> Comparison:
    """Compare results with the single-task entry of the same facts.

    Args:
        source: Folder of entries, or one entry.
        facts: The run's facts.
        tasks: Its tasks.
        results: Its metrics.

    Raises:
        ConfigError: If no entry or more than one has these facts, or the one lacks a task; says what differs.
    """
    file, entries = _matching(source, facts)
    for name, task in tasks.items():
        if name not in entries:
            msg = f"{file} has no single-task result for {name}, only for {', '.join(entries)}"
            raise ConfigError(msg)
        for fact, here in task_facts(task).items():
            if entries[name][fact] != here:
                msg = f"{name} has the {fact} {entries[name][fact]} in {file} and {here} here"
                raise ConfigError(msg)
    try:
        gains, mean = improvements(tasks, results, {name: entries[name]["value"] for name in tasks})
    except ValueError as error:
        msg = f"{file}: {error}"
        raise ConfigError(msg) from error
    return Comparison(file, gains, mean)


def task_facts(task: Task) -> Facts:
    """What a task's result and its baseline must have in common."""
    return {"metric": task.headline, "higher_is_better": task.higher_is_better, "channels": task.channels}


def _backbone(settings: Mapping[str, Any]) -> str:
    """Describe the shared network: its name, or the sizes of the sub-network or of the supernet."""
    if "backbone" in settings:
        return str(settings["backbone"])
    if settings.get("architecture"):
        sizes = json.loads(settings["architecture"])
        sizes = {key: value for key, value in sizes.items() if key != "sharing"}
        sizes |= {key: settings[key] for key in ("head_dim", "patch_size")}
    else:
        sizes = {key: settings[key] for key in SUBNET_SETTINGS if settings.get(key) is not None}
    return ", ".join(f"{key} {value}" for key, value in sizes.items())


def _matching(source: Path, facts: Facts) -> tuple[Path, dict[str, Any]]:
    """Find the one entry with these facts, and return its file and tasks."""
    files = [source] if source.is_file() else sorted(source.glob("*.json"))
    if not files:
        msg = f"{source} holds no single-task results; `taskformer baselines` makes them"
        raise ConfigError(msg)
    found = {file: _read(file) for file in files}
    different = {file: [key for key in facts if entry["facts"].get(key) != facts[key]] for file, entry in found.items()}
    matches = [file for file, keys in different.items() if not keys]
    if len(matches) > 1:
        names = ", ".join(file.name for file in matches)
        msg = f"several entries in {source} have this run's facts ({names}); choose one: --results.baselines FILE"
        raise ConfigError(msg)
    if not matches:
        nearest = min(files, key=lambda file: len(different[file]))
        there = found[nearest]["facts"]
        facts_text = ", ".join(f"{key} ({there.get(key)} there, {facts[key]} here)" for key in different[nearest])
        msg = f"no single-task results like this run in {source}; the nearest, {nearest.name}, differ in {facts_text}"
        raise ConfigError(msg)
    return matches[0], found[matches[0]]["tasks"]


def _read(file: Path) -> dict[str, Any]:
    try:
        entry: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        complete = {"facts", "tasks"} <= entry.keys()
    except (OSError, ValueError, AttributeError) as error:
        msg = f"{file} cannot be read as single-task results ({error}); write it again with `taskformer baselines`"
        raise ConfigError(msg) from error
    if not complete:
        msg = f"{file} lacks `facts` or `tasks`; write it again with `taskformer baselines`"
        raise ConfigError(msg)
    return entry
