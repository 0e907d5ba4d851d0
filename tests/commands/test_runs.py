"""Which run a command means, and whose its folder is."""

import os
import subprocess
import sys

import pytest
from jsonargparse import Namespace

from taskformer.commands.runs import Claim, find_checkpoint, name_run, spell_out
from taskformer.errors import ConfigError, WeightsError


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "first"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").touch()
    (folder / "checkpoints" / "last.ckpt").touch()
    return folder


def test_a_run_stands_for_its_configuration_and_what_is_said_now_comes_later(run):
    place = ["--config=runs/first/config.yaml", "--name=first", "--runs_dir=runs"]
    last = "--ckpt_path=runs/first/checkpoints/last.ckpt"
    resumed = spell_out(["fit", "--trainer.max_epochs=9", "--resume", "runs/first"])
    assert resumed == ["fit", *place, "--resume=runs/first", last, "--trainer.max_epochs=9"]
    assert spell_out(["test", "runs/first", "--ckpt=last"]) == ["test", *place, "--ckpt=last"]
    assert spell_out(["validate", "--json", "x.json", "runs/first"]) == ["validate", *place, "--json=x.json"]
    assert spell_out(["fit", "--config", "a.yaml"]) == ["fit", "--config=a.yaml"]


def test_a_run_that_was_stopped_before_its_first_checkpoint_begins_again(run):
    (run / "checkpoints" / "last.ckpt").unlink()
    assert not [word for word in spell_out(["fit", "--resume=runs/first"]) if word.startswith("--ckpt_path")]


@pytest.mark.parametrize(("path", "reason"), [("runs/none", "does not exist"), ("runs", "is no run folder")])
def test_a_wrong_run_is_refused(run, path, reason):
    with pytest.raises(ConfigError, match=reason):
        spell_out(["fit", "--resume", path])
    with pytest.raises(ConfigError, match=reason):
        spell_out(["test", path])


def test_a_checkpoint_that_is_not_there_is_refused_with_those_that_are(run):
    assert find_checkpoint(run, "last") == run / "checkpoints" / "last.ckpt"
    assert find_checkpoint(run, "initial") is None
    with pytest.raises(WeightsError, match=r"best\.ckpt'; there are .*last\.ckpt"):
        find_checkpoint(run, "best")
    with pytest.raises(WeightsError, match=r"no checkpoint 'x\.ckpt'"):
        find_checkpoint(run, "x.ckpt")


@pytest.mark.parametrize("name", ["../other", "/tmp/other", ".", "a/../.."])
def test_names_stay_below_the_folder_of_runs(name, tmp_path):
    with pytest.raises(ConfigError, match="--name is a folder below"):
        name_run("fit", Namespace(name=name, runs_dir=str(tmp_path), ckpt_path=None))
    assert name_run("fit", Namespace(name="group/run", runs_dir=str(tmp_path), ckpt_path=None)) == "group/run"


def test_processes_started_side_by_side_must_be_given_a_name(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with pytest.raises(ConfigError, match="give `fit` a --name"):
        name_run("fit", Namespace(name=None, runs_dir=str(tmp_path), ckpt_path=None))


def test_a_folder_belongs_to_one_training_at_a_time(tmp_path):
    folder = tmp_path / "runs" / "a"
    first = Claim(folder, resumes=False)
    for resumes in (False, True):
        with pytest.raises(ConfigError, match="in use by a training that runs now"):
            Claim(folder, resumes)
    (folder / "config.yaml").touch()
    first.release()
    with pytest.raises(ConfigError, match="is in use; choose another --name"):
        Claim(folder, resumes=False)
    (folder / ".unfinished-last-x.ckpt").touch()  # of a process that was killed while it wrote
    Claim(folder, resumes=True).release()
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]


def test_a_folder_in_which_nothing_was_written_does_not_stay(tmp_path):
    Claim(tmp_path / "runs" / "a", resumes=False).release()
    assert not (tmp_path / "runs" / "a").exists()


def test_a_killed_process_gives_its_folder_up(tmp_path):
    program = (
        "import sys, time; from pathlib import Path; from taskformer.commands.runs import Claim\n"
        f"claim = Claim(Path({str(tmp_path / 'a')!r}), False); print('claimed', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=os.environ)
    assert process.stdout.readline() == b"claimed\n"
    with pytest.raises(ConfigError, match="in use by a training that runs now"):
        Claim(tmp_path / "a", resumes=True)
    process.kill()
    process.wait()
    process.stdout.close()
    Claim(tmp_path / "a", resumes=True).release()
