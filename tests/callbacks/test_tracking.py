"""What wandb keeps of a run, read back from its files; every number against the run folder or the data set."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import wandb
import yaml
from jsonargparse import Namespace
from lightning.pytorch.loggers import WandbLogger
from PIL import Image

import taskformer
from taskformer.callbacks import checkpoints
from taskformer.callbacks.trackers import Names, WandbTracker, recall, settle, trackers
from taskformer.cli import main
from taskformer.data import RoomsDataModule
from taskformer.evaluation import read_offline_runs
from taskformer.evaluation.benchmark.cost import count
from taskformer.evaluation.gallery import DrawnSample, Panel
from taskformer.tasks import build_tasks

ROOT = Path(__file__).parents[2]
CONFIGS = [f"--config={ROOT}/configs/{name}.yaml" for name in ("model/mqtransformer", "data/rooms", "logger/wandb")]
ENVIRONMENT = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_CONSOLE": "off"}
NAMES = Names("demo", "mqtransformer-rooms", "fit", ["rooms"])


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A folder to work in, in which wandb also keeps what it wants to upload."""
    folder = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        for name, value in {**ENVIRONMENT, "WANDB_DATA_DIR": str(folder / "staging")}.items():
            patch.setenv(name, value)
        patch.chdir(folder)
        wandb.teardown()  # it reads variables once in a process
        yield folder
        wandb.teardown()


@pytest.fixture
def variables(environment, monkeypatch):
    """Set variables before wandb reads them."""

    def set_variables(**values):
        wandb.teardown()
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    yield set_variables
    wandb.teardown()


@pytest.fixture(scope="module")
def flags(tiny):
    return [*CONFIGS, *tiny, "--model.backbone=lcnet_050", "--model.weights=random", "--data.tasks=[semseg,depth]",
            "--gallery.every_n_epochs=1", "--gallery.images=2"]  # fmt: skip


@pytest.fixture(scope="module")
def tracked(environment, flags):
    """A run that was trained, went on and was tested, each by a command of its own."""
    options = ["--trainer.logger.notes=a first try", "--tracking.checkpoint=true", "--tracking.images=2"]
    main(["fit", *flags, *options, "--name=demo", "--trainer.max_epochs=2"])
    main(["fit", "--resume=runs/demo", "--trainer.max_epochs=3"])
    main(["test", "runs/demo", "--results.per_image=true", "--ckpt=last"])
    main(["validate", "runs/demo", "--results.protocol=adashare"])  # other numbers, which are not the training's best
    return kept("runs/demo")


def kept(folder):
    """The one run of a folder, when wandb has written the ends of its files."""
    wandb.teardown()
    (run,) = read_offline_runs(folder)
    return run


def drawn(values, **scores):
    """A drawn sample of a label map (H, W) without its prediction being right."""
    values = np.asarray(values)
    task = build_tasks({"semseg": {"classes": ["wall", "floor"]}})["semseg"]
    picture = np.zeros((*values.shape, 3), np.uint8)
    panel = Panel(task, values, np.zeros_like(values), task.colorize(values), picture, scores)
    return DrawnSample("a", picture, {"semseg": panel})


def rows_of(path):
    with Path(path).open(newline="") as stream:
        return list(csv.DictReader(stream))


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_one_experiment_is_one_run(tracked):
    assert len(tracked.files) == 4
    assert recall(Path("runs/demo")) == {"wandb": {"id": tracked.id, "project": "taskformer"}}
    assert (tracked.name, tracked.group, tracked.job_type) == ("demo", "mqtransformer-rooms", "fit")
    assert tracked.tags == ["mqtransformer", "rooms", "lcnet_050"]
    assert tracked.notes == "a first try"
    assert [row["_step"] for row in tracked.history] == list(range(len(tracked.history)))
    losses = [(row["trainer/global_step"], row["epoch"]) for row in tracked.history if "val/loss" in row]
    assert losses[:3] == [(1, 0), (3, 1), (5, 2)]
    (tested,) = [row for row in tracked.history if "test/loss" in row]
    assert (tested["trainer/global_step"], tested["epoch"]) == (6, 2)


def test_the_configuration_is_there_once_and_by_the_command_lines_names(tracked):
    config = yaml.safe_load(Path("runs/demo/config.yaml").read_text())
    settings = {key: value for key, value in tracked.config.items() if key not in ("git", "parameters", "macs")}
    for key, value in settings.items():
        place = config
        for name in key.split("."):
            place = place[name]
        assert place == value, key
    assert settings["model.init_args.embed_dim"] == 16
    assert settings["trainer.max_epochs"] == 3
    assert len(settings) > 100
    assert not any(isinstance(value, dict) and value for value in settings.values())
    model = taskformer.load("runs/demo")
    assert tracked.config["parameters"] == sum(values.numel() for values in model.parameters())
    image = RoomsDataModule(root=config["data"]["init_args"]["root"]).evaluation_dataset("test")[0]["image"]
    assert tracked.config["macs"] == count(model.network, image[None])["total"].macs
    assert tracked.config["git"] == json.loads(Path("runs/demo/environment.json").read_text())["git_revision"]


def test_the_best_value_sums_a_run_up(tracked):
    rows = rows_of("runs/demo/logs/fit/metrics.csv")
    senses = json.loads(Path("runs/demo/metrics.json").read_text())["val"]["better"]
    keys = {f"val/{task}/{name}": sense for task, metrics in senses.items() for name, sense in metrics.items() if sense}
    keys |= {"val/loss": "lower", "val/loss/depth": "lower"}
    for key, sense in keys.items():
        name, choose = ("max", max) if sense == "higher" else ("min", min)
        assert tracked.summaries[key] == [name]
        *values, _ = tracked.values(key)  # the last is of the validation alone
        assert len(values) == 3
        assert tracked.summary[key] == {name: pytest.approx(choose(values))}, key
        assert values == pytest.approx([float(row[key]) for row in rows if row[key]], rel=1e-5)
    assert tracked.summaries["val/delta_m"] == ["max"]


def test_the_guide_lists_every_key(tracked):
    guide = (ROOT / "docs" / "tracking.md").read_text().splitlines()
    firsts = [line.split("|")[1] for line in guide if line.startswith("| ")]
    listed = [pattern for cell in firsts for pattern in re.findall("`(.+?)`", cell)]
    words = {"TASK": "[a-z]+", "METRIC": "[A-Za-z0-9_.]+", "SCALE": "[0-9.e-]+", "OBJECTIVE": ".+", "\\.\\.\\.": ".+"}
    known = [re.escape(pattern) for pattern in listed]
    for word, expression in words.items():
        known = [pattern.replace(word, expression) for pattern in known]
    keys = {key for row in tracked.history for key in row if not key.startswith("_")}
    assert {key for key in keys if not any(re.fullmatch(pattern, key) for pattern in known)} == set()
    assert {"gallery", "test/images", "val/loss/depth", "lr", "train/images_per_second"} <= keys


def test_rates_and_throughput_are_logged(tracked):
    assert len(tracked.values("lr")) == 6
    assert len(tracked.values("train/images_per_second")) == 3
    assert all(value > 0 for value in tracked.values("train/images_per_second"))


def test_the_gallery_has_a_slider_with_masks_and_scores(tracked, small_rooms):
    entries = tracked.values("gallery")
    assert len(entries) == 3  # one key, an entry for each epoch
    data = RoomsDataModule(root=str(small_rooms), tasks=["semseg", "depth"])
    images = data.evaluation_dataset("val")
    samples = [images[0], images[2]]
    names = dict(enumerate(data.task_specs["semseg"]["classes"])) | {255: "unlabelled"}
    assert tracked.labels == {"semseg prediction": names, "semseg target": names}
    for entry in entries:
        assert entry["count"] == 6  # of each image itself and depth twice
        overlaid = [masks for masks in entry["all_masks"] if masks]
        for masks, sample in zip(overlaid, samples, strict=True):
            target = pixels(tracked.file(masks["semseg target"]["path"]))
            np.testing.assert_array_equal(target, sample["targets"]["semseg"])
            assert pixels(tracked.file(masks["semseg prediction"]["path"])).shape == (128, 160)
        for path in entry["filenames"]:
            assert pixels(tracked.file(path)).shape == (128, 160, 3)
        first, depth, target = entry["captions"][:3]
        name = samples[0]["meta"]["id"]
        assert first.startswith(f"{name}: semseg mIoU ")
        assert depth.startswith(f"{name}: depth, rmse ")
        assert depth.endswith(" m")
        assert target == f"{name}: depth, target"


def test_a_test_leaves_a_table_of_every_image(tracked, small_rooms):
    rows = tracked.table("test/images")
    assert [row["id"] for row in rows] == [each["id"] for each in json.loads((small_rooms / "test.json").read_text())]
    for line in rows_of("runs/demo/per_image.csv"):
        (row,) = [row for row in rows if row["id"] == line["id"]]
        expected = float(line["value"])
        value = row[f"{line['task']}/{line['metric']}"]
        assert np.isnan(expected) if value is None else value == pytest.approx(expected)
    for row in rows[:2]:
        for column in ("image", "semseg: prediction", "semseg: target", "depth: prediction", "depth: target"):
            assert pixels(row[column]).shape == (128, 160, 3)
    assert rows[2]["image"] is None


def test_a_test_leaves_a_table_of_classes_and_one_of_results(tracked):
    record = json.loads(Path("runs/demo/metrics.json").read_text())["test"]
    classes = {row["class"]: row["IoU, %"] for row in tracked.table("test/classes")}
    assert classes.keys() == record["per_class"]["semseg"].keys()
    for name, value in record["per_class"]["semseg"].items():
        assert classes[name] == (None if value is None else pytest.approx(100 * value))
    results = {(row["task"], row["metric"]): row for row in tracked.table("test/results")}
    assert len(results) == sum(map(len, record["tasks"].values()))
    assert results["semseg", "mIoU"]["value"] == pytest.approx(100 * record["tasks"]["semseg"]["mIoU"])
    assert results["semseg", "mIoU"]["unit"] == "%"
    assert results["depth", "rmse"]["value"] == pytest.approx(record["tasks"]["depth"]["rmse"])
    assert (results["depth", "rmse"]["unit"], results["depth", "rmse"]["better"]) == ("m", "lower")


def test_the_best_checkpoint_is_an_artifact_by_option(tracked):
    assert tracked.artifacts["demo-best"] == "model"
    assert tracked.staged["best.ckpt"].read_bytes() == Path("runs/demo/checkpoints/best.ckpt").read_bytes()


def test_another_run_may_begin_with_a_runs_configuration(tracked, environment):
    main(["fit", "--config=runs/demo/config.yaml", "--name=other", "--trainer.max_epochs=1",
          "--tracking.checkpoint=false"])  # fmt: skip
    other = kept("runs/other")
    assert other.id != tracked.id
    assert other.name == "other"
    assert "demo-best" not in other.artifacts
    assert {run.id for run in read_offline_runs("runs")} == {other.id, tracked.id}
    assert not (environment / "wandb").exists()


def test_a_disabled_run_leaves_nothing(variables, flags):
    variables(WANDB_MODE="disabled")
    main(["fit", *flags, "--name=disabled"])
    assert not Path("runs/disabled/wandb").exists()
    assert not Path("runs/disabled/tracking.json").exists()


def test_a_run_that_fails_is_closed_as_one(environment, flags, monkeypatch):
    def fail(*args):
        raise RuntimeError

    closed, finish = [], WandbTracker.finish

    def noted(self, failed=False):
        closed.append(failed)
        finish(self, failed)

    monkeypatch.setattr(checkpoints.Checkpoints, "on_train_epoch_end", fail)
    monkeypatch.setattr(WandbTracker, "finish", noted)
    with pytest.raises(RuntimeError):
        main(["fit", *flags, "--name=failed"])
    assert closed == [True]


@pytest.mark.slow  # starts two processes
def test_two_simultaneous_runs_share_no_file(environment, flags):
    processes = [
        subprocess.Popen([sys.executable, "-m", "taskformer", "fit", *flags, f"--name={name}"], text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for name in ("left", "right")
    ]  # fmt: skip
    for process in processes:
        said, _ = process.communicate(timeout=200)
        assert process.returncode == 0, said[-2000:]
    left, right = kept("runs/left"), kept("runs/right")
    assert left.id != right.id
    assert (left.name, right.name) == ("left", "right")
    assert not (environment / "wandb").exists()


def settled(folder, **arguments):
    """What a logger's settings become."""
    logger = Namespace(class_path="lightning.pytorch.loggers.WandbLogger", init_args=Namespace(**arguments))
    settle([logger], folder, NAMES)
    return logger.init_args


def test_what_is_open_follows_from_the_run_and_what_the_user_says_stays(environment, tmp_path):
    found = settled(tmp_path, save_dir=".", group="mine", name=None)
    assert found.as_dict() == {
        "save_dir": str(tmp_path), "group": "mine", "name": "demo", "resume": "allow", "project": "taskformer",
        "tags": ["rooms"], "job_type": "fit",
    }  # fmt: skip
    assert settled(tmp_path, save_dir="elsewhere").save_dir == "elsewhere"


def test_a_known_run_keeps_its_id_and_its_first_job(environment, tmp_path):
    (tmp_path / "tracking.json").write_text('{"wandb": {"id": "abc", "project": "other"}}')
    found = settled(tmp_path)
    assert (found.id, found.project) == ("abc", "other")
    assert "job_type" not in found
    (tmp_path / "tracking.json").write_text("{")
    assert "id" not in settled(tmp_path)


def test_the_environment_of_an_agent_wins(variables, tmp_path):
    (tmp_path / "tracking.json").write_text('{"wandb": {"id": "abc", "project": "other"}}')
    variables(WANDB_RUN_ID="of_agent", WANDB_PROJECT="of_agent", WANDB_RUN_GROUP="of_agent")
    found = settled(tmp_path, save_dir=".")
    assert not {"id", "project", "group"} & set(found.as_dict())
    (tracker,) = trackers([WandbLogger(**found)])
    assert tracker.identity == {"id": "of_agent", "project": "of_agent"}
    tracker.finish()
    run = kept(tmp_path)
    assert (run.id, run.group, run.name) == ("of_agent", "of_agent", "demo")


def test_in_a_sweep_the_best_value_is_a_number(variables, tmp_path):
    variables(WANDB_SWEEP_ID="sweep")
    (tracker,) = trackers([WandbLogger(save_dir=tmp_path)])
    senses = {"val/delta_m": "higher"}
    tracker.define(senses)
    for step, (value, best) in enumerate([(1.0, 1.0), (3.0, 3.0), (2.0, 3.0)]):
        tracker.values({"val/delta_m": value}, step)
        tracker.best({"val/delta_m": best}, senses)
    tracker.finish()
    run = kept(tmp_path)
    assert run.values("val/delta_m") == [1.0, 3.0, 2.0]
    assert run.summary["val/delta_m"] == 3.0


def test_best_values_of_an_earlier_process_outlive_worse_ones(environment, tmp_path):
    (tracker,) = trackers([WandbLogger(save_dir=tmp_path)])
    senses = {"val/loss": "lower"}
    tracker.define(senses)
    tracker.values({"val/loss": 2.0}, 7)
    tracker.best({"val/loss": 1.0}, senses)  # of before
    tracker.finish()
    run = kept(tmp_path)
    assert run.summary["val/loss"] == {"min": 1.0}


def test_a_closed_run_is_opened_again_by_its_logger(environment, tmp_path):
    logger = WandbLogger(save_dir=tmp_path)
    (tracker,) = trackers([logger])
    tracker.values({"x": 1.0}, 0)
    tracker.finish()
    tracker.values({"x": 2.0}, 1)
    tracker.finish()
    run = kept(tmp_path)
    assert run.values("x") == [1.0, 2.0]
    assert len(run.files) == 2


def test_pictures_of_a_gallery_have_one_size_and_unlabelled_pixels_stay(environment, tmp_path):
    (tracker,) = trackers([WandbLogger(save_dir=tmp_path)])
    large, small = np.full((600, 1200), 1), np.array([[0, 1], [255, 0], [1, 1]])
    tracker.gallery("gallery", [drawn(large), drawn(small, mIoU=0.5)], 0)
    tracker.finish()
    run = kept(tmp_path)
    (entry,) = run.values("gallery")
    assert entry["captions"] == ["a", "a: semseg mIoU 50.00 %"]
    first, second = (pixels(run.file(masks["semseg target"]["path"])) for masks in entry["all_masks"])
    assert first.shape == second.shape == (256, 512)
    assert set(np.unique(first)) == {1}
    np.testing.assert_array_equal(second[:3, :2], small)
    assert (second[3:] == 255).all()
    assert {pixels(run.file(path)).shape for path in entry["filenames"]} == {(256, 512, 3)}
