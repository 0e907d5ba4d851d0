"""Single-task references: which entry belongs to a run, and how much better or worse the run is.

An entry is a JSON file that ``taskformer baselines`` writes: ``facts`` says what the single-task runs were, ``tasks``
has each task's headline metric. A run is compared only with an entry whose facts are all its own.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from taskformer.errors import ConfigError
from taskformer.modules.base import MultiTaskModule
from taskformer.modules.evaluating import Results
from taskformer.modules.recipe import initialisation, pipeline
from taskformer.tasks import Task
from taskformer.tasks.improvement import improvements

#: What makes a sub-network of a supernet, where there is no backbone with a name. How tasks share it is left out: a
#: single task has no other to share with.
SUBNET_SETTINGS = ("space", "embed_dims", "depths", "mlp_ratios", "num_heads", "head_dim", "patch_size")

Facts = dict[str, Any]
#: What trainings had before there was a choice, and so what records without the fact mean.
FORMER: Facts = {"labels": []}


@dataclass(frozen=True)
class Reference:
    """A task's single-task result.

    Attributes:
        value: The headline metric, the mean over the seeds.
        spread: Its standard deviation over the seeds; None where there is one.
        seeds: How many there are.
    """

    value: float
    spread: float | None
    seeds: int


@dataclass(frozen=True)
class Improvement:
    """How much better a run is than single-task runs of the same facts.

    >>> references = {"depth": Reference(value=0.6, spread=0.01, seeds=3)}
    >>> print(Improvement(Path("entry.json"), references, by_task={"depth": 5.0}, delta_m=5.0))
    +5.00 % against entry.json (3 seeds)

    Attributes:
        source: File of the single-task results.
        references: They, by task.
        by_task: Relative improvement of each task's headline metric in percent.
        delta_m: Their mean.
    """

    source: Path
    references: dict[str, Reference]
    by_task: dict[str, float]
    delta_m: float

    def __str__(self) -> str:
        """Say the number and what it is against."""
        counts = {reference.seeds for reference in self.references.values()}
        seeds = f"{min(counts)} to {max(counts)} seeds" if len(counts) > 1 else _times(counts.pop(), "seed")
        return f"{self.delta_m:+.2f} % against {self.source} ({seeds})"


def run_facts(module: MultiTaskModule, data: Any, split: str, images: int) -> Facts:
    """Gather what a run and its single-task references must have in common, in plain types.

    Args:
        module: The model that was evaluated.
        data: Its data module, or None.
        split: The split that it was evaluated on.
        images: How many images that were.
    """
    facts = {
        "data": _data_name(data),
        "split": split,
        "images": images,
        "holdout": data.holdout if data else 0.0,
        "eval_transforms": pipeline(data, "eval_transforms"),
        "backbone": _backbone(module.hparams),
        "initialisation": initialisation(module.hparams),
        "input_size": module.train_size.tolist(),
        "protocol": module.protocol,
        "tta": module.tta.facts if split == "test" else None,
        "training": module.recipe and FORMER | module.recipe,
    }
    plain: Facts = json.loads(json.dumps(facts))  # as they are read from a file
    return plain


def differing(there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Say which facts differ, and how.

    Args:
        there: Facts of other runs.
        here: Facts of this one.
        prefix: What the names of the facts start with.
    """
    found = []
    for key, value in here.items():
        other = there.get(key, FORMER.get(key))
        if isinstance(value, dict) and isinstance(other, dict):
            found += differing(other, value, f"{prefix}{key}.")
        elif isinstance(value, dict):
            found.append(f"{prefix}{key} (not said there)")
        elif other != value:
            found.append(f"{prefix}{key} ({other} there, {value} here)")
    return found


def find_references(source: Path, facts: Facts, tasks: Mapping[str, Task]) -> tuple[Path, dict[str, Reference]]:
    """Find the single-task results of the same facts.

    Args:
        source: Folder of entries, or one entry.
        facts: The run's facts.
        tasks: Its tasks.

    Returns:
        The entry's file and each task's result.

    Raises:
        ConfigError: If no entry or more than one has these facts, or the one lacks a task; says what differs.
    """
    if not facts["training"]:
        msg = "the weights do not say what they were trained with: they are untrained, or of an older version"
        raise ConfigError(msg)
    file, entry = _matching(source, facts)
    entries = entry["tasks"]
    references = {}
    for name, task in tasks.items():
        if name not in entries:
            msg = f"{file} has no single-task result for {name}, only for {', '.join(entries)}"
            raise ConfigError(msg)
        for fact, here in task_facts(task).items():
            if entries[name].get(fact) != here:
                msg = f"{name} has the {fact} {entries[name].get(fact)} in {file} and {here} here"
                raise ConfigError(msg)
        references[name] = _reference(file, name, entries[name], facts["split"])
    return file, references


def compare_with_references(source: Path, facts: Facts, tasks: Mapping[str, Task], results: Results) -> Improvement:
    """Compare results with the single-task entry of the same facts.

    Args:
        source: Folder of entries, or one entry.
        facts: The run's facts.
        tasks: Its tasks.
        results: Its metrics.

    Raises:
        ConfigError: If there is nothing to compare with, see :func:`find_references`, or a metric has no value.
    """
    file, references = find_references(source, facts, tasks)
    for name, task in tasks.items():
        if not math.isfinite(results[name][task.headline]):
            msg = f"the {task.headline} of {name} is {results[name][task.headline]}"
            raise ConfigError(msg)
    gains, mean = improvements(tasks, results, {name: reference.value for name, reference in references.items()})
    return Improvement(file, references, gains, mean)


def training_references(trainer: Trainer, module: MultiTaskModule, source: Path) -> dict[str, Reference]:
    """Find the single-task results that the validations of a training are compared with.

    Before the first step the size of the training images is not known; it is compared from then on.

    Args:
        trainer: The Trainer, from ``on_fit_start`` on.
        module: The model that it trains.
        source: Folder of entries, or one entry.

    Raises:
        ConfigError: If there are none; says why.
    """
    data, images = getattr(trainer, "datamodule", None), validation_images(trainer)
    if images is None:
        msg = "val/delta_m needs all images of the validation split; leave trainer.limit_val_batches at 1.0"
        raise ConfigError(msg)
    facts = run_facts(module, data, "val", images) | {"training": module.describe_training(trainer)}
    if not module.train_size.any():
        del facts["input_size"]
    return find_references(source, facts, module.tasks)[1]


def validation_images(trainer: Trainer) -> int | None:
    """How many images a validation of a training has; None if it does not look at all of them."""
    dataset = getattr(getattr(trainer, "datamodule", None), "datasets", {}).get("val")
    limit = trainer.limit_val_batches
    return len(dataset) if dataset is not None and isinstance(limit, float) and limit == 1 else None


def task_facts(task: Task) -> Facts:
    """What a task's result and its reference must have in common."""
    return {"metric": task.headline, "higher_is_better": task.higher_is_better, "channels": task.channels}


def _data_name(data: Any) -> str:
    """Name the data; a mixture by its parts, and people's own, which all are a ``folder``, by that folder."""
    if hasattr(data, "parts"):
        return " + ".join(_data_name(part) for part in data.parts)
    name = str(getattr(data, "name", "unknown"))
    return f"{name} {Path(data.root).absolute().name}" if name == "folder" else name


#: Hyper-parameters of every model, which say nothing of its network.
OF_EVERY_MODEL = ("tasks", "weights", "initialisation", "loss_weights", "weight_decay_on")


def _backbone(settings: Mapping[str, Any]) -> str:
    """Describe the shared network: its name, or the sizes of the sub-network, of the supernet or of people's own."""
    if "backbone" in settings:
        patches = f", patch_size {settings['patch_size']}" if settings.get("patch_size") else ""
        return f"{settings['backbone']}{patches}"
    if "space" not in settings:
        return ", ".join(f"{key} {value}" for key, value in settings.items() if key not in OF_EVERY_MODEL)
    settings = {**settings, **settings["space"], "space": settings["space"]["preset"]}
    if settings.get("architecture"):
        sizes = json.loads(settings["architecture"])
        sizes = {key: value for key, value in sizes.items() if key != "sharing"}
        sizes |= {key: settings[key] for key in ("head_dim", "patch_size")}
    else:
        sizes = {key: settings[key] for key in SUBNET_SETTINGS if settings.get(key) is not None}
    return ", ".join(f"{key} {value}" for key, value in sizes.items())


def _matching(source: Path, facts: Facts) -> tuple[Path, dict[str, Any]]:
    """Find the one entry with these facts. One that cannot be read is only reported where no other fits."""
    files = [source] if source.is_file() else sorted(source.glob("*.json"))
    if not files:
        msg = f"{source} holds no single-task results; `taskformer baselines` makes them"
        raise ConfigError(msg)
    found, different, broken = {}, {}, []
    for file in files:
        try:
            found[file] = read_entry(file)
        except ConfigError as error:
            broken.append(str(error))
        else:
            different[file] = differing(_facts_of(found[file], facts["split"]), facts)
    matches = [file for file, keys in different.items() if not keys]
    if len(matches) == 1:
        return matches[0], found[matches[0]]
    if matches:
        names = ", ".join(file.name for file in matches)
        msg = f"several entries in {source} have this run's facts ({names}); choose one: --results.baselines FILE"
        raise ConfigError(msg)
    reasons = broken
    if different:
        nearest = min(different, key=lambda file: len(different[file]))
        text = ", ".join(different[nearest])
        reasons = [f"no single-task results like this run in {source}; the nearest, {nearest.name}, differ in {text}"]
        reasons += broken
    raise ConfigError("; ".join(reasons))


def _facts_of(entry: Mapping[str, Any], split: str) -> Facts:
    """Return an entry's facts of a split; ``val_images`` says how many images validated."""
    facts: Facts = entry["facts"]
    return facts if split == "test" else facts | {"split": split, "images": entry.get(f"{split}_images")}


def read_entry(file: Path) -> dict[str, Any]:
    """Read an entry.

    Raises:
        ConfigError: If it cannot be read, or is none.
    """
    try:
        entry: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{file} cannot be read as single-task results ({error}); write it again with `taskformer baselines`"
        raise ConfigError(msg) from error
    parts = [entry.get("facts"), entry.get("tasks")] if isinstance(entry, dict) else [None]
    parts += list(parts[-1].values()) if isinstance(parts[-1], dict) else []
    if not all(isinstance(part, dict) for part in parts):
        msg = (
            f"{file} is no single-task result: expected `facts` and `tasks`, with an object for each task; "
            "write it again with `taskformer baselines`"
        )
        raise ConfigError(msg)
    return entry


def _reference(file: Path, name: str, entry: Mapping[str, Any], split: str) -> Reference:
    """Read a task's single-task result on a split; those on ``val`` lie in an object of that name."""
    part = entry if split == "test" else entry.get(split)
    scores: Mapping[str, Any] = part if isinstance(part, dict) else {}
    value: Any
    value, spread, seeds = scores.get("value"), scores.get("spread"), entry.get("seeds", [0])
    if not (_is_number(value) and value > 0):
        msg = f"{name} has the {split} value {value} in {file}, expected a number above 0"
        raise ConfigError(msg)
    if not (isinstance(seeds, list) and seeds and (spread is None or _is_number(spread))):
        msg = f"{name} has the seeds {seeds} and the spread {spread} in {file}, expected a list and a number or null"
        raise ConfigError(msg)
    return Reference(value, spread, len(seeds))


def _is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _times(count: int, name: str) -> str:
    return f"{count} {name}" + ("s" if count != 1 else "")
