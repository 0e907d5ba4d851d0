from pathlib import Path

import numpy as np
import pytest
import torch
from miniature_rooms import write_rooms

from taskformer.data.datamodules.rooms import RoomsDataModule
from taskformer.data.datasets import MultiTaskDataset, Rooms
from taskformer.data.transforms import TaskCompose
from taskformer.errors import ConfigError, DatasetNotFoundError
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

    def _load(self, index):
        targets = {"depth": np.ones((4, 5), np.float32)} if index else {}
        return {"image": np.zeros((4, 5, 3), np.uint8), "targets": targets, "meta": {"id": self.ids[index]}}


def test_tasks_without_a_label_are_all_invalid():
    first, second = Unlabelled("nowhere", "train", TASKS, TaskCompose([], TASKS))
    assert first["targets"].keys() == second["targets"].keys() == TASKS.keys()
    assert first["targets"]["depth"].isnan().all()
    assert (second["targets"]["depth"] == 1).all()
    assert (second["targets"]["semseg"] == 255).all()
    assert second["targets"]["normals"].shape == (3, 4, 5)


def test_without_a_transform_samples_stay_numpy():
    sample = Unlabelled("nowhere", "train", TASKS)[0]
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
    with pytest.raises(DatasetNotFoundError, match=r"depth/val_0\.png does not exist"):
        Rooms(root, "val", TASKS)[0]


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
