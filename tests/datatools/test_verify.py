"""Whatever is wrong with a data set is found and named, on every data set; what is right is left in peace."""

import json
import re
import shutil
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from taskformer import parallel
from taskformer.data import FolderDataModule, MultiTaskDataModule, MultiTaskDataset, RoomsDataModule
from taskformer.data.datamodules import data_modules
from taskformer.data.datasets.folder import Label
from taskformer.data.images import read_npy, write_npy, write_png
from taskformer.datatools.miniature import WRITERS, writer
from taskformer.datatools.miniature.faults import FAULTS, plant
from taskformer.datatools.selection import spread
from taskformer.datatools.verify import verify
from taskformer.errors import ConfigError, CorruptFileError, DatasetNotFoundError, InvalidTargetError, UnknownNameError
from taskformer.tasks import build_tasks

COPIES = [
    ("nyud", {"layout": "a"}),
    ("nyud", {"layout": "b"}),
    ("nyud", {"layout": "adashare"}),
    ("pascal_context", {}),
    ("cityscapes", {"layout": "official"}),
    ("cityscapes", {"layout": "adashare"}),
    ("taskonomy", {"layout": "building_first"}),
    ("taskonomy", {"layout": "domain_first"}),
]
#: The kinds that a planted fault may be found as: some data sets refuse unknown labels when they decode.
FOUND_AS = {
    "missing": {"missing"},
    "truncated": {"corrupt"},
    "wrong_size": {"size"},
    "label_out_of_range": {"labels"},
    "zero_normals": {"normals"},
    "swapped_split": {"split"},
}


@pytest.fixture(scope="module", params=COPIES, ids=lambda copy: "-".join([copy[0], *copy[1].values()]))
def master(request, tmp_path_factory):
    """A right miniature, which nobody changes."""
    name, options = request.param
    return name, writer(name)(tmp_path_factory.mktemp(name) / "data", **options)


@pytest.fixture
def copy(master, tmp_path):
    """The same, to be changed."""
    name, root = master
    return name, shutil.copytree(root, tmp_path / "copy")


def module(name, root, **options):
    return data_modules()[name](root=str(root), **options)


def check(name, root, **options):
    return verify(module(name, root), workers=0, **options)


def test_a_right_copy_is_right(master):
    name, root = master
    report = check(name, root)
    assert report.findings == []
    members = json.loads((root / "miniature.json").read_text())["splits"]
    assert {split: (summary.images, summary.published, summary.opened) for split, summary in report.splits.items()} == {
        split: (len(ids),) * 3 for split, ids in members.items()
    }
    assert report.summary().startswith(f"all {sum(map(len, members.values()))} images of {name} in {root} are right")
    # The miniature of Taskonomy lacks one label on purpose.
    assert [(doubt.kind, doubt.task) for doubt in report.doubts] == [("missing", "edge_occlusion")] * (
        name == "taskonomy"
    )
    assert set(report.splits["train"].tasks) == {"image", *module(name, root).available()}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_and_named(copy, fault):
    name, root = copy
    if fault == "zero_normals" and name == "cityscapes":
        with pytest.raises(ConfigError, match=r"'cityscapes' in .* has no file that can have the fault 'zero_normals'"):
            plant(name, root, fault)
        return
    damaged = plant(name, root, fault)
    report = check(name, root)
    assert not report.ok
    if fault == "swapped_split":
        assert {finding.split for finding in report.findings if finding.kind == "split"} == {"train", "val"}
        return
    assert {finding.kind for finding in report.findings} <= FOUND_AS[fault]
    (finding,) = report.findings
    assert finding.split == "train"
    if damaged.exists():
        assert (finding.file, finding.id != "") == (str(damaged), True)
    assert str(damaged) in finding.reason or damaged.name.partition("_domain")[0] in finding.reason


def test_half_of_any_file_of_a_sample_is_found(copy):
    name, root = copy
    data = module(name, root)
    offers = data.task_offers()
    dataset = data.dataset("train", build_tasks({task: offers[task] for task in data.available()}), None)
    for path in set(dataset.files(1).values()):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        report = check(name, root)
        assert {finding.file for finding in report.findings} == {str(path)}, path
        assert {finding.kind for finding in report.findings} == {"corrupt"}
        path.write_bytes(content)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # spawned processes import torch again
def test_processes_change_nothing(tmp_path, monkeypatch):
    root = writer("nyud")(tmp_path / "nyud")
    for index in (3, 5):
        (root / "depth" / f"000{index}.npy").unlink()
    plant("nyud", root, "label_out_of_range")
    alone = verify(module("nyud", root), workers=0)
    monkeypatch.setattr(parallel, "START_METHOD", "fork")
    monkeypatch.setattr(parallel, "PATIENCE_S", 0.0)
    together = verify(module("nyud", root), workers=2)
    assert together == alone
    assert len(alone.findings) == 3


def test_a_miniature_without_its_manifest_is_measured_by_what_is_published(tmp_path):
    root = writer("nyud")(tmp_path / "nyud")
    (root / "miniature.json").unlink()
    report = check("nyud", root)
    assert [(finding.kind, finding.reason) for finding in report.findings] == [
        ("count", "the split 'train' has 4 images, 795 were published"),
        ("count", "the split 'val' has 2 images, 654 were published"),
    ]
    assert check("nyud", root, partial_copy=True).ok


def test_faults_and_names_that_do_not_exist_are_corrected(tmp_path):
    with pytest.raises(UnknownNameError, match=r"unknown fault 'truncate' \(did you mean 'truncated'"):
        plant("nyud", tmp_path, "truncate")
    with pytest.raises(UnknownNameError, match=r"unknown data set 'nyu' \(did you mean 'nyud'"):
        plant("nyu", tmp_path, "missing")
    with pytest.raises(UnknownNameError, match=r"unknown miniature 'citysapes' \(did you mean 'cityscapes'"):
        writer("citysapes")
    with pytest.raises(ConfigError, match=f"'rooms' cannot be swapped; this fault exists for {', '.join(WRITERS)}"):
        plant("rooms", tmp_path, "swapped_split")


def test_real_rooms_are_right(small_rooms):
    report = verify(RoomsDataModule(root=str(small_rooms)), workers=0, partial_copy=True)
    assert report.findings == []
    depth = report.splits["train"].tasks["depth"]
    assert (depth.maps, depth.pixels, depth.valid_share) == (8, 8 * 128 * 160, 1.0)
    assert 0.3 < depth.low < depth.high < 7.5


# A data set whose arrays can be anything ----------------------------------------------------------------------------

HEIGHT, WIDTH = 6, 8
OFFERS = {
    "semseg": {"classes": ["a", "b", "c"]},
    "depth": {},
    "inverse_depth": {},
    "normals": {},
    "edges": {},
    "saliency": {},
    "curvature": {},
    "class_scene": {"classes": ["x", "y"]},
}


class Arrays(MultiTaskDataset):
    """``SPLIT.json`` lists images, ``ID/KEY.npy`` are their maps as they are decoded."""

    may_be_empty = frozenset({"saliency"})

    def _ids(self):
        return json.loads(self._require(self.root / f"{self.split}.json").read_text())

    def files(self, index):
        return {key: self.root / self.ids[index] / f"{key}.npy" for key in ("image", *self.tasks)}

    def decode(self, key, files):
        pixels = read_npy(files[key])
        if key == "edges" and (pixels == 7).any():
            message = "these are no edges"
            raise InvalidTargetError(message)
        if key == "edges" and (pixels == 8).any():
            message = "an unforeseen error"
            raise ZeroDivisionError(message)
        return pixels

    def problems(self):
        if (self.root / "problem").exists():
            yield f"{self.split} is odd"

    def faults(self, key, files, target):
        if key == "curvature" and (target == 5).any():
            yield "the curvature is 5"
        if key == "curvature" and (target == 6).any():
            message = f"{files['image'].path} does not fit"
            raise CorruptFileError(message)


class ArraysDataModule(MultiTaskDataModule):
    offers: ClassVar = OFFERS
    published: ClassVar = {"train": 3, "val": 2}

    def __init__(self, root, tasks=None):
        super().__init__(root, tasks)
        self.name = "arrays"  # not the class's, which would register it for all other tests

    def splits(self):
        return ["train", "val"]

    def dataset(self, split, tasks, transform):
        return Arrays(self.root, split, tasks, transform)


def right_maps():
    depth = np.linspace(1, 9, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
    depth[0, 0] = np.nan
    normals = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    normals[..., 2] = -1
    labels = (np.arange(HEIGHT * WIDTH) % 3).reshape(HEIGHT, WIDTH).astype(np.uint8)
    labels[0, 0] = 255
    return {
        "image": np.full((HEIGHT, WIDTH, 3), 7, np.uint8),
        "semseg": labels,
        "depth": depth,
        "inverse_depth": np.nan_to_num(1 / depth).astype(np.float32),
        "normals": normals,
        "edges": (labels == 1).astype(np.float32),
        "saliency": np.full((HEIGHT, WIDTH), 255, np.uint8),
        "curvature": np.full((HEIGHT, WIDTH, 2), -30, np.float32),
        "class_scene": np.array([0.25, 0.75], np.float32),
    }


@pytest.fixture
def arrays(tmp_path):
    splits = {"train": ["t0", "t1", "t2"], "val": ["v0", "v1"]}
    for split, ids in splits.items():
        (tmp_path / f"{split}.json").write_text(json.dumps(ids))
        for name in ids:
            for key, values in right_maps().items():
                write_npy(tmp_path / name / f"{key}.npy", values)
    return tmp_path


def findings(root, **options):
    return verify(ArraysDataModule(str(root)), workers=0, **options).findings


def test_what_the_maps_hold_is_reported(arrays):
    report = verify(ArraysDataModule(str(arrays)), workers=0)
    assert report.findings == []
    tasks = report.splits["train"].tasks
    assert list(tasks) == ["image", *OFFERS]
    depth = tasks["depth"]
    assert (depth.maps, depth.pixels, depth.valid) == (3, 3 * 48, 3 * 47)
    assert (depth.low, depth.high) == (pytest.approx(1 + 8 / 47), 9)
    assert tasks["saliency"].valid_share == 0
    assert (tasks["class_scene"].pixels, tasks["class_scene"].high) == (3, 0.75)
    record = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert record["ok"] is True
    assert record["splits"]["val"]["tasks"]["saliency"] == {
        "maps": 2,
        "pixels": 96,
        "valid": 0,
        "low": None,
        "high": None,
    }


def broken(values, change):
    values = values.copy()
    change(values)
    return values


def put(value, place=(1, 1)):
    return lambda values: broken(values, lambda copy: copy.__setitem__(place, value))


FAULTY = [
    ("semseg", put(3), "labels", "has the class ids 3; there are 0..2, and 255 where there is no label"),
    ("semseg", lambda v: broken(v.astype(np.int16), lambda c: c.__setitem__((0, 0), -1)), "labels", "class ids -1;"),
    ("semseg", lambda v: v.astype(np.float32), "values", r"the semseg map is float32 \(6, 8\), expected integers"),
    ("semseg", lambda v: v[..., None], "values", r"is uint8 \(6, 8, 1\), expected integers \(H, W\)"),
    ("semseg", lambda v: v[:, :-1], "size", r"the map is 6x7 and its image 6x8 \(height x width\)"),
    ("semseg", lambda v: np.full_like(v, 255), "labels", "not a single pixel has a label"),
    ("depth", put(0), "values", "1 depths are 0; where depth is missing, it must be NaN"),
    ("depth", put(-1), "values", r"1 values lie outside \[0, 1000\], e.g. -1"),
    ("depth", lambda v: v * 1000, "values", r"lie outside \[0, 1000\]"),
    ("depth", put(np.inf), "values", "1 values are infinite"),
    ("depth", lambda v: np.nan_to_num(v).astype(np.int32), "values", r"int32 \(6, 8\), expected floats \(H, W\)"),
    ("inverse_depth", put(-0.5), "values", r"1 values lie outside \[0, inf\], e.g. -0.5"),
    ("normals", lambda v: v * 0.5, "normals", "48 normals are not of length 1, e.g. 0.5"),
    ("normals", lambda v: v[..., :2], "values", r"float32 \(6, 8, 2\), expected floats \(H, W\) with 3 channels"),
    ("normals", lambda v: np.full_like(v, np.nan), "normals", "not a single pixel has a label"),
    ("edges", lambda v: v * 255, "values", r"lie outside \[0, 1\], e.g. 255"),
    ("edges", put(7), "values", "these are no edges"),
    ("edges", put(8), "corrupt", r"cannot be decoded \(ZeroDivisionError: an unforeseen error\)"),
    ("curvature", put(5), "values", "the curvature is 5"),
    ("curvature", put(6), "corrupt", "image.npy does not fit"),
    ("class_scene", lambda v: v * 2, "values", r"1 values lie outside \[0, 1\], e.g. 1.5"),
    ("class_scene", lambda v: v[:1], "values", r"float32 \(1,\), expected floats \(2,\)"),
    ("image", lambda v: v.astype(np.uint16), "values", r"uint16 \(6, 8, 3\), expected uint8 \(H, W, 3\)"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "change", "kind", "reason"), FAULTY)
def test_every_kind_of_wrong_map_is_found(arrays, key, change, kind, reason):
    path = arrays / "t1" / f"{key}.npy"
    write_npy(path, change(right_maps()[key]))
    (found,) = findings(arrays)
    assert (found.split, found.id, found.task, found.kind) == ("train", "t1", key, kind)
    assert Path(found.file).name == ("image.npy" if "image.npy" in reason else path.name)
    assert found.file in found.reason
    assert re.search(reason, found.reason)


DOUBTFUL = [
    ("semseg", lambda v: broken(np.full_like(v, 255), lambda c: c.__setitem__((0, 0), 1)), "few",
     r"only 2\.08% of the pixels have a label"),
    ("depth", lambda v: v * 100, "unit", r"the median is 508.511, from 0\.01 to 100 was expected: is it in the unit"),
    ("depth", lambda v: v / 10000, "unit", r"the median is 0\.000\d+, from"),
    ("edges", lambda v: 1 - v, "unit", r"the median is 1, from 0 to 0\.5 was expected"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "change", "kind", "reason"), DOUBTFUL)
def test_what_can_be_but_seldom_is_makes_doubts_and_no_faults(arrays, key, change, kind, reason, monkeypatch):
    monkeypatch.setattr("taskformer.datatools.verify.FEW_LABELS", 0.03)
    for name in ("t0", "t2", "v1"):
        write_npy(arrays / name / f"{key}.npy", change(right_maps()[key]))
    report = verify(ArraysDataModule(str(arrays)), workers=0)
    assert report.ok
    assert [(doubt.split, doubt.id, doubt.task, doubt.kind) for doubt in report.doubts] == [
        ("train", "t0", key, kind), ("val", "v1", key, kind)
    ]  # fmt: skip
    assert re.search(reason, report.doubts[0].reason)
    assert report.doubts[0].reason.startswith(str(arrays / "t0" / f"{key}.npy"))
    assert report.doubts[0].reason.endswith("(and 1 more)")
    assert "more)" not in report.doubts[1].reason
    assert report.summary().splitlines()[1] == "have a look, this may or may not be intended:"
    assert json.loads(json.dumps(report.as_dict()))["doubts"][1]["reason"] == report.doubts[1].reason


def test_lists_are_compared(arrays):
    (arrays / "val.json").write_text('["v0", "v0", "t2"]')
    (arrays / "problem").touch()
    assert [(found.kind, found.reason) for found in findings(arrays)] == [
        ("split", "train is odd"),
        ("split", "the split 'val' has 3 images, 2 were published; 3 is the number of 'train': have the lists been "
         "exchanged?"),
        ("split", "val is odd"),
        ("split", "the split 'val' lists 1 images more than once: v0"),
        ("split", "1 images are in both splits 'train' and 'val': t2"),
    ]  # fmt: skip


def test_splits_may_use_the_same_names_for_different_images(tmp_path):
    for split in ("train", "val"):
        for folder, values in {"image": np.full((6, 8, 3), 9, np.uint8), "mask": np.zeros((6, 8), np.uint8)}.items():
            write_png(tmp_path / folder / split / "0001.png", values)
    labels = {"semseg": Label("mask/{split}/{id}.png", {"classes": ["a", "b"]})}
    folder = FolderDataModule(str(tmp_path), "image/{split}/{id}.png", labels, {"train": "train", "val": "val"})
    assert verify(folder, workers=0).findings == []


def test_too_many_images_are_wrong_even_in_a_partial_copy(arrays):
    (arrays / "train.json").write_text('["t0", "t1", "t2", "t0x"]')
    shutil.copytree(arrays / "t0", arrays / "t0x")
    (found,) = findings(arrays, partial_copy=True)
    assert (found.kind, found.reason) == ("count", "the split 'train' has 4 images, 3 were published")


def test_a_split_that_is_not_there(arrays):
    (arrays / "val.json").unlink()
    (found,) = findings(arrays)
    assert (found.kind, found.split) == ("missing", "val")
    assert "val.json does not exist" in found.reason
    assert findings(arrays, partial_copy=True) == []
    (arrays / "train.json").unlink()
    with pytest.raises(DatasetNotFoundError, match=r"train.json does not exist"):
        findings(arrays, partial_copy=True)


def test_only_chosen_tasks_and_images_are_opened(arrays):
    for name in ("t1", "v0"):
        (arrays / name / "depth.npy").unlink()
    assert findings(arrays, tasks=["semseg"]) == []
    assert [found.id for found in findings(arrays)] == ["t1", "v0"]
    report = verify(ArraysDataModule(str(arrays)), sample=2, workers=0)
    assert [found.id for found in report.findings] == ["v0"]  # the first and the last are taken
    assert [split.opened for split in report.splits.values()] == [2, 2]
    assert report.summary().startswith(f"4 of 5 images of arrays in {arrays} were opened: 1 fault\n  missing  val")
    with pytest.raises(ConfigError, match="sample=0"):
        findings(arrays, sample=0)


def test_many_faults_are_counted_on_the_screen(arrays, monkeypatch):
    monkeypatch.setattr("taskformer.datatools.report.SHOWN", 2)
    for name in ("t0", "t1", "t2", "v0"):
        (arrays / name / "image.npy").write_bytes(b"")
    lines = verify(ArraysDataModule(str(arrays)), workers=0).summary().splitlines()
    assert len(lines) == 4
    assert lines[0].endswith(": 4 faults")
    assert lines[-1] == "  and 2 more, all of them with --json FILE"


@pytest.mark.parametrize(("count", "sample", "expected"), [
    (5, None, [0, 1, 2, 3, 4]), (5, 9, [0, 1, 2, 3, 4]), (9, 3, [0, 4, 8]), (7, 1, [0]), (0, 4, []),
])  # fmt: skip
def test_samples_are_spread_evenly(count, sample, expected):
    assert list(spread(count, sample)) == expected
