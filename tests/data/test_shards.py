"""Shards hold the original files, and give the samples that the files give."""

import json
import pickle
import sys

import pytest
import torch

from taskformer.data import shards
from taskformer.data.datamodules.taskonomy import TaskonomyDataModule
from taskformer.data.images import File
from taskformer.data.shards import Record, ShardedDataset, pack, unpack, write_shards
from taskformer.data.transforms import RandomHorizontalFlip
from taskformer.datatools.miniature.taskonomy import write_taskonomy
from taskformer.errors import ConfigError, CorruptFileError, DatasetNotFoundError, MissingExtraError
from taskformer.tasks import build_tasks

TASKS = ["depth_zbuffer", "normals", "edge_occlusion", "class_object"]


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr(shards, "SAMPLES_PER_PART", 4)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_taskonomy(tmp_path_factory.mktemp("files"), size=(24, 32), views_per_building=5)


@pytest.fixture(scope="module")
def packed(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("shards")
    patch = pytest.MonkeyPatch()
    patch.setattr(shards, "SAMPLES_PER_PART", 4)
    write_shards(module(root), out, workers=0)
    patch.undo()
    return out


def module(root, **options):
    return TaskonomyDataModule(str(root), **{"tasks": TASKS, "batch_size": 2, **options})


def streamed(url, **options):
    return module("nowhere", shards=str(url), **options)


def by_id(batches):
    """Every sample of an epoch by its name."""
    found = {}
    for batch in batches:
        for k, name in enumerate(batch["meta"]["id"]):
            assert name not in found
            found[name] = {"image": batch["image"][k], **{key: t[k] for key, t in batch["targets"].items()}}
    return found


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=0, equal_nan=True)


def test_records_come_back():
    record = Record({"id": "a"}, ["depth"], {"image": File("a/b.png", b"123"), "depth": File("a/c.png", b"")})
    assert unpack(pack(record)) == record
    assert unpack(memoryview(pack(record))) == record


@pytest.mark.parametrize("content", [b"", b"\xff\xff\xff\xff", pickle.dumps({"meta": 1}), b"\x02\x00\x00\x00{}"])
def test_other_bytes_are_refused(content):
    with pytest.raises(CorruptFileError, match="write the shards again"):
        unpack(content)


def test_cut_records_are_refused():
    content = pack(Record({"id": "a"}, [], {"image": File("a.png", b"12345")}))
    with pytest.raises(CorruptFileError, match="record 'a' has"):
        unpack(content[:-1])


def test_shards_hold_the_original_bytes(root, packed):
    files = module(root).dataset("train", build_tasks(module(root).task_specs), None)
    data = streamed(packed).evaluation_dataset("train")
    assert list(data.ids) == list(files.ids)
    for index in range(len(files)):
        expected = {key: file.content for key, file in files.read_files(index).items()}
        assert {key: file.content for key, file in data.read_files(index).items()} == expected
    assert not any(str(root) in file.path for file in data.read_files(0).values())


def test_no_pickles_are_in_them(packed):
    config = json.loads((packed / "train" / "index.json").read_text())["config"]
    assert config["data_format"] == ["bytes"]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("prefix", ["", "local:"])
def test_an_epoch_from_shards_is_one_from_files(root, packed, workers, prefix):
    expected = module(root)
    data = streamed(f"{prefix}{packed}", num_workers=workers)
    for source in (expected, data):
        source.setup("fit")
        source.setup("test")
    training = data.train_dataloader()
    epochs = [by_id(training) for _ in range(2)]
    for epoch in epochs:
        assert_same(epoch, by_id(expected.train_dataloader()))
    if workers == 0:
        assert list(epochs[0]) != list(epochs[1])  # shuffled anew
        assert [b["meta"]["id"] for b in data.test_dataloader()] == [
            b["meta"]["id"] for b in expected.test_dataloader()
        ]
    assert_same(by_id(data.val_dataloader()), by_id(expected.val_dataloader()))
    assert len(training) == 5


def test_single_samples_can_be_asked_for(root, packed):
    data = streamed(packed)
    data.setup("validate")
    expected = module(root).evaluation_dataset("val")
    loader = data.val_dataloader()
    assert len(loader.dataset) == len(expected) == 5
    for found in (loader.dataset[3], data.datasets["val"][3], data.evaluation_dataset("val")[3]):
        assert found["meta"] == expected[3]["meta"]
        torch.testing.assert_close(found["image"], expected[3]["image"])


def test_training_from_shards_is_augmented(packed):
    plain, flipped = streamed(packed), streamed(packed, train_transforms=[RandomHorizontalFlip(p=1.0)])
    for data in (plain, flipped):
        data.setup("fit")
    first, second = (by_id(data.train_dataloader()) for data in (plain, flipped))
    name = next(iter(first))
    torch.testing.assert_close(first[name]["image"].flip(-1), second[name]["image"])


def test_fewer_tasks_may_be_read_but_no_others(packed):
    assert streamed(packed).available() == TASKS
    data = streamed(packed, tasks=["normals"]).evaluation_dataset("train")
    assert set(data[0]["targets"]) == {"normals"}
    with pytest.raises(ConfigError, match=r"hold no files for \['semseg'\], only for"):
        streamed(packed, tasks=["normals", "semseg"]).evaluation_dataset("train")


def test_an_interrupted_run_continues(root, tmp_path):
    broken = write_taskonomy(tmp_path / "files", size=(24, 32), views_per_building=5)
    path = module(broken).dataset("train", build_tasks(module(broken).task_specs), None).files(9)["normals"]
    content = path.read_bytes()
    path.write_bytes(content[:30])
    with pytest.raises(CorruptFileError, match=path.name):
        write_shards(module(broken), tmp_path / "out", ["train"], workers=0)
    assert not (tmp_path / "out" / "train" / "index.json").exists()
    first = tmp_path / "out" / "train" / "chunk-0-0.bin"
    before = first.stat().st_mtime_ns
    path.write_bytes(content)
    write_shards(module(broken), tmp_path / "out", ["train"], workers=0)
    assert first.stat().st_mtime_ns == before
    assert len(streamed(tmp_path / "out").evaluation_dataset("train")) == 10
    names = {file.name for file in (tmp_path / "out" / "train").iterdir()}
    assert names == {"index.json", "shards.json", "chunk-0-0.bin", "chunk-1-0.bin", "chunk-2-0.bin"}


def test_broken_samples_are_left_out_if_wanted(tmp_path):
    broken = write_taskonomy(tmp_path / "files", size=(24, 32), counts={"train": 1})
    data = module(broken, on_error="skip")
    path = data.dataset("train", build_tasks(data.task_specs), None).files(1)["normals"]
    path.write_bytes(b"no image")
    write_shards(data, tmp_path / "out", ["train"], workers=0)
    ids = list(streamed(tmp_path / "out").evaluation_dataset("train").ids)
    assert [name.rsplit("_", 1)[1] for name in ids] == ["0", "2"]


def test_chunks_are_of_the_wanted_size(tmp_path):
    root = write_taskonomy(tmp_path / "files", counts={"train": 1}, size=(24, 32))
    for path in root.rglob("*_domain_rgb.png"):
        path.write_bytes(path.read_bytes() + bytes(700_000))  # what follows the end of a PNG is not looked at
    write_shards(module(root, tasks=["depth_zbuffer"]), tmp_path / "out", ["train"], chunk_mb=1, workers=0)
    sizes = [path.stat().st_size for path in (tmp_path / "out" / "train").glob("chunk-*")]
    assert len(sizes) >= 2
    assert max(sizes) < 2e6
    assert len(streamed(tmp_path / "out", tasks=["depth_zbuffer"]).evaluation_dataset("train")) == 3


def test_shards_of_something_else_are_not_mixed(root, packed):
    with pytest.raises(ConfigError, match="choose another folder"):
        write_shards(module(root, tasks=["normals"]), packed, ["train"], workers=0)


def test_missing_shards_are_explained(tmp_path):
    with pytest.raises(DatasetNotFoundError, match=r"there are no shards at .*/nowhere/train"):
        streamed(tmp_path / "nowhere").setup("fit")


def test_without_litdata_the_extra_is_named(root, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "litdata", None)
    with pytest.raises(MissingExtraError, match=r"taskformer\[stream\]"):
        write_shards(module(root), tmp_path)
    with pytest.raises(MissingExtraError, match=r"taskformer\[stream\]"):
        ShardedDataset(str(tmp_path), "train", {}, decode=lambda key, files: None)
