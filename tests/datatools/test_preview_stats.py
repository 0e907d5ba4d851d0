"""Pictures of samples, and counts of what labels hold, against numbers counted by hand."""

import json

import numpy as np
import pytest
from PIL import Image

from taskformer import parallel
from taskformer.data import RoomsDataModule, transforms
from taskformer.data.datamodules import data_modules
from taskformer.datatools.miniature import writer
from taskformer.datatools.preview import preview
from taskformer.datatools.stats import Tally, _tally, statistics
from taskformer.errors import ConfigError, CorruptFileError
from taskformer.tasks import build_task, build_tasks
from taskformer.tasks.colors import INVALID_COLOR
from taskformer.tasks.sheets import GAP, HEADER, LINE

COPIES = ["nyud", "pascal_context", "cityscapes", "taskonomy"]


@pytest.fixture(scope="module", params=COPIES)
def data(request, tmp_path_factory):
    root = writer(request.param)(tmp_path_factory.mktemp(request.param) / "data")
    return data_modules()[request.param](root=str(root))


def raw_targets(module, split, name):
    """Every target of a task, as the data set gives them."""
    dataset = module.dataset(split, build_tasks({name: module.task_offers()[name]}), None)
    return [dataset.raw(k)["targets"][name] for k in range(len(dataset)) if name in dataset.raw(k)["targets"]]


# Pictures -----------------------------------------------------------------------------------------------------------


def test_every_sample_has_a_raw_and_an_augmented_row(data, tmp_path):
    path = preview(data, tmp_path / "new" / "sheet.png", count=2, width=40)
    sheet = np.asarray(Image.open(path))
    assert sheet.shape[1] == (40 + GAP) * (1 + len(data.available())) - GAP
    dataset = data.dataset("train", {}, None)
    raw = [dataset.raw(index)["image"].shape for index in (0, len(dataset) - 1)]
    heights = [round(40 * height / width) for height, width, _ in raw]
    if not data.train_transforms:  # the example pipeline keeps the shape, but for rounding
        below = sheet.shape[0] - HEADER - 2 * sum(heights) - 4 * GAP
        assert below > LINE  # legends
        assert min(below % LINE, -below % LINE) <= 2
    assert len(list(path.parent.iterdir())) == 1


def test_a_raw_row_shows_the_files(small_rooms, tmp_path):
    module = RoomsDataModule(root=str(small_rooms), tasks=["semseg"])
    sheet = np.asarray(Image.open(preview(module, tmp_path / "x.png", count=1, width=160, tasks=["semseg", "depth"])))
    dataset = module.dataset("train", build_tasks(module.task_specs), None)
    sample = dataset.raw(0)
    top = HEADER
    colors = dataset.tasks["semseg"].colorize(sample["targets"]["semseg"])
    np.testing.assert_array_equal(sheet[top : top + 128, 162:322], colors)
    np.testing.assert_array_equal(sheet[top + 20 : top + 128, :160], sample["image"][20:])  # the caption is above


def test_an_augmented_row_shows_what_training_gets(small_rooms, tmp_path):
    """Mirroring is the only augmentation here, so that the row is known."""
    steps = [transforms.RandomHorizontalFlip(p=1.0)]
    module = RoomsDataModule(root=str(small_rooms), tasks=["normals"], train_transforms=steps)
    sheet = np.asarray(Image.open(preview(module, tmp_path / "x.png", count=1, width=160, tasks=["normals"])))
    dataset = module.dataset("train", build_tasks(module.task_specs), None)
    raw = dataset.raw(0)
    top = HEADER + 128 + GAP
    np.testing.assert_allclose(sheet[top + 20 : top + 128, :160], raw["image"][20:, ::-1], atol=1)
    flipped = raw["targets"]["normals"][:, ::-1] * [-1, 1, 1]
    colors = dataset.tasks["normals"].colorize(np.moveaxis(flipped, -1, 0))
    np.testing.assert_allclose(sheet[top : top + 128, 162:].astype(int), colors, atol=1)


def test_the_seed_decides_the_augmentations(small_rooms, tmp_path):
    module = RoomsDataModule(root=str(small_rooms), tasks=["semseg"])
    first, again, other = (preview(module, tmp_path / f"{k}.png", seed=seed) for k, seed in enumerate((1, 1, 2)))
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()


def test_a_task_without_a_label_is_dark(tmp_path):
    root = writer("taskonomy")(tmp_path / "data")
    module = data_modules()["taskonomy"](root=str(root))
    sheet = np.asarray(Image.open(preview(module, tmp_path / "x.png", count=1, tasks=["edge_occlusion"])))
    assert (sheet[HEADER : HEADER + 160, 162:] == INVALID_COLOR).all()  # the first view has no such file


def test_no_sample_is_no_preview(small_rooms, tmp_path):
    with pytest.raises(ConfigError, match="count=0"):
        preview(RoomsDataModule(root=str(small_rooms)), tmp_path / "x.png", count=0)


# Numbers ------------------------------------------------------------------------------------------------------------


def test_statistics_agree_with_counting_by_hand(data):
    counted = statistics(data, workers=0)
    record = json.loads(json.dumps(counted.as_dict(), allow_nan=False))
    assert record["images"] == record["opened"] == len(data.dataset("train", {}, None))
    assert list(record["tasks"]) == data.available()
    for name, found in record["tasks"].items():
        task, targets = counted.tasks[name], raw_targets(data, "train", name)
        assert found["maps"] == len(targets)
        if task.geometry == "label" and "classes" in found:
            labels = np.concatenate([target.ravel() for target in targets])
            valid = labels[labels != 255]
            assert found["valid_share"] == pytest.approx(valid.size / labels.size)
            shares = [np.mean(valid == k) for k in range(task.channels)]
            assert [row["share"] for row in found["classes"]] == pytest.approx(shares)
            images = [sum((target == k).any() for target in targets) for k in range(task.channels)]
            assert [row["images"] for row in found["classes"]] == images
            assert [row["name"] for row in found["classes"]] == task.classes
        elif "p50" in found:
            values = np.concatenate([target.ravel() for target in targets]).astype(np.float64)
            values = values[~np.isnan(values)]
            assert found["min"] == pytest.approx(values.min())
            assert found["max"] == pytest.approx(values.max())
            assert found["mean"] == pytest.approx(values.mean())
            for percent in (5, 50, 95):
                exact = np.percentile(values, percent, method="inverted_cdf")
                assert found[f"p{percent}"] == pytest.approx(exact, rel=0.006, abs=2e-6)
        elif name.startswith("class_"):
            assert [row["share"] for row in found["classes"]] == pytest.approx(np.mean(targets, axis=0), abs=1e-6)
            assert sum(row["images"] for row in found["classes"]) == len(targets)
        else:
            assert set(found) == {"maps", "valid_share"}
    assert sum(table.row_count for table in counted.tables()) >= len(record["tasks"])


def test_percentiles_of_any_values():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0, 3, 5000), 10 ** rng.uniform(-9, 9, 5000), np.zeros(100)]).astype(np.float32)
    tally, task = Tally(), build_task("curvature", {"channels": 1})
    for part in np.split(values[:10100], 4):
        tally.add(_tally(task, part.reshape(-1, 5)))
    for percent in range(0, 101, 4):
        exact = np.percentile(values, percent, method="inverted_cdf")
        if 1e-6 < abs(exact) < 1e6:
            assert tally.percentile(percent) == pytest.approx(exact, rel=0.006)


def test_only_a_sample_is_opened(small_rooms):
    counted = statistics(RoomsDataModule(root=str(small_rooms)), sample=2, workers=0, tasks=["depth"])
    assert (counted.images, counted.opened, counted.tallies["depth"].maps) == (8, 2, 2)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # spawned processes import torch again
def test_processes_change_nothing(small_rooms, monkeypatch):
    module = RoomsDataModule(root=str(small_rooms))
    alone = statistics(module, workers=0).as_dict()
    monkeypatch.setattr(parallel, "START_METHOD", "fork")
    monkeypatch.setattr(parallel, "PATIENCE_S", 0.0)
    assert statistics(module, workers=2).as_dict() == alone


def test_a_split_without_labels_has_no_shares(tmp_path):
    root = writer("pascal_context")(tmp_path / "data", counts={"train": 1, "val": 4})
    module = data_modules()["pascal_context"](root=str(root))
    record = statistics(module, "val", sample=1, workers=0, tasks=["human_parts"]).as_dict()["tasks"]["human_parts"]
    assert record["maps"] == 1
    (root / "ImageSets/Context/val.txt").write_text("2008_000004\n")  # things only
    counted = statistics(module, "val", workers=0, tasks=["human_parts"])
    record = counted.as_dict()["tasks"]["human_parts"]
    assert (record["maps"], record["valid_share"]) == (0, None)
    assert {row["share"] for row in record["classes"]} == {0.0}
    assert counted.tables()[0].row_count == 1


def test_a_broken_file_stops_the_counting(tmp_path):
    root = writer("nyud")(tmp_path / "data")
    (root / "depth" / "0004.npy").write_bytes(b"")
    with pytest.raises(CorruptFileError, match=r"0004.npy.*`taskformer data verify` finds all such files"):
        statistics(data_modules()["nyud"](root=str(root)), workers=0)
