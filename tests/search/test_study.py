"""The loop on a shared study: several processes, one killed, and always the study that a single process makes."""

import multiprocessing
import os
import signal
import socket
import time
from collections import Counter
from pathlib import Path
from random import Random
from statistics import stdev

import optuna
import pytest
from optuna.trial import TrialState

from taskformer.errors import ConfigError
from taskformer.models.autotaskformer import SearchSpace
from taskformer.search.evaluator import Result, never
from taskformer.search.evolution import Evolution
from taskformer.search.loop import Round, SearchLoop
from taskformer.search.objectives import Candidate, Constraint, Objective, best
from taskformer.search.pruning import DominatedPruner, NopPruner, Pruner
from taskformer.search.storage import open_storage
from taskformer.search.study import STALE, Key, SearchStudy, read_records

SPACE = SearchSpace((8, 16, 24), (2, 3, 5), (2.0, 3.5, 4.0), (1, 2), num_tasks=3, sharing="binary")
OBJECTIVES = [Objective("delta_m", "maximize"), Objective("params", "minimize")]
LIMITS = Constraint("params", 40, 150)
POPULATION, GENERATIONS = 8, 4
FORK = multiprocessing.get_context("fork")


def costs(architecture):
    sizes = sum(architecture.num_heads) + sum(architecture.mlp_ratio)
    return {"params": architecture.embed_dim * sizes / 2, "macs": float(architecture.depth)}


def evaluate(architectures, stop=never, seconds=0.0, log=None):
    """A fake evaluator with the real one's contract: it asks after the first of two batches who stops."""
    results = []
    for architecture in architectures:
        time.sleep(seconds)
        if log:
            with log.open("a") as handle:
                handle.write(f"{os.getpid()} {architecture.to_json()}\n")
        rng = Random(architecture.to_json())
        half = rng.gauss(sum(architecture.num_heads), 1)
        beaten = stop(architecture, [half])
        course = (half,) if beaten else (half, half + rng.gauss(0, 0.1))
        results.append(Result({"depth": 1 / (1 + course[-1] ** 2)}, course, not beaten))
    return results


def rounds():
    evolution = Evolution(SPACE, OBJECTIVES, lambda one: LIMITS.admits(costs(one)), seed=3, population=POPULATION)

    def propose(number):
        def inner(earlier):
            done = [record.candidate for record in earlier if record.state == TrialState.COMPLETE]
            return evolution.generation(number, done, {record.candidate.architecture for record in earlier})

        return inner

    return [Round("evolution", number, propose(number)) for number in range(GENERATIONS)]


def run(storage, log=None, seconds=0.0, worker=False, report=lambda _: None):
    """Be one process of a search."""
    study = SearchStudy(open_storage(str(storage)), "toy", OBJECTIVES, [LIMITS], worker=worker, poll=0.05)
    SearchLoop(study, lambda some, stop: evaluate(some, stop, seconds, log), costs, batch=3).run(rounds(), report)
    return study


def start(*arguments):
    process = FORK.Process(target=run, args=arguments, daemon=True)
    process.start()
    return process


def contents(storage):
    """All that a finished study says, by place."""
    study = optuna.load_study(study_name="toy", storage=open_storage(str(storage)))
    return {record.key: (record.candidate, record.state, record.course) for record in read_records(study)}


def evaluations(log):
    return Counter(line.split(" ", 1)[1] for line in log.read_text().splitlines())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A study that one process made undisturbed."""
    storage = tmp_path_factory.mktemp("alone") / "study.db"
    run(storage)
    return storage


def test_a_study_holds_every_generation_and_what_optuna_needs(alone):
    found = contents(alone)
    assert set(found) == {Key("evolution", g, s) for g in range(GENERATIONS) for s in range(POPULATION)}
    assert len({candidate.architecture for candidate, _, _ in found.values()}) == len(found)
    for candidate, state, course in found.values():
        [expected] = evaluate([candidate.architecture])
        assert candidate.values["params"] == costs(candidate.architecture)["params"]
        assert 40 <= candidate.values["params"] <= 150
        assert course == expected.course[: len(course)]
        if state == TrialState.COMPLETE:
            assert candidate.values["delta_m"] == expected.delta_m
    study = optuna.load_study(study_name="toy", storage=open_storage(str(alone)))
    assert [direction.name for direction in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert study.metric_names == ["delta_m", "params"]
    complete = [candidate for candidate, state, _ in found.values() if state == TrialState.COMPLETE]
    ours = best(complete, OBJECTIVES, len(study.best_trials))
    told = {tuple(trial.values) for trial in study.best_trials}
    assert told == {(one.values["delta_m"], one.values["params"]) for one in ours}
    assert all(max(trial.constraints.values()) <= 0 for trial in study.trials)


def test_a_candidate_stops_where_the_front_of_earlier_generations_clearly_beats_it(alone):
    found = contents(alone)
    states = Counter(state for _, state, _ in found.values())
    assert states[TrialState.PRUNED] > 0
    for key, (candidate, state, course) in found.items():
        earlier = [
            (other.values["params"], theirs)
            for place, (other, ended, theirs) in found.items()
            if place.generation < key.generation and ended == TrialState.COMPLETE
        ]
        if not earlier:
            assert state == TrialState.COMPLETE
            continue
        margin = stdev(half - whole for _, (half, whole) in earlier) / 2
        best_of = [
            (size, half)
            for size, (half, whole) in earlier
            if not any(other <= size and better > whole for other, (_, better) in earlier)
        ]
        beaten = any(half > course[0] + margin and size <= candidate.values["params"] for size, half in best_of)
        assert beaten == (state == TrialState.PRUNED)


def test_a_pruner_sees_what_earlier_generations_finished_and_nothing_else(alone, tmp_path):
    class Spy(Pruner):
        def __init__(self):
            self.seen = []

        def prune(self, course, costs, history):
            self.seen.append((tuple(course), costs, history))
            return False

    spy = Spy()
    study = SearchStudy(open_storage(str(tmp_path / "study.db")), "toy", OBJECTIVES, [LIMITS])
    SearchLoop(study, evaluate, costs, pruner=spy).run(rounds())
    records = study.records()
    assert len(spy.seen) == POPULATION * (GENERATIONS - 1)  # the first generation has nothing to be compared with
    for course, own, history in spy.seen:
        [record] = [one for one in records if one.course[:1] == course]
        assert own == (record.candidate.values["params"],)
        earlier = [one for one in records if one.key.generation < record.key.generation]
        assert {(one.course, one.costs) for one in history.finished} == {
            (one.course, (one.candidate.values["params"],)) for one in earlier
        }
        assert set(history.best) <= set(history.finished)


def test_of_one_objective_a_new_one_is_compared_with_the_last_parent(tmp_path):
    histories = []

    class Spy(Pruner):
        def prune(self, course, costs, history):
            histories.append(history)
            return False

    study = SearchStudy(open_storage(str(tmp_path / "study.db")), "toy", OBJECTIVES[:1])
    SearchLoop(study, evaluate, costs, pruner=Spy(), parents=3).run(rounds()[:2])
    scores = sorted((record.course[-1] for record in study.records() if not record.key.generation), reverse=True)
    assert {history.best[0].course[-1] for history in histories} == {scores[2]}
    assert all(len(history.best) == 1 and history.best[0].costs == () for history in histories)


def test_without_delta_m_nothing_is_pruned(tmp_path):
    class Always(Pruner):
        def prune(self, course, costs, history):
            return True

    study = SearchStudy(open_storage(str(tmp_path / "study.db")), "toy", [Objective("depth", "minimize")])
    SearchLoop(study, evaluate, costs, pruner=Always()).run(rounds()[:2])
    assert {record.state for record in study.records()} == {TrialState.COMPLETE}


@pytest.mark.parametrize(
    ("noted", "pruner"), [(0.5, DominatedPruner()), (0.25, DominatedPruner(0.25)), (False, NopPruner())]
)
def test_a_study_from_before_pruners_had_names_is_understood(tmp_path, noted, pruner):
    storage = open_storage(str(tmp_path / "study.db"))
    optuna.create_study(storage=storage, study_name="toy", directions=["maximize", "minimize"])
    old = optuna.load_study(storage=storage, study_name="toy")
    old.set_user_attr("early_stop", noted)
    old.add_trial(optuna.trial.create_trial(state=TrialState.FAIL, user_attrs={}))
    study = SearchStudy(storage, "toy", OBJECTIVES)
    study.agree("pruner", str(pruner))
    with pytest.raises(
        ConfigError, match=r"begun with pruner \w+\(.*\), now it is DominatedPruner\(margin=3.0\); .*--study"
    ):
        study.agree("pruner", str(DominatedPruner(3.0)))


# The lock of a journal's killed process is broken after half a minute.
@pytest.mark.parametrize("name", ["study.db", pytest.param("study.journal", marks=pytest.mark.slow)])
def test_killed_and_continued_it_is_the_same_study(alone, tmp_path, name):
    storage, log = tmp_path / name, tmp_path / "log"
    for enough in (5, 14):
        process = start(storage, log, 0.02)
        while not log.exists() or len(log.read_text().splitlines()) < enough:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    run(storage, log)
    assert contents(storage) == contents(alone)
    again = sum(count - 1 for count in evaluations(log).values())
    assert again <= 2 * 3  # no more than the batches that were killed


@pytest.mark.parametrize("name", ["study.db", "study.journal"])
def test_workers_share_the_work_and_repeat_nothing(alone, tmp_path, name):
    storage, log = tmp_path / name, tmp_path / "log"
    workers = [start(storage, log, 0.02, True) for _ in range(2)]
    run(storage, log, 0.02)
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    assert contents(storage) == contents(alone)
    assert set(evaluations(log).values()) == {1}
    shares = Counter(line.split()[0] for line in log.read_text().splitlines())
    assert len(shares) == 3


def test_a_finished_study_evaluates_nothing(alone):
    def fail(architectures, stop):
        raise AssertionError

    study = SearchStudy(open_storage(str(alone)), "toy", OBJECTIVES, [LIMITS])
    before = len(study.study.trials)
    SearchLoop(study, fail, costs).run(rounds())
    assert len(study.study.trials) == before


def test_an_error_frees_what_was_taken(tmp_path):
    def fail(architectures, stop):
        raise KeyboardInterrupt

    study = SearchStudy(open_storage(str(tmp_path / "study.db")), "toy", OBJECTIVES, [LIMITS])
    with pytest.raises(KeyboardInterrupt):
        SearchLoop(study, fail, costs).run(rounds())
    assert study.records() == []
    assert {trial.state for trial in study.study.trials} == {TrialState.FAIL}


def test_only_the_main_process_frees_what_others_left(tmp_path):
    """A trial of a dead process, of a live one, and of another machine long ago and just now."""
    dead = FORK.Process(target=int)
    dead.start()
    dead.join()
    study = SearchStudy(open_storage(str(tmp_path / "study.db")), "toy", OBJECTIVES, [LIMITS])
    [*work] = Evolution(SPACE, OBJECTIVES, lambda one: LIMITS.admits(costs(one))).generation(0, [], set())[:4]
    taken = study.claim({Key("evolution", 0, slot): one for slot, one in enumerate(work)}, costs)
    owners = {0: (f"{socket.gethostname()}:{dead.pid}", 0), 1: (study.owner, 0), 2: ("far:1", STALE), 3: ("far:1", 0)}
    for record in taken:
        trial = study._trial_id(record.number)
        owner, age = owners[record.key.slot]
        study.storage.set_trial_user_attr(trial, "owner", owner)
        study.storage.set_trial_user_attr(trial, "started", time.time() - age)
    assert [record.is_left() for record in study.records()] == [True, False, True, False]


def test_a_trial_that_was_given_up_stays_so(tmp_path):
    study = SearchStudy(open_storage(str(tmp_path / "study.db")), "toy", OBJECTIVES, [LIMITS])
    architecture = SPACE.smallest()
    [first] = study.claim({Key("evolution", 0, 0): architecture}, costs)
    assert study.claim({Key("evolution", 0, 0): architecture}, costs) == []  # taken
    study.fail(first.number)
    [second] = study.claim({Key("evolution", 0, 0): architecture}, costs)
    study.finish(first, {"delta_m": 1.0, "params": 1.0}, (), True)  # its process was only slow
    study.finish(second, {"delta_m": 2.0, "params": 2.0}, (), True)
    [record] = study.records()
    assert record.candidate == Candidate(architecture, {"delta_m": 2.0, "params": 2.0})


def test_what_cannot_be_compared_is_no_result(tmp_path):
    study = SearchStudy(open_storage(str(tmp_path / "study.db")), "toy", OBJECTIVES, [LIMITS])
    [record] = study.claim({Key("evolution", 0, 0): SPACE.smallest()}, costs)
    study.finish(record, {"delta_m": float("nan"), "params": 1.0}, (0.5, float("nan")), True)
    assert study.study.trials[0].state == TrialState.PRUNED
    assert study.study.best_trials == []


def test_a_study_is_continued_as_it_was_begun(alone, tmp_path):
    storage = open_storage(str(alone))
    with pytest.raises(ConfigError, match=r"objectives.*--study"):
        SearchStudy(storage, "toy", OBJECTIVES[:1], [LIMITS])
    with pytest.raises(ConfigError, match=r"constraints \{'params': \[40, 150\]\}, now it is \{\}"):
        SearchStudy(storage, "toy", OBJECTIVES)
    study = SearchStudy(storage, "toy", OBJECTIVES, [LIMITS])
    study.agree("seed", 0)
    study.agree("seed", 0)
    with pytest.raises(ConfigError, match="begun with seed 0, now it is 1"):
        study.agree("seed", 1)
    assert study.shared("reference", lambda: {"depth": 0.5}) == {"depth": 0.5}
    assert study.shared("reference", lambda: {"depth": 0.7}) == {"depth": 0.5}


def test_a_study_without_a_trial_is_begun_anew(tmp_path):
    storage = open_storage(str(tmp_path / "study.db"))
    SearchStudy(storage, "toy", OBJECTIVES[:1], [LIMITS])  # nothing was found inside the constraints, say
    assert SearchStudy(storage, "toy", OBJECTIVES).study.directions == [
        optuna.study.StudyDirection.MAXIMIZE,
        optuna.study.StudyDirection.MINIMIZE,
    ]


@pytest.mark.slow
def test_the_lock_of_a_killed_process_is_taken_away(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage = open_storage("journals/study.journal")
    Path("journals/study.journal.lock").symlink_to(Path("journals/study.journal").absolute())
    started = time.monotonic()
    optuna.create_study(storage=storage, study_name="toy")
    assert 25 < time.monotonic() - started < 60


def test_storages_that_do_not_exist_are_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot open the storage 'nosuch://db'"):
        open_storage("nosuch://db")
    (tmp_path / "text.db").write_text("no database" * 100)
    with pytest.raises(ConfigError, match="cannot open the storage"):
        open_storage(str(tmp_path / "text.db"))


def test_what_is_known_from_another_place_is_not_evaluated_again(alone, tmp_path):
    study = SearchStudy(open_storage(str(tmp_path / "study.db")), "toy", OBJECTIVES, [LIMITS])
    [*some] = Evolution(SPACE, OBJECTIVES, lambda one: LIMITS.admits(costs(one))).generation(0, [], set())[:4]
    log = tmp_path / "log"
    search = SearchLoop(study, lambda new, stop: evaluate(new, stop, log=log), costs)
    search.run([Round("random", 0, lambda _: some[:3])])
    search.run([Round("evolution", 0, lambda _: some)])
    assert set(evaluations(log).values()) == {1}
    by_origin = {record.key: record.candidate for record in study.records()}
    assert [by_origin["evolution", 0, slot] for slot in range(3)] == [by_origin["random", 0, slot] for slot in range(3)]


def test_what_a_dead_process_of_the_same_number_left_is_free(tmp_path):
    """As after a container was started again."""
    study = SearchStudy(open_storage(str(tmp_path / "study.db")), "toy", OBJECTIVES, [LIMITS])
    [first, *_] = rounds()
    study.claim({Key("evolution", 0, 0): first.propose([])[0]}, costs)
    SearchLoop(study, evaluate, costs).run([first])
    assert len(study.records()) == POPULATION
    assert all(record.state != TrialState.RUNNING for record in study.records())
