import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from miniature_rooms import save, write_rooms
from torch.utils.data import DataLoader

from taskformer.data.datamodules.base import collate
from taskformer.data.datamodules.rooms import RoomsDataModule
from taskformer.data.datasets import MultiTaskDataset, Rooms
from taskformer.data.transforms import TaskCompose
from taskformer.datatools.verify import verify
from taskformer.errors import ConfigError, CorruptFileError, DatasetNotFoundError, InvalidTargetError
from taskformer.tasks import build_tasks

TASKS = build_tasks(RoomsDataModule.offers)
REAL = Path(__file__).parents[2] / "data" / "rooms"


@pytest.fixture
def root(tmp_path):
    return write_rooms(tmp_path / "rooms")


class Unlabelled(MultiTaskDataset):
    """Images of which every second one has depth and none has anything else."""

    def _ids(self):
        return ["a", "b"]

    def files(self, index):
        path = self.root / "x"
        return {"image": path, "depth": path} if index else {"image": path}

    def decode(self, key, files):
        if key == "image":
            return np.zeros((4, 5, 3), np.uint8)
        return np.ones((4, 5), np.float32) if key in files else None


@pytest.fixture
def unlabelled(tmp_path):
    (tmp_path / "x").write_bytes(b"")
    return tmp_path


def test_tasks_without_a_label_are_all_invalid(unlabelled):
    first, second = Unlabelled(unlabelled, "train", TASKS, TaskCompose([], TASKS))
    assert first["targets"].keys() == second["targets"].keys() == TASKS.keys()
    assert first["targets"]["depth"].isnan().all()
    assert (second["targets"]["depth"] == 1).all()
    assert (second["targets"]["semseg"] == 255).all()
    assert second["targets"]["normals"].shape == (3, 4, 5)


def test_without_a_transform_samples_stay_numpy(unlabelled):
    sample = Unlabelled(unlabelled, "train", TASKS)[0]
    assert sample["targets"] == {}
    assert sample["image"].dtype == np.uint8


def test_rooms_are_decoded(root):
    dataset = Rooms(root, "train", TASKS)
    assert len(dataset) == 5
    sample = dataset[1]
    targets = sample["targets"]
    assert sample["image"].shape == (8, 10, 3)
    assert sample["meta"]["id"] == "train_1"
    assert sample["meta"]["size"] == (8, 10)
    assert targets["semseg"][0, 0] == 255
    assert np.isnan(targets["depth"][0, 0])
    assert np.isnan(targets["normals"][0, 0]).all()
    assert 0.5 < np.nanmin(targets["depth"]) < np.nanmax(targets["depth"]) < 13.2
    np.testing.assert_allclose(np.linalg.norm(targets["normals"][1:], axis=-1), 1, atol=1e-6)
    assert set(np.unique(targets["edges"])) == {0, 1}
    assert set(np.unique(targets["saliency"])) == {0, 1}
    assert targets["human_parts"].max() == 4
    assert 0.5 < targets["reshading"].max() <= 1
    assert {name: target.dtype.kind for name, target in targets.items()} == {
        name: "u" if task.geometry == "label" else "f" for name, task in TASKS.items()
    }


def test_a_missing_folder_is_explained(tmp_path):
    with pytest.raises(DatasetNotFoundError, match=r"Rooms: .*train.json does not exist.*data.init_args.root"):
        Rooms(tmp_path / "nowhere", "train", TASKS)


def test_a_missing_map_is_explained(root):
    (root / "depth" / "val_0.png").unlink()
    with pytest.raises(DatasetNotFoundError, match=r"depth/val_0\.png .*cannot be read \(No such file"):
        Rooms(root, "val", TASKS)[0]


def break_file(root, name="val_1"):
    path = root / "depth" / f"{name}.png"
    path.write_bytes(path.read_bytes()[:-20])
    return path


def test_a_broken_map_stops_with_its_name(root):
    path = break_file(root)
    dataset = Rooms(root, "val", TASKS)
    assert dataset[0]["meta"]["id"] == "val_0"
    with pytest.raises(CorruptFileError, match=rf"{path} .* is truncated or not a picture"):
        dataset[1]


@pytest.fixture
def log(tmp_path):
    """A log file that loader processes write to as well."""
    handler = logging.FileHandler(tmp_path / "log")
    logging.getLogger("taskformer").addHandler(handler)
    yield tmp_path / "log"
    logging.getLogger("taskformer").removeHandler(handler)
    handler.close()


@pytest.mark.parametrize(
    ("substitutes", "expected"),
    [(range(3), ["val_0", "val_2", "val_2"]), (range(2), ["val_0", "val_0", "val_2"]), (range(0), ["val_0", "val_2"])],
)
def test_a_broken_map_is_skipped_the_same_way_everywhere_and_logged_once(root, log, substitutes, expected):
    path = break_file(root)
    dataset = Rooms(root, "val", TASKS, TaskCompose([], TASKS), on_error="skip")
    dataset.substitutes = substitutes
    epochs = [
        [name for batch in DataLoader(dataset, num_workers=workers, collate_fn=collate) for name in batch["meta"]["id"]]
        for workers in (0, 2, 2, 0)
    ]
    assert epochs == [expected] * 4
    assert log.read_text().count(str(path)) == 1


def test_a_batch_says_which_images_it_lacks(root):
    break_file(root)
    dataset = Rooms(root, "val", TASKS, TaskCompose([], TASKS), on_error="skip")
    batch = collate([dataset[0], dataset[1], dataset[2]])
    assert batch["meta"]["id"] == ["val_0", "val_2"]
    assert batch["unreadable"] == {1: "val_1"}
    assert len(batch["image"]) == len(batch["targets"]["depth"]) == 2
    empty = collate([dataset[1]])
    assert (len(empty["image"]), empty["targets"], empty["unreadable"]) == (0, {}, {0: "val_1"})
    assert "unreadable" not in collate([dataset[0]])


def test_loader_processes_log_a_broken_map_once(root, log):
    path = break_file(root)
    dataset = Rooms(root, "val", TASKS, TaskCompose([], TASKS), on_error="skip")
    for _ in range(2):
        list(DataLoader(dataset, num_workers=2, collate_fn=collate))
    assert log.read_text().count(str(path)) == 1


def test_nothing_but_broken_maps_is_an_error(root):
    for name in ("val_0", "val_1", "val_2"):
        break_file(root, name)
    dataset = Rooms(root, "val", TASKS, on_error="skip")
    dataset.substitutes = range(3)
    with pytest.raises(DatasetNotFoundError, match="no image of the split 'val'"):
        dataset[0]


def test_a_map_of_another_size_than_its_image_is_refused(root):
    save(root / "semseg" / "val_0.png", np.zeros((8, 9), np.uint8))
    with pytest.raises(CorruptFileError, match=r"semseg/val_0.png: the semseg map is 8x9 and its image .* 8x10"):
        Rooms(root, "val", TASKS)[0]


def test_size_resizes_image_and_maps_and_keeps_their_values(root):
    sample = Rooms(root, "val", TASKS, size=(4, 5))[0]
    full = Rooms(root, "val", TASKS)[0]
    assert sample["meta"]["size"] == sample["image"].shape[:2] == (4, 5)
    assert {target.shape[:2] for target in sample["targets"].values()} == {(4, 5)}
    assert (sample["targets"]["semseg"] == full["targets"]["semseg"][1::2, 1::2]).all()
    assert set(np.unique(sample["targets"]["depth"])) <= set(np.unique(full["targets"]["depth"]))


def test_files_read_elsewhere_give_the_same_sample(root):
    dataset = Rooms(root, "val", TASKS, TaskCompose([], TASKS))
    streamed = dataset.sample(dataset.read_files(1), dataset.meta(1))
    assert (streamed["image"] == dataset[1]["image"]).all()
    assert streamed["meta"] == dataset[1]["meta"]


def test_other_classes_are_refused(root):
    info = root / "rooms.json"
    info.write_text(info.read_text().replace('"wall"', '"mall"'))
    with pytest.raises(ConfigError, match="mall"):
        Rooms(root, "val", TASKS)


@pytest.mark.skipif(not (REAL / "rooms.json").exists(), reason="data/rooms is not rendered")
def test_the_rendered_rooms_fit_their_tasks():
    tasks = build_tasks(RoomsDataModule.offers)
    dataset = Rooms(REAL, "val", tasks, TaskCompose([], tasks))
    for index in range(0, len(dataset), max(1, len(dataset) // 5)):
        sample = dataset[index]
        assert sample["image"].shape[1:] == sample["meta"]["size"]
        for name, task in tasks.items():
            target = sample["targets"][name][None]
            output = torch.zeros(1, task.channels, *sample["meta"]["size"])
            assert torch.isfinite(task.loss(output, target)), name
        assert 0.3 < sample["targets"]["depth"].nanmean() < 10


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.json", "[{", r"train\.json \(2 bytes\) is truncated or not a JSON file"),
        ("train.json", "", r"train\.json is empty; expected a JSON file"),
        ("train.json", '{"id": "x"}', r"train\.json must be a list of images, each with its 'id'"),
        ("train.json", '[{"room": 3}]', r"train\.json must be a list of images, each with its 'id'"),
        ("rooms.json", "null", r"rooms\.json must give the 'classes' and 'depth_units_per_m'"),
        ("rooms.json", '{"classes": []}', r"rooms\.json must give the 'classes' and 'depth_units_per_m'"),
        ("rooms.json", "<html>", r"rooms\.json is a web page; expected a JSON file"),
    ],
)
def test_broken_lists_are_named(root, name, content, message):
    (root / name).write_text(content)
    with pytest.raises(CorruptFileError, match=message):
        Rooms(root, "train", TASKS)


def test_a_list_may_begin_with_a_byte_order_mark(root):
    content = (root / "train.json").read_bytes()
    (root / "train.json").write_bytes(b"\xef\xbb\xbf" + content)
    assert len(Rooms(root, "train", TASKS)) == 5


def test_verify_names_a_broken_list(root):
    (root / "val.json").write_text("[{")
    findings = verify(RoomsDataModule(str(root)), workers=0, partial_copy=True).findings
    (found,) = [found for found in findings if found.kind == "corrupt"]
    assert found.split == "val"
    assert "val.json" in found.reason


@pytest.mark.parametrize("name", ["semseg", "human_parts"])
def test_a_class_that_does_not_exist_is_named_with_its_file(root, name):
    dataset = Rooms(root, "train", TASKS, TaskCompose([], TASKS))
    path = root / name / f"{dataset.ids[2]}.png"
    save(path, np.full((8, 10), 77, np.uint8))
    with pytest.raises(InvalidTargetError, match=rf"{path} has the class ids 77; there are 0\.\.\d+, and 255"):
        dataset[2]
    (found,) = verify(RoomsDataModule(str(root), tasks=[name]), workers=0, tasks=[name], partial_copy=True).findings
    assert (found.file, found.kind) == (str(path), "labels")


def test_maps_whose_ending_is_in_capitals_are_found(root):
    expected = Rooms(root, "train", TASKS)[1]["targets"]["depth"]
    path = root / "depth" / "train_1.png"
    path.rename(path.with_suffix(".PNG"))
    np.testing.assert_array_equal(Rooms(root, "train", TASKS)[1]["targets"]["depth"], expected)
