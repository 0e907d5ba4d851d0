"""What is kept of a run: one JSON file that says what was trained, how, and what came of it."""

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskformer.errors import ConfigError
from taskformer.evaluation.comparison.scored import ScoredRun, read_run
from taskformer.evaluation.report import read_metrics
from taskformer.evaluation.settings import SEED
from taskformer.modules.checkpoints import open_checkpoint
from taskformer.studies.schema import Study, Trial

#: What a run may also be scored on: photographs of rooms, and of streets. A file ``NAME.json`` in its folder.
TRANSFERS = ("photographs", "streets")
#: Significant digits of the scores of single images.
DIGITS = 6
#: What a result says of its folder, and what another recipe's single tasks would say of it.
LEFT_OUT = ("per_image", "baselines", "single_task", "delta_m", "improvement")


def evidence(study: Study, trial: Trial, folder: Path) -> dict[str, Any]:
    """Gather what is kept of a finished run.

    Args:
        study: The study.
        trial: The run.
        folder: Its folder.

    Returns:
        Plain types: the run's place in the study, its settings and the command that trains it, revision and versions,
        length and duration of the training, what the network costs, and the results of each evaluation (``test`` or
        ``val``, and :data:`TRANSFERS`) with the headline metrics of each image.
    """
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    checkpoint = open_checkpoint(folder / "checkpoints" / "last.ckpt")
    run = read_run(folder, study.split)
    validation = read_metrics(folder).get("val", {})
    found: dict[str, Any] = {
        "study": study.name,
        "arm": trial.variant.arm,
        "task": trial.variant.task,
        "seed": trial.seed,
        "tasks": list(run.record["tasks"]),
        "settings": dict(trial.variant.settings),
        "configuration": trial.configuration,
        "command": shlex.join(command(trial)),
        **{key: environment[key] for key in ("git_revision", "taskformer", "python", "packages")},
        "steps": checkpoint.global_step,
        **checkpoint.content["callbacks"]["Stopwatch"],
        "parameters": run.record["parameters"],
        "macs": run.record["macs"],
        "split": study.split,
        "validation": validation.get("tasks", {}),
        "evaluations": {study.split: _evaluation(run)},
    }
    for name in TRANSFERS:
        if (file := transfer_file(folder, name)).is_file() and (seen := read_json_file(file))["tasks"]:
            found["evaluations"][name] = seen
    return found


def transfer_file(folder: Path, name: str) -> Path:
    """Return what a run folder has of one of :data:`TRANSFERS`."""
    return folder / f"{name}.json"


def command(trial: Trial) -> list[str]:
    """Write the command line that trains a run from the files of the repository.

    >>> from taskformer.studies.schema import Variant
    >>> command(Trial(Variant("wide", None, ("a.yaml",), {"model.init_args.scales": [4, 8]}), seed=2))[2:]
    ['--config=a.yaml', '--model.init_args.scales=[4, 8]', '--seed_everything=2']
    """
    settings = trial.variant.settings.items()
    flags = [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in settings]
    files = [f"--config={file}" for file in trial.variant.files]
    return ["taskformer", "fit", *files, *flags, f"--{SEED}={trial.seed}"]


def _evaluation(run: ScoredRun) -> dict[str, Any]:
    """Return an evaluation's record with the headline metric of each image."""
    record = {key: value for key, value in run.record.items() if key not in LEFT_OUT}
    columns = {key: column for key, column in run.images.items() if run.is_headline(key)}
    if columns:
        ids = next(iter(columns.values()))[0]
        record["images"] = {"ids": ids} | {task: _rounded(values) for (task, _), (_, values) in columns.items()}
    return record


def _rounded(values: NDArray[np.float64]) -> list[float]:
    """Keep :data:`DIGITS` significant digits."""
    return [float(f"{value:.{DIGITS}g}") for value in values]


def read_json_file(path: Path) -> Any:
    """Read a JSON file of a study.

    Raises:
        ConfigError: If it is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        msg = f"{path} is no JSON file ({error}); delete it, and run the study again"
        raise ConfigError(msg) from error
