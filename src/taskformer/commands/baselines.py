"""``taskformer baselines``: train a configuration's tasks one by one, the reference of delta_m."""

import json
import re
import subprocess
import sys
from argparse import ArgumentParser
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from taskformer.callbacks.baselines import Facts, task_facts
from taskformer.errors import ConfigError, TaskformerError
from taskformer.files import write_json
from taskformer.tasks import Task


class BaselinesParser(ArgumentParser):
    """A parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        """Raise the reason as a :class:`ConfigError`."""
        msg = f"{message}; see `{self.prog} --help`"
        raise ConfigError(msg)


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
    """

    flags: list[str]
    model: str
    tasks: dict[str, Task]
    name: str
    runs_dir: Path
    protocol: str

    def folder(self, task: str) -> Path:
        """Run folder of a task."""
        return self.runs_dir / f"{self.name}-single-{task}"


def main(argv: list[str]) -> None:
    """Train and test one run for each task and write their results as one entry."""
    parser = BaselinesParser(
        prog="taskformer baselines",
        usage="taskformer baselines [--out FILE] --config FILE ...",
        description="Train a configuration's tasks one by one, test them, and write the entry that `taskformer test` "
        "computes delta_m from. Finished runs are kept, interrupted ones go on. All other flags are those of "
        "`taskformer fit`; --name and --runs_dir say where the runs are, --results.protocol how they are scored.",
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, help="file to write; by default in configs/baselines, named after the "
                        "runs' facts")  # fmt: skip
    options, flags = parser.parse_known_args(argv[1:])
    entry = make_entry(make_plan(flags))
    path = options.out or Path("configs") / "baselines" / f"{entry_name(entry['facts'])}.json"
    write_json(path, entry)
    Console().print(f"wrote {path}", soft_wrap=True)


def make_plan(flags: list[str]) -> Plan:
    """Read a command line of ``taskformer fit``."""
    from taskformer.commands.trainer import TaskformerCLI  # Lightning, which takes seconds to import

    cli = TaskformerCLI(flags, run=False)
    model, config = type(cli.model).__name__, cli.config
    name = config.name or f"{model.lower()}-{cli.datamodule.name}"
    return Plan(flags, model, cli.model.tasks, name, Path(config.runs_dir), config.results.protocol)


def make_entry(plan: Plan) -> dict[str, Any]:
    """Train and test what is not finished, and gather the results.

    Raises:
        ConfigError: If the runs' facts differ, which happens with runs of an older configuration.
        TaskformerError: If a run fails.
    """
    facts: Facts = {}
    tasks = {}
    for name, task in plan.tasks.items():
        folder = plan.folder(name)
        if _tested(folder, plan.protocol) is None:
            _train(plan, name)
        record = _tested(folder, plan.protocol)
        if record is None:
            msg = f"the run {folder} ended without test results; see its output above"
            raise TaskformerError(msg)
        facts = facts or record["facts"]
        _require_same(folder, facts, record["facts"])
        tasks[name] = {
            **task_facts(task),
            "value": record["tasks"][name][task.headline],
            "run": folder.name,
            "git_revision": json.loads((folder / "environment.json").read_text())["git_revision"],
        }
    return {"facts": facts, "model": plan.model, "tasks": tasks}


def entry_name(facts: Facts) -> str:
    """Name an entry after what tells it from others."""
    size = "x".join(str(length) for length in facts["input_size"])
    parts = [facts["data"], facts["backbone"], facts["initialisation"], size, facts["protocol"]]
    return re.sub(r"[^\w.-]+", "-", "_".join(parts))


def run_command(arguments: list[str]) -> None:
    """Run ``taskformer`` in a process of its own, as several devices and a clean memory need.

    Raises:
        TaskformerError: If it fails.
    """
    done = subprocess.run([sys.executable, "-m", "taskformer", *arguments], check=False)
    if done.returncode:
        msg = f"`taskformer {' '.join(arguments)}` failed with status {done.returncode}; mend it and start again"
        raise TaskformerError(msg)


def _train(plan: Plan, task: str) -> None:
    """Train one task, or go on with it, and test it."""
    folder = plan.folder(task)
    place = ["--name", folder.name, "--runs_dir", str(plan.runs_dir)]
    single = [f"--data.init_args.tasks=[{task}]", "--model.init_args.loss_weights=null"]
    last = folder / "checkpoints" / "last.ckpt"
    run_command(["fit", *plan.flags, *place, *single, *(["--ckpt_path", str(last)] if last.exists() else [])])
    best = folder / "checkpoints" / "best.ckpt"
    test = ["test", "--config", str(folder / "config.yaml"), "--ckpt_path", str(best), *place]
    run_command([*test, "--results.protocol", plan.protocol])


def _tested(folder: Path, protocol: str) -> dict[str, Any] | None:
    """Return what a run's test recorded; None if it was not tested by this protocol."""
    path = folder / "metrics.json"
    record: dict[str, Any] | None = json.loads(path.read_text()).get("test") if path.exists() else None
    return record if record and record["protocol"] == protocol else None


def _require_same(folder: Path, expected: Facts, facts: Facts) -> None:
    """Refuse to mix runs of different facts."""
    for key, value in expected.items():
        if facts[key] != value:
            msg = (
                f"{folder} has the {key} {facts[key]} and the runs before it {value}; delete the run folders that "
                "another configuration left, or choose another --name"
            )
            raise ConfigError(msg)
