"""The memory of a local sweep: an Optuna study in which each of its runs, numbered from 0, has one trial that counts.

Any number of processes on any number of machines work on one study. A process takes a run by adding a running trial
with the run's number. Of a run's trials the first that has not failed counts; whoever finds that another's counts fails
his own, unseen. (To add a trial is atomic in all of Optuna's storages, to take a waiting one is not.) A trial whose
process is gone is failed by whoever comes first, and the run can be taken again, with the settings that it had. A
trial that is complete or pruned counts for ever, so nothing is run twice.
"""

import os
import socket
import time
import uuid
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import optuna
from optuna.pruners import BasePruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from taskformer.search.storage import is_alive
from taskformer.sweeps.schema import Sweep

#: Seconds without a sign of life after which a run's process counts as gone where it cannot be looked at.
STALE = 600.0
#: Seconds between signs of life.
HEARTBEAT = 30.0
#: How often settings are drawn before they count as exhausted, because all that were drawn are those of other runs.
DRAWS = 20
#: Tells this process from an earlier one of the same number.
TOKEN = uuid.uuid4().hex


class State(StrEnum):
    """What has become of a run."""

    FINISHED = "finished"
    PRUNED = "stopped early"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


@dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Args:
        number: Its number, from 0.
        settings: Its settings by dotted name.
        state: What has become of it.
        value: The best value of the metric so far; None without one.
        reason: Why it failed, in words.
    """

    number: int
    settings: dict[str, Any]
    state: State
    value: float | None = None
    reason: str | None = None


class SweepStudy:
    """An Optuna study and the rules by which processes share it.

    Args:
        sweep: What is run.
        storage: Where the study is kept, see :func:`taskformer.search.storage.open_storage`.
        name: Name of the study.
    """

    def __init__(self, sweep: Sweep, storage: BaseStorage, name: str) -> None:
        self.sweep = sweep
        self.storage = storage
        self.name = name
        self.study = optuna.create_study(
            storage=storage, study_name=name, direction=sweep.metric.goal, load_if_exists=True
        )
        self._study_id = storage.get_study_id_from_name(name)
        self._grid = sweep.grid() if sweep.method == "grid" else None
        self._exhausted = False

    def size(self, wanted: int) -> int:
        """Return how many runs there are to be, at most as many as are wanted."""
        limits = [wanted, self.sweep.run_cap, None if self._grid is None else len(self._grid)]
        return min(limit for limit in limits if limit is not None)

    def runs(self) -> list[Run]:
        """List the runs that were ever begun, by number; of a grid that has grown since, those that are known here."""
        known = None if self._grid is None else len(self._grid)
        runs = (self._run(number, trials) for number, trials in sorted(self._trials().items()))
        return [run for run in runs if run.settings and (known is None or run.number < known)]

    def take(self, count: int, but: Collection[int] = ()) -> "TakenRun | None":
        """Take the first run that is neither done nor at work: one that was interrupted, that failed, or a new one.

        Args:
            count: How many runs there are to be.
            but: Numbers of runs to leave alone.

        Returns:
            The run; None if there is none to take, or no new settings are left.
        """
        if self._is_good_enough():
            return None
        trials = self._trials()
        for number in range(count):
            if number not in but and _is_free(trials.get(number, [])):
                taken = self._take(number)
                if taken or self._exhausted:
                    return taken
        return None

    def _is_good_enough(self) -> bool:
        """Tell whether a run has reached the value at which no new ones are to begin."""
        goal, target = self.sweep.metric.goal, self.sweep.metric.target
        values = [run.value for run in self.runs() if run.value is not None]
        return target is not None and any(best([target, value], goal) == value for value in values)

    def _take(self, number: int) -> "TakenRun | None":
        """Take a run unless it is done or at work."""
        for _ in range(DRAWS):
            trials = self._trials().get(number, [])
            if not _is_free(trials):
                return None
            if left := _counting(trials):
                self.study.tell(left.number, state=TrialState.FAIL, skip_if_finished=True)
            taken = self._add(number, trials)
            if self._has_new_settings(taken):
                return taken
            taken.close(TrialState.FAIL)
        self._exhausted = True
        return None

    def _add(self, number: int, earlier: Sequence[FrozenTrial]) -> "TakenRun":
        """Add a trial to a run, with the settings that it has had."""
        known = next((trial for trial in earlier if trial.user_attrs.get("settings")), None)
        template = create_trial(
            state=TrialState.RUNNING,
            params=known.params if known else {},
            distributions=known.distributions if known else {},
            user_attrs={"run": number, "owner": _process(), "seen": time.time()}
            | ({"settings": known.user_attrs["settings"]} if known else {}),
        )
        trial_id = self.storage.create_new_trial(self._study_id, template)
        seed = self.storage.get_trial_number_from_id(trial_id)
        study = optuna.load_study(
            storage=self.storage, study_name=self.name, sampler=self._sampler(seed), pruner=self._pruner()
        )
        return TakenRun(optuna.Trial(study, trial_id), number)

    def _has_new_settings(self, taken: "TakenRun") -> bool:
        """See whether the run is ours, and draw its settings where it has none; no two runs may have the same."""
        if not self._counts(taken):
            return False
        if "settings" in taken.trial.user_attrs:
            return True
        if self._grid is not None:
            taken.trial.set_user_attr("settings", self._grid[taken.number])
            return True
        parameters = self.sweep.parameters.items()
        settings = {name: parameter.suggest(taken.trial, name) for name, parameter in parameters}
        if any(settings == run.settings for run in self.runs() if run.number != taken.number):
            return False
        taken.trial.set_user_attr("settings", settings)
        # Another process may have drawn the same in this moment: the lower number keeps it.
        if any(settings == run.settings for run in self.runs() if run.number < taken.number):
            taken.trial.set_user_attr("settings", None)
            return False
        return True

    def _counts(self, taken: "TakenRun") -> bool:
        counting = _counting(self._trials()[taken.number])
        return counting is not None and counting.number == taken.trial.number

    def _trials(self) -> dict[int, list[FrozenTrial]]:
        """Read the trials of each run, in their order."""
        found: dict[int, list[FrozenTrial]] = {}
        for trial in self.study.get_trials(deepcopy=False):
            found.setdefault(trial.user_attrs["run"], []).append(trial)
        return found

    def _run(self, number: int, trials: Sequence[FrozenTrial]) -> Run:
        """Say what has become of a run."""
        trial = _counting(trials) or trials[-1]
        known = [each.user_attrs["settings"] for each in trials if each.user_attrs.get("settings")]
        state = {
            TrialState.COMPLETE: State.FINISHED,
            TrialState.PRUNED: State.PRUNED,
            TrialState.RUNNING: State.INTERRUPTED if _is_left(trial) else State.RUNNING,
        }.get(trial.state, State.FAILED if "reason" in trial.user_attrs else State.INTERRUPTED)
        value = best(trial.intermediate_values.values(), self.sweep.metric.goal)
        return Run(number, known[-1] if known else {}, state, value, trial.user_attrs.get("reason"))

    def _sampler(self, seed: int) -> BaseSampler:
        """Return what draws the settings of one trial; each has a seed of its own, so that no two draw alike."""
        return TPESampler(seed=seed) if self.sweep.method == "bayes" else RandomSampler(seed=seed)

    def _pruner(self) -> BasePruner:
        """Return what stops runs that lag behind.

        wandb's hyperband with ``min_iter`` is one bracket of it, successive halving: of those that have logged
        ``min_iter * eta**k`` values, one in eta goes on.
        """
        rule = self.sweep.early_terminate
        if rule is None:
            return NopPruner()
        return SuccessiveHalvingPruner(min_resource=rule.min_iter, reduction_factor=max(2, round(rule.eta)))


class TakenRun:
    """A run that this process has taken.

    Args:
        trial: Its trial.
        number: Its number.
    """

    def __init__(self, trial: optuna.Trial, number: int) -> None:
        self.trial = trial
        self.number = number
        self._reported = 0
        self._seen = time.time()

    @property
    def settings(self) -> dict[str, Any]:
        """Its settings by dotted name."""
        settings: dict[str, Any] = self.trial.user_attrs["settings"]
        return settings

    def report(self, values: Sequence[float]) -> bool:
        """Note the values of the metric so far, and say whether the run lags behind so far that it is to be stopped.

        Args:
            values: All values that the run has logged, in their order.

        Raises:
            UpdateFinishedTrialError: If this process seemed to be gone, and another has taken the run.
        """
        new = values[self._reported :]
        for value in new:
            self._reported += 1
            self.trial.report(value, self._reported)
            if self.trial.should_prune():
                return True
        if time.time() - self._seen > HEARTBEAT:
            self._seen = time.time()
            self.trial.set_user_attr("seen", self._seen)
        return False

    def close(self, state: TrialState, value: float | None = None, reason: str | None = None) -> None:
        """Note what has become of the run, unless another process has taken it.

        Args:
            state: Complete, pruned, or failed. A failed trial leaves the run to be taken again.
            value: The value of a complete run.
            reason: Why it failed, if it was not just interrupted.

        Raises:
            UpdateFinishedTrialError: If there is a reason, and another process has taken the run.
        """
        if reason is not None:
            self.trial.set_user_attr("reason", reason)
        self.trial.study.tell(self.trial, value, state, skip_if_finished=True)


def best(values: Iterable[float], goal: str) -> float | None:
    """Return the best of some values, None if there is no number.

    Example:
        >>> best([0.3, 0.5, float("nan")], "maximize")
        0.5
    """
    chosen = max if goal == "maximize" else min
    return chosen((value for value in values if value == value), default=None)


def _counting(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """Return the one of a run's trials that counts: the first that has not failed."""
    return next((trial for trial in trials if trial.state != TrialState.FAIL), None)


def _is_free(trials: Sequence[FrozenTrial]) -> bool:
    """Tell whether a run is neither done nor at work."""
    counting = _counting(trials)
    return counting is None or _is_left(counting)


def _is_left(trial: FrozenTrial) -> bool:
    """Tell whether the process of a running trial is gone."""
    if trial.state != TrialState.RUNNING:
        return False
    host, pid, token = trial.user_attrs["owner"].split(":")
    alive = token == TOKEN if int(pid) == os.getpid() else is_alive(int(pid))
    gone = host == socket.gethostname() and not alive
    return gone or time.time() - trial.user_attrs["seen"] > STALE


def _process() -> str:
    """Name this process."""
    return f"{socket.gethostname()}:{os.getpid()}:{TOKEN}"
