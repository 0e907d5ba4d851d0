import logging
import mmap
import os
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Trainer
from miniature_rooms import write_rooms
from torch.utils.data import DataLoader

from taskformer.data import RoomsDataModule
from taskformer.data.cache import DecodedCache, cache_path, fingerprint
from taskformer.data.datamodules.base import collate
from taskformer.data.datasets import MultiTaskDataset, Rooms
from taskformer.data.images import read_npy, write_npy
from taskformer.data.loading import worker_init
from taskformer.data.transforms import RandomScaledCrop, TaskCompose
from taskformer.errors import ConfigError, CorruptFileError
from taskformer.tasks import build_tasks

TASKS = build_tasks(RoomsDataModule.offers)


@pytest.fixture
def root(tmp_path):
    return write_rooms(tmp_path / "rooms")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def rooms(root, **options):
    return Rooms(root, **{"split": "train", "tasks": TASKS, **options})


def assert_same(sample, expected):
    np.testing.assert_array_equal(sample["image"], expected["image"])
    assert sample["targets"].keys() == expected["targets"].keys()
    for name, target in expected["targets"].items():
        assert sample["targets"][name].dtype == target.dtype
        np.testing.assert_array_equal(sample["targets"][name], target)


@pytest.mark.parametrize("workers", [0, 2])
def test_cached_samples_are_the_decoded_ones(root, folder, workers):
    plain, dataset = rooms(root), rooms(root)
    dataset.cache = DecodedCache.build(folder, rooms(root), 1, workers)
    for path in root.glob("*/*.png"):
        path.unlink()  # nothing is read from the files
    with pytest.raises(FileNotFoundError):
        plain.raw(0)
    assert len(dataset.cache) == 5
    restored = write_rooms(root)
    for index in range(5):
        assert_same(dataset.raw(index), rooms(restored).raw(index))
        assert dataset.raw(index)["meta"] == rooms(restored).raw(index)["meta"]


class Odd(MultiTaskDataset):
    """Targets of every kind, and images of different sizes, some without labels."""

    def _ids(self):
        return ["a", "b", "c"]

    def files(self, index):
        return {"image": self.root / f"{index}.npy"}

    def decode(self, key, files):
        image = read_npy(files["image"])
        if image.shape[0] == 3:
            return image if key == "image" else None
        maps = {
            "image": image,
            "semseg": image[..., 0].astype(np.int32) % 2,
            "depth": np.asfortranarray(image[..., 1].astype(np.float32)),
            "class_scene": np.array([0.25, 0.75], np.float16),
        }
        return maps[key]


@pytest.fixture
def odd(tmp_path):
    for index in range(3):
        write_npy(tmp_path / f"{index}.npy", np.arange((3 + index) * 12, dtype=np.uint8).reshape(-1, 4, 3))
    names = ["x", "y"]
    tasks = build_tasks({"semseg": {"classes": names}, "depth": {}, "class_scene": {"classes": names}})
    return lambda **options: Odd(tmp_path, "train", tasks, **options)


def test_every_size_type_and_missing_label_survives(odd, folder):
    cache = DecodedCache.build(folder, odd(), 1)
    for index in range(3):
        assert_same(cache.get(index), odd().raw(index))
    assert cache.get(0)["targets"] == {}
    assert cache.get(3) is None


def test_samples_cannot_be_changed_and_outlive_the_next(odd, folder):
    cache = DecodedCache.build(folder, odd(), 1)
    first = cache.get(1)["image"]
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 0
    for index in range(3):
        cache.get(index)
    np.testing.assert_array_equal(first, odd().raw(1)["image"])


def test_the_size_is_bounded_and_the_rest_read_from_files(odd, folder):
    whole = cache_path(folder, odd())
    DecodedCache.build(folder, odd(), 1)
    complete = whole.stat().st_size
    limit = 2.1 * mmap.ALLOCATIONGRANULARITY  # each of these samples takes a page
    dataset = odd()
    dataset.cache = DecodedCache.build(folder, odd(), limit / 1e9)
    assert len(dataset.cache) == 2
    assert whole.stat().st_size < complete
    assert whole.stat().st_size < limit + 500  # the index comes on top
    for index in range(3):
        assert_same(dataset.raw(index), odd().raw(index))


def inode(folder, dataset):
    return cache_path(folder, dataset).stat().st_ino


def test_a_cache_is_built_once(odd, folder):
    DecodedCache.build(folder, odd(), 1)
    before = inode(folder, odd())
    DecodedCache.build(folder, odd(), 1)
    assert inode(folder, odd()) == before
    assert DecodedCache.find(folder, odd(), 1) is not None


@pytest.mark.parametrize("change", ["content", "time", "gone", "fewer", "size", "tasks", "bound"])
def test_a_stale_cache_is_never_used_but_replaced(odd, folder, tmp_path, change):
    DecodedCache.build(folder, odd(), 1)
    gigabytes, options = 1, {}
    if change == "content":
        write_npy(tmp_path / "2.npy", np.zeros((6, 4, 3), np.uint8))
    elif change == "time":
        os.utime(tmp_path / "0.npy", (1, 1))
    elif change == "gone":
        (tmp_path / "0.npy").unlink()
    elif change == "size":
        options = {"size": (4, 4)}
    elif change == "bound":
        gigabytes = 2

    def changed():
        dataset = odd(**options)
        if change == "tasks":
            del dataset.tasks["depth"]
        if change == "fewer":
            dataset.ids = dataset.ids[:2]
        return dataset

    assert DecodedCache.find(folder, changed(), gigabytes) is None
    if change == "gone":
        return
    dataset = changed()
    dataset.cache = DecodedCache.build(folder, changed(), gigabytes)
    for index in range(len(dataset)):
        assert_same(dataset.raw(index), changed().raw(index))
    assert len(list(folder.iterdir())) == 1


def test_options_of_any_kind_make_another_cache(odd):
    def marked(value):
        dataset = odd()
        dataset.option = value
        return fingerprint(dataset, 1)

    values = [1, "1", None, Path("1"), [1], (1, [2]), {"a": 1}, {"a": {1, 2}}, np.arange(3), np.float32(2)]
    values += [np.arange(3.0), partial(sorted, reverse=True), partial(sorted, reverse=False), len, sorted]
    prints = [marked(value) for value in values]
    assert prints == [marked(value) for value in values]
    assert len(set(prints)) == len(values)
    assert marked({"a": 1, "b": 2}) == marked({"b": 2, "a": 1})
    assert fingerprint(odd(transform=len, on_error="skip"), 1) == fingerprint(odd(), 1)


def test_splits_and_roots_have_caches_of_their_own(root, folder, tmp_path):
    other = write_rooms(tmp_path / "other")
    paths = {cache_path(folder, rooms(place, split=split)) for place in (root, other) for split in ("train", "val")}
    assert len(paths) == 4


def test_an_interrupted_build_leaves_nothing(root, folder, monkeypatch):
    decode = Rooms.decode

    def interrupted(self, key, files):
        if "train_3" in files["image"].path:
            raise KeyboardInterrupt
        return decode(self, key, files)

    monkeypatch.setattr(Rooms, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        DecodedCache.build(folder, rooms(root), 1)
    assert list(folder.iterdir()) == []
    monkeypatch.undo()
    assert len(DecodedCache.build(folder, rooms(root), 1)) == 5


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 100, b"[]" + (2).to_bytes(8, "little")])
def test_a_damaged_cache_counts_as_none(odd, folder, content):
    DecodedCache.build(folder, odd(), 1)
    cache_path(folder, odd()).write_bytes(content)
    assert DecodedCache.find(folder, odd(), 1) is None
    assert len(DecodedCache.build(folder, odd(), 1)) == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_file_stops_the_building_with_its_name(root, folder, workers):
    path = root / "depth" / "train_2.png"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorruptFileError, match=f"^{path} .* is truncated"):
        DecodedCache.build(folder, rooms(root), 1, workers)
    assert list(folder.iterdir()) == []


def test_a_broken_file_is_skipped_as_without_a_cache(root, folder, caplog):
    path = root / "depth" / "train_2.png"
    path.write_bytes(path.read_bytes()[:-20])
    dataset = rooms(root, on_error="skip")
    dataset.cache = DecodedCache.build(folder, rooms(root, on_error="skip"), 1)
    assert len(dataset.cache) == 5
    dataset.substitutes = range(5)
    with caplog.at_level(logging.WARNING):
        assert dataset[2]["meta"]["id"] == "train_3"
    assert "train_2" in caplog.text


def test_processes_open_the_file_anew_and_notice_another(odd, folder):
    cache = DecodedCache.build(folder, odd(), 1)
    state = pickle.dumps(cache)
    assert_same(pickle.loads(state).get(1), cache.get(1))
    before = cache.get(1)["image"].copy()
    DecodedCache.build(folder, odd(size=(8, 8)), 1)
    np.testing.assert_array_equal(cache.get(1)["image"], before)  # what was open stays
    with pytest.raises(ConfigError, match=r"another run has replaced .*\.samples"):
        pickle.loads(state)


def mapped_bytes():
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = [line.split()[0].split("-") for line in lines if line.endswith(".samples")]
    return sum(int(end, 16) - int(start, 16) for start, end in ranges)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells what is mapped")
def test_samples_are_let_go_after_use(odd, folder):
    dataset = odd(transform=lambda sample: {"image": torch.from_numpy(sample["image"].copy())})
    dataset.cache = DecodedCache.build(folder, odd(), 1)
    held = dataset.cache.get(2)
    assert mapped_bytes() > 0
    del held
    for _ in range(3):
        for index in range(3):
            dataset[index]
    assert mapped_bytes() == 0


def batches(dataset, workers):
    torch.manual_seed(0)
    loader = DataLoader(dataset, batch_size=2, num_workers=workers, collate_fn=collate, worker_init_fn=worker_init)
    return [batch["image"] for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
def test_augmented_batches_are_the_same_with_and_without(root, folder, workers):
    tasks = {name: TASKS[name] for name in ("semseg", "depth")}

    def dataset():
        return rooms(root, tasks=tasks, transform=TaskCompose([RandomScaledCrop(1.0, 2.0, 6, 7, max_share=0.9)], tasks))

    cached = dataset()
    cached.cache = DecodedCache.build(folder, dataset(), 1)
    for ours, theirs in zip(batches(cached, workers), batches(dataset(), workers), strict=True):
        assert torch.equal(ours, theirs)


def module(root, folder, **options):
    return RoomsDataModule(str(root), batch_size=1, cache_dir=str(folder), **options)


def test_a_data_module_builds_and_uses_its_cache(root, folder):
    data = module(root, folder)
    data.prepare_data()
    data.setup("fit")
    assert [len(data.datasets[split].cache) for split in ("train", "val")] == [5, 3]
    other = module(root, folder, tasks=["depth"])
    other.setup("fit")
    assert other.datasets["train"].cache is None  # built for other tasks
    unbuilt = RoomsDataModule(str(root), batch_size=1)
    unbuilt.prepare_data()
    unbuilt.setup("fit")
    assert unbuilt.datasets["train"].cache is None


@pytest.mark.parametrize(("stage", "built"), [("fit", True), ("test", False)])
def test_only_training_builds_a_cache(root, folder, stage, built):
    data = module(root, folder)
    data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    data.trainer.state.fn = stage
    data.prepare_data()
    assert folder.exists() == built


def test_a_guide_is_loaded_for_training_only(root):
    data = RoomsDataModule(
        str(root), tasks=["depth"], batch_size=2, train_transforms=[RandomScaledCrop(1.0, 1.0, 6, 7, max_share=0.5)]
    )
    data.setup("fit")
    assert list(data.datasets["train"].tasks) == ["depth", "semseg"]
    assert list(data.datasets["val"].tasks) == ["depth"]
    assert data.datasets["train"][0]["targets"].keys() == {"depth"}
    assert list(data.task_specs) == ["depth"]
