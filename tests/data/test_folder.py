"""Users' own data, described by patterns."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

import taskformer
from taskformer.cli import main
from taskformer.data.datamodules.folder import FolderDataModule
from taskformer.data.datasets.folder import Folder, Label
from taskformer.data.images import write_jpg, write_npy, write_png
from taskformer.data.transforms import Pad, RandomCrop
from taskformer.datatools.verify import verify
from taskformer.errors import ConfigError, CorruptFileError, DatasetNotFoundError, InvalidTargetError, UnknownNameError
from taskformer.tasks import build_tasks

#: Real photographs that are not part of the repository.
SHARED = Path(__file__).parents[3] / "shared" / "data"

ROOT = Path(__file__).parents[2]
H, W = 6, 8
SEMSEG = Label("seg/{split}/{id}_label.png", spec={"classes": ["road", "sky", "car"]})


def image(seed, height=H, width=W):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def streets(tmp_path):
    """Images in split folders with sub-folders; ``b/2`` has no segmentation and only ``a/1`` has depth."""
    for split, names in {"train": ["a/1", "b/2", "b/3"], "val": ["c/4"]}.items():
        for seed, name in enumerate(names):
            write_png(tmp_path / "img" / split / f"{name}_image.png", image(seed))
            if name != "b/2":
                write_png(tmp_path / "seg" / split / f"{name}_label.png", np.full((H, W), seed, np.uint8))
    write_png(tmp_path / "depth" / "train" / "a" / "1.png", np.full((H, W), 1500, np.uint16))
    write_png(tmp_path / "depth" / "val" / "c" / "4.png", np.full((H, W), 2500, np.uint16))
    return tmp_path


def module(root, **changes):
    arguments = {"image": "img/{split}/{id}_image.png", "labels": {"semseg": SEMSEG}, **changes}
    return FolderDataModule(str(root), **arguments)


def one(tmp_path, stored, label, spec=None, name="depth", suffix=".png", border=0, **options):
    """Decode one stored label map."""
    (write_npy if suffix == ".npy" else write_png)(tmp_path / f"map/x{suffix}", stored)
    write_png(tmp_path / "img" / "x.png", image(0, *stored.shape[:2]))
    tasks = build_tasks({name: spec or {}})
    labels = {name: Label(f"map/{{id}}{suffix}", spec=spec or {}, **label)}
    splits = {"train": 1.0}
    dataset = Folder(tmp_path, "train", tasks, image="img/{id}.png", labels=labels, splits=splits, border=border)
    return dataset.raw(0)["targets"][name]


def test_images_and_labels_are_found_by_their_patterns(streets):
    data = module(streets)
    train = data.dataset("train", build_tasks(data.task_specs), None)
    assert train.ids == ["a/1", "b/2", "b/3"]
    np.testing.assert_array_equal(train[0]["image"], image(0))
    np.testing.assert_array_equal(train[2]["targets"]["semseg"], np.full((H, W), 2))
    assert data.dataset("val", build_tasks(data.task_specs), None).ids == ["c/4"]
    assert train[0]["meta"] == {"id": "a/1", "size": (H, W)}


def test_an_absent_file_is_an_absent_label(streets):
    labels = {"semseg": SEMSEG, "depth": Label("depth/{split}/{id}.png", divide_by=1000)}
    data = module(streets, labels=labels, batch_size=3)
    data.setup("fit")
    assert [sorted(data.datasets["train"].raw(index)["targets"]) for index in range(3)] == [
        ["depth", "semseg"], [], ["semseg"]
    ]  # fmt: skip
    (batch,) = data.train_dataloader()
    order = [batch["meta"]["id"].index(name) for name in ("a/1", "b/2", "b/3")]
    depth, semseg = batch["targets"]["depth"][order], batch["targets"]["semseg"][order]
    assert (depth[0] == 1.5).all()
    assert depth[1:].isnan().all()
    assert [int(values.unique()) for values in semseg] == [0, 255, 2]


def test_test_falls_back_to_the_validation_images(streets):
    data = module(streets, splits={"train": "train", "val": "val"})
    assert data.splits() == ["train", "val"]
    data.setup("test")
    assert data.datasets["test"].ids == ["c/4"]
    assert module(streets, splits={"train": "train", "val": "val", "test": "val"}).splits() == ["train", "val"]
    with pytest.raises(ConfigError, match=r"splits has no 'train', only \['val'\]"):
        module(streets, splits={"val": "val"}).setup("fit")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "npy"])
def test_images_of_several_formats_are_read(tmp_path, suffix):
    from PIL import Image

    pixels = np.full((H, W, 3), (200, 30, 60), np.uint8)
    path = tmp_path / f"x.{suffix}"
    writers = {"png": write_png, "jpg": write_jpg, "npy": write_npy}
    writers.get(suffix, lambda file, values: Image.fromarray(values).save(file, lossless=True))(path, pixels)
    write_png(tmp_path / "seg" / "x.png", np.zeros((H, W), np.uint8))
    labels = {"semseg": Label("seg/{id}.png", spec=SEMSEG.spec)}
    data = FolderDataModule(str(tmp_path), f"{{id}}.{suffix}", labels, {"train": 1.0})
    read = data.dataset("train", {}, None)[0]["image"]
    np.testing.assert_allclose(read.astype(int), pixels, atol=3 if suffix == "jpg" else 0)


def test_npy_images_must_be_photographs(tmp_path):
    write_npy(tmp_path / "x.npy", np.zeros((H, W, 3), np.float32))
    dataset = Folder(tmp_path, "train", {}, image="{id}.npy", labels={}, splits={"train": 1.0})
    with pytest.raises(CorruptFileError, match=r"x\.npy holds float32 \(6, 8, 3\)"):
        dataset[0]


# What stored values mean


def test_class_ids_are_mapped_and_everything_else_is_unlabelled(tmp_path):
    stored = np.array([[0, 1, 2], [3, 13, 14], [200, 255, 7]], np.uint8)
    spec = {"classes": ["a", "b", "c"]}
    target = one(tmp_path, stored, {"ids": [1, [2, 13], 7]}, spec, "semseg")
    np.testing.assert_array_equal(target, [[255, 0, 1], [255, 1, 255], [255, 255, 2]])


@given(st.lists(st.integers(-3, 300), min_size=1, max_size=30), st.permutations(range(0, 250, 50)))
def test_class_ids_follow_the_list_whatever_is_stored(stored, listed):
    from taskformer.data.datasets.folder import _Decoder
    from taskformer.data.images import File

    task = build_tasks({"semseg": {"classes": [str(k) for k in listed]}})["semseg"]
    decoder = _Decoder(Label("x", ids=list(listed)), task)
    target = decoder._classes(np.array([stored]), File("x.npy", b""))
    assert target.tolist() == [[listed.index(value) if value in listed else 255 for value in stored]]


def test_palette_images_give_indices(tmp_path):
    colors = np.array([[9, 9, 9], [200, 0, 0], [0, 200, 0]], np.uint8)
    stored = np.random.default_rng(0).integers(0, 3, (H, W), dtype=np.uint8)
    write_png(tmp_path / "img/x.png", image(0))
    write_png(tmp_path / "map/x.png", stored, palette=colors)
    labels = {"semseg": Label("map/{id}.png", spec=SEMSEG.spec)}
    dataset = Folder(
        tmp_path,
        "train",
        build_tasks({"semseg": SEMSEG.spec}),
        image="img/{id}.png",
        labels=labels,
        splits={"train": 1.0},
    )
    np.testing.assert_array_equal(dataset[0]["targets"]["semseg"], stored)


def test_saliency_accepts_0_and_1_and_0_and_255(tmp_path):
    stored = np.array([[0, 1], [255, 128]], np.uint8)
    np.testing.assert_array_equal(one(tmp_path, stored, {}, name="saliency"), [[0, 1], [1, 255]])


def test_depth_has_units_and_invalid_values(tmp_path):
    stored = np.array([[0, 1000], [2500, 65535]], np.uint16)
    target = one(tmp_path, stored, {"divide_by": 1000, "invalid": 65535})
    np.testing.assert_array_equal(target, np.array([[np.nan, 1], [2.5, np.nan]], np.float32))
    metres = np.array([[0.5, -1, np.inf, np.nan]], np.float64)
    target = one(tmp_path, metres, {}, suffix=".npy")
    np.testing.assert_array_equal(target, np.array([[0.5, np.nan, np.nan, np.nan]], np.float32))
    assert target.dtype == np.float32


def test_values_have_a_scale_an_offset_and_channels(tmp_path):
    stored = np.array([[[0, 255], [51, 102]]], np.uint8)
    spec = {"type": "regression", "channels": 2}
    target = one(tmp_path, stored, {"divide_by": 127.5, "add": -1}, spec, "flow", ".npy")
    np.testing.assert_allclose(target, [[[-1, 1], [-0.6, -0.2]]], atol=1e-6)


def test_edges_are_divided_or_refused(tmp_path):
    stored = np.array([[0, 255], [51, 0]], np.uint8)
    np.testing.assert_allclose(one(tmp_path, stored, {"divide_by": 255}, name="edges"), [[0, 1], [0.2, 0]], atol=1e-6)
    with pytest.raises(InvalidTargetError, match=r"x\.png gives edges up to 255.*labels\.edges\.divide_by"):
        one(tmp_path, stored, {}, name="edges")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_normals_are_decoded_into_our_axes(tmp_path, dtype):
    ours = np.array([[0.6, 0.0, -0.8], [0.0, 0.8, -0.6]])  # x right, y down, z into the scene: facing the camera
    theirs = np.stack([-ours[:, 2], ours[:, 0], -ours[:, 1]], axis=-1)  # towards the camera, right, up
    top = np.iinfo(dtype).max
    colors = np.round((theirs + 1) / 2 * top).astype(dtype)[None]
    unlabelled = np.array([[[top, top, top], [top // 2] * 3]], dtype)
    stored = np.concatenate([colors, unlabelled])
    suffix = ".png" if dtype == np.uint8 else ".npy"  # Pillow writes no colours of 16 bits
    target = one(tmp_path, stored, {"axes": [2, -3, -1]}, name="normals", suffix=suffix)
    np.testing.assert_allclose(target[0], ours, atol=0.01)
    assert np.isnan(target[1]).all()
    assert target.dtype == np.float32


def test_an_invalid_normal_is_one_in_all_channels(tmp_path):
    stored = np.array([[[0, 0, -1], [0, -1, 0], [-1, -1, -1]]], np.float32)
    target = one(tmp_path, stored, {"invalid": -1}, name="normals", suffix=".npy")
    np.testing.assert_array_equal(target[0, :2], stored[0, :2])
    assert np.isnan(target[0, 2]).all()


def test_a_border_holds_no_labels(tmp_path):
    for name, stored in {"depth": np.full((7, 9), 5, np.uint16), "saliency": np.zeros((7, 9), np.uint8)}.items():
        target = one(tmp_path, stored, {}, name=name, border=2)
        known = np.isfinite(target) & (target != 255)
        expected = np.zeros((7, 9), bool)
        expected[2:5, 2:7] = True
        np.testing.assert_array_equal(known, expected)


def test_whole_image_labels_are_vectors(tmp_path):
    write_png(tmp_path / "x.png", image(0))
    write_npy(tmp_path / "x.npy", np.array([0.25, 0.75]))
    labels = {"class_scene": Label("{id}.npy", spec={"classes": ["kitchen", "bath"]})}
    data = FolderDataModule(str(tmp_path), "{id}.png", labels, {"train": 1.0}, batch_size=1)
    data.datasets["train"] = data.evaluation_dataset("train")
    (batch,) = data.train_dataloader()
    assert batch["targets"]["class_scene"].tolist() == [[0.25, 0.75]]


# Splits


@pytest.fixture
def plain(tmp_path):
    """A hundred images without folders of splits, each with its label beside it."""
    for index in range(100):
        write_png(tmp_path / f"{index:03d}.png", image(index, 2, 2))
        write_png(tmp_path / f"{index:03d}_depth.png", np.ones((2, 2), np.uint8))
    return tmp_path


def splits_of(root, splits, **changes):
    arguments = {"image": "{id}.png", "labels": {"depth": Label("{id}_depth.png")}, **changes}
    data = FolderDataModule(str(root), splits=splits, **arguments)
    return {split: data.dataset(split, build_tasks(data.task_specs), None).ids for split in data.splits()}


def test_shares_split_images_by_their_ids_alone(plain):
    before = splits_of(plain, {"train": 0.7, "val": 0.3})
    assert sorted(before["train"] + before["val"]) == [f"{index:03d}" for index in range(100)]
    assert 60 <= len(before["train"]) <= 80
    for index in range(100, 150):
        write_png(plain / f"{index:03d}.png", image(index, 2, 2))
    after = splits_of(plain, {"train": 0.7, "val": 0.3})
    assert all(set(before[split]) <= set(after[split]) for split in before)
    default = splits_of(plain, None)
    assert [len(default["train"]) / 150 > 0.7, len(default["val"]) > 0, len(default["test"]) > 0] == [True] * 3


def test_text_files_name_the_images(plain):
    (plain / "train.txt").write_bytes(b"007\r\n\r\n012\r\n")
    (plain / "val.txt").write_text("050\n")
    assert splits_of(plain, {"train": "train.txt", "val": "val.txt"}) == {"train": ["007", "012"], "val": ["050"]}
    with pytest.raises(DatasetNotFoundError, match=r"trian\.txt is not a file.*a share or a text file"):
        splits_of(plain, {"train": "trian.txt"})


def test_labels_beside_images_are_no_images(plain):
    two = {"depth": Label("{id}_depth.png"), "copy": Label("{id}.png", spec={"type": "regression", "channels": 3})}
    for labels, tasks in (({"depth": two["depth"]}, None), (two, None), (two, ["copy"])):
        ids = splits_of(plain, {"train": 1.0}, labels=labels, tasks=tasks)["train"]
        assert ids == [f"{index:03d}" for index in range(100)]
    assert len(splits_of(plain, {"train": 1.0}, labels={"copy": two["copy"]})["train"]) == 200


def test_an_id_may_come_twice_and_hidden_files_do_not_count(tmp_path):
    for name in ("a/a_rgb.png", "b/b_rgb.png", "b/c_rgb.png", "d/.d_rgb.png", ".e/.e_rgb.png"):
        write_png(tmp_path / name, image(0))
    write_png(tmp_path / "a" / "depth.png", np.ones((H, W), np.uint8))
    ids = splits_of(tmp_path, {"train": 1.0}, image="{id}/{id}_rgb.png", labels={"depth": Label("{id}/depth.png")})
    assert ids == {"train": ["a", "b"]}


def test_a_cache_follows_the_options(streets, tmp_path):
    depths = []
    for divide_by in (1000, 500, 1000):
        labels = {"depth": Label("depth/{split}/{id}.png", divide_by=divide_by)}
        data = module(streets, labels=labels, cache_dir=str(tmp_path / "cache"))
        data.build_caches()
        data.setup("fit")
        assert data.datasets["train"].cache is not None
        depths.append(float(data.datasets["train"][0]["targets"]["depth"].mean()))
    assert depths == [1.5, 3.0, 1.5]


def test_verify_checks_own_data(streets):
    report = verify(module(streets, splits={"train": "train", "val": "val"}), workers=1)
    assert report.ok, report.summary()
    assert {split: summary.images for split, summary in report.splits.items()} == {"train": 3, "val": 1}
    write_png(streets / "seg" / "train" / "b" / "3_label.png", np.full((H, W), 77, np.uint8))
    (finding,) = verify(module(streets, splits={"train": "train"}), workers=1).findings
    assert (finding.id, finding.task, finding.kind) == ("b/3", "semseg", "labels")
    assert "holds the values [77]" in finding.reason


# Mistakes


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"image": "img/{split}/{id}.jpg"}, DatasetNotFoundError,
         r"no image matches 'img/train/\{id\}\.jpg' in .*working dir.*a file there is 'img/train/a/1_image\.png'"),
        ({"image": "images/{split}/{id}.jpg"}, DatasetNotFoundError, r"a file there is '(img|seg|depth)/"),
        ({"splits": {"train": "training"}}, DatasetNotFoundError, r"img/training/\{id\}.*a file there is 'img/"),
        ({"labels": {"semseg": Label("seg/{split}/{id}.png", spec=SEMSEG.spec)}}, DatasetNotFoundError,
         r"none of the 3 images of the split 'train' has a label for 'semseg'.*'seg/train/\{id\}\.png'.*"
         r"a file there is 'seg/train/a/1_label\.png'; correct .*labels\.semseg\.file"),
        ({"splits": {"train": 0.5}}, ConfigError, r"splits\.train is 0\.5; .*it must name the folder"),
        ({"image": "img/{name}.png"}, ConfigError, r"pattern of image must contain \{id\}.*'img/\{name\}\.png'"),
        ({"labels": {"semseg": Label("seg.png", spec=SEMSEG.spec)}}, ConfigError, r"pattern of semseg must contain"),
    ],
)  # fmt: skip
def test_wrong_patterns_are_explained(streets, changes, error, message):
    with pytest.raises(error, match=message):
        module(streets, **changes).setup("fit")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"splits": {"training": "train"}}, UnknownNameError, r"split in splits 'training' .did you mean 'train'"),
        ({"labels": {"semseg": Label("{id}")}}, ConfigError, "needs the option classes"),
        ({"labels": {"sems": Label("{id}")}}, UnknownNameError, "task type 'sems' .did you mean 'semseg'"),
        ({"tasks": ["depth"]}, UnknownNameError, "task of FolderDataModule 'depth'"),
    ],
)
def test_wrong_settings_are_found_without_files(changes, error, message):
    with pytest.raises(error, match=message):
        module("nowhere", **changes)


@pytest.mark.parametrize(
    ("name", "label", "message"),
    [
        ("depth", {"ids": [1, 2]}, "labels.depth.ids means nothing for a Depth task"),
        ("depth", {"boundaries": True}, "labels.depth.boundaries means nothing for a Depth task"),
        ("semseg", {"divide_by": 2}, "labels.semseg.divide_by means nothing"),
        ("semseg", {"ids": [1, 2]}, "must list the stored value .* the 3 classes .* got .1, 2."),
        ("semseg", {"ids": [1, 2, 2]}, "each once"),
        ("semseg", {"ids": [1, 2, -2]}, "none below 0"),
        ("normals", {"axes": [1, 2, 1]}, "1, 2 and 3 in some order"),
        ("normals", {"axes": [1, -1, -1]}, "1, 2 and 3 in some order"),
        ("depth", {"divide_by": 0}, "divide_by other than 0"),
    ],
)
def test_labels_that_contradict_their_task_are_refused(streets, name, label, message):
    spec = SEMSEG.spec if name == "semseg" else {}
    labels = {name: Label("seg/{split}/{id}_label.png", spec=spec, **label)}
    with pytest.raises(ConfigError, match=message):
        module(streets, labels=labels).setup("fit")


def test_unknown_class_ids_name_their_file(tmp_path):
    with pytest.raises(InvalidTargetError, match=r"x\.png holds the values \[7, 9\].*0\.\.2.*labels\.semseg\.ids"):
        one(tmp_path, np.array([[7, 9, 255, 0]], np.uint8), {}, SEMSEG.spec, "semseg")
    with pytest.raises(InvalidTargetError, match="float64, labels of 'semseg' must be integers"):
        one(tmp_path, np.zeros((2, 2)), {}, SEMSEG.spec, "semseg", ".npy")


def test_shares_that_do_not_fit_are_refused(plain):
    with pytest.raises(ConfigError, match="sum up to at most 1"):
        splits_of(plain, {"train": 0.9, "val": 0.2})
    with pytest.raises(ConfigError, match=r"splits\.val 1e-09 gives none of the 100 images"):
        splits_of(plain, {"train": 0.9, "val": 1e-9})


def test_a_missing_root_is_explained(tmp_path):
    with pytest.raises(DatasetNotFoundError, match=r"there is no folder '.*nowhere'; correct data\.init_args\.root"):
        module(tmp_path / "nowhere").setup("fit")


# Images of different sizes


def test_results_do_not_depend_on_the_batch_once_sizes_agree(tmp_path):
    for index, (height, width) in enumerate([(40, 64), (64, 48), (30, 30)]):
        write_png(tmp_path / "img" / f"{index}.png", image(index, height, width))
        write_png(tmp_path / "seg" / f"{index}.png", np.full((height, width), index, np.uint8))
    labels = {"semseg": Label("seg/{id}.png", spec=SEMSEG.spec)}
    model = taskformer.modules.Baseline({"semseg": SEMSEG.spec}, weights="random", embed_dim=8, head_dim=4).eval()
    options = {"padded": {"eval_transforms": [Pad(64, 64)]}, "resized": {"size": (32, 48)}}
    for option in options.values():
        outputs = []
        for batch_size in (1, 3):
            data = FolderDataModule(
                str(tmp_path), "img/{id}.png", labels, {"val": 1.0}, batch_size=batch_size, **option
            )
            data.setup("validate")
            with torch.no_grad():
                outputs.append(torch.cat([model(batch["image"])["semseg"] for batch in data.val_dataloader()]))
        torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
    cropped = FolderDataModule(
        str(tmp_path), "img/{id}.png", labels, {"train": 1.0}, batch_size=3, train_transforms=[RandomCrop(32, 32)]
    )
    cropped.datasets["train"] = cropped._transformed("train", cropped.train_transforms)
    (batch,) = cropped.train_dataloader()  # the smallest image is padded by collate
    assert batch["image"].shape == (3, 3, 32, 32)
    assert (batch["targets"]["semseg"] == 255).sum() == 32 * 32 - 30 * 30


def test_edges_are_the_boundaries_of_classes_that_are_known(tmp_path):
    ids = np.full((12, 20), 3, np.uint8)
    ids[:, 10:] = 1
    ids[:6, 16:] = 255
    write_png(tmp_path / "img" / "a.png", np.zeros((12, 20, 3), np.uint8))
    write_png(tmp_path / "map" / "a.png", ids)
    label = Label("map/{id}.png", boundaries=True)
    data = FolderDataModule(str(tmp_path), "img/{id}.png", {"edges": label}, {"train": 1.0})
    edges = data.dataset("train", build_tasks(data.task_specs), None)[0]["targets"]["edges"]
    np.testing.assert_array_equal(np.argwhere(np.isnan(edges)), np.argwhere(np.pad(np.ones((7, 5)), ((0, 5), (15, 0)))))
    assert (edges[1:-1, 9:11].sum(axis=1) == 1).all()
    assert np.nansum(edges) == edges[:, 9:11].sum()


# Through the command line, on photographs

IDD = """
data:
  class_path: FolderDataModule
  init_args:
    root: {root}/idd_lite
    image: "leftImg8bit/{{split}}/{{id}}_image.jpg"
    labels:
      semseg:
        file: "gtFine/{{split}}/{{id}}_label.png"
        spec: {{classes: [drivable, non-drivable, living things, vehicles, roadside objects, far objects, sky]}}
    splits: {{train: train, val: val, test: val}}
    size: [114, 160]
"""
NYU10 = """
data:
  class_path: FolderDataModule
  init_args:
    root: {root}/nyu10
    image: "rgb/{{id}}.png"
    labels:
      semseg:
        file: "semseg13/{{id}}.png"
        ids: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]
        spec:
          classes: [bed, books, ceiling, chair, floor, furniture, objects, picture, sofa, table, tv, wall, window]
      depth: {{file: "depth_mm/{{id}}.png", divide_by: 1000}}
    splits: {{train: 0.6, val: 0.4}}
    border: 10
    size: [120, 160]
"""


@pytest.mark.parametrize("model", [pytest.param("mqtransformer", marks=pytest.mark.slow), "baseline"])
@pytest.mark.parametrize(("name", "config"), {"idd_lite": IDD, "nyu10": NYU10}.items())
def test_photographs_train_and_test_from_the_command_line(tmp_path, monkeypatch, model, name, config):
    if not (SHARED / name).is_dir():
        pytest.skip(f"the photographs of {name} are not here")
    monkeypatch.chdir(tmp_path)
    Path("data.yaml").write_text(config.format(root=SHARED))
    flags = [
        "--data.batch_size=2", "--model.embed_dim=16", "--model.head_dim=8", "--trainer.accelerator=cpu",
        "--trainer.max_epochs=1", "--trainer.num_sanity_val_steps=0", "--trainer.log_every_n_steps=1",
        "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1",
        "--trainer.enable_progress_bar=false", "--gallery.images=2",
    ]  # fmt: skip
    main(["fit", f"--config={ROOT}/configs/model/{model}.yaml", "--config=data.yaml", "--name=own", *flags])
    main(["test", "--config=runs/own/config.yaml", "--ckpt_path=runs/own/checkpoints/best.ckpt", "--json=table.json"])
    tasks = yaml.safe_load(Path("table.json").read_text())["test"]["tasks"]
    assert list(tasks) == (["semseg"] if name == "idd_lite" else ["semseg", "depth"])
    assert 0 <= tasks["semseg"]["pixel_accuracy"] <= 1
    assert name == "idd_lite" or 0 < tasks["depth"]["rmse"] < 20


def test_the_photographs_of_nyu_have_their_known_values():
    if not (SHARED / "nyu10").is_dir():
        pytest.skip("the photographs of nyu10 are not here")
    from PIL import Image

    options = yaml.safe_load(NYU10.format(root=SHARED))["data"]["init_args"]
    labels = {name: Label(**label) for name, label in options["labels"].items()}
    data = FolderDataModule(options["root"], options["image"], labels, {"train": 1.0}, border=10)
    dataset = data.dataset("train", build_tasks(data.task_specs), None)
    assert len(dataset) == 10
    first = dataset[0]["targets"]
    millimetres = np.asarray(Image.open(SHARED / "nyu10" / "depth_mm" / "0001.png"))
    stored = np.asarray(Image.open(SHARED / "nyu10" / "semseg13" / "0001.png")).astype(int)
    inner = (slice(10, -10),) * 2
    np.testing.assert_allclose(first["depth"][inner], millimetres[inner] / 1000, rtol=1e-6)
    np.testing.assert_array_equal(first["semseg"][inner], np.where(stored == 0, 255, stored - 1)[inner])
    assert np.isnan(first["depth"][:10]).all()
    assert (first["semseg"][:, -10:] == 255).all()


# Files as people have them


def simple(root, image_pattern="img/{id}.jpg", label="map/{id}.png", spec=None, name="semseg", **options):
    """One split of all images in ``img`` with the labels of one task in ``map``."""
    spec = SEMSEG.spec if spec is None and name == "semseg" else spec or {}
    labels = {name: Label(label, spec=spec)}
    tasks = build_tasks({name: spec})
    return Folder(root, "train", tasks, image=image_pattern, labels=labels, splits={"train": 1.0}, **options)


def test_hidden_files_are_no_images_and_endings_match_in_any_case(tmp_path):
    for name in ("a.JPG", "b.jpg", "c.Jpg"):
        write_jpg(tmp_path / "img" / name, image(0))
        write_png(tmp_path / "map" / f"{name[0]}.PNG", np.ones((H, W), np.uint8))
        (tmp_path / "img" / f"._{name}").write_bytes(b"what macOS writes")
    dataset = simple(tmp_path)
    assert dataset.ids == ["a", "b", "c"]
    for index in range(3):
        np.testing.assert_array_equal(dataset[index]["targets"]["semseg"], 1)
    assert dataset.paths(0)["semseg"] == tmp_path / "map" / "a.PNG"
    write_jpg(tmp_path / "img" / "a.jpg", image(1))
    with pytest.raises(ConfigError, match=r"has two files 'img/a\.jpg', in capitals and not"):
        simple(tmp_path)


def test_lists_may_begin_with_a_byte_order_mark(plain):
    (plain / "train.txt").write_bytes("007\r\n012\r\n".encode("utf-8-sig"))
    (plain / "val.txt").write_bytes("050\n".encode("utf-16"))
    assert splits_of(plain, {"train": "train.txt", "val": "val.txt"}) == {"train": ["007", "012"], "val": ["050"]}


@pytest.mark.parametrize("kind", ["gif", "bmp", "tif", "png"])
def test_palettes_of_any_format_give_classes(tmp_path, kind):
    from PIL import Image

    stored = np.random.default_rng(0).integers(0, 3, (H, W), dtype=np.uint8)
    write_png(tmp_path / "img/x.png", image(0))
    picture = Image.fromarray(stored)
    picture.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    (tmp_path / "map").mkdir()
    picture.save(tmp_path / f"map/x.{kind}")
    dataset = simple(tmp_path, "img/{id}.png", f"map/{{id}}.{kind}")
    np.testing.assert_array_equal(dataset[0]["targets"]["semseg"], stored)


@pytest.mark.parametrize("ending", ["npy", "NPY", "npz", "mat", "tif"])
def test_depth_may_be_an_array_of_any_kind(tmp_path, ending):
    from PIL import Image
    from scipy.io import savemat

    metres = np.linspace(1, 5, H * W, dtype=np.float32).reshape(H, W)
    path = tmp_path / "map" / f"x.{ending}"
    write_png(tmp_path / "img/x.png", image(0))
    path.parent.mkdir()
    with path.open("wb") as stream:
        writers = {
            "npz": lambda: np.savez(stream, depth=metres, mask=metres > 2),
            "mat": lambda: savemat(stream, {"depth": metres, "mask": metres > 2}),
            "tif": lambda: Image.fromarray(metres).save(stream, "TIFF"),
        }
        writers.get(ending, lambda: np.save(stream, metres))()
    dataset = simple(tmp_path, "img/{id}.png", f"map/{{id}}.{ending}", name="depth")
    np.testing.assert_array_equal(dataset[0]["targets"]["depth"], metres)


def test_edges_of_1_bit_are_black_and_white(tmp_path):
    from PIL import Image

    lines = np.random.default_rng(0).random((H, W)) > 0.7
    write_png(tmp_path / "img/x.png", image(0))
    (tmp_path / "map").mkdir()
    Image.fromarray(lines).save(tmp_path / "map/x.png")
    labels = {"edges": Label("map/{id}.png", divide_by=255)}
    dataset = Folder(
        tmp_path, "train", build_tasks({"edges": {}}), image="img/{id}.png", labels=labels, splits={"train": 1.0}
    )
    np.testing.assert_array_equal(dataset[0]["targets"]["edges"], lines)


@pytest.mark.parametrize(
    ("name", "stored", "message"),
    [
        ("depth", np.ones((H, W, 3), np.float32), r"holds float32 \(6, 8, 3\), labels of 'depth' .* \(height, width\)"),
        ("normals", np.ones((H, W), np.float32), r"labels of 'normals' must be numbers \(height, width, 3\)"),
        ("semseg", np.array([["a"]]), r"holds <U1 \(1, 1\)"),
        ("semseg", np.full((H, W), 9, np.uint8), r"x\.npy holds the values \[9\]"),
    ],
)
def test_maps_of_another_shape_are_named(tmp_path, name, stored, message):
    write_png(tmp_path / "img/x.png", image(0))
    write_npy(tmp_path / "map/x.npy", stored)
    with pytest.raises((CorruptFileError, InvalidTargetError), match=message):
        simple(tmp_path, "img/{id}.png", "map/{id}.npy", name=name)[0]


# Orientation tags


def tagged(root, tag=6):
    """A photograph with an orientation tag, and labels drawn on its stored pixels: vectors that point right."""
    from PIL import Image

    pixels = np.kron(image(0), np.ones((8, 8, 1), np.uint8))
    tags = Image.Exif()
    tags[0x0112] = tag
    (root / "img").mkdir()
    Image.fromarray(pixels).save(root / "img/x.png", exif=tags)
    ids = np.zeros(pixels.shape[:2], np.uint8)
    ids[0, 0] = 1
    write_png(root / "seg/x.png", ids)
    write_npy(root / "normals/x.npy", np.broadcast_to(np.array([0.6, 0, -0.8], np.float32), pixels.shape))
    return pixels, ids


def oriented(root, option):
    labels = {"semseg": Label("seg/{id}.png", spec=SEMSEG.spec), "normals": Label("normals/{id}.npy")}
    return FolderDataModule(str(root), "img/{id}.png", labels, {"train": 1.0}, orientation=option)


def test_orientation_tags_turn_images_and_labels_only_by_option(tmp_path):
    pixels, ids = tagged(tmp_path)
    raw = {}
    for option in ("stored", "both"):
        data = oriented(tmp_path, option)
        raw[option] = data.dataset("train", build_tasks(data.task_specs), None)[0]
    np.testing.assert_array_equal(raw["stored"]["image"], pixels)
    np.testing.assert_array_equal(raw["stored"]["targets"]["semseg"], ids)
    np.testing.assert_array_equal(raw["both"]["image"], np.rot90(pixels, -1))
    np.testing.assert_array_equal(raw["both"]["targets"]["semseg"], np.rot90(ids, -1))
    # What points right points down after a quarter turn to the right.
    np.testing.assert_allclose(raw["both"]["targets"]["normals"][3, 4], [0, 0.6, -0.8], atol=1e-6)


def test_labels_that_were_drawn_in_a_viewer_fit_the_turned_image(tmp_path):
    pixels, ids = tagged(tmp_path)
    write_png(tmp_path / "seg/x.png", np.rot90(ids, -1).copy())
    spec = {"semseg": Label("seg/{id}.png", spec=SEMSEG.spec)}
    both = [
        FolderDataModule(str(tmp_path), "img/{id}.png", spec, {"train": 1.0}, orientation=option).dataset(
            "train", build_tasks({"semseg": SEMSEG.spec}), None
        )
        for option in ("image", "stored")
    ]
    np.testing.assert_array_equal(both[0][0]["image"], np.rot90(pixels, -1))
    np.testing.assert_array_equal(both[0][0]["targets"]["semseg"], np.rot90(ids, -1))
    with pytest.raises(CorruptFileError, match=r"64x48 .*48x64.*orientation tag 6: the map may fit it as viewers"):
        both[1][0]


def test_verify_reports_a_tag_that_is_not_obeyed(tmp_path):
    tagged(tmp_path)
    report = verify(oriented(tmp_path, "stored"), workers=0)
    assert report.ok
    (doubt,) = report.doubts
    assert (doubt.kind, doubt.file) == ("turned", str(tmp_path / "img/x.png"))
    assert "orientation tag 6" in doubt.reason
    assert doubt.reason in report.summary()
    assert verify(oriented(tmp_path, "both"), workers=0).doubts == []


def test_a_cache_knows_the_orientation(tmp_path):
    tagged(tmp_path)
    shapes = []
    for option in ("stored", "both", "stored"):
        data = oriented(tmp_path, option)
        data.cache_dir = str(tmp_path / "cache")
        data.holdout = 0.5
        data.build_caches()
        data.setup("fit")
        shapes.append(data.datasets["train"].dataset.raw(0)["image"].shape[:2])
    assert shapes == [(48, 64), (64, 48), (48, 64)]


# What verify wonders about


def test_verify_reports_files_that_match_nothing_and_images_without_a_label(streets):
    options = {"splits": {"train": "train", "val": "val"}}
    write_jpg(streets / "img/train/a/5_image.jpeg", image(0))
    write_png(streets / "img/train/a/photo.png", image(0))
    (streets / "img/train/a/notes.txt").touch()
    (streets / "img/train/a/._1_image.png").touch()
    write_png(streets / "seg/train/a/9_label.png", np.zeros((H, W), np.uint8))
    report = verify(module(streets, **options), workers=0)
    assert report.ok
    assert [(doubt.split, doubt.kind, doubt.task) for doubt in report.doubts] == [
        ("train", "unused", ""), ("train", "unused", ""), ("train", "missing", "semseg")
    ]  # fmt: skip
    reasons = [doubt.reason for doubt in report.doubts]
    assert reasons[0] == "2 files match neither image nor labels: img/train/a/5_image.jpeg, img/train/a/photo.png"
    assert reasons[1] == "1 files of 'semseg' belong to no image: seg/train/a/9_label.png"
    assert reasons[2] == f"{streets / 'img/train/b/2_image.png'}: has no label for 'semseg'"
    assert all(reason in report.summary() for reason in reasons)


def test_one_folder_of_all_splits_is_reported_once(plain):
    write_jpg(plain / "x.jpg", image(0))
    labels = {"depth": Label("{id}_depth.png")}
    report = verify(FolderDataModule(str(plain), "{id}.png", labels), workers=0)
    assert [doubt.reason for doubt in report.doubts] == ["1 files match neither image nor labels: x.jpg"]
