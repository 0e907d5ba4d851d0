"""The memory of a sweep: who has which run, which settings are drawn, who is stopped early."""

import multiprocessing
import os
import socket
import time
from collections import Counter

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from taskformer.search.storage import open_storage
from taskformer.sweeps import Choice, Distribution, Hyperband, Metric, Sweep
from taskformer.sweeps.study import STALE, TOKEN, State, SweepStudy

optuna.logging.set_verbosity(optuna.logging.WARNING)


def plan(parameters, method="grid", goal="maximize", **more):
    return Sweep("toy.yaml", "toy", method, Metric("val/x", goal, more.pop("target", None)), parameters, **more)


GRID = plan({"x": Choice((1.0, [2, 3], None)), "seed_everything": Choice((0, 1, 2))})


@pytest.fixture
def study(tmp_path):
    """Open a study of a sweep."""

    def build(sweep, name="study.journal"):
        return SweepStudy(sweep, open_storage(str(tmp_path / name)), "toy")

    return build


def take_all(storage, results):
    """Take and finish runs until there are none."""
    memory = SweepStudy(GRID, open_storage(storage), "toy")
    while taken := memory.take(memory.size(99)):
        results.put((taken.number, taken.settings))
        taken.close(TrialState.COMPLETE, 1.0)


@pytest.mark.parametrize("storage", ["study.journal", "study.db"])
def test_processes_that_work_at_once_take_each_run_once(storage, tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=take_all, args=(str(tmp_path / storage), results)) for _ in range(3)]
    for process in processes:
        process.start()
    taken = dict(results.get(timeout=60) for _ in range(9))
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert results.empty()
    assert [taken[number] for number in range(9)] == GRID.grid()


def owners(far_age=0.0):
    """Owners of a run, how long ago they were seen, and whether the run is theirs no more."""
    dead = multiprocessing.get_context("fork").Process(target=int)
    dead.start()
    dead.join()
    here, ours = socket.gethostname(), os.getpid()
    return {
        "dead": (f"{here}:{dead.pid}:x", 0.0, True),
        "living": (f"{here}:{os.getppid()}:x", 0.0, False),
        "this": (f"{here}:{ours}:{TOKEN}", 0.0, False),
        "an earlier one of the same number": (f"{here}:{ours}:x", 0.0, True),
        "on another machine": ("far:1:x", 0.0, False),
        "long unseen": ("far:1:x", STALE + 1, True),
    }


@pytest.mark.parametrize("case", list(owners()))
def test_a_run_is_free_when_its_process_is_gone(case, study):
    owner, age, free = owners()[case]
    memory = study(plan({"x": Distribution("uniform", {"min": 0.0, "max": 1.0})}, "random"))
    first = memory.take(1)
    first.trial.set_user_attr("owner", owner)
    first.trial.set_user_attr("seen", time.time() - age)
    assert [run.state for run in memory.runs()] == [State.INTERRUPTED if free else State.RUNNING]
    second = memory.take(1)
    assert (second is not None) == free
    if second:
        assert (second.number, second.settings) == (first.number, first.settings)
        first.close(TrialState.COMPLETE, 1.0)  # comes back, too late
        assert [run.state for run in memory.runs()] == [State.RUNNING]


def test_what_is_done_is_never_taken_again(study):
    memory = study(GRID)
    for state, value in ((TrialState.COMPLETE, 1.0), (TrialState.PRUNED, None), (TrialState.FAIL, None)):
        memory.take(3).close(state, value)
        if state == TrialState.FAIL:
            break
    assert memory.take(3).number == 2
    assert memory.take(3) is None
    assert memory.take(4, but=[3]) is None
    assert memory.take(4).number == 3


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_no_settings_are_drawn_twice(method, study):
    memory = study(plan({"x": Choice(("a", "b", "c")), "y": Choice((1, 2))}, method))
    drawn = []
    while taken := memory.take(20):
        drawn.append(tuple(taken.settings.values()))
        taken.close(TrialState.COMPLETE, float(taken.number))
    assert len(set(drawn)) == len(drawn)
    assert len(drawn) >= 5  # of six; the last one may not be found
    assert [run.number for run in memory.runs()] == list(range(len(drawn)))


def test_random_draws_follow_the_distribution(study):
    memory = study(plan({"lr": Distribution("log_uniform_values", {"min": 1e-4, "max": 1e-1})}, "random"))
    rates = [memory.take(60).settings["lr"] for _ in range(60)]
    shares = np.histogram(np.log10(rates), bins=[-4, -3, -2, -1])[0] / 60
    assert shares == pytest.approx([1 / 3] * 3, abs=0.2)


def test_bayes_looks_where_values_are_good(study):
    def distance(method, name):
        memory = study(plan({"x": Distribution("uniform", {"min": -1.0, "max": 1.0})}, method, "minimize"), name)
        found = []
        while taken := memory.take(30):
            found.append(abs(taken.settings["x"] - 0.3))
            taken.report([found[-1]])
            taken.close(TrialState.COMPLETE, found[-1])
        return np.mean(found[15:])

    assert distance("bayes", "a.journal") < 0.5 * distance("random", "b.journal")


def test_early_termination_is_successive_halving(study):
    """Runs come one after the other; an oracle keeps those that are in the best third at 2 and at 6 values."""
    rule = Hyperband(min_iter=2, eta=3.0)
    memory = study(plan({"x": Choice(tuple(range(12)))}, early_terminate=rule))
    levels = np.random.default_rng(0).permutation(12)
    rungs = {2: [], 6: []}
    for level in levels:
        taken = memory.take(12)
        stopped = next((step for step in range(1, 10) if taken.report([float(level)] * step)), None)
        expected = None
        for step, seen in rungs.items():
            seen.append(level)
            better = sum(other > level for other in seen)
            if better > max(1, len(seen) // 3) - 1:
                expected = step
                break
        assert stopped == expected
        taken.close(TrialState.PRUNED if stopped else TrialState.COMPLETE, None if stopped else float(level))
    assert Counter(run.state for run in memory.runs())[State.PRUNED] >= 4
    assert [run.value for run in memory.runs()] == levels.astype(float).tolist()


@pytest.mark.parametrize(("goal", "values"), [("maximize", [1.0, 5.0, 9.0]), ("minimize", [9.0, 5.0, 1.0])])
def test_no_run_begins_after_one_was_good_enough(goal, values, study):
    memory = study(plan({"x": Choice(tuple(range(9)))}, goal=goal, target=5.0))
    for value in values[:2]:
        taken = memory.take(9)
        taken.report([value])
        taken.close(TrialState.COMPLETE, value)
    assert memory.take(9) is None


def test_run_cap_is_the_largest_number_of_runs(study):
    assert study(plan({"x": Choice(tuple(range(9)))}, run_cap=4)).size(6) == 4
    assert study(plan({"x": Choice(tuple(range(9)))})).size(20) == 9
    assert study(plan({"x": Choice(tuple(range(9)))}, "random")).size(20) == 20


def test_the_value_of_a_run_is_its_best(study):
    memory = study(plan({"x": Choice((1, 2))}, goal="minimize"))
    taken = memory.take(2)
    taken.report([3.0, 1.0])
    taken.report([3.0, 1.0, float("nan"), 2.0])
    assert [(run.state, run.value) for run in memory.runs()] == [(State.RUNNING, 1.0)]
