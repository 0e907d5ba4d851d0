"""``taskformer sweep``: what it reads, prints and refuses; a sweep of real trainings, killed and gone on with."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import taskformer
from taskformer.cli import main
from taskformer.commands import sweep as command
from taskformer.sweeps.results import SweepResult
from taskformer.sweeps.schema import read_sweep
from taskformer.sweeps.study import Run, State

METRIC = "val/semseg/mIoU"


@pytest.fixture
def sweep_file(tmp_path, monkeypatch, small_rooms):
    """Write a sweep of small trainings on a few rooms."""
    monkeypatch.chdir(tmp_path)

    def write(parameters, method="grid", extra=()):
        plan = {
            "method": method,
            "metric": {"name": METRIC, "goal": "maximize"},
            "parameters": parameters,
            "command": [
                *("${env}", "${interpreter}", "-m", "taskformer", "fit", "--data=RoomsDataModule"),
                *("--data.tasks=[semseg,depth]", "--data.size=[32,48]", "--data.batch_size=2", "--data.num_workers=0"),
                *("--model=Baseline", "--model.backbone=lcnet_050", "--model.weights=random", "--model.embed_dim=8"),
                *("--trainer.accelerator=cpu", "--trainer.num_sanity_val_steps=0", "--trainer.log_every_n_steps=1"),
                *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
                *(f"--data.root={small_rooms}", *extra, "${args}"),
            ],
        }
        Path("small.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
        return "small.yaml"

    return write


def test_without_local_every_run_is_read_and_both_ways_are_said(sweep_file, capsys):
    file = sweep_file({"model": {"values": ["Baseline", "MQTransformer"]}, "seed_everything": {"values": [0, 1, 2]}})
    main(["sweep", file])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "small.yaml: all 6 runs can be read"
    assert lines[1].endswith("taskformer sweep small.yaml --local N")
    assert "wandb sweep small.yaml" in lines[2]
    assert {path.name for path in Path().iterdir()} == {"small.yaml"}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"model.embed_dimm": {"values": [8, 16]}}, r"the run of \{'model.embed_dimm': 8\} cannot begin: .*embed_dimm"),
        ({"config": {"values": ["nosuch.yaml"]}}, r"cannot begin: .*nosuch.yaml"),
        ({"model.decoder": {"values": ["fpn", "fpnn"]}, "trainer.max_epochs": {"value": "x"}}, "max_epochs"),
    ],
)
def test_a_run_that_cannot_begin_is_named_before_any_begins(parameters, message, sweep_file, capsys):
    file = sweep_file(parameters, extra=["--import=json"])
    with pytest.raises(SystemExit, match="2"):
        main(["sweep", file, "--local", "2"])
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert re.search(message, error)
    assert not Path("runs").exists()


def test_what_is_printed(sweep_file, capsys, monkeypatch):
    file = sweep_file({"model.embed_dim": {"values": [8, 16]}, "seed_everything": {"values": [0, 1]}})
    plan = read_sweep(file)
    runs = [Run(n, settings, State.FINISHED, 0.1 * n) for n, settings in enumerate(plan.grid())]
    calls = []

    def pretend(file, on_change, **options):
        calls.append(options)
        on_change(Run(1, runs[1].settings, State.FAILED, None, "the disk is full"))
        return SweepResult(plan, Path("runs/small"), runs, 4)

    monkeypatch.setattr("taskformer.sweeps.run.sweep", pretend)
    monkeypatch.setattr("taskformer.commands.sweep_check.check", lambda file: "")
    command.main(["sweep", file, "--local=4", "--workers=2", "--name=x", "--json=out.json"])
    assert calls == [{"local": 4, "workers": 2, "name": "x", "runs_dir": "runs", "storage": None}]
    printed = capsys.readouterr().out
    assert "0001 failed (model.embed_dim=8, seed_everything=1): the disk is full" in printed
    assert "small: 4 of 4 runs finished" in printed
    best = printed.split("train the best: ")[1].splitlines()[0]
    assert shlex.split(best)[-3:] == ["--model.embed_dim=16", "--seed_everything=0", "--name=small-best"]
    written = json.loads(Path("out.json").read_text())
    assert [row["settings"] for row in written["settings"]] == [{"model.embed_dim": 16}, {"model.embed_dim": 8}]
    assert [row["mean"] for row in written["settings"]] == pytest.approx([0.25, 0.05])
    assert written["best"] == best


def test_the_status_says_that_runs_failed(sweep_file, capsys, monkeypatch):
    file = sweep_file({"seed_everything": {"values": [0, 1]}})
    plan = read_sweep(file)
    runs = [Run(0, plan.grid()[0], State.FINISHED, 0.5), Run(1, plan.grid()[1], State.FAILED, None, "the disk is full")]
    found = SweepResult(plan, Path("runs/small"), runs, 2)
    monkeypatch.setattr("taskformer.sweeps.run.sweep", lambda *_, **__: found)
    monkeypatch.setattr("taskformer.commands.sweep_check.check", lambda file: "")
    with pytest.raises(SystemExit, match="1"):
        command.main(["sweep", file, "--local=2"])
    assert capsys.readouterr().err == "taskformer: 1 of the runs failed; the same command tries them again\n"


def begin(file):
    words = [sys.executable, "-m", "taskformer", "sweep", file, "--local=2", "--workers=1"]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def curves(name, run):
    return Path("runs", name, run, "logs", "fit", "metrics.csv").read_text()


@pytest.mark.slow
def test_a_sweep_of_trainings_that_is_killed_gives_what_one_in_peace_gives(sweep_file):
    file = sweep_file({"seed_everything": {"values": [0, 1]}}, extra=["--trainer.max_epochs=30"])
    process = begin(file)
    checkpoint = Path("runs/small/0001/checkpoints/last.ckpt")
    end = time.monotonic() + 120
    while not checkpoint.is_file():
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.1)
    tasks = Path(f"/proc/{process.pid}/task").iterdir()
    children = {int(child) for task in tasks for child in (task / "children").read_text().split()}
    process.kill()
    process.wait()
    for child in children:
        os.kill(child, signal.SIGKILL)
    state = {trial["run"]: trial["state"] for trial in json.loads(Path("runs/small/trials.json").read_text())}
    assert state == {"runs/small/0000": "finished", "runs/small/0001": "running"}
    first = Path("runs/small/0000/checkpoints/last.ckpt").stat().st_mtime_ns

    found = taskformer.sweep(file, local=2)
    assert [run.state for run in found.runs] == [State.FINISHED] * 2
    assert Path("runs/small/0000/checkpoints/last.ckpt").stat().st_mtime_ns == first
    assert "--resume=runs/small/0001" in Path("runs/small/0001/output.log").read_text()
    assert (found.unit.name, found.unit.factor) == ("%", 100)

    in_peace = taskformer.sweep(file, local=2, name="peace")
    assert [run.value for run in found.runs] == [run.value for run in in_peace.runs]
    for run in ("0000", "0001"):
        assert curves("small", run) == curves("peace", run)
