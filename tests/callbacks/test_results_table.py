"""What the results are of: the images that could be read, and the single-task runs of the same recipe."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from lightning.pytorch import Callback
from torch.utils.flop_counter import FlopCounterMode

from taskformer.callbacks import Gallery, Predictions, ResultsTable, results
from taskformer.callbacks.results import why_no_delta_m
from taskformer.data import CombinedDataModule, RoomsDataModule
from taskformer.errors import DatasetNotFoundError
from taskformer.evaluation.references import run_facts
from taskformer.modules import AutoTaskFormer, Baseline
from taskformer.modules.autotaskformer_args import Space

ROOT = Path(__file__).parents[2]
TASKS = ["semseg", "depth"]
#: Single-task results as in an entry.
SINGLE = {
    "semseg": {"metric": "mIoU", "higher_is_better": True, "channels": 16, "value": 1.0, "val": {"value": 0.5}},
    "depth": {"metric": "rmse", "higher_is_better": False, "channels": 1, "value": 1.0, "val": {"value": 2.0}},
}


def break_images(rooms, folder, split, *indices):
    """Copy the rooms, with truncated depth maps of some images of a split; returns the copy and the split's ids."""
    folder.mkdir()
    for entry in rooms.iterdir():
        if entry.name != "depth":
            (folder / entry.name).symlink_to(entry)
    (folder / "depth").mkdir()
    for entry in (rooms / "depth").iterdir():
        (folder / "depth" / entry.name).symlink_to(entry)
    ids = [record["id"] for record in json.loads((rooms / f"{split}.json").read_text())]
    for index in indices:
        path = folder / "depth" / f"{ids[index]}.png"
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[:-40])
    return folder, ids


def evaluator(folder, *callbacks, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=folder, callbacks=list(callbacks), **quiet, **options)


def by_hand(model, rooms, split, indices):
    """Root mean squared error of depth and share of right pixels, over these images one after another."""
    dataset = RoomsDataModule(str(rooms), TASKS).evaluation_dataset(split)
    squares, right, labelled = [], 0, 0
    for index in indices:
        sample = dataset[index]
        with torch.no_grad():
            outputs = model.eval()(sample["image"][None])
        error = (outputs["depth"][0].clamp(min=0) - sample["targets"]["depth"]).double()
        squares.append(error[error.isfinite()].square())
        label = sample["targets"]["semseg"]
        right += int((outputs["semseg"][0].argmax(0) == label).sum())
        labelled += int((label != 255).sum())
    return {"rmse": torch.cat(squares).mean().sqrt().item(), "pixel_accuracy": right / labelled}


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (2, 2), (3, 0)])
def test_an_image_that_cannot_be_read_is_left_out_and_counted(small_rooms, tmp_path, batch_size, workers, capsys):
    rooms, ids = break_images(small_rooms, tmp_path / "rooms", "test", 1)
    data = RoomsDataModule(str(rooms), TASKS, batch_size=batch_size, num_workers=workers, on_error="skip")
    model = Baseline(data.task_specs, head_dim=8)
    run = tmp_path / "run"
    table = ResultsTable(constant=True, per_image=True)
    evaluator(run, table, Predictions(save=True), Gallery()).test(model, data, verbose=False)
    expected = by_hand(model, small_rooms, "test", [0, 2])
    found = json.loads((run / "metrics.json").read_text())["test"]
    assert found["tasks"]["depth"]["rmse"] == pytest.approx(expected["rmse"], rel=1e-5)
    assert found["tasks"]["semseg"]["pixel_accuracy"] == pytest.approx(expected["pixel_accuracy"], rel=1e-5)
    assert found["unreadable"] == [ids[1]]
    assert found["facts"]["images"] == 2
    assert f"1 of 3 images could not be read ({ids[1]}) and are not scored" in " ".join(capsys.readouterr().out.split())
    assert "1 of 3 images could not be read" in (run / "results.md").read_text()
    with (run / "per_image.csv").open() as lines:
        rows = [(row["id"], float(row["value"])) for row in csv.DictReader(lines) if row["metric"] == "rmse"]
    assert [name for name, _ in rows] == [ids[0], ids[2]]
    assert [value for _, value in rows] == pytest.approx(
        [by_hand(model, small_rooms, "test", [index])["rmse"] for index in (0, 2)], rel=1e-5
    )
    assert {path.stem for path in (run / "predictions" / "depth").iterdir()} == {ids[0], ids[2]}
    # The constant is scored on the same images: no image counts twice, none is made up.
    labels = [
        RoomsDataModule(str(small_rooms), TASKS).evaluation_dataset("test")[k]["targets"]["depth"] for k in (0, 2)
    ]
    depths = torch.stack(labels)
    constant = found["constant"]["depth"]["rmse"]
    assert constant >= depths[depths.isfinite()].double().std(unbiased=False).item() * (1 - 1e-6)


@pytest.mark.parametrize(("asked", "kept"), [(None, True), (False, False)])
def test_the_scores_of_images_are_kept_unless_nobody_wants_them(small_rooms, tmp_path, asked, kept):
    data = RoomsDataModule(str(small_rooms), TASKS, batch_size=2)
    evaluator(tmp_path, ResultsTable(per_image=asked)).test(Baseline(data.task_specs, head_dim=8), data, verbose=False)
    assert (tmp_path / "per_image.csv").exists() == kept
    assert ("per_image" in json.loads((tmp_path / "metrics.json").read_text())["test"]) == kept


@pytest.mark.parametrize(("asked", "kept"), [(None, False), (True, True)])
def test_those_of_many_images_are_only_kept_where_that_is_asked_for(small_rooms, tmp_path, monkeypatch, asked, kept):
    monkeypatch.setattr(results, "MANY_IMAGES", 3)
    data = RoomsDataModule(str(small_rooms), TASKS, batch_size=2)
    evaluator(tmp_path, ResultsTable(per_image=asked)).test(Baseline(data.task_specs, head_dim=8), data, verbose=False)
    assert (tmp_path / "per_image.csv").exists() == kept


def test_what_the_evaluated_network_costs_is_recorded(small_rooms, tmp_path):
    data = RoomsDataModule(str(small_rooms), TASKS, batch_size=2)
    plain = Baseline(data.task_specs, head_dim=8)
    sizes = {"embed_dims": [32, 64], "num_heads": [1, 2], "mlp_ratios": [1.0, 2.0], "depths": [4, 5], "head_dim": 32}
    space = Space(preset="custom", **sizes)
    supernet = AutoTaskFormer(data.task_specs, space, image_size=(128, 160))
    largest = supernet.network.extract(supernet.space.largest())
    for name, model, network in (("plain", plain, plain.network), ("supernet", supernet, largest)):
        evaluator(tmp_path / name, ResultsTable()).test(model, data, verbose=False)
        found = json.loads((tmp_path / name / "metrics.json").read_text())["test"]
        assert found["image_size"] == [128, 160]
        assert found["parameters"] == sum(parameter.numel() for parameter in network.parameters())
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network.eval()(torch.zeros(1, 3, 128, 160))
        assert found["macs"] == counter.get_total_flops() // 2
        assert f"* Parameters: {found['parameters'] / 1e6:.2f} M" in (tmp_path / name / "model_card.md").read_text()


def test_in_training_it_is_replaced_and_validation_leaves_it_out(small_rooms, tmp_path):
    rooms, ids = break_images(small_rooms, tmp_path / "rooms", "train", 2, 7)
    # Of eight images the last four validate. The last is broken, and so is one of those that train.
    data = RoomsDataModule(str(rooms), TASKS, batch_size=2, on_error="skip", holdout=0.5)
    data.setup("fit")
    assert [sample["meta"]["id"] for sample in data.datasets["train"]] == [ids[0], ids[1], ids[3], ids[3]]
    batches = list(data.val_dataloader())
    assert [batch["meta"]["id"] for batch in batches] == [[ids[4], ids[5]], [ids[6]]]
    assert batches[1]["unreadable"] == {1: ids[7]}
    model = Baseline(data.task_specs, head_dim=8)
    evaluator(tmp_path / "run", ResultsTable()).validate(model, data, verbose=False)
    expected = by_hand(model, small_rooms, "train", [4, 5, 6])
    assert model.results["val"]["depth"]["rmse"] == pytest.approx(expected["rmse"], rel=1e-5)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["val"]["unreadable"] == [ids[7]]


def test_the_last_training_images_are_not_replaced_by_those_that_validate(small_rooms, tmp_path):
    rooms, ids = break_images(small_rooms, tmp_path / "rooms", "train", 3)
    data = RoomsDataModule(str(rooms), TASKS, on_error="skip", holdout=0.5)
    data.setup("fit")
    assert [sample["meta"]["id"] for sample in data.datasets["train"]] == [ids[0], ids[1], ids[2], ids[0]]


def test_mixtures_leave_it_out_too(small_rooms, tmp_path):
    rooms, ids = break_images(small_rooms, tmp_path / "rooms", "test", 0, 1)
    parts = [
        RoomsDataModule(str(rooms), ["depth"], on_error="skip"),
        RoomsDataModule(str(small_rooms), ["semseg"]),
    ]
    data = CombinedDataModule(parts, batch_size=2)
    model = Baseline(data.task_specs, head_dim=8)
    evaluator(tmp_path / "run", ResultsTable()).test(model, data, verbose=False)
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())["test"]
    assert found["unreadable"] == ids[:2]
    assert found["facts"]["images"] == 4
    assert found["tasks"]["depth"]["rmse"] == pytest.approx(by_hand(model, small_rooms, "test", [2])["rmse"], rel=1e-5)


def test_without_a_single_image_there_is_no_result(small_rooms, tmp_path):
    rooms, _ = break_images(small_rooms, tmp_path / "rooms", "test", 0, 1, 2)
    data = RoomsDataModule(str(rooms), TASKS, on_error="skip")
    with pytest.raises(DatasetNotFoundError, match="none of the 3 images to evaluate can be read"):
        evaluator(tmp_path / "run", ResultsTable()).test(Baseline(data.task_specs, head_dim=8), data, verbose=False)
    assert not (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.slow  # three processes that import Lightning, about 60 s
def test_a_process_whose_only_image_is_broken_waits_for_nobody(small_rooms, tmp_path):
    rooms, ids = break_images(small_rooms, tmp_path / "rooms", "test", 1)
    command = [sys.executable, "-m", "taskformer", "test", "--model=Baseline", "--data=RoomsDataModule",
               f"--data.root={rooms}", "--data.tasks=[semseg,depth]", "--data.batch_size=1", "--data.on_error=skip",
               "--trainer.accelerator=cpu", "--trainer.strategy=ddp", "--ckpt=initial",
               "--results.per_image=true"]  # fmt: skip
    found = []
    for processes in (1, 2):
        done = subprocess.run(
            [*command, f"--trainer.devices={processes}", f"--name=on{processes}"], cwd=tmp_path, capture_output=True,
            text=True, timeout=200, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        run = tmp_path / "runs" / f"on{processes}"
        found.append((json.loads((run / "metrics.json").read_text())["test"], (run / "per_image.csv").read_text()))
    (one, images), (two, other_images) = found
    assert images == other_images
    assert one["unreadable"] == two["unreadable"] == [ids[1]]
    assert one["facts"]["images"] == two["facts"]["images"] == 2
    for task, scores in one["tasks"].items():
        assert two["tasks"][task] == pytest.approx(scores, rel=1e-9, abs=1e-12, nan_ok=True)


class Watch(Callback):
    """Note what is said before the first step."""

    def on_fit_start(self, trainer, pl_module):
        assert trainer.global_step == 0
        self.reason = why_no_delta_m(trainer, pl_module)


def fitted(rooms, folder, table, **options):
    """Train two steps; returns the model, what was said before, and what was logged."""
    data = RoomsDataModule(str(rooms), TASKS, batch_size=4)
    torch.manual_seed(0)
    model, watch = Baseline(data.task_specs, head_dim=8, embed_dim=16), Watch()
    options = {"max_epochs": 1, "num_sanity_val_steps": 1, "log_every_n_steps": 1, **options}
    trainer = evaluator(folder, table, watch, enable_checkpointing=False, **options)
    trainer.fit(model, data)
    return model, data, watch.reason, {key: float(value) for key, value in trainer.callback_metrics.items()}


def test_before_the_first_step_it_is_known_whether_delta_m_will_be_logged(small_rooms, tmp_path):
    table = ResultsTable(baselines=str(tmp_path / "entries"))
    model, data, reason, logged = fitted(small_rooms, tmp_path / "a", table)
    assert "holds no single-task results" in reason
    assert "val/delta_m" not in logged
    facts = run_facts(model, data, "test", 3)
    path = tmp_path / "entries" / "entry.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"facts": facts, "val_images": 3, "tasks": SINGLE}))
    model, _, reason, logged = fitted(small_rooms, tmp_path / "b", table)
    assert reason is None
    val = model.results["val"]
    gains = [(val["semseg"]["mIoU"] - 0.5) / 0.5, (2.0 - val["depth"]["rmse"]) / 2.0]
    assert logged["val/delta_m"] == pytest.approx(50 * sum(gains), rel=1e-5)
    for options, expected in (
        ({"max_epochs": 2}, r"training.steps \(2 there, 4 here\), training.epochs \(1 there, 2 here\)"),
        (
            {"accumulate_grad_batches": 2},
            r"training.steps \(2 there, 1 here\), training.batch_size \(4 there, 8 here\)",
        ),
        ({"gradient_clip_val": 0.5}, r"training.gradient_clip_val \(0.0 there, 0.5 here\)"),
        ({"limit_val_batches": 1}, "val/delta_m needs all images of the validation split"),
    ):
        _, _, reason, logged = fitted(small_rooms, tmp_path / "c", table, **options)
        assert re.search(expected, reason)
        assert "val/delta_m" not in logged


def test_validations_that_lack_images_are_not_compared(small_rooms, tmp_path):
    table = ResultsTable(baselines=str(tmp_path))
    model, data, *_ = fitted(small_rooms, tmp_path / "a", table)
    entry = {"facts": run_facts(model, data, "test", 3), "val_images": 3, "tasks": SINGLE}
    (tmp_path / "entry.json").write_text(json.dumps(entry))
    rooms, _ = break_images(small_rooms, tmp_path / "rooms", "val", 1)
    data = RoomsDataModule(str(rooms), TASKS, batch_size=4, on_error="skip")
    trainer = evaluator(tmp_path / "b", table, enable_checkpointing=False, max_epochs=1, num_sanity_val_steps=0)
    with pytest.warns(UserWarning, match="no val/delta_m: only 2 validation images could be read"):
        trainer.fit(Baseline(data.task_specs, head_dim=8, embed_dim=16), data)
    assert "val/delta_m" not in trainer.callback_metrics
