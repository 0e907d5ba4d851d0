"""``taskformer evaluate``: a run's files give its numbers again, other people's files are understood."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning import Trainer
from PIL import Image
from scipy.io import savemat

from taskformer.callbacks import Predictions
from taskformer.cli import main
from taskformer.data import RoomsDataModule
from taskformer.data.datamodules.pascal_context import PASCALContextDataModule
from taskformer.data.transforms import Pad
from taskformer.datatools.miniature.pascal_context import write_pascal_context
from taskformer.errors import ConfigError
from taskformer.modules import Baseline
from taskformer.tasks import PROTOCOLS

ROOT = Path(__file__).parents[2]
#: Without edges: to match those of a network that has learned nothing takes long, and 8 bits change all.
TASKS = ["semseg", "depth", "normals", "saliency", "human_parts", "reshading"]


def save_predictions(data, folder):
    """Save the predictions of a fresh network for the test split and return its metrics."""
    torch.manual_seed(0)
    model = Baseline(data.task_specs, head_dim=8, weights="random")
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(default_root_dir=folder, callbacks=[Predictions(save=True)], **options)
    trainer.test(model, data, verbose=False)
    return model.results["test"]


@pytest.fixture(scope="module")
def run(small_rooms, tmp_path_factory):
    """A run's folder with predictions, and what ``test`` measured."""
    folder = tmp_path_factory.mktemp("run")
    results = save_predictions(RoomsDataModule(str(small_rooms), TASKS, batch_size=2), folder)
    config = {"data": {"class_path": "RoomsDataModule", "init_args": {"root": str(small_rooms), "tasks": TASKS}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder, results


def failing(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", *map(str, args)])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    return line


def close(found, expected, quantised):
    """Whether the metrics of files are those of the outputs; those of 8 bits nearly."""
    assert set(found) == set(expected)
    for name, result in expected.items():
        tolerance = {"abs": 0.02} if name in quantised else {"rel": 1e-6, "abs": 1e-9}
        assert found[name] == pytest.approx(result, **tolerance, nan_ok=True), name


def test_the_files_of_a_run_give_its_numbers_again(run, tmp_path, capsys):
    folder, results = run
    main(["evaluate", str(folder), "--json", str(tmp_path / "out.json")])
    found = json.loads((tmp_path / "out.json").read_text())
    assert (found["data"], found["split"], found["images"]) == ("rooms", "test", 3)
    # Normals are made unit vectors once more, which turns them by rounding.
    close(found["protocols"]["standard"], results, quantised={"saliency", "normals"})
    assert found["protocols"]["standard"]["normals"] == pytest.approx(results["normals"], abs=1e-4)
    assert found["protocols"]["standard"]["depth"] == pytest.approx(results["depth"], rel=1e-9)
    text = capsys.readouterr().out
    assert "rooms, test: 3 images" in text
    assert f"{results['semseg']['mIoU'] * 100:.2f}" in text


def test_from_the_command_line(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny = [flag for flag in tiny if not flag.startswith(("--model.", "--trainer.max_epochs"))]
    main(["test", f"--config={ROOT}/configs/model/baseline.yaml", f"--config={ROOT}/configs/data/rooms.yaml", *tiny,
          "--name=x", "--ckpt=initial", "--model.weights=random", "--data.tasks=[semseg,depth]",
          "--predictions.save=true"])  # fmt: skip
    main(["evaluate", "runs/x", "--json=out.json"])
    found = json.loads(Path("out.json").read_text())["protocols"]["standard"]
    close(found, json.loads(Path("runs/x/metrics.json").read_text())["test"]["tasks"], quantised=())


def test_all_protocols_side_by_side(run, tmp_path):
    tasks = ["semseg", "depth", "normals", "saliency"]
    main(["evaluate", str(run[0]), "--protocol=all", f"--tasks=[{','.join(tasks)}]", f"--json={tmp_path / 'out.json'}"])
    found = json.loads((tmp_path / "out.json").read_text())["protocols"]
    assert list(found) == list(PROTOCOLS)
    assert all(list(results) == tasks for results in found.values())
    assert found["adashare"]["normals"]["mean_angle"] != found["standard"]["normals"]["mean_angle"]
    assert found["atrc"]["semseg"]["mIoU"] < found["standard"]["semseg"]["mIoU"]  # absent classes count as 0


def test_padding_is_neither_saved_nor_scored(small_rooms, tmp_path):
    tasks = ["semseg", "depth", "human_parts"]
    data = RoomsDataModule(str(small_rooms), tasks, batch_size=2, eval_transforms=[Pad(140, 175)])
    results = save_predictions(data, tmp_path)
    assert {np.load(path).shape for path in (tmp_path / "predictions" / "depth").iterdir()} == {(128, 160)}
    main(["evaluate", str(tmp_path), "--data=rooms", f"--root={small_rooms}", f"--json={tmp_path / 'out.json'}"])
    close(json.loads((tmp_path / "out.json").read_text())["protocols"]["standard"], results, quantised=())


@pytest.fixture(scope="module")
def pascal(tmp_path_factory):
    """A small PASCAL-Context, and perfect predictions as InvPT and MTI-Net name and write them."""
    root, out = tmp_path_factory.mktemp("pascal"), tmp_path_factory.mktemp("theirs")
    write_pascal_context(root, counts={"train": 1, "val": 4})
    data = PASCALContextDataModule(str(root), eval_transforms=[Pad(100, 100)])
    data.eval_transforms = []
    dataset = data.evaluation_dataset("val")
    for folder in ("semseg", "human_parts", "sal", "normals", "edge"):
        (out / folder).mkdir()
    for index, name in enumerate(dataset.ids):
        targets = dataset[index]["targets"]
        shutil.copy(root / "normals_distill" / f"{name}.png", out / "normals")
        for task, folder in {"semseg": "semseg", "human_parts": "human_parts"}.items():
            labels = targets[task].numpy()
            if (labels != 255).any():  # they write nothing where there is no label
                Image.fromarray(np.where(labels == 255, 0, labels).astype(np.uint8)).save(out / folder / f"{name}.png")
        Image.fromarray((targets["saliency"].numpy() == 1).astype(np.uint8) * 255).save(out / "sal" / f"{name}.png")
        Image.fromarray((targets["edges"][0].numpy() == 1).astype(np.uint8) * 255).save(out / "edge" / f"{name}.png")
    return root, out


def test_perfect_predictions_of_other_programs(pascal, tmp_path):
    root, out = pascal
    assert len(list((out / "human_parts").iterdir())) < 4
    main(["evaluate", str(out), "--data=pascal_context", f"--root={root}", "--split=val",
          f"--json={tmp_path / 'out.json'}"])  # fmt: skip
    found = json.loads((tmp_path / "out.json").read_text())["protocols"]["standard"]
    assert found["semseg"] == {"mIoU": 1, "pixel_accuracy": 1}
    assert found["human_parts"] == {"mIoU": 1}
    assert found["saliency"] == pytest.approx({"maxF": 1, "max_mIoU": 1, "mIoU": 1}, rel=1e-12)
    assert found["normals"]["mean_angle"] == pytest.approx(0, abs=0.01)  # other axes would be far off
    assert found["edges"]["f_tolerant"] == 1


def test_depth_in_a_mat(small_rooms, tmp_path):
    dataset = RoomsDataModule(str(small_rooms), ["depth"]).evaluation_dataset("test")
    (tmp_path / "depth").mkdir()
    for index, name in enumerate(dataset.ids):
        savemat(tmp_path / "depth" / f"{name}.mat", {"depth": dataset[index]["targets"]["depth"][0].numpy() + 0.5})
    main(["evaluate", str(tmp_path), "--data=rooms", f"--root={small_rooms}", f"--json={tmp_path / 'out.json'}"])
    found = json.loads((tmp_path / "out.json").read_text())["protocols"]["standard"]["depth"]
    assert found["rmse"] == pytest.approx(0.5, rel=1e-5)


def test_missing_predictions_are_named(pascal, tmp_path, capsys):
    root, out = pascal
    shutil.copytree(out, tmp_path / "some")
    for path in sorted((tmp_path / "some" / "edge").iterdir())[1:3]:
        path.unlink()
    line = failing(capsys, tmp_path / "some", "--data=pascal_context", f"--root={root}", "--split=val")
    assert line == (
        f"taskformer: {tmp_path / 'some' / 'edge'} lacks the predictions of 2 of 4 images: 2008_000003, 2008_000004"
    )


def test_predictions_of_another_size_are_named(run, tmp_path, capsys):
    folder, _ = run
    shutil.copytree(folder, tmp_path / "run")
    path = sorted((tmp_path / "run" / "predictions" / "depth").iterdir())[0]
    np.save(path, np.ones((10, 12), np.float32))
    line = failing(capsys, tmp_path / "run", "--tasks=[depth]")
    assert f"{path} is 10x12 and the label of its image 128x160 (height x width)" in line


def test_images_that_cannot_be_read_are_left_out_and_counted(small_rooms, tmp_path, capsys):
    data = RoomsDataModule(str(small_rooms), ["depth"])
    dataset = data.evaluation_dataset("test")
    (tmp_path / "depth").mkdir()
    for index, name in enumerate(dataset.ids):
        np.save(tmp_path / "depth" / f"{name}.npy", dataset[index]["targets"]["depth"][0].numpy() + (index + 1) / 2)
    broken = tmp_path / "rooms"
    broken.mkdir()
    for entry in small_rooms.iterdir():
        if entry.name != "image":
            (broken / entry.name).symlink_to(entry)
    shutil.copytree(small_rooms / "image", broken / "image")
    (path,) = (broken / "image").glob(f"{dataset.ids[1]}.*")
    path.write_bytes(b"none")
    config = {"data": {"class_path": "RoomsDataModule", "init_args": {"root": str(broken), "tasks": ["depth"]}}}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(config))
    assert str(path) in failing(capsys, tmp_path, f"--config={tmp_path / 'data.yaml'}")
    config["data"]["init_args"]["on_error"] = "skip"
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(config))
    main(["evaluate", str(tmp_path), f"--config={tmp_path / 'data.yaml'}", f"--json={tmp_path / 'out.json'}"])
    found = json.loads((tmp_path / "out.json").read_text())
    assert (found["images"], found["unreadable"]) == (2, [dataset.ids[1]])
    # Errors of half a metre and of one and a half in as many pixels each.
    assert found["protocols"]["standard"]["depth"]["rmse"] == pytest.approx(1.25**0.5, rel=1e-5)
    assert "2 images, 1 more could not be read" in " ".join(capsys.readouterr().out.split())


def test_files_of_other_images_are_reported(run, tmp_path, capsys):
    folder, results = run
    shutil.copytree(folder / "predictions" / "depth", tmp_path / "depth")
    (first, *_) = sorted((tmp_path / "depth").iterdir())
    shutil.copy(first, tmp_path / "depth" / "another.npy")
    main(["evaluate", str(tmp_path), f"--config={folder / 'config.yaml'}", f"--json={tmp_path / 'out.json'}"])
    assert "has 1 files of no image of this split, e.g. another.npy" in " ".join(capsys.readouterr().err.split())
    found = json.loads((tmp_path / "out.json").read_text())["protocols"]["standard"]["depth"]
    assert found == pytest.approx(results["depth"], rel=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--protocol=atcr"], "unknown protocol 'atcr' (did you mean 'atrc'?)"),
        (["--split=tets"], "unknown split 'tets' (did you mean 'test'?)"),
        (["--tasks=[keypoints2d]"], "keypoints2d"),
        (["--data=room"], "unknown data set 'room' (did you mean 'rooms'?)"),
    ],
)
def test_wrong_names_are_told(run, capsys, arguments, message):
    assert message in failing(capsys, run[0], *arguments)


def test_folders_without_predictions_are_told(run, small_rooms, tmp_path, capsys):
    assert "name the data set with --data" in failing(capsys, tmp_path)
    line = failing(capsys, tmp_path, "--data=rooms", f"--root={small_rooms}")
    assert f"{tmp_path} has no folder of predictions called semseg or depth or" in line
    shutil.copytree(run[0] / "predictions" / "depth", tmp_path / "depth")
    line = failing(capsys, tmp_path, "--data=rooms", f"--root={small_rooms}", "--tasks=[depth,normals]")
    assert "no folder of predictions called normals" in line


def test_nothing_is_saved_unless_asked_for(small_rooms, tmp_path):
    data = RoomsDataModule(str(small_rooms), ["depth"], batch_size=2)
    trainer = Trainer(default_root_dir=tmp_path, callbacks=[Predictions()], logger=False, enable_progress_bar=False,
                      enable_model_summary=False, accelerator="cpu")  # fmt: skip
    trainer.test(Baseline(data.task_specs, head_dim=8, weights="random"), data, verbose=False)
    assert not (tmp_path / "predictions").exists()


def test_mixtures_of_data_sets_are_refused(small_rooms, tmp_path):
    from taskformer.data import CombinedDataModule

    data = CombinedDataModule([RoomsDataModule(str(small_rooms), ["depth"])], batch_size=2)
    with pytest.raises(ConfigError, match="one data set at a time"):
        save_predictions(data, tmp_path)
