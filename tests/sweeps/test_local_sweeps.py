"""Local sweeps end to end, with a training that takes no time: each run once, whatever is killed."""

import json
import multiprocessing
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

import taskformer
from taskformer.errors import ConfigError
from taskformer.sweeps.run import environments
from taskformer.sweeps.study import State

GRID = {"x": {"values": [1.0, 3.0, 2.0]}, "seed_everything": {"values": [0, 1]}}


def slow(seconds):
    """A grid of six runs with four epochs of some seconds."""
    return GRID | {"seconds": {"value": seconds}, "epochs": {"value": 4}}


@pytest.fixture
def begin(sweep_file):
    """Begin a sweep in a process of its own."""
    processes = []

    def start(parameters):
        sweep_file(parameters)
        # A fork has all that is imported, which takes seconds.
        process = multiprocessing.get_context("fork").Process(target=sweep_as_a_program)
        process.start()
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.join()


def sweep_as_a_program():
    """Run the sweep with the handlers of signals of a new program; earlier tests may have left others."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    taskformer.sweep("toy.yaml", local=6, workers=2)


def wait_for(condition, seconds=60.0):
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "this takes too long"
        time.sleep(0.02)


def trainings():
    """Numbers of the training processes that work in this folder."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            here = (folder / "cwd").resolve() == Path.cwd()
            if here and b"training.py" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:  # of somebody else, or gone
            continue
    return found


def states(found):
    return Counter(run.state for run in found.runs)


def assert_each_epoch_once(events, runs=6, epochs=4):
    expected = {(f"{run:04d}", str(epoch)): 1 for run in range(runs) for epoch in range(epochs)}
    assert Counter(events("epoch")) == expected


def test_a_grid_is_run_once(sweep_file, events, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    told = []
    found = taskformer.sweep(sweep_file(GRID), local=99, workers=2, on_change=told.append)
    assert [run.settings for run in found.runs] == [
        {"x": x, "seed_everything": seed} for x in (1.0, 3.0, 2.0) for seed in (0, 1)
    ]
    assert [run.value for run in found.runs] == [3.0, 3.0, 9.0, 9.0, 6.0, 6.0]
    assert_each_epoch_once(events, epochs=3)
    assert {words[1] for words in events("begin")} == {"offline"}
    assert Counter(run.state for run in told) == {State.RUNNING: 6, State.FINISHED: 6}
    assert {path.name for path in found.folder.iterdir()} == {
        *("sweep.yaml", "study.journal", "trials.json", "table.md", "table.csv", "table.tex"),
        *("parallel.png", "importance.png", *(f"{run:04d}" for run in range(6))),
    }

    again = taskformer.sweep("toy.yaml", local=99)
    assert again.runs == found.runs
    assert len(events("begin")) == 6


def test_fewer_runs_are_the_first_of_the_grid_and_more_are_added_later(sweep_file, events):
    assert len(taskformer.sweep(sweep_file(GRID), local=2).runs) == 2
    assert len(taskformer.sweep("toy.yaml", local=5).runs) == 5
    assert_each_epoch_once(events, runs=5, epochs=3)


@pytest.mark.parametrize(
    ("visible", "workers", "devices"),
    [("2,5", 3, ["2", "5", "2"]), ("2,5", 1, ["2,5"]), ("", 2, ["", ""]), (None, 2, [None, None])],
)
def test_each_worker_has_a_gpu_of_its_own(visible, workers, devices, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("taskformer.sweeps.run.default_workers", lambda: 8)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    shares = environments(workers)
    assert [each.get("CUDA_VISIBLE_DEVICES") for each in shares] == devices
    assert {each["OMP_NUM_THREADS"] for each in shares} == {str(8 // workers)}


def test_what_the_user_has_chosen_stays(sweep_file, events, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    taskformer.sweep(sweep_file(GRID), local=1)
    assert events("begin") == [("0000", "online", "7")]


def test_a_run_that_fails_says_why_and_is_tried_again_by_the_next_call(sweep_file, events):
    parameters = {"x": {"values": [1.0, 2.0]}, "fails": {"values": [True, False]}}
    found = taskformer.sweep(sweep_file(parameters), local=4)
    assert [(run.state, run.reason) for run in found.runs] == [
        (State.FAILED, "the disk is full; see runs/toy/0000/output.log"), (State.FINISHED, None),
        (State.FAILED, "the disk is full; see runs/toy/0002/output.log"), (State.FINISHED, None)]  # fmt: skip
    assert [trial["state"] for trial in json.loads((found.folder / "trials.json").read_text())] == [
        "failed", "finished"] * 2  # fmt: skip
    Path("mended").touch()
    assert states(taskformer.sweep("toy.yaml", local=4)) == {State.FINISHED: 4}
    assert_each_epoch_once(events, runs=4, epochs=3)


def test_a_metric_that_is_not_logged_ends_the_run_at_once(sweep_file, events):
    parameters = {"x": {"values": [1.0]}, "metric": {"value": "val/scores"}, "epochs": {"value": 50},
                  "seconds": {"value": 0.2}}  # fmt: skip
    [run] = taskformer.sweep(sweep_file(parameters), local=1).runs
    assert run.state == State.FAILED
    assert run.reason.startswith("it logs no val/score (did you mean 'val/scores'?), by which the sweep compares its")
    assert len(events("epoch")) < 20


def test_runs_that_lag_behind_are_stopped_and_stay_so(sweep_file, events):
    parameters = {"x": {"values": [9.0, 1.0, 2.0]}, "epochs": {"value": 9}, "seconds": {"value": 0.1}}
    rule = {"early_terminate": {"type": "hyperband", "min_iter": 2, "eta": 3}}
    found = taskformer.sweep(sweep_file(parameters, **rule), local=3, workers=1)
    assert [run.state for run in found.runs] == [State.FINISHED, State.PRUNED, State.PRUNED]
    done = events("epoch")
    assert Counter(run for run, _ in done)["0000"] == 9
    assert all(Counter(run for run, _ in done)[number] < 9 for number in ("0001", "0002"))
    assert [line.split(" | ")[-1] for line in Path("runs/toy/table.md").read_text().splitlines()[2:]] == [
        " |", "1 stopped early |", "1 stopped early |"]  # fmt: skip
    assert taskformer.sweep("toy.yaml", local=3).runs == found.runs
    assert events("epoch") == done


@pytest.mark.parametrize("orphans", [False, True], ids=["everything", "the-sweep-alone"])
def test_after_a_kill_nothing_is_run_twice(orphans, begin, events):
    process = begin(slow(0.2))
    wait_for(lambda: Path("events.log").is_file() and len(events("epoch")) > 9)
    process.kill()
    process.join()
    if not orphans:
        for number in trainings():
            os.kill(number, signal.SIGKILL)
    begun = len(events("begin"))
    assert begun in (3, 4)
    found = taskformer.sweep("toy.yaml", local=6, workers=2)
    assert states(found) == {State.FINISHED: 6}
    assert_each_epoch_once(events)
    # Two runs were at work and are gone on with, those before them are not begun again.
    assert len(events("begin")) == 6 + 2


def test_a_training_that_is_killed_goes_on_with_the_next_call(begin, events):
    process = begin(slow(0.2))
    wait_for(lambda: Path("events.log").is_file() and len(events("epoch")) > 4)
    os.kill(trainings()[0], signal.SIGKILL)
    process.join(60)
    found = taskformer.sweep("toy.yaml", local=6)
    assert states(found) == {State.FINISHED: 6}
    assert_each_epoch_once(events)
    assert len(events("begin")) == 7


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_sweep_that_is_stopped_ends_its_trainings_in_order(signum, begin, events):
    process = begin(slow(0.2))
    wait_for(lambda: Path("events.log").is_file() and len(events("epoch")) > 2)
    os.kill(process.pid, signum)
    process.join(60)
    assert process.exitcode in (-signum, 1)  # Python ends with 1 at a KeyboardInterrupt
    assert trainings() == []
    trials = json.loads(Path("runs/toy/trials.json").read_text())
    assert {trial["state"] for trial in trials} <= {"interrupted", "finished"}
    assert states(taskformer.sweep("toy.yaml", local=6, workers=2)) == {State.FINISHED: 6}
    assert_each_epoch_once(events)


def test_several_processes_share_a_sweep(begin, events):
    others = [begin(slow(0.05)) for _ in range(2)]
    wait_for(lambda: Path("events.log").is_file())
    taskformer.sweep("toy.yaml", local=6)
    for other in others:
        other.join(60)
        assert other.exitcode == 0
    assert states(taskformer.sweep("toy.yaml", local=6)) == {State.FINISHED: 6}
    assert_each_epoch_once(events)
    assert len(events("begin")) == 6


def test_a_process_that_seemed_gone_leaves_its_runs_to_the_other(begin, events, monkeypatch):
    process = begin(slow(0.3))
    wait_for(lambda: Path("events.log").is_file() and len(events("epoch")) > 3)
    monkeypatch.setattr("taskformer.sweeps.study.STALE", 0.5)  # the other one lives, and is seen every half minute
    monkeypatch.setattr("taskformer.sweeps.study.HEARTBEAT", 0.1)
    taskformer.sweep("toy.yaml", local=6, workers=2)
    process.join(60)
    assert process.exitcode == 0
    assert len(events("begin")) > 6  # those that the first one had to give up were begun again
    found = taskformer.sweep("toy.yaml", local=6, workers=2)
    assert states(found) == {State.FINISHED: 6}
    for run in found.runs:
        rows = Path(f"runs/toy/{run.number:04d}/logs/fit/metrics.csv").read_text().splitlines()
        assert [row.split(",")[0] for row in rows[1:]] == ["0", "1", "2", "3"]


def test_a_folder_is_of_one_sweep(sweep_file):
    taskformer.sweep(sweep_file(GRID), local=1)
    with pytest.raises(ConfigError, match=r"runs/toy was begun with another toy.yaml, see runs/toy/sweep.yaml; go on"):
        taskformer.sweep(sweep_file({"x": {"values": [1.0, 4.0]}}), local=1)
    assert len(taskformer.sweep("toy.yaml", local=1, name="other").runs) == 1


def test_a_grid_may_grow_at_its_end(sweep_file, events):
    first = taskformer.sweep(sweep_file({"x": {"values": [1.0, 3.0]}}), local=9)
    with pytest.raises(ConfigError, match="was begun with another"):
        taskformer.sweep(sweep_file({"x": {"values": [2.0, 1.0, 3.0]}}), local=9)  # others would have the numbers
    with pytest.raises(ConfigError, match="was begun with another"):
        taskformer.sweep(sweep_file({"x": {"values": [1.0, 3.0, 2.0]}, "epochs": {"value": 9}}), local=9)
    grown = taskformer.sweep(sweep_file({"x": {"values": [1.0, 3.0, 2.0]}}), local=9)
    assert grown.runs[:2] == first.runs
    assert [run.settings["x"] for run in grown.runs] == [1.0, 3.0, 2.0]
    assert_each_epoch_once(events, runs=3, epochs=3)
    assert "2.0" in Path("runs/toy/sweep.yaml").read_text()
    with pytest.raises(ConfigError, match="was begun with another"):
        taskformer.sweep(sweep_file({"x": {"values": [1.0, 3.0]}}), local=9)


def test_a_process_that_began_before_a_grid_grew_knows_its_own_runs(sweep_file, events):
    def grow(run):
        if run.number == 0 and run.state == State.FINISHED:
            sweep_file({"x": {"values": [1.0, 3.0, 2.0, 4.0]}})
            assert len(taskformer.sweep("toy.yaml", local=9).runs) == 4

    found = taskformer.sweep(sweep_file({"x": {"values": [1.0, 3.0]}}), local=9, workers=1, on_change=grow)
    assert [run.settings["x"] for run in found.runs] == [1.0, 3.0]
    assert_each_epoch_once(events, runs=4, epochs=3)


def test_some_runs_may_be_left_alone(sweep_file, events):
    found = taskformer.sweep(sweep_file(GRID), local=9, but=[0, 2, 3])
    assert [run.number for run in found.runs] == [1, 4, 5]
    assert {run for run, _ in events("epoch")} == {"0001", "0004", "0005"}


@pytest.mark.parametrize(
    ("command", "settings", "message"),
    [
        (["python", "-m", "taskformer", "search", "${args}"], {}, "a local sweep runs `taskformer fit`"),
        (None, {"local": 0}, r"local must be in \[1, inf\), got 0"),
        (None, {"workers": -1}, r"workers must be in \[1, inf\), got -1"),
        (None, {"name": "../x"}, "the sweep '../x' is not a place in runs"),
    ],
)
def test_mistakes_are_one_sentence(command, settings, message, sweep_file):
    file = sweep_file(GRID, **({"command": command} if command else {}))
    with pytest.raises(ConfigError, match=message):
        taskformer.sweep(file, **{"local": 1} | settings)
