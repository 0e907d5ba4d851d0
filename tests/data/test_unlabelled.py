"""Photographs without labels as a part of a mixture, and what a teacher has said of images on the disk."""

import numpy as np
import pytest
import torch
from miniature_rooms import write_rooms
from PIL import Image

from taskformer.cli import main
from taskformer.data import CombinedDataModule, RoomsDataModule, UnlabelledFolder
from taskformer.data.datasets import Unlabelled
from taskformer.data.images import write_npy
from taskformer.data.predictions import SavedPredictions, saved, write_prediction
from taskformer.data.transforms import RandomHorizontalFlip, RandomRotate, RandomScale, Resize
from taskformer.errors import ConfigError, CorruptFileError, DatasetNotFoundError
from taskformer.tasks import build_task, build_tasks


def photograph(path, size=(8, 10), level=100, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), level, np.uint8)).save(path, **options)


@pytest.fixture
def photographs(tmp_path):
    root = tmp_path / "photographs"
    for number, name in enumerate(("b.PNG", "a/x.jpg", "a/y.webp")):
        photograph(root / name, level=20 * number)
    for hidden in (".c.jpg", ".trash/d.jpg", "notes.txt"):
        (root / hidden).parent.mkdir(exist_ok=True)
        (root / hidden).write_bytes(b"")
    return root


@pytest.fixture
def rooms(tmp_path):
    return write_rooms(tmp_path / "rooms", images={"train": 4, "val": 3, "test": 2})


def test_photographs_of_all_folders_are_found_and_hidden_ones_are_not(photographs):
    found = Unlabelled(photographs, "train", {})
    assert found.ids == ["a/x.jpg", "a/y.webp", "b.PNG"]
    sample = found[2]
    assert sample["image"].shape == (8, 10, 3)
    assert sample["targets"] == {}


def test_photographs_are_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # lying on its side
    photograph(tmp_path / "a.jpg", size=(8, 10), exif=exif)
    assert Unlabelled(tmp_path, "train", {})[0]["image"].shape == (10, 8, 3)


def test_a_folder_without_photographs_is_refused(tmp_path):
    with pytest.raises(DatasetNotFoundError, match=r"no photograph in .*expected files of \.jpg"):
        Unlabelled(tmp_path, "train", {})


def test_a_broken_photograph_is_replaced(photographs, caplog):
    (photographs / "a/x.jpg").write_bytes(b"nothing")
    data = UnlabelledFolder(str(photographs), on_error="skip")
    data.setup("fit")
    images = [data.datasets["train"][index]["image"] for index in range(3)]
    assert torch.equal(images[0], images[1])
    assert "skipped image a/x.jpg" in caplog.text


def test_a_mixture_trains_on_photographs_and_evaluates_without_them(rooms, photographs):
    parts = [UnlabelledFolder(str(photographs)), RoomsDataModule(str(rooms), ["depth", "semseg"])]
    data = CombinedDataModule(parts, repeat=[2, 1], batch_size=9, holdout=0.25)
    assert list(data.task_specs) == ["depth", "semseg"]
    data.setup("fit")
    (batch,) = data.train_dataloader()
    assert sorted(batch["meta"]["part"]) == ["rooms"] * 3 + ["unlabelled"] * 6  # one room of four is held out
    for part, depth, semseg in zip(batch["meta"]["part"], *batch["targets"].values(), strict=True):
        assert depth.isfinite().any() == (semseg != 255).any() == (part == "rooms")
    assert [batch["meta"]["part"] for batch in data.val_dataloader()] == [["rooms"]]
    data.setup("test")
    assert [batch["meta"]["part"] for batch in data.test_dataloader()] == [["rooms"] * 2]
    assert len(data.evaluation_dataset("val")) == 3


def test_photographs_can_be_cached(rooms, photographs, tmp_path):
    data = CombinedDataModule([RoomsDataModule(str(rooms), ["depth"]), UnlabelledFolder(str(photographs))],
                              cache_dir=str(tmp_path / "cache"))  # fmt: skip
    data.build_caches()
    assert sorted(path.name[:14] for path in (tmp_path / "cache").iterdir()) == [
        "Rooms-train-" + next((tmp_path / "cache").glob("Rooms-train*")).name[12:14],
        "Rooms-val-" + next((tmp_path / "cache").glob("Rooms-val*")).name[10:14],
        "Unlabelled-tra",
    ]


def test_photographs_alone_are_refused_in_a_sentence(photographs, capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--model", "Baseline", "--data", "UnlabelledFolder", "--data.root", str(photographs)])
    error = capsys.readouterr().err
    assert "has no labels and so no tasks; make it a part of a CombinedDataModule" in error
    assert "Traceback" not in error


#: Every kind of task, with what a network might say of two pixels.
KINDS = {
    "semseg": ({"classes": ["a", "b", "c"]}, [[2.0, 0.0], [1.0, 0.5], [-1.0, 3.0]]),
    "saliency": ({}, [[0.0, 1.0], [2.0, 0.5]]),
    "depth": ({}, [[1.5, 3.25]]),
    "inverse_depth": ({}, [[0.25, 0.5]]),
    "normals": ({}, [[0.0, -3.0], [0.0, 0.0], [-2.0, -4.0]]),
    "edges": ({}, [[-3.0, 1.25]]),
    "curvature": ({}, [[0.25, -0.5], [0.125, 1.0]]),
    "class_scene": ({"classes": ["in", "out", "else"]}, [0.5, -0.25, 2.0]),
    "vanishing_point": ({"channels": 3}, [0.5, -0.25, 2.0]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_test_and_of_predict_are_the_same_pseudo_labels(kind, tmp_path):
    spec, values = KINDS[kind]
    task, output = build_task(kind, spec), torch.tensor(values)
    output = output.repeat(1, 2).unsqueeze(1) if output.ndim == 2 else output  # (channels, 1, 4)
    write_prediction(tmp_path / "test", task, "a b/1", output)
    decoded = task.decode(output.unsqueeze(0))[0].numpy()
    write_npy(tmp_path / "predict" / "raw" / kind / "a b" / "1.npy", decoded)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "predict" / "picture.png")
    expected = task.pseudo_label(output.unsqueeze(0))[0]
    for folder in ("test", "predict"):
        found = SavedPredictions(tmp_path / folder, {kind: task}, ["other", "a b/1"])
        label = found.targets("a b/1", (1, 4))[saved(kind)]
        assert found.targets("other", (1, 4)) == {}
        assert task.misfit(label) is None, (label.shape, label.dtype)
        moved = torch.from_numpy(np.asarray(label)).reshape(1, 4, -1).movedim(-1, 0) if label.ndim > 1 else label
        tolerance = 3e-3 if kind == "edges" else 1e-6  # of 8 bits
        torch.testing.assert_close(torch.as_tensor(moved).float().reshape(expected.shape), expected.float(),
                                   atol=tolerance, rtol=0)  # fmt: skip


@pytest.mark.parametrize("size", [None, (6, 5)])
def test_what_was_saved_moves_with_the_image_as_labels_do(rooms, tmp_path, size):
    tasks = ["semseg", "depth", "normals"]
    plain = RoomsDataModule(str(rooms), tasks)
    plain.setup("fit")
    built = build_tasks(plain.task_specs)
    for index, name in enumerate(plain.datasets["train"].ids[:3]):
        raw = plain.datasets["train"].raw(index)["targets"]
        raw["semseg"] = np.where(raw["semseg"] == 255, 0, raw["semseg"])
        for task in tasks:
            array = raw[task] if raw[task].ndim == 2 else np.moveaxis(raw[task], -1, 0)
            write_npy(tmp_path / "out" / "raw" / task / f"{name}.npy", array)
    data = RoomsDataModule(
        str(rooms), tasks, predictions=str(tmp_path / "out"), size=size, batch_size=1,
        train_transforms=[RandomScale(0.7, 1.5), RandomRotate(20.0), RandomHorizontalFlip()],
    )  # fmt: skip
    data.setup("fit")
    seen = 0
    for _ in range(3):
        for batch in data.train_dataloader():
            targets = batch["targets"]
            known = {task: targets[saved(task)] for task in tasks}
            if batch["meta"]["id"] == [plain.datasets["train"].ids[3]]:  # which has no file
                assert (known["semseg"] == 255).all()
                assert known["depth"].isnan().all()
                continue
            seen += 1
            for task in tasks:
                label, other = targets[task], known[task]
                valid = (label != 255) & ~label.isnan()
                assert valid.any()
                torch.testing.assert_close(other[valid], label[valid].to(other.dtype), atol=1e-5, rtol=0)
    assert seen == 9
    assert set(data.datasets["val"][0]["targets"]) == set(tasks)
    assert set(build_tasks(data.task_specs)) == set(built)


def test_predictions_of_photographs_in_a_mixture_follow_its_names(rooms, photographs, tmp_path):
    depth = build_task("depth", {})
    for name in ("a/x", "b"):
        write_npy(tmp_path / "out" / "raw" / "indoor" / f"{name}.npy", np.full((1, 8, 10), 2.5, np.float32))
    write_prediction(tmp_path / "own", depth, "train_0", torch.full((1, 8, 10), 1.5))
    parts = [
        RoomsDataModule(str(rooms), ["depth"], predictions=str(tmp_path / "own")),
        UnlabelledFolder(str(photographs), predictions=str(tmp_path / "out"), train_transforms=[Resize(8, 10)]),
    ]
    data = CombinedDataModule(parts, rename=[{"depth": "indoor"}, {}], batch_size=7)
    data.setup("fit")
    (batch,) = data.train_dataloader()
    said = dict(zip(batch["meta"]["id"], batch["targets"][saved("indoor")].nanmean((1, 2, 3)).tolist(), strict=True))
    assert {name: value for name, value in said.items() if value == value} == {
        "a/x.jpg": 2.5, "b.PNG": 2.5, "train_0": 1.5,
    }  # fmt: skip
    assert saved("indoor") not in data.datasets["val"][0]["targets"]


def test_predictions_that_are_not_there_or_do_not_fit_are_refused(rooms, tmp_path):
    data = RoomsDataModule(str(rooms), ["depth"], predictions=str(tmp_path / "none"))
    with pytest.raises(DatasetNotFoundError, match=r"no prediction of depth for any of the 4 images.*depth/train_0"):
        data.setup("fit")
    write_npy(tmp_path / "none" / "depth" / "train_0.npy", np.ones((3, 3), np.float32))
    data.setup("fit")
    with pytest.raises(CorruptFileError, match=r"train_0.npy is 3x3 and its image 8x10"):
        data.datasets["train"][0]
    write_npy(tmp_path / "none" / "depth" / "train_0.npy", np.full((8, 10), 2500, np.uint16))
    with pytest.raises(CorruptFileError, match=r"floating-point numbers, got uint16"):
        data.datasets["train"][0]
    segments = build_task("segments", {"type": "embedding", "channels": 4})
    write_npy(tmp_path / "none" / "segments" / "train_0.npy", np.ones((8, 10, 4), np.float32))
    with pytest.raises(ConfigError, match=r"predictions of 'segments' cannot stand for labels"):
        SavedPredictions(tmp_path / "none", {"segments": segments}, ["train_0"])
