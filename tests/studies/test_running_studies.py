"""Which runs a study has, and that they stay what they are; and a study from its file to its report."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from taskformer.errors import ConfigError
from taskformer.studies import read_study, run_study, write_report
from taskformer.studies.running import Place, _plan

ROOT = Path(__file__).parents[2]


def place():
    return Place(Path("runs/small"), Path("docs/studies/small"))


def planned():
    return [Path(file).stem for file in yaml.safe_load(Path("runs/small/grid.yaml").read_text())["parameters"]["config"]
            ["values"]]  # fmt: skip


def test_runs_keep_their_numbers_when_arms_and_seeds_are_added_anywhere(write):
    study = write()
    before = _plan(study, place())
    assert before == {trial.name: number for number, trial in enumerate(study.trials())}
    arms = {"first": {"config": ["model.yaml"]}} | {
        name: {"config": list(arm.config), "settings": dict(arm.settings)} for name, arm in study.arms.items()
    }
    after = _plan(write(arms=arms, seeds=[4, 0, 1]), place())
    assert {name: after[name] for name in before} == before
    assert sorted(after.values()) == list(range(3 * 5))
    assert planned() == sorted(after, key=after.__getitem__)
    del arms["wide"]
    assert _plan(write(arms=arms, seeds=[0]), place()) == after, "runs of arms that are left out keep theirs"


def test_an_arm_that_changed_since_it_was_begun_is_refused(write):
    number = _plan(write(), place())["wide-seed1"]
    changed = {"wide": {"config": ["model.yaml"], "settings": {"model.init_args.embed_dim": 256}}}
    arms = {name: {"config": ["model.yaml"]} for name in ("single", "plain")} | changed
    _plan(write(arms=arms), place())  # nothing was trained yet
    file = Path("runs/small/arms/wide-seed1.yaml")
    assert yaml.safe_load(file.read_text())["model"]["init_args"]["embed_dim"] == 256
    begun = Path(f"runs/small/{number:04d}/config.yaml")
    begun.parent.mkdir()
    begun.touch()
    with pytest.raises(ConfigError, match=r"wide of small\.yaml is another than when runs/small/0007 was begun with"):
        _plan(write(), place())
    Path("recipe.yaml").write_text(Path("recipe.yaml").read_text().replace("max_epochs: 6", "max_epochs: 7"))
    with pytest.raises(ConfigError, match="give the changed arm another name, or undo the change"):
        _plan(write(arms=arms), place())


TINY = {
    "model": {
        "class_path": "Baseline",
        "init_args": {"backbone": "lcnet_050", "weights": "random", "embed_dim": 8, "head_dim": 8},
    },
    "data": {
        "class_path": "RoomsDataModule",
        "init_args": {"root": "rooms", "tasks": ["depth", "normals"], "batch_size": 4, "num_workers": 0},
    },
    "trainer": {"accelerator": "cpu", "max_epochs": 2, "check_val_every_n_epoch": 2, "enable_progress_bar": False},
    "plots": {"draw": False},
    "gallery": {"every_n_epochs": 0, "images": 1},
}
#: Stands for the benchmarks on photographs: scores TASK, where there is TASK, by the run's number.
PHOTOGRAPHS = """
import json, pathlib, sys
run, file = pathlib.Path(sys.argv[1]), sys.argv[3]
found = ["TASK"] if "- TASK" in (run / "config.yaml").read_text() else []
value = 1.0 + int(run.name)
record = {"protocol": "p", "tasks": {t: {"rmse": value} for t in found},
          "better": {t: {"rmse": "lower"} for t in found}, "headline": {t: "rmse" for t in found},
          "units": {t: {"rmse": "m"} for t in found},
          "facts": {"split": "photographs", "images": 2},
          "images": {"ids": ["x", "y"], **{t: [value, value + 1] for t in found}}}
pathlib.Path(file).write_text(json.dumps(record))
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch, small_rooms):
    """A real study that takes no longer than processes take to start."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    Path("rooms").symlink_to(small_rooms)
    Path("tiny.yaml").write_text(yaml.safe_dump(TINY))
    Path("photos.py").write_text(PHOTOGRAPHS.replace("TASK", "depth"))
    Path("streets.py").write_text(PHOTOGRAPHS.replace("TASK", "normals"))
    study = {
        "title": "Tiny",
        "base": ["tiny.yaml"],
        "seeds": [0, 1],
        "single_tasks": "single",
        "photographs": True,
        "arms": {"plain": {}, "wide": {"settings": {"model.init_args.embed_dim": 16}}, "single": {}},
    }
    Path("small.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    return read_study("small.yaml")


def scorers(*files):
    return {name: [sys.executable, file] for name, file in zip(("photographs", "streets"), files, strict=False)}


def run(study, **options):
    told = []
    failed = run_study(study, transfers=scorers("photos.py", "streets.py"), tell=told.append, **options)
    assert failed == []
    return told


@pytest.mark.slow  # each of eight runs is trained and tested by processes of its own
def test_a_real_study_is_trained_tested_noted_and_reported_whatever_is_killed(tiny):
    # Killed as soon as the first training has begun, which goes on as an orphan.
    program = "from taskformer.studies import read_study, run_study; run_study(read_study('small.yaml'))"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL)
    while not Path("runs/small/0000/config.yaml").is_file():
        assert process.poll() is None
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not Path("docs").exists()

    run(tiny, arms=["plain"], seeds=[0])
    kept = Path("docs/studies/small/runs")
    assert [path.name for path in kept.iterdir()] == ["plain-seed0.json"]
    assert "* Runs: 1 of 8 are finished" in write_report(tiny).read_text()
    run(tiny, workers=2)
    names = ["plain", "single-depth", "single-normals", "wide"]
    assert sorted(path.stem for path in kept.iterdir()) == [f"{name}-seed{seed}" for name in names for seed in (0, 1)]

    for number, trial in enumerate(tiny.trials()):
        folder, path = Path(f"runs/small/{number:04d}"), kept / f"{trial.name}.json"
        content = json.loads(path.read_text())
        record, measured = content["evaluations"]["test"], json.loads((folder / "metrics.json").read_text())["test"]
        assert record["tasks"] == measured["tasks"]
        assert (content["macs"], content["parameters"]) == (measured["macs"], measured["parameters"])
        with (folder / "per_image.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        for task in content["tasks"]:
            scores = [float(row["value"]) for row in rows
                      if (row["task"], row["metric"]) == (task, record["headline"][task])]  # fmt: skip
            assert record["images"][task] == pytest.approx(scores, rel=1e-5)
        assert content["steps"] == 4
        assert content["seconds"] > 0 < content["processor_seconds"]
        assert content["tasks"] == ([trial.variant.task] if trial.variant.task else ["depth", "normals"])
        assert ("photographs" in content["evaluations"]) == ("depth" in content["tasks"])
        assert ("streets" in content["evaluations"]) == ("normals" in content["tasks"])
        assert str(Path.cwd()) not in path.read_text()
        assert str(ROOT) not in path.read_text()

    text = write_report(tiny).read_text()
    assert "* Runs: 8 of 8 are finished\n" in text
    assert "## Photographs (2)" in text
    assert "## Streets (2)" in text
    before = {path: path.stat().st_mtime_ns for path in [*Path("runs").rglob("output.log"), *kept.iterdir()]}
    assert run(tiny) == []
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.slow  # trains in processes of their own
def test_a_choice_is_made_on_held_out_images_and_a_run_that_cannot_be_scored_is_said(tiny):
    content = yaml.safe_load(Path("small.yaml").read_text())
    settings = {"data.init_args.holdout": 0.25}
    Path("small.yaml").write_text(yaml.safe_dump(content | {"split": "val", "settings": settings}, sort_keys=False))
    study = read_study("small.yaml")
    Path("photos.py").write_text("raise SystemExit('there is no photograph')")
    failed = run_study(study, arms=["single"], seeds=[0], transfers=scorers("photos.py"), tell=str)
    assert [sentence.split(":")[0] for sentence in failed] == ["single-depth-seed0", "single-normals-seed0"]
    assert "photos.py runs/small/0002 --json runs/small/0002/photographs.json failed with status 1; see" in failed[0]
    Path("photos.py").write_text(PHOTOGRAPHS.replace("TASK", "depth"))
    assert len(run(study, arms=["single"], seeds=[0])) == 2
    content = json.loads(Path("docs/studies/small/runs/single-depth-seed0.json").read_text())
    assert (content["split"], list(content["evaluations"])) == ("val", ["val", "photographs"])
    assert content["evaluations"]["val"]["facts"]["images"] == 2  # of the eight for training
    assert "epoch" not in content["evaluations"]["val"]
    assert "val split, which are held-out training images" in write_report(study).read_text()
