"""The runs of a study: trained by the sweep's workers, each evaluated when it has ended and noted as one JSON file."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from taskformer.errors import ConfigError, TaskformerError
from taskformer.evaluation.reference_runs import COMMANDS
from taskformer.evaluation.report import read_metrics
from taskformer.files import inside, write_json, write_text
from taskformer.studies.evidence import evidence, read_json_file, transfer_file
from taskformer.studies.schema import Study, Trial
from taskformer.sweeps.run import environments, sweep
from taskformer.sweeps.study import Run, State
from taskformer.sweeps.worker import LOG, run_folder

#: What a study is for the sweep's workers: a grid that only ever grows, so that runs keep their numbers.
GRID = {
    "method": "grid",
    "metric": {"name": "val/loss", "goal": "minimize"},
    "command": ["${interpreter}", "-m", "taskformer", "fit", "${args}"],
}


@dataclass(frozen=True)
class Place:
    """Where a study's files are.

    Attributes:
        runs: Its run folders, numbered as they were first planned.
        results: What is kept of it: a JSON file for each run, and the report.
    """

    runs: Path
    results: Path

    def arm_file(self, trial: Trial) -> Path:
        """Return the configuration of a run."""
        return self.runs / "arms" / f"{trial.name}.yaml"

    def evidence_file(self, trial: Trial) -> Path:
        """Return what is kept of a run."""
        return self.results / "runs" / f"{trial.name}.json"


def run_study(
    study: Study,
    workers: int = 1,
    arms: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    runs_dir: str | Path = "runs",
    results_dir: str | Path = "docs/studies",
    transfers: Mapping[str, Sequence[str]] | None = None,
    tell: Callable[[str], None] = print,
) -> list[str]:
    """Train and evaluate what is not finished, and note each run.

    A study that was stopped, or whose process was killed, goes on where it was. Arms and seeds may be added to its file
    at any time; several processes may work on it at once.

    Args:
        study: The study.
        workers: How many runs at a time; each has its share of the processors.
        arms: Only these arms; None: all.
        seeds: Only these seeds; None: all.
        runs_dir: Folder of all runs.
        results_dir: Folder of what is kept of all studies.
        transfers: What the runs are also scored on, of :data:`~taskformer.studies.evidence.TRANSFERS`, if the study
            wants photographs, and the words of the command that does it, to which ``RUN --json FILE`` is added.
        tell: Told what happens, a line each.

    Returns:
        What has failed, a sentence each.

    Raises:
        ConfigError: If an arm or seed is unknown, or an arm was begun with another content.
    """
    place = Place(inside(Path(runs_dir), study.name, "the study"), Path(results_dir) / study.name)
    numbers = _plan(study, place)
    chosen = {numbers[trial.name]: trial for trial in study.trials(arms, seeds)}
    others = set(range(max(numbers.values()) + 1)) - set(chosen)
    evaluation = _Evaluation(study, place, environments(workers)[0], (transfers or {}) if study.photographs else {})
    failed: dict[int, str] = {}

    def note(run: Run) -> None:
        """Note a run that has ended; the others go on where that fails."""
        trial = chosen[run.number]
        failed.pop(run.number, None)
        try:
            if run.state == State.FINISHED and evaluation.note(trial, run_folder(place.runs, run.number)):
                tell(f"{run.number:04d} {trial.name}: {place.evidence_file(trial)}")
        except (TaskformerError, OSError) as error:
            failed[run.number] = f"{trial.name}: {error}"
        if run.state == State.FAILED:
            failed[run.number] = f"{trial.name}: {run.reason}"

    def changed(run: Run) -> None:
        if run.number in chosen:
            value = "" if run.value is None else f", val/loss {run.value:.4g}"
            tell(f"{run.number:04d} {chosen[run.number].name}: {run.state}{value}")
            note(run)

    grid = place.runs / "grid.yaml"
    found = sweep(grid, len(numbers) + len(others), workers, study.name, runs_dir, on_change=changed, but=others)
    for run in found.runs:
        if run.number in chosen and run.number not in failed:  # may have ended before, and was not evaluated then
            note(run)
    return list(failed.values())


def _plan(study: Study, place: Place) -> dict[str, int]:
    """Write the grid and the configuration of each run, and return the runs' numbers by their names.

    Raises:
        ConfigError: If a run was begun with another configuration.
    """
    path = place.runs / "grid.yaml"
    known = yaml.safe_load(path.read_text())["parameters"]["config"]["values"] if path.is_file() else []
    trials = {str(place.arm_file(trial)): trial for trial in study.trials()}
    planned = [*known, *(file for file in trials if file not in known)]
    for number, file in enumerate(planned):
        if file in trials:
            _write_arm(study, trials[file], Path(file), run_folder(place.runs, number))
    content = {"name": study.name, **GRID, "parameters": {"config": {"values": planned}}}
    if planned != known:
        write_text(path, yaml.safe_dump(content, sort_keys=False))
    return {Path(file).stem: number for number, file in enumerate(planned)}


def _write_arm(study: Study, trial: Trial, path: Path, folder: Path) -> None:
    """Write the configuration of a run, which stays what it is once the run was begun."""
    wanted: Any = trial.configuration
    if path.is_file():
        there = yaml.safe_load(path.read_text(encoding="utf-8"))
        if there == wanted:
            return
        if (folder / "config.yaml").is_file():
            msg = (
                f"{trial.variant.name} of {study.file} is another than when {folder} was begun with {path}; give the "
                "changed arm another name, or undo the change"
            )
            raise ConfigError(msg)
    write_text(path, yaml.safe_dump(wanted, sort_keys=False))


@dataclass(frozen=True)
class _Evaluation:
    """How finished runs are evaluated: by processes of their own, as several threads and a clean memory need.

    Attributes:
        study: The study.
        place: Where its files are.
        environment: Environment variables of the processes.
        transfers: What runs are also scored on, with its command.
    """

    study: Study
    place: Place
    environment: Mapping[str, str]
    transfers: Mapping[str, Sequence[str]]

    def note(self, trial: Trial, folder: Path) -> bool:
        """Evaluate a finished run as far as it is not, and write what is kept of it; False if there was nothing to do.

        Raises:
            TaskformerError: If an evaluation fails.
        """
        path, done = self.place.evidence_file(trial), self._is_evaluated(folder)
        unscored = [name for name in self.transfers if not transfer_file(folder, name).is_file()]
        if done and not unscored and _is_of(path, trial):
            return False
        if not done:
            per_image = ["--results.per_image=true"] if self.study.split == "test" else []
            self._run([sys.executable, "-m", "taskformer", COMMANDS[self.study.split], str(folder), *per_image], folder)
        for name in unscored:
            self._run([*self.transfers[name], str(folder), "--json", str(transfer_file(folder, name))], folder)
        write_json(path, evidence(self.study, trial, folder))
        return True

    def _is_evaluated(self, folder: Path) -> bool:
        """Tell whether a run was evaluated after its training; an epoch of it was its own validation."""
        record = read_metrics(folder).get(self.study.split)
        return record is not None and "epoch" not in record and ("per_image" in record or self.study.split == "val")

    def _run(self, words: Sequence[str], folder: Path) -> None:
        """Run a process, whose output goes where that of the training is."""
        with (folder / LOG).open("ab") as log:
            done = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                check=False,
                start_new_session=True,  # the terminal's Ctrl-C lets it end
            )
        if done.returncode:
            msg = f"{' '.join(words[1:])} failed with status {done.returncode}; see {folder / LOG}"
            raise TaskformerError(msg)


def _is_of(path: Path, trial: Trial) -> bool:
    """Tell whether there is what is kept of a run as it is now, and not of an earlier one of its name."""
    if not path.is_file():
        return False
    return bool(read_json_file(path)["configuration"] == json.loads(json.dumps(trial.configuration)))
