"""``fit``, ``validate`` and ``test`` through the real entry point, on a few real rooms."""

import csv
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import taskformer
from taskformer.cli import main
from taskformer.data import RoomsDataModule
from taskformer.tasks.sheets import GAP, HEADER, LINE

ROOT = Path(__file__).parent.parent.parent
MQTRANSFORMER = f"--config={ROOT}/configs/model/mqtransformer.yaml"
BASELINE = f"--config={ROOT}/configs/model/baseline.yaml"
DATA = f"--config={ROOT}/configs/data/rooms.yaml"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny):
    """One trained and tested run, ``runs/first``."""
    folder = tmp_path_factory.mktemp("work")
    before = Path.cwd()
    os.chdir(folder)
    main(["fit", MQTRANSFORMER, DATA, *tiny, "--name=first", "--gallery.every_n_epochs=1"])
    main(["test", "--config=runs/first/config.yaml", "--ckpt_path=runs/first/checkpoints/best.ckpt",
          "--results.constant=true", "--json=table.json"])  # fmt: skip
    yield folder / "runs"
    os.chdir(before)


def test_a_run_folder_holds_everything(runs):
    files = {str(path.relative_to(runs / "first")) for path in (runs / "first").rglob("*") if path.is_file()}
    assert files >= {
        "config.yaml", "environment.json", "metrics.json", "results.md", "results.tex", "model_card.md",
        "checkpoints/best.ckpt", "checkpoints/last.ckpt", "gallery/epoch_001.png", "gallery/test.png",
        "logs/fit/metrics.csv",
    }  # fmt: skip
    assert not [file for file in files if Path(file).name.startswith(".")]  # no temporary file is left
    config = yaml.safe_load((runs / "first" / "config.yaml").read_text())
    assert config["seed_everything"] == 0
    assert config["model"]["init_args"]["embed_dim"] == 16
    environment = json.loads((runs / "first" / "environment.json").read_text())
    assert environment["packages"]["torch"] == version("torch")


def test_a_run_is_built_again_from_its_configuration(runs):
    model, data = taskformer.from_config(runs / "first" / "config.yaml")
    saved = torch.load(runs / "first" / "checkpoints" / "last.ckpt", weights_only=True)
    model.load_state_dict(saved["state_dict"])
    assert data.root == yaml.safe_load((runs / "first" / "config.yaml").read_text())["data"]["init_args"]["root"]


def test_the_loss_of_every_step_is_logged(runs):
    with (runs / "first" / "logs" / "fit" / "metrics.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    steps = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    assert len(steps) == 2
    assert np.isfinite(steps).all()
    assert any(row["val/semseg/mIoU"] for row in rows)


def test_testing_a_run_again_gives_its_numbers(runs, capsys):
    before = json.loads((runs / "first" / "metrics.json").read_text())["test"]
    main(["test", "--config=runs/first/config.yaml", "--ckpt_path=runs/first/checkpoints/best.ckpt"])
    after = json.loads((runs / "first" / "metrics.json").read_text())["test"]
    assert after["tasks"] == before["tasks"]
    assert f"{before['tasks']['depth']['rmse']:.4g}" in capsys.readouterr().out


def test_the_table_is_written_as_json_and_has_the_constant_predictor(runs, small_rooms):
    table = json.loads((runs.parent / "table.json").read_text())["test"]
    assert table["protocol"] == "standard"
    data = RoomsDataModule(str(small_rooms), tasks=["semseg", "depth"])
    train, test = data.evaluation_dataset("train"), data.evaluation_dataset("test")
    mean = torch.cat([train[i]["targets"]["depth"].flatten() for i in range(8)]).nanmean()
    errors = torch.cat([test[i]["targets"]["depth"].flatten() for i in range(3)]) - mean
    assert table["constant"]["depth"]["rmse"] == pytest.approx(errors.square().nanmean().sqrt().item(), rel=1e-5)
    labels = np.concatenate([train[i]["targets"]["semseg"].flatten().numpy() for i in range(8)])
    majority = np.bincount(labels[labels < 255]).argmax()
    seen = np.concatenate([test[i]["targets"]["semseg"].flatten().numpy() for i in range(3)])
    share = (seen == majority).sum() / (seen < 255).sum()
    assert table["constant"]["semseg"]["pixel_accuracy"] == pytest.approx(share, rel=1e-6)


def test_tables_for_papers_show_the_same_numbers(runs):
    record = json.loads((runs / "first" / "metrics.json").read_text())["test"]["tasks"]
    percent = f"{record['semseg']['mIoU'] * 100:.2f}"
    assert f"| semseg | mIoU | {percent} |" in (runs / "first" / "results.md").read_text()
    assert f"semseg & mIoU & {percent} & \\% & higher \\\\" in (runs / "first" / "results.tex").read_text()
    assert percent in (runs / "first" / "model_card.md").read_text()


def test_galleries_show_every_task_of_every_image(runs):
    with Image.open(runs / "first" / "gallery" / "test.png") as picture:
        assert picture.width == (200 + GAP) * 5 - GAP  # the image and four tasks
        legends = picture.height - HEADER - 3 * 2 * (160 + GAP)  # targets and predictions of three images
        assert legends >= 4 * LINE
        assert legends % LINE == 0


def test_a_loaded_run_predicts_photographs_at_their_own_size(runs, small_rooms):
    model = taskformer.load(runs / "first")
    assert type(model).__name__ == "MQTransformer"
    assert model.train_size.tolist() == [128, 160]
    photo = np.random.default_rng(0).integers(0, 256, (150, 210, 3), dtype=np.uint8)
    maps = model.predict_image(photo)
    assert {name: values.shape for name, values in maps.items()} == {
        "semseg": (150, 210), "depth": (1, 150, 210), "normals": (3, 150, 210), "edges": (1, 150, 210)
    }  # fmt: skip
    np.testing.assert_allclose(np.linalg.norm(maps["normals"], axis=0), 1, atol=1e-5)
    file = next((small_rooms / "image").glob("*.jpg"))
    native = model.predict_image(file)["depth"]
    pixels = torch.from_numpy(np.asarray(Image.open(file)).copy()).permute(2, 0, 1) / 255
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    with torch.no_grad():
        expected = model.network(((pixels - mean) / std)[None])["depth"][0].clamp(min=0)
    np.testing.assert_allclose(native, expected, atol=1e-5)


def test_checkpoints_hold_plain_data_only(runs):
    checkpoint = torch.load(runs / "first" / "checkpoints" / "best.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["embed_dim"] == 16


def test_the_same_seed_gives_the_same_run(runs, tiny):
    main(["fit", MQTRANSFORMER, DATA, *tiny, "--name=again"])
    first, again = (torch.load(runs / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
                    for name in ("first", "again"))  # fmt: skip
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_a_used_run_folder_is_not_mixed_with_a_new_run(runs, tiny, capsys):
    with pytest.raises(SystemExit):
        main(["fit", MQTRANSFORMER, DATA, *tiny, "--name=first"])
    assert "run folder 'runs/first' is in use; choose another --name" in capsys.readouterr().err


def test_a_run_continues_from_its_last_checkpoint(runs, tiny):
    main(["fit", MQTRANSFORMER, DATA, *tiny, "--name=longer"])
    flags = [*tiny, "--name=longer", "--trainer.max_epochs=2", "--ckpt_path=runs/longer/checkpoints/last.ckpt"]
    main(["fit", MQTRANSFORMER, DATA, *flags])
    assert torch.load(runs / "longer" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4


def test_a_checkpoint_of_another_model_is_refused(runs, tiny, capsys):
    with pytest.raises(SystemExit):
        main(["test", BASELINE, DATA, *tiny, "--ckpt_path=runs/first/checkpoints/best.ckpt"])
    message = capsys.readouterr().err
    assert "is a checkpoint of taskformer.modules.mqtransformer.MQTransformer" in message
    assert "Baseline" in message


def test_any_subset_of_tasks_trains_with_either_model(runs, tiny):
    for name, config, tasks in (
        ("one", BASELINE, "[depth]"),
        ("others", MQTRANSFORMER, "[saliency,human_parts,reshading]"),
    ):
        main(["fit", config, DATA, *tiny, f"--name={name}", f"--data.tasks={tasks}"])
        assert list(taskformer.load(runs / name).tasks) == tasks.strip("[]").split(",")


def test_runs_without_a_name_get_folders_of_their_own(runs, tiny):
    main(["fit", BASELINE, DATA, *tiny, "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1"])
    assert len([path for path in runs.glob("baseline-rooms-*") if (path / "checkpoints" / "best.ckpt").exists()]) == 1


def test_fast_dev_run_leaves_nothing_behind(runs, tiny):
    main(["fit", MQTRANSFORMER, DATA, *tiny, "--name=dev", "--trainer.fast_dev_run=true"])
    assert not (runs / "dev").exists()


@pytest.mark.slow  # starts a second process, about 40 s
def test_two_processes_train_in_mixed_precision(runs, tiny):
    flags = ["--trainer.strategy=ddp", "--trainer.devices=2", "--trainer.precision=bf16-mixed", "--name=ddp"]
    command = [sys.executable, "-m", "taskformer", "fit", BASELINE, DATA, *tiny, *flags, "--data.batch_size=2"]
    done = subprocess.run(command, cwd=runs.parent, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (runs / "ddp" / "checkpoints" / "best.ckpt").exists()
    assert [path.name for path in runs.iterdir()].count("ddp") == 1
    metrics = json.loads((runs / "ddp" / "metrics.json").read_text())["val"]["tasks"]
    assert np.isfinite(metrics["depth"]["rmse"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--model=MQTransfomer", "--data=RoomsDataModule"],
            "unknown class 'MQTransfomer' (did you mean 'MQTransformer'?)",
        ),
        (["--model=MQTransformer", "--data=RoomsDataModul"], "did you mean 'RoomsDataModule'?"),
        ([MQTRANSFORMER, DATA, "--model.embed_dims=3"], "unknown setting 'embed_dims' (did you mean 'embed_dim'?)"),
        ([MQTRANSFORMER, DATA, "--trainr.max_epochs=3"], "(did you mean 'trainer.max_epochs'?)"),
        ([MQTRANSFORMER, DATA, "--data.tasks=[semsg]"], "'semsg' (did you mean 'semseg'?)"),
        ([MQTRANSFORMER, DATA, "--model.loss_weights={dept: 1}"], "'dept' (did you mean 'depth'?)"),
        ([MQTRANSFORMER, DATA, "--model.embed_dim=wide"], "embed_dim"),
        ([MQTRANSFORMER, DATA, "--data.root=nowhere"], "nowhere/train.json does not exist"),
        ([MQTRANSFORMER], "required: fit.data"),
        (["--config=nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_mistakes_get_one_short_sentence(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        main(["fit", *flags, "--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.logger=false"])
    assert error.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("taskformer: ")
    assert message in said
    assert len(said) < 300


def test_a_wrong_key_in_a_file_is_named_with_the_right_one(tmp_path, capsys):
    for mistake, message in {
        "modle: {class_path: Baseline}": "'model'",
        "trainer: {max_epocs: 1}": "'trainer.max_epochs'",
    }.items():
        (tmp_path / "config.yaml").write_text(f"data: RoomsDataModule\n{mistake}\n")
        with pytest.raises(SystemExit):
            main(["fit", f"--config={tmp_path}/config.yaml"])
        assert f"did you mean {message}" in capsys.readouterr().err
