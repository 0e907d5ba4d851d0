"""The memory of a search: an Optuna study in which every evaluated architecture is one trial.

Any number of processes on any number of machines work on one study. A process takes an architecture by adding a running
trial for its place in the search, its :class:`Key`. Whoever's trial has the lowest number of a key has the
architecture, everyone else's is failed by itself, unseen: adding a trial is atomic in all of Optuna's storages, which
changing a waiting trial's state is not in SQLite's. Trials left by a process that died are failed too, and their keys
are free again. As every round follows from finished rounds alone, it does not matter who evaluated what, or when.
"""

import os
import socket
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import isfinite
from typing import Any, NamedTuple, Self

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from taskformer.errors import ConfigError
from taskformer.models.autotaskformer import Architecture
from taskformer.search.costs import Costs
from taskformer.search.objectives import Candidate, Constraint, Direction, Objective
from taskformer.search.pruning import DominatedPruner, NopPruner
from taskformer.search.storage import is_alive

#: Seconds after which a trial of a process on another machine, which cannot be looked at, counts as abandoned.
STALE = 1800.0


class Key(NamedTuple):
    """Place of an architecture in a search.

    Attributes:
        origin: What proposed it, e.g. ``"evolution"``.
        generation: Number of the round of this origin.
        slot: Its place in the round.
    """

    origin: str
    generation: int
    slot: int


@dataclass(frozen=True)
class Record:
    """One trial of a study.

    Args:
        number: The trial's number.
        key: Its place in the search.
        candidate: The architecture and what was measured; without values while it runs.
        state: Optuna's: complete, pruned (its values are of the images until then) or running.
        course: delta_m on the images of the first batch, of the first two, and so on; empty while it runs.
        owner: Process that evaluates it, ``"host:pid"``.
        started: Unix time when it began.
    """

    number: int
    key: Key
    candidate: Candidate
    state: TrialState
    course: tuple[float, ...]
    owner: str
    started: float

    @classmethod
    def read(cls, trial: FrozenTrial) -> Self:
        """Read a trial."""
        attributes = trial.user_attrs
        architecture = Architecture.from_json(attributes["architecture"])
        return cls(
            trial.number,
            Key(attributes["origin"], attributes["generation"], attributes["slot"]),
            Candidate(architecture, attributes.get("values", {})),
            trial.state,
            tuple(attributes.get("course", ())),
            attributes["owner"],
            attributes["started"],
        )

    def is_left(self) -> bool:
        """Tell whether the process that evaluated it is gone."""
        host, _, pid = self.owner.rpartition(":")
        gone = host == socket.gethostname() and not is_alive(int(pid))
        return self.state == TrialState.RUNNING and (gone or time.time() - self.started > STALE)


class SearchStudy:
    """An Optuna study and the rules by which processes share it.

    Args:
        storage: Where the study is kept, see :func:`taskformer.search.storage.open_storage`.
        name: Name of the study.
        objectives: What to improve.
        constraints: Limits on costs, stored with every trial.
        worker: Whether this process only helps: it waits for the main one to begin the study, and leaves it to the
            main one to free what other processes left.
        poll: Seconds between looks at what others do.

    Raises:
        ConfigError: If the study was begun with other objectives or constraints.
    """

    def __init__(
        self,
        storage: BaseStorage,
        name: str,
        objectives: Sequence[Objective],
        constraints: Sequence[Constraint] = (),
        worker: bool = False,
        poll: float = 0.5,
    ) -> None:
        self.storage = storage
        self.objectives = list(objectives)
        self.constraints = list(constraints)
        self.worker = worker
        self.poll = poll
        self.owner = f"{socket.gethostname()}:{os.getpid()}"
        while worker and name not in optuna.get_all_study_names(storage):
            time.sleep(poll)
        if not worker:
            _begin(storage, name, [objective.direction for objective in objectives])
        self.study = optuna.load_study(storage=storage, study_name=name)
        self.study_id = storage.get_study_id_from_name(name)
        _rename_settings(self.study)
        self.agree("objectives", [objective.name for objective in objectives])
        self.agree("constraints", {each.name: [each.low, each.high] for each in constraints})
        if not worker:
            with warnings.catch_warnings():  # it only names axes in optuna-dashboard
                warnings.simplefilter("ignore", ExperimentalWarning)
                self.study.set_metric_names([objective.name for objective in objectives])

    def agree(self, name: str, value: Any) -> None:
        """Note a setting on which results depend, in plain types, or compare it with the one noted before.

        Raises:
            ConfigError: If they differ.
        """
        known = self.shared(name, lambda: value)
        if known != value:
            msg = (
                f"the study {self.study.study_name!r} was begun with {name} {known}, now it is {value}; "
                "go on as it was begun, or choose another --study"
            )
            raise ConfigError(msg)

    def shared(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return a value, in plain types, that all processes use: the main one computes it, workers wait for it."""
        while name not in (noted := self.study.user_attrs):
            if self.worker:
                time.sleep(self.poll)
            else:
                self.study.set_user_attr(name, compute())
        return noted[name]

    def records(self) -> list[Record]:
        """Read the trials that count, see :func:`read_records`."""
        return read_records(self.study)

    def claim(self, work: Mapping[Key, Architecture], costs: Costs) -> list[Record]:
        """Take those architectures that nobody else takes.

        Args:
            work: Architectures by place.
            costs: What each costs, by name.
        """
        mine = {self._add_trial(key, architecture, costs(architecture)) for key, architecture in work.items()}
        won = [record for record in self.records() if record.number in mine]
        for number in mine - {record.number for record in won}:
            self.fail(number)
        return won

    def finish(self, record: Record, values: Mapping[str, float], course: Sequence[float], complete: bool) -> None:
        """Note what was measured; nothing happens if the trial has been failed as abandoned.

        Args:
            record: The trial.
            values: All quantities by name.
            course: delta_m on the images of the first batch, of the first two, and so on.
            complete: Whether the values are of all images; else they are no result.
        """
        told = [values[objective.name] for objective in self.objectives]
        complete = complete and all(map(isfinite, told))
        trial = self._trial_id(record.number)
        with suppress(UpdateFinishedTrialError):
            self.storage.set_trial_user_attr(trial, "values", dict(values))
            self.storage.set_trial_user_attr(trial, "course", list(course))
            if complete:
                self.storage.set_trial_state_values(trial, TrialState.COMPLETE, told)
            else:
                self.storage.set_trial_state_values(trial, TrialState.PRUNED)

    def fail(self, number: int) -> None:
        """Give a trial up; nothing happens if it has finished."""
        with suppress(UpdateFinishedTrialError):
            self.storage.set_trial_state_values(self._trial_id(number), TrialState.FAIL)

    def _add_trial(self, key: Key, architecture: Architecture, costs: Mapping[str, float]) -> int:
        """Add a running trial and return its number."""
        constraints = {}
        for each in self.constraints:  # Optuna's constraints hold at 0 and below
            constraints[f"{each.name} too low"] = each.low - costs[each.name]
            constraints[f"{each.name} too high"] = costs[each.name] - each.high
        attributes = key._asdict() | {
            "architecture": architecture.to_json(),
            "owner": self.owner,
            "started": time.time(),
        }
        trial = create_trial(state=TrialState.RUNNING, user_attrs=attributes, constraints=constraints)
        return self.storage.get_trial_number_from_id(self.storage.create_new_trial(self.study_id, trial))

    def _trial_id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self.study_id, number)


def read_records(study: optuna.Study) -> list[Record]:
    """Read the trials that count, in the order of the search: of each place the first trial that has not failed."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED))
    first: dict[Key, Record] = {}
    for trial in trials:
        record = Record.read(trial)
        first.setdefault(record.key, record)
    return sorted(first.values(), key=lambda record: record.key)


def completed(records: Sequence[Record], origin: str) -> list[Candidate]:
    """Return the candidates of an origin that were evaluated on all images."""
    return [
        record.candidate for record in records if record.key.origin == origin and record.state == TrialState.COMPLETE
    ]


def _begin(storage: BaseStorage, name: str, directions: Sequence[Direction]) -> None:
    """Create a study, or keep the one of this name if it has trials."""
    if name in optuna.get_all_study_names(storage) and not optuna.load_study(storage=storage, study_name=name).trials:
        optuna.delete_study(storage=storage, study_name=name)
    optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)


def _rename_settings(study: optuna.Study) -> None:
    """Note the pruner of a study of an earlier version, which knew a margin as ``early_stop``, or False."""
    margin = study.user_attrs.get("early_stop")
    if margin is not None and "pruner" not in study.user_attrs:
        study.set_user_attr("pruner", str(DominatedPruner(margin) if margin else NopPruner()))
