"""Train a configuration's tasks one by one: the single-task references that delta_m is computed against.

Runs are processes of ``taskformer fit``, ``test`` and ``validate``, as several devices and a clean memory need.
"""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from taskformer.data.images import File, read_json
from taskformer.errors import ConfigError, TaskformerError
from taskformer.evaluation.references import Facts, differing, read_entry, task_facts
from taskformer.evaluation.report import read_metrics
from taskformer.tasks import Task

#: What evaluates each split.
COMMANDS = {"test": "test", "val": "validate"}


@dataclass(frozen=True)
class Plan:
    """What to train.

    Attributes:
        flags: Command line of ``taskformer fit`` for all tasks together.
        model: Class of the model.
        tasks: The tasks by name.
        name: First part of the runs' names.
        runs_dir: Folder of all runs.
        protocol: How to score.
        seeds: Every task is trained once with each.
    """

    flags: list[str]
    model: str
    tasks: dict[str, Task]
    name: str
    runs_dir: Path
    protocol: str
    seeds: list[int]

    def folder(self, task: str, seed: int) -> Path:
        """Run folder of a task trained with a seed."""
        return self.runs_dir / f"{self.name}-single-{task}-seed{seed}"


def make_entry(plan: Plan) -> dict[str, Any]:
    """Train and test what is not finished, and gather the results.

    Raises:
        ConfigError: If the runs' facts differ, which happens with runs of an older configuration.
        TaskformerError: If a run fails.
    """
    expected: dict[str, Facts] = {}
    tasks = {}
    for name, task in plan.tasks.items():
        values: dict[str, list[float]] = {"test": [], "val": []}
        for seed in plan.seeds:
            for split, record in _finished(plan, name, seed).items():
                expected.setdefault(split, record["facts"])
                _require_same(plan.folder(name, seed), expected[split], record["facts"])
                values[split].append(record["tasks"][name][task.headline])
        folders = [plan.folder(name, seed) for seed in plan.seeds]
        tasks[name] = {
            **task_facts(task),
            **_mean(values["test"]),
            "val": _mean(values["val"]),
            "seeds": plan.seeds,
            "runs": [folder.name for folder in folders],
            "git_revisions": sorted({str(_revision(folder)) for folder in folders}),
        }
    return {"facts": expected["test"], "val_images": expected["val"]["images"], "model": plan.model, "tasks": tasks}


def entry_name(facts: Facts) -> str:
    """Name an entry after what tells it from others."""
    size = "x".join(str(length) for length in facts["input_size"])
    length = f"{facts['training']['steps']}steps"
    parts = [facts["data"], facts["backbone"], facts["initialisation"], size, facts["protocol"], length]
    return re.sub(r"[^\w.-]+", "-", "_".join(parts))


def run_command(arguments: list[str]) -> None:
    """Run ``taskformer`` in a process of its own, as several devices and a clean memory need.

    Raises:
        TaskformerError: If it fails.
    """
    done = subprocess.run([sys.executable, "-m", "taskformer", *arguments], check=False)
    if done.returncode:
        msg = f"`taskformer {' '.join(arguments)}` failed with status {done.returncode}; fix it and start again"
        raise TaskformerError(msg)


def _finished(plan: Plan, task: str, seed: int) -> dict[str, dict[str, Any]]:
    """Return what a run's evaluations recorded by split; it is trained and tested first if it was not."""
    folder = plan.folder(task, seed)
    if len(found := _records(folder, plan.protocol)) < len(COMMANDS):
        _train(plan, task, seed)
        found = _records(folder, plan.protocol)
    for split in COMMANDS:
        if split not in found:
            msg = f"the run {folder} ended without {split} results; see its output above"
            raise TaskformerError(msg)
        if not found[split]["facts"].get("training"):
            msg = f"{folder} does not say what it was trained with, as older runs; delete it or choose another --name"
            raise ConfigError(msg)
        headline = plan.tasks[task].headline
        if found[split]["tasks"][task][headline] is None:
            msg = f"the run {folder} has no {headline} on the {split} split, which may have no label of {task}"
            raise TaskformerError(msg)
    return found


def _train(plan: Plan, task: str, seed: int) -> None:
    """Train one task, or go on with it, and evaluate its best epoch."""
    folder = plan.folder(task, seed)
    place = ["--name", folder.name, "--runs_dir", str(plan.runs_dir)]
    one = ["--model.init_args.loss_weights=null", "--model.init_args.balancing=taskformer.modules.FixedWeights"]
    single = [f"--data.init_args.tasks=[{task}]", *one, f"--seed_everything={seed}"]
    last = folder / "checkpoints" / "last.ckpt"
    run_command(["fit", *plan.flags, *place, *single, *(["--ckpt_path", str(last)] if last.exists() else [])])
    best = folder / "checkpoints" / "best.ckpt"
    for command in COMMANDS.values():
        of_run = ["--config", str(folder / "config.yaml"), "--ckpt_path", str(best), *place]
        run_command([command, *of_run, "--results.protocol", plan.protocol])


def _records(folder: Path, protocol: str) -> dict[str, dict[str, Any]]:
    """Return what the evaluations of a run's best epoch by this protocol recorded, by split."""
    metrics = read_metrics(folder)
    records = {split: metrics[split] for split in COMMANDS if split in metrics}
    # During training the record of `val` is of an epoch, not of the best one.
    return {k: record for k, record in records.items() if record.get("protocol") == protocol and "epoch" not in record}


def _mean(values: list[float]) -> dict[str, float | None]:
    """Return mean and standard deviation (of the sample; none of one value)."""
    return {"value": fmean(values), "spread": stdev(values) if len(values) > 1 else None}


def _revision(folder: Path) -> Any:
    path = folder / "environment.json"
    return read_json(File(str(path), path.read_bytes()))["git_revision"]


def _require_same(folder: Path, expected: Facts, facts: Facts) -> None:
    """Refuse to mix runs of different facts."""
    if differences := differing(expected, facts):
        msg = (
            f"{folder} and the runs before it differ in {', '.join(differences)}; delete the run folders that another "
            "configuration left, or choose another --name"
        )
        raise ConfigError(msg)


def refuse_other(path: Path, facts: Facts) -> None:
    """Refuse to replace an entry of other runs, whose facts differ in what its name does not say."""
    try:
        there = read_entry(path)["facts"]
    except ConfigError:
        return  # there is none, or a broken one
    if differences := differing(there, facts):
        msg = f"{path} holds results of other runs, which differ in {', '.join(differences)}; name another file: --out"
        raise ConfigError(msg)
