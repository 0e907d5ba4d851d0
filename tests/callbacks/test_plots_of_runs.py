"""``fit`` leaves its curves and ``test`` what it gets wrong, in the run's folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Trainer

from taskformer.callbacks import Plots
from taskformer.cli import main
from taskformer.data import RoomsDataModule
from taskformer.evaluation.details import class_ious, range_errors, read_details
from taskformer.modules import Baseline

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """The folder of a network after two steps that was tested, and the pictures that there were before."""
    folder = tmp_path_factory.mktemp("runs") / "a"
    configs = [f"--config={ROOT}/configs/{name}.yaml" for name in ("model/baseline", "data/rooms")]
    flags = [*configs, *tiny, "--data.tasks=[semseg,depth,normals]", "--gallery.every_n_epochs=0", "--plots.draw=true"]
    main(["fit", *flags, f"--runs_dir={folder.parent}", "--name=a"])
    fitted = sorted(path.name for path in folder.glob("**/*.png"))
    main(["test", str(folder)])
    return folder, fitted


@pytest.fixture
def model_and_data(small_rooms):
    data = RoomsDataModule(str(small_rooms), ["semseg", "depth"], batch_size=4)
    return Baseline(data.task_specs, head_dim=8, embed_dim=16), data


def evaluator(folder, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=folder, callbacks=[Plots(draw=False)], **quiet, **options)


def test_fit_draws_curves_and_test_the_others(run):
    folder, fitted = run
    assert fitted == ["curves.png"]
    names = ["depth_ranges", "normals_angles", "semseg_classes", "semseg_confusion"]
    assert sorted(path.stem for path in (folder / "plots").iterdir()) == names


def test_the_details_fit_the_scores(run):
    folder, _ = run
    details, scores = read_details(folder), json.loads((folder / "metrics.json").read_text())["test"]["tasks"]
    assert np.nanmean(class_ious(details["semseg"])) == pytest.approx(scores["semseg"]["mIoU"])
    assert len(details["semseg"]["classes"]) == 16
    depth = details["depth"]
    for name, score in (("squared", scores["depth"]["rmse"] ** 2), ("absolute", scores["depth"]["mae"])):
        assert sum(depth[name]) / sum(depth["pixels"]) == pytest.approx(score)
    assert np.nanmax(range_errors(depth)[0]) > scores["depth"]["rmse"]
    angles = np.array(details["normals"]["angles"])
    assert angles[:30].sum() / angles.sum() == pytest.approx(scores["normals"]["within_30"], abs=1e-3)


def test_validation_counts_no_details(model_and_data, tmp_path):
    model, data = model_and_data
    evaluator(tmp_path).validate(model, data, verbose=False)
    assert model.details == {}
    assert not any(tmp_path.iterdir())
    assert model.metrics["val"]["depth"]["errors"].details() == {}


def test_without_drawing_there_are_details_only_and_in_a_fast_dev_run_nothing(model_and_data, tmp_path):
    evaluator(tmp_path / "fast", fast_dev_run=True).test(*model_and_data, verbose=False)
    evaluator(tmp_path / "run").test(*model_and_data, verbose=False)
    assert [path.name for path in tmp_path.rglob("*.*")] == ["details.json"]


def test_processes_add_up_what_they_counted(model_and_data):
    """As they do through torch.distributed: the sum of two halves is the whole."""
    task = model_and_data[0].tasks["depth"]
    output, target = torch.rand(4, 1, 5, 6) * 3, torch.rand(4, 1, 5, 6) * 3
    whole, first, second = (task.metrics(stage="test") for _ in range(3))
    whole.update(output, target)
    first.update(output[:2], target[:2])
    second.update(output[2:], target[2:])
    first["errors"].add(second["errors"].sums())
    for key, value in task.details(whole).items():
        expected = pytest.approx(value) if isinstance(value, list) else value
        assert task.details(first)[key] == expected


def test_what_is_quick_is_counted_without_the_boundary_benchmark(small_rooms):
    data = RoomsDataModule(str(small_rooms), ["depth", "edges"], batch_size=4)
    model = Baseline(data.task_specs, head_dim=8, embed_dim=16)
    model.test_stage = "val"
    model.protocol = "standard"  # starts the metrics anew
    depth, edges = (model.metrics["test"][name] for name in ("depth", "edges"))
    assert depth["errors"].ranges
    assert list(edges) == ["tolerant"]


@pytest.mark.slow  # three processes that import Lightning, about 40 s
def test_two_processes_find_what_one_does(small_rooms, tmp_path):
    command = [sys.executable, "-m", "taskformer", "test", "--model=Baseline", "--data=RoomsDataModule",
               f"--data.root={small_rooms}", "--data.batch_size=1", "--data.tasks=[semseg,depth,normals,edges]",
               "--trainer.accelerator=cpu", "--trainer.strategy=ddp", "--ckpt=initial", "--plots.draw=false",
               "--seed_everything=1"]  # fmt: skip
    for processes in (1, 2):
        done = subprocess.run(
            [*command, f"--trainer.devices={processes}", f"--name=on{processes}"], cwd=tmp_path, capture_output=True,
            text=True, timeout=300, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (read_details(tmp_path / "runs" / f"on{processes}") for processes in (1, 2))
    assert one.keys() == two.keys() == {"semseg", "depth", "normals", "edges"}
    for task, details in one.items():
        for key, value in details.items():
            expected = value if isinstance(value, str) or key == "classes" else pytest.approx(np.array(value), rel=1e-9)
            assert two[task][key] == expected, (task, key)
