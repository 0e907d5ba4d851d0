"""``fit`` leaves its curves and ``test`` what it gets wrong, in the run's folder."""

import json

import numpy as np
import pytest
import torch
from lightning import Trainer

from taskformer.callbacks import Curves, Plots, ResultsTable
from taskformer.data import RoomsDataModule
from taskformer.evaluation.details import class_ious, range_errors, read_details
from taskformer.modules import Baseline

TASKS = ["semseg", "depth", "normals"]


def trainer(folder, logger=False, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    callbacks = options.pop("callbacks", [ResultsTable(), Plots()])
    return Trainer(
        default_root_dir=folder, accelerator="cpu", logger=logger, callbacks=callbacks, max_epochs=1,
        log_every_n_steps=1, num_sanity_val_steps=0, **quiet, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(small_rooms, tmp_path_factory):
    """A network after two steps, and its folder; it was tested."""
    folder = tmp_path_factory.mktemp("runs") / "a"
    data = RoomsDataModule(str(small_rooms), TASKS, batch_size=4)
    torch.manual_seed(0)
    model = Baseline(data.task_specs, head_dim=8, embed_dim=16)
    trainer(folder, Curves(folder / "logs", "fit")).fit(model, data)
    fitted = sorted(path.name for path in folder.glob("**/*.png"))
    trainer(folder).test(model, data, verbose=False)
    return folder, fitted, model


def test_fit_draws_curves_and_test_the_others(run):
    folder, fitted, _ = run
    assert fitted == ["curves.png"]
    names = ["depth_ranges", "normals_angles", "semseg_classes", "semseg_confusion"]
    assert sorted(path.stem for path in (folder / "plots").iterdir()) == names


def test_the_details_fit_the_scores(run):
    folder, _, model = run
    details, scores = read_details(folder), model.results["test"]
    assert details == model.details["test"]
    assert np.nanmean(class_ious(details["semseg"])) == pytest.approx(scores["semseg"]["mIoU"])
    assert details["semseg"]["classes"] == list(model.tasks["semseg"].classes)
    depth = details["depth"]
    for name, score in (("squared", scores["depth"]["rmse"] ** 2), ("absolute", scores["depth"]["mae"])):
        assert sum(depth[name]) / sum(depth["pixels"]) == pytest.approx(score)
    assert np.nanmax(range_errors(depth)[0]) > scores["depth"]["rmse"]
    angles = np.array(details["normals"]["angles"])
    assert angles[:30].sum() / angles.sum() == pytest.approx(scores["normals"]["within_30"], abs=1e-3)


def test_records_name_headlines_and_units(run):
    record = json.loads((run[0] / "metrics.json").read_text())["test"]
    assert record["headline"] == {"semseg": "mIoU", "depth": "rmse", "normals": "mean_angle"}
    assert record["units"]["depth"]["rmse"] == "m"


def test_validation_counts_no_details(run):
    _, _, model = run
    assert set(model.details) == {"test"}
    assert model.metrics["val"]["depth"]["errors"].details() == {}


def test_without_drawing_there_are_details_only(run, small_rooms, tmp_path):
    data = RoomsDataModule(str(small_rooms), TASKS, batch_size=4)
    trainer(tmp_path, callbacks=[Plots(draw=False)]).test(run[2], data, verbose=False)
    assert [path.name for path in tmp_path.iterdir()] == ["details.json"]


def test_a_fast_dev_run_leaves_nothing(run, small_rooms, tmp_path):
    data = RoomsDataModule(str(small_rooms), TASKS, batch_size=4)
    trainer(tmp_path, fast_dev_run=True).test(run[2], data, verbose=False)
    assert not any(tmp_path.iterdir())


def test_processes_add_up_what_they_counted(run):
    """As they do through torch.distributed: the sum of two halves is the whole."""
    _, _, model = run
    task = model.tasks["depth"]
    output, target = torch.rand(4, 1, 5, 6) * 3, torch.rand(4, 1, 5, 6) * 3
    whole, first, second = (task.metrics(stage="test") for _ in range(3))
    whole.update(output, target)
    first.update(output[:2], target[:2])
    second.update(output[2:], target[2:])
    first["errors"].add(second["errors"].sums())
    for key, value in task.details(whole).items():
        expected = pytest.approx(value) if isinstance(value, list) else value
        assert task.details(first)[key] == expected
