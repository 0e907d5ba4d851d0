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
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import ceil, isfinite
from pathlib import Path
from random import SystemRandom
from typing import Any, NamedTuple, Self

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError

from taskformer.errors import ConfigError
from taskformer.models.autotaskformer import Architecture
from taskformer.search.evaluator import Result
from taskformer.search.objectives import COSTS, Candidate, Direction, Objective, Window, best, front
from taskformer.search.pruning import NOBODY, Rival, Rivals

#: Seconds after which a trial of a process on another machine, which cannot be looked at, counts as left.
STALE = 1800.0
#: Seconds that SQLite waits for another process's write.
LOCK_TIMEOUT = 60
#: Attempts at opening a storage, which fail while another process creates it.
ATTEMPTS = 8

#: What an architecture costs, by name.
Costs = Callable[[Architecture], dict[str, float]]


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
        state: Optuna's: complete, pruned (stopped early, its values are of the images until then) or running.
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
        gone = host == socket.gethostname() and not _alive(int(pid))
        return self.state == TrialState.RUNNING and (gone or time.time() - self.started > STALE)


class SearchStudy:
    """An Optuna study and the rules by which processes share it.

    Args:
        storage: Where the study is kept, see :func:`open_storage`.
        name: Name of the study.
        objectives: What to improve.
        windows: Hard constraints, stored with every trial.
        worker: Whether this process only helps: it waits for the main one to begin the study, and leaves it to the
            main one to free what other processes left.
        poll: Seconds between looks at what others do.

    Raises:
        ConfigError: If the study was begun with other objectives or windows.
    """

    def __init__(
        self,
        storage: BaseStorage,
        name: str,
        objectives: Sequence[Objective],
        windows: Sequence[Window] = (),
        worker: bool = False,
        poll: float = 0.5,
    ) -> None:
        self.storage = storage
        self.objectives = list(objectives)
        self.windows = list(windows)
        self.worker = worker
        self.poll = poll
        self.owner = f"{socket.gethostname()}:{os.getpid()}"
        while worker and name not in optuna.get_all_study_names(storage):
            time.sleep(poll)
        if not worker:
            _begin(storage, name, [objective.direction for objective in objectives])
        self.study = optuna.load_study(storage=storage, study_name=name)
        self.study_id = storage.get_study_id_from_name(name)
        self.agree("objectives", [objective.name for objective in objectives])
        self.agree("constraints", {window.name: [window.low, window.high] for window in windows})
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
        """Note what was measured; nothing happens if the trial has been failed as left.

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
        for window in self.windows:  # Optuna's constraints hold at 0 and below
            constraints[f"{window.name} too low"] = window.low - costs[window.name]
            constraints[f"{window.name} too high"] = costs[window.name] - window.high
        attributes = key._asdict() | {
            "architecture": architecture.to_json(),
            "owner": self.owner,
            "started": time.time(),
        }
        trial = create_trial(state=TrialState.RUNNING, user_attrs=attributes, constraints=constraints)
        return self.storage.get_trial_number_from_id(self.storage.create_new_trial(self.study_id, trial))

    def _trial_id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self.study_id, number)


@dataclass(frozen=True)
class Round:
    """Architectures that are evaluated together, before anything that depends on them.

    Args:
        origin: What proposes them.
        generation: Which round of this origin, from 0.
        propose: Makes them from the records of all rounds before.
    """

    origin: str
    generation: int
    propose: Callable[[Sequence[Record]], Sequence[Architecture]]


@dataclass(frozen=True)
class Search:
    """One process's part of a search.

    Args:
        study: The shared memory.
        evaluate: Scores architectures, comparing them after each batch of images with some finished candidates.
        costs: What an architecture costs, by name.
        batch: Most architectures to evaluate at once.
        early_stop: Whether candidates that are clearly dominated after some images stop there.
        parents: Of a single objective, how many candidates a new one must not be worse than all of.
    """

    study: SearchStudy
    evaluate: Callable[[Sequence[Architecture], Rivals], Sequence[Result]]
    costs: Costs
    batch: int = 8
    early_stop: bool = True
    parents: int = 10

    def run(self, rounds: Iterable[Round], report: Callable[[Sequence[Record]], None] = lambda _: None) -> None:
        """Work until all rounds are finished, whoever else does.

        Args:
            rounds: The rounds in their order.
            report: Told all records whenever there may be new ones.
        """
        earlier: list[Record] = []
        for each in rounds:
            architectures = each.propose(earlier)
            work = {Key(each.origin, each.generation, slot): one for slot, one in enumerate(architectures)}
            rivals = self._rivals([record for record in earlier if record.key.origin == each.origin])
            earlier += self._finish(work, rivals, report)

    def _finish(
        self, work: Mapping[Key, Architecture], rivals: Rivals, report: Callable[[Sequence[Record]], None]
    ) -> list[Record]:
        """See to it that all architectures are evaluated; return their records by slot."""
        while True:
            records = self.study.records()
            report(records)
            known = {record.key: record for record in records if record.key in work}
            if len(known) == len(work) and all(record.state != TrialState.RUNNING for record in known.values()):
                return [known[key] for key in work]
            # This process evaluates nothing just now: what is its own is of one that died with the same number.
            left = [record for record in known.values() if record.is_left() or self._is_own(record)]
            left = [] if self.study.worker else left
            for record in left:
                self.study.fail(record.number)
            mine = self.study.claim(self._some(work, known), self.costs)
            if mine:
                self._evaluate(self._reuse(mine, records), rivals)
            elif not left:
                time.sleep(self.study.poll)

    def _some(self, work: Mapping[Key, Architecture], known: Mapping[Key, Record]) -> dict[Key, Architecture]:
        """Choose some of the work that nobody does: similar architectures, which evaluate faster together."""
        free = sorted((key for key in work if key not in known), key=lambda key: work[key].to_json())
        if not free:
            return {}
        processes = {record.owner for record in known.values()} | {self.study.owner}
        size = min(self.batch, ceil(len(free) / len(processes)))  # to finish together
        start = size * SystemRandom().randrange(ceil(len(free) / size))  # rarely what another process chooses
        return {key: work[key] for key in free[start : start + size]}

    def _is_own(self, record: Record) -> bool:
        return record.state == TrialState.RUNNING and record.owner == self.study.owner

    def _reuse(self, mine: Sequence[Record], records: Sequence[Record]) -> list[Record]:
        """Finish what the study has evaluated elsewhere (in a search that was lengthened) and return the rest."""
        known = {record.candidate.architecture: record for record in records if record.state == TrialState.COMPLETE}
        new = []
        for record in mine:
            if old := known.get(record.candidate.architecture):
                self.study.finish(record, old.candidate.values, old.course, complete=True)
            else:
                new.append(record)
        return new

    def _evaluate(self, mine: Sequence[Record], rivals: Rivals) -> None:
        if not mine:
            return
        try:
            architectures = [record.candidate.architecture for record in mine]
            for record, result in zip(mine, self.evaluate(architectures, rivals), strict=True):
                values = self.costs(record.candidate.architecture) | result.tasks | {"delta_m": result.delta_m}
                self.study.finish(record, values, result.course, result.complete)
        except BaseException:
            for record in mine:
                self.study.fail(record.number)
            raise

    def _rivals(self, records: Sequence[Record]) -> Rivals:
        """Return what new candidates are compared with: one that is dominated is of no use."""
        objectives = self.study.objectives
        measured = [objective.name for objective in objectives if objective.name not in COSTS]
        if not self.early_stop or measured != ["delta_m"]:
            return NOBODY
        finished = [record for record in records if record.state == TrialState.COMPLETE]
        courses = {record.candidate.architecture: record.course for record in finished}
        candidates = [record.candidate for record in finished]
        if len(objectives) == 1:
            chosen = best(candidates, objectives, self.parents)[self.parents - 1 :]
        else:
            chosen = front(candidates, objectives)
        others = [objective.name for objective in objectives if objective.name in COSTS]
        rivals = [Rival(courses[one.architecture], tuple(one.values[name] for name in others)) for one in chosen]
        return Rivals.of(rivals, list(courses.values()))


def read_records(study: optuna.Study) -> list[Record]:
    """Read the trials that count, in the order of the search: of each place the first trial that has not failed."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED))
    first: dict[Key, Record] = {}
    for trial in trials:
        record = Record.read(trial)
        first.setdefault(record.key, record)
    return sorted(first.values(), key=lambda record: record.key)


def _begin(storage: BaseStorage, name: str, directions: Sequence[Direction]) -> None:
    """Create a study, or keep the one of this name if it has trials."""
    if name in optuna.get_all_study_names(storage) and not optuna.load_study(storage=storage, study_name=name).trials:
        optuna.delete_study(storage=storage, study_name=name)
    optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)


def open_storage(storage: str) -> BaseStorage:
    """Open a storage of studies.

    Args:
        storage: Any URL of Optuna's, e.g. of a database on a server, or a path: of a journal, which works on network
            disks, if it ends in ``.journal`` or ``.log``, else of an SQLite file.

    Raises:
        ConfigError: If it cannot be opened.
    """
    if storage.endswith((".journal", ".log")):
        Path(storage).parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(storage))
    if "://" not in storage:
        Path(storage).parent.mkdir(parents=True, exist_ok=True)
        storage = f"sqlite:///{storage}"
    options = {"connect_args": {"timeout": LOCK_TIMEOUT}} if storage.startswith("sqlite") else {}
    for attempt in range(ATTEMPTS):
        try:
            return RDBStorage(storage, engine_kwargs=options)
        except (IntegrityError, OperationalError) as error:  # another process creates the same tables just now
            reason: Exception = error
            time.sleep(0.1 * attempt)
        except (SQLAlchemyError, ImportError, ValueError) as error:
            reason = error
            break
    msg = f"cannot open the storage {storage!r}: {str(reason).splitlines()[0]}"
    raise ConfigError(msg) from reason


def _alive(pid: int) -> bool:
    """Tell whether a process of this machine runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it runs for someone else
        return True
    return True
