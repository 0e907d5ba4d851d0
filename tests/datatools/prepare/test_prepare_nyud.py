"""NYUD-v2 from a small file in the layout that MATLAB gives the owners' one, and from archives."""

import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from taskformer.data.datamodules.nyud import NYUDDataModule
from taskformer.data.datasets.nyud import CENTER, FOCAL, table
from taskformer.datatools.miniature.nyud import write_nyud
from taskformer.datatools.prepare import nyud
from taskformer.datatools.prepare.nyud import boundaries, prepare_nyud, read_frame
from taskformer.datatools.prepare.sources import DownloadError
from taskformer.errors import CorruptFileError, DatasetNotFoundError, MissingExtraError
from taskformer.tasks import build_tasks

HEIGHT, WIDTH = 480, 640
COUNT = 4  # images 1 and 2 are test images, 3 and 4 training images
NORMALS = [(0, 0, -1), (0.5, 0, -0.8), (0, -0.9, -0.4), (-0.3, 0.4, -0.8)]

h5py = pytest.importorskip("h5py", reason="h5py is not installed")


def unit(normal):
    return np.array(normal) / np.linalg.norm(normal)


def plane_depth(normal, distance=2.5):
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    rays = np.stack([(x - CENTER[0]) / FOCAL[0], (y - CENTER[1]) / FOCAL[1], np.ones_like(x, float)], axis=-1)
    toward = rays @ unit(normal)
    return (-distance / np.minimum(toward, -0.05)).astype(np.float32)


def frame_maps(number):
    """What image ``number`` shows: a plane with three differently labelled strips and a blind spot."""
    rng = np.random.default_rng(number)
    image = np.repeat(np.repeat(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8), 20, axis=0), 20, axis=1)
    depth = plane_depth(NORMALS[number - 1])
    raw = depth.copy()
    raw[100:140, 200:260] = 0
    labels = np.zeros((HEIGHT, WIDTH), dtype=np.uint16)
    labels[:, :200], labels[:, 206:400], labels[:, 400:] = 21, 11, 894  # wall, gap of 6, floor, the last name
    instances = np.ones((HEIGHT, WIDTH), dtype=np.uint8)
    instances[240:, :200] = 2  # two walls, one above the other
    return image, depth, raw, labels, instances


@pytest.fixture(scope="session")
def mat(tmp_path_factory):
    """A file as MATLAB writes it: axes reversed, strings as arrays of 16-bit characters behind references."""
    path = tmp_path_factory.mktemp("nyu") / "nyu_depth_v2_labeled.mat"
    columns = zip(*(frame_maps(number + 1) for number in range(COUNT)), strict=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, maps in zip(("images", "depths", "rawDepths", "labels", "instances"), columns, strict=True):
            reversed_axes = np.stack([array.transpose() for array in maps])
            file.create_dataset(name, data=reversed_axes, chunks=(1, *reversed_axes.shape[1:]), compression="lzf")
        references = []
        for index, name in enumerate(table()["raw_names"]):
            text = np.array([[ord(letter)] for letter in name], dtype=np.uint16)
            references.append(file.create_dataset(f"#refs#/{index}", data=text).ref)
        file.create_dataset("names", data=np.array([references], dtype=h5py.ref_dtype), dtype=h5py.ref_dtype)
    return path


@pytest.fixture(scope="session")
def prepared(mat, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared")
    prepare_nyud(mat, out, workers=0)
    return out


@pytest.fixture
def no_normals(monkeypatch):
    """Leave out what takes longest."""
    monkeypatch.setattr(nyud, "plane_normals", lambda depth, focal, center: np.full((*depth.shape, 3), np.nan))


def load(root, split="train"):
    data = NYUDDataModule(str(root))
    return data.dataset(split, build_tasks(data.task_specs), None)


def degrees(first, second):
    return np.degrees(np.arccos(np.clip((first * second).sum(axis=-1), -1, 1)))


def test_frames_are_read_upright(mat):
    for number in (1, 4):
        frame = read_frame(mat, number)
        for found, expected in zip(frame, frame_maps(number), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_the_crop_has_the_published_size_and_place(prepared):
    dataset = load(prepared)
    assert dataset.layout_name == "a"
    assert dataset.ids == ["0003", "0004"]
    assert load(prepared, "val").ids == ["0001", "0002"]
    image, depth, *_ = frame_maps(3)
    sample = dataset[0]
    assert sample["image"].shape == (425, 560, 3)
    # Rows 46 to 470 and columns 41 to 600, counted from 1.
    np.testing.assert_array_equal(sample["image"], image[45:470, 40:600])
    np.testing.assert_array_equal(sample["targets"]["depth"], depth[45:470, 40:600])


def test_raw_labels_become_the_40_classes(prepared):
    labels = np.array(Image.open(prepared / "segmentation" / "0003.png"))
    assert labels.dtype == np.uint8
    assert [labels[0, column - 40] for column in (100, 202, 300, 500)] == [1, 0, 2, table()["raw_to_40"][893]]
    assert load(prepared)[0]["targets"]["semseg"][0, 300 - 40] == 1  # the second class


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("split", ["train", "val"])
def test_normals_of_planes_are_right_within_a_degree(prepared, split, index):
    dataset = load(prepared, split)
    found = dataset[index]["targets"]["normals"]
    number = int(dataset.ids[index])
    blind = np.zeros((HEIGHT, WIDTH), dtype=bool)
    blind[100:140, 200:260] = True
    # Where the plane would be behind the camera or nearly so, the depth is no plane's.
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    rays = np.stack([(x - CENTER[0]) / FOCAL[0], (y - CENTER[1]) / FOCAL[1], np.ones_like(x, float)], axis=-1)
    steep = (rays @ unit(NORMALS[number - 1])) > -0.25
    steep, blind = steep[45:470, 40:600], blind[45:470, 40:600]
    np.testing.assert_array_equal(np.isnan(found).any(axis=-1)[~steep], blind[~steep])
    error = degrees(found, unit(NORMALS[number - 1]))[~steep & ~blind]
    assert error.size > 100_000
    assert error.max() < 1
    assert not list(load(prepared, split).problems())


def test_edges_lie_between_objects_and_gaps_are_bridged():
    labels, instances = np.zeros((30, 60), dtype=np.uint16), np.ones((30, 60), dtype=np.uint8)
    labels[:, :20], labels[:, 26:40] = 21, 11  # a gap of 6 between them, then 20 columns without any label
    instances[15:, :20] = 2
    edges = boundaries(labels, instances)
    rows, columns = np.nonzero(edges)
    assert set(columns[rows < 14]) == {22, 49}  # in the middle of the gap, and 10 beyond the last label
    assert set(columns[rows == 14]) == {*range(23), 49}
    assert not boundaries(np.zeros((5, 5), np.uint16), np.zeros((5, 5), np.uint8)).any()


def test_edges_are_written_as_0_and_255(prepared):
    edges = np.array(Image.open(prepared / "edge" / "0003.png"))
    assert set(np.unique(edges)) == {0, 255}
    assert 0 < (edges > 0).mean() < 0.02
    assert edges[0, 399 - 40] == 255


def test_the_whole_frame_can_be_kept(mat, tmp_path, no_normals):
    prepare_nyud(mat, tmp_path, full_frame=True, workers=0)
    np.testing.assert_array_equal(load(tmp_path)[0]["image"], frame_maps(3)[0])


def test_a_killed_run_continues(mat, tmp_path, no_normals):
    out = tmp_path / "nyud"
    code = (
        "import os, sys; from pathlib import Path; import numpy as np; from taskformer.datatools.prepare import nyud\n"
        "write, calls = nyud.write_npy, []\n"
        "def dies(path, array):\n"
        "    calls.append(path)\n"
        "    os._exit(9) if len(calls) == 3 else write(path, array)\n"
        "nyud.write_npy = dies\n"
        "nyud.plane_normals = lambda depth, focal, center: np.full((*depth.shape, 3), np.nan)\n"
        "nyud.prepare_nyud(Path(sys.argv[1]), Path(sys.argv[2]), workers=0)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(mat), str(out)], capture_output=True, timeout=120)
    assert killed.returncode == 9, killed.stderr[-1000:]
    assert not (out / "gt_sets").exists()  # it is no data set yet
    done = {path: path.stat().st_mtime_ns for path in (out / "images").glob("*.png")}
    assert sorted(path.stem for path in done) == ["0001", "0002"]
    prepare_nyud(mat, out, workers=0)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert [len(load(out, split)) for split in ("train", "val")] == [2, 2]
    np.testing.assert_array_equal(load(out)[1]["image"], frame_maps(4)[0][45:470, 40:600])


def test_failures_are_reported_and_no_lists_written(mat, tmp_path, monkeypatch, no_normals):
    read = nyud.read_frame

    def broken(path, number):
        if number == 2:
            raise OSError("cannot read")
        return read(path, number)

    monkeypatch.setattr(nyud, "read_frame", broken)
    with pytest.raises(CorruptFileError, match=r"1 of 4 images of .* the first, 2: OSError: cannot read"):
        prepare_nyud(mat, tmp_path, workers=0)
    assert len(list((tmp_path / "images").iterdir())) == 3
    assert not (tmp_path / "gt_sets").exists()


def test_other_files_are_refused(mat, tmp_path):
    wrong = tmp_path / "wrong.mat"
    for content in (b"", b"MATLAB 5.0 MAT-file", mat.read_bytes()[: mat.stat().st_size // 2]):
        wrong.write_bytes(content)
        with pytest.raises(CorruptFileError, match=r"wrong\.mat is truncated or not a MATLAB 7.3 file"):
            prepare_nyud(wrong, tmp_path / "out")
    shutil.copy(mat, wrong)
    with h5py.File(wrong, "a") as file:
        names = file["names"][()]
        names[0, 0], names[0, 1] = names[0, 1], names[0, 0]
        file["names"][...] = names
    with pytest.raises(CorruptFileError, match="894 names of labels; get it again from https://horatio"):
        prepare_nyud(wrong, tmp_path / "out")
    with pytest.raises(DatasetNotFoundError, match=r"nowhere\.mat does not exist; get it from https://horatio"):
        prepare_nyud(tmp_path / "nowhere.mat", tmp_path / "out")


def test_h5py_is_optional(mat, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r"h5py.*taskformer\[prepare\]"):
        prepare_nyud(mat, tmp_path)


def test_without_a_source_it_is_downloaded(mat, tmp_path, monkeypatch, no_normals):
    asked = []

    def fetch(source, folder):
        asked.append((source.url, folder))
        return mat

    monkeypatch.setattr(nyud, "fetch", fetch)
    prepare_nyud(None, tmp_path, workers=0)
    assert asked == [(nyud.LABELED.url, tmp_path / "downloads")]
    assert len(load(tmp_path)) == 2


@pytest.mark.parametrize("layout", ["a", "b", "adashare"])
@pytest.mark.parametrize("packed", [True, False])
def test_existing_copies_are_taken_as_they_are(tmp_path, layout, packed):
    original = write_nyud(tmp_path / "NYUDv2", layout=layout, size=(32, 40))
    (original / "images" if layout == "a" else original).joinpath("._junk.png").write_bytes(b"")
    source = original
    if packed:
        source = tmp_path / "NYUDv2.tar.gz"
        with tarfile.open(source, "w:gz") as archive:
            archive.add(original, "NYUDv2")
    prepare_nyud(source, tmp_path / "out")
    for split in ("train", "val"):
        ours, theirs = load(tmp_path / "out", split), load(original, split)
        assert ours.ids == theirs.ids
        for key in theirs[0]["targets"]:
            np.testing.assert_array_equal(ours[0]["targets"][key], theirs[0]["targets"][key])
    assert not list((tmp_path / "out").rglob("._*"))


def test_incomplete_copies_are_refused(tmp_path):
    original = write_nyud(tmp_path / "NYUDv2", size=(32, 40))
    (original / "normals" / "0004.png").unlink()
    with pytest.raises(DatasetNotFoundError, match=r"1 of 20 files of the split 'train'.*normals/0004\.png"):
        prepare_nyud(original, tmp_path / "out")
    with pytest.raises(DownloadError, match=r"no archive at .*NYUDv2\.tar\.gz"):
        prepare_nyud(tmp_path / "NYUDv2.tar.gz", tmp_path / "out")


def test_archives_cannot_write_outside(tmp_path):
    (tmp_path / "evil.png").write_bytes(b"x")
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        archive.add(tmp_path / "evil.png", "../../images/0001.png")
    with pytest.raises(CorruptFileError, match="outside the folder"):
        prepare_nyud(tmp_path / "evil.tar", tmp_path / "out")
    assert not (tmp_path / "out").exists()
