"""NYUD-v2: labels, every layout on miniature copies and real frames, and against independent readers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

import taskformer
from taskformer.cli import main
from taskformer.data.configured import data_module
from taskformer.data.datamodules.nyud import NYUDDataModule
from taskformer.data.datasets.nyud import CENTER, FOCAL, NYUD, class_names, label_table, official_split, table
from taskformer.data.images import write_npy, write_png
from taskformer.data.surfaces import plane_normals
from taskformer.datatools.miniature.nyud import BOXES, LABELS, swap_splits, write_nyud
from taskformer.datatools.miniature.scene import scene
from taskformer.errors import ConfigError, CorruptFileError, DatasetNotFoundError, InvalidTargetError, UnknownNameError
from taskformer.tasks import build_tasks

#: Real photographs that are not part of the repository.
SHARED = Path(__file__).parents[3] / "shared" / "data"

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
SIZE = (64, 80)
LAYOUTS = ("a", "b", "adashare")
#: The first training and the first validation image of the official split.
FIRST = {"train": 3, "val": 1}
ADASHARE = SHARED / "nyu_adashare"
TABLES = SHARED / "tables"
real_frames = pytest.mark.skipif(not ADASHARE.exists(), reason="the real frames are not there")
original_tables = pytest.mark.skipif(not TABLES.exists(), reason="the published tables are not there")


@pytest.fixture(scope="session")
def miniatures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nyud")
    for layout in LAYOUTS:
        write_nyud(folder / layout, layout=layout, size=SIZE)
    write_nyud(folder / "holes_a", layout="a", size=SIZE, holes=True)
    write_nyud(folder / "holes_b", layout="b", size=SIZE, holes=True)
    write_nyud(folder / "holes_adashare", layout="adashare", size=SIZE, holes=True)
    return folder


@pytest.fixture
def copy(miniatures, tmp_path):
    """A miniature that is free to be changed."""
    return lambda layout: shutil.copytree(miniatures / layout, tmp_path / "nyud")


def load(root, *tasks, split="train", **options):
    data = NYUDDataModule(str(root), tasks=list(tasks) or None, **options)
    return data.dataset(split, build_tasks(data.task_specs), None)


def degrees(first, second):
    return np.degrees(np.arccos(np.clip((first * second).sum(axis=-1), -1, 1)))


# Labels


@original_tables
def test_the_table_is_the_published_one():
    mapping = scipy.io.loadmat(TABLES / "nyu_894_to_40.mat")
    assert table()["classes_40"] == [str(name[0]) for name in mapping["className"][0]]
    assert table()["raw_to_40"] == mapping["mapClass"][0].tolist()
    ids = json.loads((TABLES / "nyu_894.json").read_text())
    assert {name: number for number, name in enumerate(table()["raw_names"], start=1)} == ids
    groups = scipy.io.loadmat(TABLES / "nyu_40_to_13.mat")["classMapping13"][0, 0]
    assert table()["to_13"] == groups["labels13"][0].tolist()
    assert table()["classes_13"] == [str(name[0]) for name in groups["classNames"].ravel()]
    splits = scipy.io.loadmat(TABLES / "nyu_splits.mat")
    for key, split in {"trainNdxs": "train", "testNdxs": "val"}.items():
        assert [number for number, name in official_split().items() if name == split] == splits[key].ravel().tolist()


def test_the_split_has_the_published_sizes():
    split = list(official_split().values())
    assert (split.count("train"), split.count("val")) == (795, 654)
    assert sorted(official_split()) == list(range(1, 1450))


@pytest.mark.parametrize(("first", "none"), [(1, 0), (0, 255)])
def test_13_classes_group_the_40(first, none):
    fine, coarse = label_table(first, 40), label_table(first, 13)
    groups = {class_names(40)[fine[i]]: class_names(13)[coarse[i]] for i in range(first, first + 40)}
    assert len(groups) == 40
    assert [groups[name] for name in ("wall", "television", "night stand", "blinds", "floor mat", "desk")] == [
        "wall", "tv", "furniture", "window", "floor", "table"
    ]  # fmt: skip
    for classes in (fine, coarse):
        assert classes[none] == 255
        assert (np.delete(classes, [none, *range(first, first + 40)]) == 254).all()


# Miniatures: what was written comes back


def expected_labels(room, start):
    """The labels 1..40 of a miniature's room whose boxes begin with this class."""
    boxes = iter(BOXES[start:])
    of_object = {key: LABELS.get(kind) or next(boxes) for key, kind in room.kinds.items()}
    labels = np.vectorize(of_object.get)(room.objects)
    return np.where(room.edges, 0, labels)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("split", ["train", "val"])
def test_everything_comes_back(miniatures, layout, split):
    dataset = load(miniatures / layout, split=split)
    room = scene(*SIZE, seed=FIRST[split])
    sample = dataset[0]
    assert sample["meta"] == {"id": f"{FIRST[split]:04d}", "size": SIZE}
    assert set(sample["targets"]) == {"semseg", "depth", "normals", "edges"} - (
        {"edges"} if layout == "adashare" else set()
    )
    difference = np.abs(sample["image"].astype(int) - room.image)
    assert difference.mean() < 8 if layout == "b" else difference.max() == 0
    np.testing.assert_array_equal(sample["targets"]["depth"], room.depth)
    assert degrees(sample["targets"]["normals"], room.normals).max() < 1
    np.testing.assert_allclose(np.linalg.norm(sample["targets"]["normals"], axis=-1), 1, atol=1e-6)
    if "edges" in sample["targets"]:
        np.testing.assert_array_equal(sample["targets"]["edges"], room.edges.astype(np.float32))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_labels_come_back(miniatures, layout):
    """All objects of the first room, in both vocabularies."""
    labels = expected_labels(scene(*SIZE, seed=3), 0)
    fine = load(miniatures / layout, "semseg")[0]["targets"]["semseg"]
    assert fine.dtype == np.uint8
    np.testing.assert_array_equal(fine, np.where(labels == 0, 255, labels - 1))
    assert {0, 1, 21, 30, 255} <= set(np.unique(fine))
    to_13 = np.array([256, *table()["to_13"]])
    coarse = load(miniatures / layout, "semseg", semseg_classes=13)[0]["targets"]["semseg"]
    np.testing.assert_array_equal(coarse, (to_13[labels] - 1))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_holes_are_invalid(miniatures, layout):
    targets = load(miniatures / f"holes_{layout}", "depth", "normals")[0]["targets"]
    room = scene(*SIZE, seed=3)
    hole = np.zeros(SIZE, dtype=bool)
    hole[16:32, 20:40] = True
    np.testing.assert_array_equal(np.isnan(targets["depth"]), hole)
    np.testing.assert_array_equal(np.isnan(targets["normals"]).all(axis=-1), hole)
    np.testing.assert_array_equal(targets["depth"][~hole], room.depth[~hole])
    assert degrees(targets["normals"], room.normals)[~hole].max() < 1


def test_layouts_agree(miniatures):
    samples = [load(miniatures / layout, "semseg", "depth", "normals", split="val")[1] for layout in LAYOUTS]
    for sample in samples[1:]:
        np.testing.assert_array_equal(sample["targets"]["semseg"], samples[0]["targets"]["semseg"])
        np.testing.assert_array_equal(sample["targets"]["depth"], samples[0]["targets"]["depth"])
        assert degrees(sample["targets"]["normals"], samples[0]["targets"]["normals"]).max() < 1


def test_a_peer_reads_layout_a(miniatures):
    """What ATRC and InvPT do with the files: class - 1, 2 v / 255 - 1, / 255, lists of names."""
    root = miniatures / "a"
    names = (root / "gt_sets" / "train.txt").read_text().splitlines()
    assert names == ["0003", "0004", "0005", "0006"]
    assert (root / "gt_sets" / "val.txt").read_text().splitlines() == ["0001", "0002"]
    ours = load(root)
    for index, name in enumerate(names):
        with Image.open(root / "images" / f"{name}.png") as image:
            assert image.mode == "RGB"
            np.testing.assert_array_equal(np.array(image), ours[index]["image"])
        with Image.open(root / "segmentation" / f"{name}.png") as labels:
            theirs = np.array(labels).astype(np.float32) - 1
        np.testing.assert_array_equal(np.where(theirs == -1, 255, theirs), ours[index]["targets"]["semseg"])
        with Image.open(root / "normals" / f"{name}.png") as pixels:
            vectors = 2.0 * np.array(pixels) / 255 - 1
        np.testing.assert_allclose(vectors, ours[index]["targets"]["normals"], atol=0.01)
        with Image.open(root / "edge" / f"{name}.png") as pixels:
            np.testing.assert_array_equal(np.array(pixels) / 255, ours[index]["targets"]["edges"])
        depth = np.load(root / "depth" / f"{name}.npy")
        assert depth.ndim == 2
        assert depth.min() > 0


def test_a_peer_reads_layout_b(miniatures):
    root, ours = miniatures / "b", load(miniatures / "b")
    for name, sample in zip(ours.ids, ours, strict=True):
        with Image.open(root / "images" / f"{name}.jpg") as image:
            assert image.size == SIZE[::-1]
        edges, normals = (np.load(root / folder / f"{name}.npy") for folder in ("edge", "normals"))
        assert set(np.unique(edges)) == {0, 1}
        np.testing.assert_array_equal(edges, sample["targets"]["edges"])
        np.testing.assert_allclose(normals, sample["targets"]["normals"], atol=1e-6)


def test_a_peer_reads_the_adashare_layout(miniatures):
    root, ours = miniatures / "adashare", load(miniatures / "adashare")
    index = json.loads((root / "nyu_v2_3task.json").read_text())
    assert [len(index[split]) for split in ("train", "test")] == [4, 2]
    for (image, seg, normal, depth), sample in zip(index["train"], ours, strict=True):
        pixels = [np.array(Image.open(root / path)) for path in (image, seg, normal)]
        np.testing.assert_array_equal(pixels[0], sample["image"])
        np.testing.assert_array_equal(pixels[1], sample["targets"]["semseg"])
        x, into, up = np.moveaxis(pixels[2] / 127.5 - 1, -1, 0)
        np.testing.assert_allclose(np.stack([x, -up, into], -1), sample["targets"]["normals"], atol=0.01)
        np.testing.assert_array_equal(np.load(root / depth), sample["targets"]["depth"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_test_split_is_validation(miniatures, layout):
    val, test = (load(miniatures / layout, split=split) for split in ("val", "test"))
    assert val.ids == test.ids == ["0001", "0002"]
    np.testing.assert_array_equal(val[1]["image"], test[1]["image"])


def test_resizing_keeps_metres(miniatures):
    full, small = (load(miniatures / "a", size=size)[0] for size in (None, (32, 40)))
    assert small["image"].shape == (32, 40, 3)
    np.testing.assert_array_equal(small["targets"]["depth"], full["targets"]["depth"][1::2, 1::2])


# Real frames


@real_frames
def test_the_real_frames_divide_by_their_numbers():
    assert load(ADASHARE).ids == ["0295"]
    assert load(ADASHARE, split="val").ids == load(ADASHARE, split="test").ids == ["0061"]
    assert NYUDDataModule(str(ADASHARE)).task_names == ["semseg", "depth", "normals"]


@real_frames
@pytest.mark.parametrize("split", ["train", "val"])
def test_real_normals_are_in_our_frame(split):
    """They must be those of the surfaces in the depth map, whichever way the files store them."""
    targets = load(ADASHARE, split=split)[0]["targets"]
    true = plane_normals(targets["depth"], FOCAL, CENTER)
    error = degrees(true, targets["normals"])
    error = error[np.isfinite(error)]
    assert np.median(error) < 1
    assert np.mean(error) < 5
    invalid = np.isnan(targets["normals"]).all(axis=-1)
    assert 0.2 < invalid.mean() < 0.5
    with Image.open(ADASHARE / "normal_mask" / f"{load(ADASHARE, split=split).ids[0]}.png") as image:
        assert invalid[(np.array(image) == 255).all(axis=-1)].all()


@real_frames
def test_real_floors_point_up_and_walls_to_the_camera():
    targets = load(ADASHARE)[0]["targets"]

    def mean(name):
        return np.nanmean(targets["normals"][targets["semseg"] == class_names(40).index(name)], axis=0)

    assert mean("floor")[1] < -0.9
    assert mean("desk")[1] < -0.5
    assert mean("wall")[2] < -0.7
    assert mean("ceiling")[1] > 0.7
    assert not list(load(ADASHARE).problems())


# What is there and what is not


def test_layouts_are_recognised_or_named(miniatures, tmp_path):
    for layout in LAYOUTS:
        assert load(miniatures / layout).layout_name == layout
        assert load(miniatures / layout, layout=layout).layout_name == layout
    with pytest.raises(DatasetNotFoundError, match=r"neither images/\*\.png.*prepare nyud.*data\.init_args\.root"):
        load(tmp_path)


def test_a_task_that_a_layout_lacks_gets_a_sentence(copy):
    root = copy("adashare")
    with pytest.raises(
        DatasetNotFoundError, match=r"no labels for 'edges': this layout has only semseg, normals, depth"
    ):
        load(root, "edges")
    shutil.rmtree(root / "depth")
    with pytest.raises(DatasetNotFoundError, match=r"no labels for 'depth': there is no folder depth/; leave it out"):
        load(root, "depth")
    assert NYUDDataModule(str(root)).available() == NYUDDataModule(str(root)).task_names == ["semseg", "normals"]
    with pytest.raises(UnknownNameError, match="did you mean 'edges'"):
        NYUDDataModule(tasks=["edge"])


def test_a_split_without_images_gets_a_sentence(copy):
    root = copy("adashare")
    (root / "nyu_v2_3task.json").unlink()
    assert load(root).ids == ["0003", "0004", "0005", "0006"]
    for name in load(root).ids:
        (root / "img" / f"{name}.png").unlink()
    with pytest.raises(DatasetNotFoundError, match=r"no image of the split 'train'.*official numbers"):
        load(root)
    assert load(root, split="val").ids == ["0001", "0002"]


def test_missing_lists_are_named(copy):
    root = copy("a")
    (root / "gt_sets" / "train.txt").unlink()
    with pytest.raises(DatasetNotFoundError, match=r"gt_sets/train\.txt does not exist"):
        load(root)


def test_the_split_file_decides_where_files_are(copy):
    root = copy("adashare")
    index = json.loads((root / "nyu_v2_3task.json").read_text())
    for folder in ("img", "seg", "normal_mask", "depth"):
        (root / "elsewhere" / folder).mkdir(parents=True)
    index["val"] = [[f"elsewhere/{path}" for path in index["train"][0]]]
    for path in index["train"][0]:
        shutil.copy(root / path, root / "elsewhere" / path)
    (root / "nyu_v2_3task.json").write_text(json.dumps(index))
    dataset = load(root, split="val")
    assert dataset.ids == ["0003"]
    assert dataset.files(0)["image"] == root / "elsewhere" / "img" / "0003.png"
    (root / "nyu_v2_3task.json").write_text('{"train": [["img/0003.png"]]}')
    with pytest.raises(CorruptFileError, match=r"nyu_v2_3task\.json must give.*four paths"):
        load(root)


def test_task_specs_follow_the_classes():
    assert len(NYUDDataModule("nowhere").task_specs["semseg"]["classes"]) == 40
    specs = NYUDDataModule("nowhere", semseg_classes=13).task_specs
    assert specs["semseg"]["classes"] == class_names(13)
    assert list(specs) == ["semseg", "depth", "normals", "edges"]
    assert json.loads(json.dumps(specs)) == specs


# Faults


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_right_copy_has_no_problems_and_swapped_splits_are_found(copy, layout):
    root = copy(layout)
    assert not [*load(root).problems(), *load(root, split="val").problems()]
    swap_splits(root)
    (problem,) = load(root, "semseg").problems()
    assert problem.startswith("the split 'train' lists 2 images that officially belong to another (0001, 0002")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axes", [(1, -2, -3), (3, 1, -2), (-1, 2, 3)])
def test_wrong_normal_axes_are_found_with_the_right_ones(miniatures, layout, axes):
    dataset = load(miniatures / layout, normal_axes=axes)
    (problem,) = dataset.problems()
    right = list(load(miniatures / layout).axes)
    assert f"normal_axes={list(axes)}" in problem
    assert f"normal_axes={right} would fit" in problem
    wrong = dataset[0]["targets"]["normals"]
    true = load(miniatures / layout)[0]["targets"]["normals"]
    for channel, axis in enumerate(axes):
        stored = next(i for i, name in enumerate(right) if abs(name) == abs(axis))
        sign = np.sign(axis) * np.sign(right[stored])
        np.testing.assert_array_equal(wrong[..., channel], sign * true[..., stored])


def test_impossible_axes_are_refused(miniatures):
    with pytest.raises(ConfigError, match=r"channels 1, 2 and 3 once each.*\(1, 1, 3\)"):
        load(miniatures / "a", normal_axes=(1, 1, 3))


@pytest.mark.parametrize(
    ("layout", "path", "content", "message"),
    [
        ("a", "segmentation/0003.png", np.full(SIZE, 41, np.uint8), r"labels \[41\], expected 1 to 40, or 0 for none"),
        ("adashare", "seg/0003.png", np.full(SIZE, 40, np.uint8), r"labels \[40\], expected 0 to 39, or 255 for none"),
        ("b", "segmentation/0003.png", np.full(SIZE, 300, np.uint16), r"labels \[300\]"),
        ("a", "depth/0003.npy", np.ones((*SIZE, 3), np.float32), "depth must be floats"),
        ("a", "depth/0003.npy", np.ones(SIZE, np.uint16), "uint16.*depth must be floats"),
        ("a", "normals/0003.png", np.ones(SIZE, np.uint8), "normals need"),
        ("b", "edge/0003.npy", np.full(SIZE, 255.0), "edges must be"),
        ("a", "depth/0003.npy", np.ones((9, 9), np.float32), "9x9.*64x80"),
    ],
)
def test_broken_files_are_named(copy, layout, path, content, message):
    root = copy(layout)
    (write_npy if path.endswith("npy") else write_png)(root / path, content)
    with pytest.raises((CorruptFileError, InvalidTargetError), match=message) as error:
        load(root)[0]
    assert str(root / path) in str(error.value)


def test_missing_depth_is_invalid(copy):
    root = copy("adashare")
    depth = np.array([0, 1e-5, 3e-5, 1e-4, -1, np.nan, np.inf, 2], np.float32)
    depth = np.tile(depth, (SIZE[0], SIZE[1] // 8))
    write_npy(root / "depth" / "0003.npy", depth[..., None])
    found = load(root, "depth")[0]["targets"]["depth"]
    np.testing.assert_array_equal(np.isfinite(found[0, :8]), [False, False, False, True, False, False, False, True])


# Normals from depth


def plane(normal, distance=2.0, size=(48, 64), focal=500.0):
    """Exact depth of a plane."""
    y, x = np.mgrid[: size[0], : size[1]]
    rays = np.stack([(x - 30) / focal, (y - 20) / focal, np.ones(size)], axis=-1)
    return (-distance / (rays @ normal)).astype(np.float32)


@pytest.mark.parametrize("normal", [(0, 0, -1), (0.3, -0.4, -0.9), (-0.6, 0.2, -0.8), (0.1, -0.7, -0.7)])
def test_planes_have_their_normals(normal):
    normal = np.array(normal) / np.linalg.norm(normal)
    found = plane_normals(plane(normal), (500.0, 500.0), (30.0, 20.0))
    assert degrees(found, normal).max() < 0.2


def test_a_step_in_depth_does_not_bend_the_planes():
    first, second = np.array([0, 0, -1.0]), np.array([0.6, 0, -0.8])
    depth = np.where(np.arange(64) < 32, plane(first), plane(second, 6.0)).astype(np.float32)
    found = plane_normals(depth, (500.0, 500.0), (30.0, 20.0))
    assert degrees(found[:, :32], first).max() < 0.5
    assert degrees(found[:, 32:], second).max() < 0.5


def test_unknown_depth_has_no_normal():
    depth = plane(np.array([0, 0, -1.0]))
    depth[10:30, 10:40] = np.nan
    found = plane_normals(depth, (500.0, 500.0), (30.0, 20.0))
    np.testing.assert_array_equal(np.isnan(found).any(axis=-1), np.isnan(depth))
    lonely = np.full_like(depth, np.nan)
    lonely[20, 20:30] = 2  # a line is no surface
    assert np.isnan(plane_normals(lonely, (500.0, 500.0), (30.0, 20.0))).all()


# Configurations and training


@pytest.mark.parametrize(
    ("name", "window", "evaluated"),
    [
        ("nyud", (425, 560), SIZE),
        ("nyud_13", (425, 560), SIZE),
        ("nyud_invpt", (448, 576), (448, 576)),
        ("nyud_mtinet", (480, 640), (480, 640)),
        ("nyud_adashare", (321, 321), SIZE),
    ],
)
def test_configs_give_the_published_sizes(miniatures, name, window, evaluated):
    model, data = taskformer.from_config(
        str(CONFIGS / "model" / "baseline.yaml"),
        str(CONFIGS / "data" / f"{name}.yaml"),
        overrides=[f"--data.init_args.root={miniatures / 'a'}", "--data.init_args.batch_size=2",
                   "--data.init_args.num_workers=0"],
    )  # fmt: skip
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (2, 3, *window)
    assert next(iter(data.val_dataloader()))["image"].shape == (2, 3, *evaluated)
    assert list(model.tasks) == list(batch["targets"])
    assert model.tasks["semseg"].channels == (13 if name == "nyud_13" else 40)
    for task, target in batch["targets"].items():
        assert torch.isfinite(target.float()).any(), task
    assert data_module(CONFIGS / "data" / f"{name}.yaml").root == "data/nyud"


def test_adashares_zoom_leaves_depth_alone(miniatures):
    zooms = {}
    for name in ("nyud", "nyud_adashare"):
        _, data = taskformer.from_config(
            str(CONFIGS / "model" / "baseline.yaml"),
            str(CONFIGS / "data" / f"{name}.yaml"),
            overrides=[f"--data.init_args.root={miniatures / 'a'}", "--data.init_args.num_workers=0"],
        )
        data.setup("fit")
        known = np.concatenate([load(miniatures / "a", "depth")[i]["targets"]["depth"].ravel() for i in range(4)])
        depth = data.datasets["train"][0]["targets"]["depth"]
        zooms[name] = np.isin(depth[torch.isfinite(depth)].numpy(), known).mean()
    assert zooms["nyud_adashare"] == 1
    assert zooms["nyud"] < 0.5


def fit_and_test(folder, monkeypatch, model, root, *flags):
    """Train for a moment and test through the entry point; returns the test's numbers."""
    monkeypatch.chdir(folder)
    small = [f"--data.root={root}", "--data.num_workers=0", "--model.embed_dim=16", "--trainer.accelerator=cpu",
             "--trainer.max_epochs=1", "--trainer.num_sanity_val_steps=0", "--trainer.log_every_n_steps=1",
             "--trainer.enable_progress_bar=false"]  # fmt: skip
    if model == "mqtransformer":
        small += ["--model.num_queries=8", "--model.head_dim=8"]
    main(["fit", f"--config={CONFIGS}/model/{model}.yaml", *flags[:1], *small, *flags[1:], "--name=run"])
    main(["test", "--config=runs/run/config.yaml", "--ckpt_path=runs/run/checkpoints/best.ckpt"])
    return json.loads((folder / "runs" / "run" / "metrics.json").read_text())["test"]["tasks"]


@pytest.mark.parametrize("model", ["mqtransformer", pytest.param("baseline", marks=pytest.mark.slow)])
def test_both_models_train_on_the_miniature(miniatures, tmp_path, monkeypatch, model):
    flags = [f"--config={CONFIGS}/data/nyud.yaml", "--data.batch_size=2", "--data.train_transforms=[]"]
    numbers = fit_and_test(tmp_path, monkeypatch, model, miniatures / "a", *flags)
    assert set(numbers) == {"semseg", "depth", "normals", "edges"}
    assert all(np.isfinite(value) for metrics in numbers.values() for value in metrics.values())


@real_frames
@pytest.mark.slow  # 480x640 images
@pytest.mark.parametrize("model", ["mqtransformer", "baseline"])
def test_both_models_train_on_the_real_frames(tmp_path, monkeypatch, model):
    flags = [f"--config={CONFIGS}/data/nyud_adashare.yaml", "--data.batch_size=1"]
    numbers = fit_and_test(tmp_path, monkeypatch, model, ADASHARE, *flags)
    assert set(numbers) == {"semseg", "depth", "normals"}
    assert np.isfinite([numbers["semseg"]["mIoU"], numbers["depth"]["rmse"], numbers["normals"]["mean_angle"]]).all()
    assert numbers["normals"]["mean_angle"] < 180


def test_miniatures_use_every_class_sooner_or_later(tmp_path):
    root = write_nyud(tmp_path, counts={"train": 16, "val": 2}, size=(32, 40))
    seen = [np.unique(load(root, "semseg")[index]["targets"]["semseg"]) for index in range(16)]
    assert len(set(np.concatenate(seen)) - {255}) >= 30
    record = json.loads((root / "miniature.json").read_text())
    assert record["dataset"] == "nyud"
    assert {split: len(ids) for split, ids in record["splits"].items()} == {"train": 16, "val": 2}
    assert NYUD(root, "train", build_tasks({"depth": {}})).ids == record["splits"]["train"]


def test_names_of_any_kind_are_found(copy):
    expected = load(copy("b"))
    root = expected.root
    before = [expected[index] for index in range(2)]
    listed = (root / "gt_sets/train.txt").read_bytes()
    (root / "gt_sets/train.txt").write_bytes(b"\xef\xbb\xbf" + listed.replace(b"\n", b"\r\n"))
    for path in list((root / "images").glob("*.jpg")) + list((root / "depth").glob("*.npy")):
        path.rename(path.with_suffix(path.suffix.upper()))
    dataset = load(root)
    assert dataset.ids == expected.ids
    for index, sample in enumerate(before):
        np.testing.assert_array_equal(dataset[index]["image"], sample["image"])
        np.testing.assert_array_equal(dataset[index]["targets"]["depth"], sample["targets"]["depth"])


def test_hidden_files_are_no_images(copy):
    root = copy("adashare")
    (root / "nyu_v2_3task.json").unlink()
    (root / "img" / "._0003.png").write_bytes(b"what macOS writes")
    assert not any(name.startswith(".") for name in load(root).ids)


@pytest.mark.parametrize("content", ["[]", "null", '{"train": 3}', '{"train": [[1, 2, 3, 4]]}'])
def test_a_split_file_of_another_form_is_named(copy, content):
    root = copy("adashare")
    (root / "nyu_v2_3task.json").write_text(content)
    with pytest.raises(CorruptFileError, match=r"nyu_v2_3task\.json must give each split a list"):
        load(root)
