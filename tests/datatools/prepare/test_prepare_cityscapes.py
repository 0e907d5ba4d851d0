"""Cityscapes from zips of the owners' structure: whole, smaller, interrupted, broken and hostile."""

import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from taskformer.data.datamodules.cityscapes import CityscapesDataModule
from taskformer.datatools.miniature.cityscapes import write_cityscapes
from taskformer.datatools.prepare.cityscapes import prepare_cityscapes
from taskformer.datatools.prepare.sources import DownloadError
from taskformer.errors import ConfigError, CorruptFileError
from taskformer.tasks import build_tasks

PACKAGES = ("leftImg8bit", "gtFine", "disparity", "camera")
#: What else the owners' zips hold.
EXTRAS = ("license.txt", "README")


def pack(unpacked, into, packages=PACKAGES):
    """Zip a copy of the data set as its owners do."""
    into.mkdir(parents=True, exist_ok=True)
    for package in packages:
        with zipfile.ZipFile(into / f"{package}_trainvaltest.zip", "w") as archive:
            for extra in EXTRAS:
                archive.writestr(extra, "terms")
            archive.writestr(f"{package}/test/berlin/berlin_000000_000019_{package}.png", "no labels")
            for path in sorted((unpacked / package).rglob("*.*")):
                archive.write(path, path.relative_to(unpacked))
    return into


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    return write_cityscapes(tmp_path_factory.mktemp("unpacked"))


@pytest.fixture
def zips(unpacked, tmp_path):
    return pack(unpacked, tmp_path / "zips")


def samples(root):
    data = CityscapesDataModule(str(root))
    tasks = build_tasks(data.task_specs)
    return [data.dataset(split, tasks, None)[index] for split in ("train", "val") for index in (0, 1)]


def files(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in Path(root).rglob("*") if path.is_file()}


def test_unpacked_zips_are_what_the_data_set_reads(unpacked, zips, tmp_path):
    prepare_cityscapes(zips, tmp_path / "out")
    found, expected = files(tmp_path / "out"), files(unpacked)
    # Nothing but training and validation, and of gtFine only what is read.
    used = {
        name: content for name, content in expected.items() if not name.endswith(("TrainIds.png", "instanceIds.png"))
    }
    del used["miniature.json"]
    assert found == used
    for ours, theirs in zip(samples(tmp_path / "out"), samples(unpacked), strict=True):
        np.testing.assert_equal(ours, theirs)


def test_labels_that_are_not_there_yet_can_follow(unpacked, tmp_path):
    first = pack(unpacked, tmp_path / "zips", ["leftImg8bit", "gtFine"])
    prepare_cityscapes(first, tmp_path / "out")
    assert CityscapesDataModule(str(tmp_path / "out")).available() == ["semseg"]
    pack(unpacked, first)
    prepare_cityscapes(first, tmp_path / "out")
    assert CityscapesDataModule(str(tmp_path / "out")).available() == ["semseg", "depth", "inverse_depth"]


@pytest.mark.parametrize("kind", ["zips", "folder"])
def test_a_smaller_copy_has_the_same_depth(unpacked, zips, tmp_path, kind):
    prepare_cityscapes(zips if kind == "zips" else unpacked, tmp_path / "out", size=(32, 64), workers=0)
    for small, full in zip(samples(tmp_path / "out"), samples(unpacked), strict=True):
        blocks = full["image"].reshape(32, 2, 64, 2, 3).astype(float).mean(axis=(1, 3))
        assert np.abs(small["image"] - blocks).max() <= 0.5
        for task in ("semseg", "depth", "inverse_depth"):
            np.testing.assert_array_equal(small["targets"][task], full["targets"][task][1::2, 1::2])
    stored = next((tmp_path / "out" / "disparity").rglob("*.png"))
    assert cv2.imread(str(stored), cv2.IMREAD_UNCHANGED).dtype == np.uint16


def test_a_second_run_changes_nothing(zips, tmp_path):
    for options in ({}, {"size": (32, 64), "workers": 0}):
        out = tmp_path / f"out{len(options)}"
        prepare_cityscapes(zips, out, **options)
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
        prepare_cityscapes(zips, out, **options)
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_another_size_replaces_the_first(zips, tmp_path):
    for size in ((32, 64), (16, 32)):
        prepare_cityscapes(zips, tmp_path / "out", size=size, workers=0)
        sizes = {cv2.imread(str(path), cv2.IMREAD_UNCHANGED).shape[:2] for path in (tmp_path / "out").rglob("*.png")}
        assert sizes == {size}


KILLED = """
import sys
from pathlib import Path
from taskformer.datatools.prepare.cityscapes import prepare_cityscapes
prepare_cityscapes(Path(sys.argv[1]), Path(sys.argv[2]), size=(300, 600), workers=0)
"""


@pytest.mark.slow  # that of NYUD-v2 goes through the same code
def test_a_killed_run_continues(tmp_path):
    unpacked = write_cityscapes(tmp_path / "unpacked", counts={"train": 40, "val": 1})
    out, whole = tmp_path / "out", tmp_path / "whole"
    process = subprocess.Popen([sys.executable, "-c", KILLED, pack(unpacked, tmp_path / "zips"), out])
    deadline = time.monotonic() + 60
    while len(list(out.rglob("*_leftImg8bit.png"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=30)
    finished = [path for path in out.rglob("*.png") if not path.name.startswith(".")]
    assert 0 < len(finished) < 3 * 41
    for path in finished:
        with Image.open(path) as picture:
            picture.load()  # whole files only
            assert picture.size == (600, 300)
    prepare_cityscapes(tmp_path / "zips", out, size=(300, 600), workers=0)
    prepare_cityscapes(tmp_path / "zips", whole, size=(300, 600), workers=0)
    assert {name: content for name, content in files(out).items() if "/." not in name} == files(whole)


@pytest.mark.parametrize("size", [None, (32, 64)])
@pytest.mark.parametrize("member", ["../evil.png", "/evil.png", "leftImg8bit/train/../../../evil.png", "C:\\evil.png"])
def test_members_that_leave_the_folder_are_refused(zips, tmp_path, member, size):
    with zipfile.ZipFile(zips / "leftImg8bit_trainvaltest.zip", "a") as archive:
        archive.writestr(member, b"evil")
    with pytest.raises(CorruptFileError, match=r"leftImg8bit_trainvaltest\.zip: the member .*outside the folder"):
        prepare_cityscapes(zips, tmp_path / "out", size=size, workers=0)
    assert not list(tmp_path.rglob("evil*"))
    assert not list((tmp_path / "out").rglob("*.*"))


def test_broken_pictures_are_named_and_the_others_made(unpacked, tmp_path):
    zips = pack(unpacked, tmp_path / "zips")
    name = "leftImg8bit/train/bremen/bremen_000009_000019_leftImg8bit.png"
    with zipfile.ZipFile(zips / "leftImg8bit_trainvaltest.zip", "a") as archive:
        archive.writestr(name, b"no picture")
    with pytest.raises(CorruptFileError, match=f"1 of 19 files could not be converted, the first: .*{name}"):
        prepare_cityscapes(zips, tmp_path / "out", size=(32, 64), workers=0)
    assert len(list((tmp_path / "out").rglob("*.png"))) == 18


def test_a_truncated_zip_is_named(zips, tmp_path):
    path = zips / "gtFine_trainvaltest.zip"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptFileError, match=r"gtFine_trainvaltest\.zip.*get the archive again"):
        prepare_cityscapes(zips, tmp_path / "out")


@pytest.mark.parametrize("source", [None, "empty", "images"])
def test_without_packages_one_sentence_says_where_to_get_them(unpacked, tmp_path, source):
    (tmp_path / "empty").mkdir()
    pack(unpacked, tmp_path / "images", ["leftImg8bit"])
    with pytest.raises(DownloadError) as error:
        prepare_cityscapes(source and tmp_path / source, tmp_path / "out")
    message = str(error.value)
    assert "log in at https://www.cityscapes-dataset.com/downloads" in message
    assert all(f"{package}_trainvaltest.zip" in message for package in PACKAGES)
    assert ("has none" in message) == (source == "empty")
    assert "\n" not in message
    assert not (tmp_path / "out").exists()


def test_nothing_to_prepare_is_said(unpacked, tmp_path):
    arrays = write_cityscapes(tmp_path / "arrays", layout="adashare", size=(16, 32))
    with pytest.raises(
        ConfigError, match=r"preprocessed arrays, which need no preparation; take it as data\.init_args"
    ):
        prepare_cityscapes(arrays, tmp_path / "out")
    with pytest.raises(ConfigError, match="is unpacked already"):
        prepare_cityscapes(unpacked, tmp_path / "out")
    with pytest.raises(ConfigError, match="another folder"):
        prepare_cityscapes(unpacked, unpacked, size=(32, 64))
