"""Cityscapes: labels, disparities and every layout, on miniature copies and against independent readers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import taskformer
from taskformer.cli import main
from taskformer.data.datamodules.cityscapes import CityscapesDataModule
from taskformer.data.datasets.cityscapes import Cityscapes, semseg_labels, table
from taskformer.data.images import write_npy, write_png
from taskformer.datatools.miniature.cityscapes import street, swap_splits, write_cityscapes
from taskformer.errors import CorruptFileError, DatasetNotFoundError, InvalidTargetError, UnknownNameError
from taskformer.tasks import build_tasks

ROOT = Path(__file__).parent.parent.parent
SIZE = (64, 128)
LAYOUTS = ("official", "adashare", "mtan")
#: The first training and the first validation image of the miniature, and its seed there.
FIRST = {"train": 0, "val": 1000}


@pytest.fixture(scope="session")
def miniatures(tmp_path_factory):
    """One folder per layout; MTAN's is AdaShare's without the index."""
    folder = tmp_path_factory.mktemp("cityscapes")
    write_cityscapes(folder / "official", size=SIZE)
    write_cityscapes(folder / "adashare", layout="adashare", size=SIZE)
    shutil.copytree(folder / "adashare", folder / "mtan")
    (folder / "mtan" / "cityscape.json").unlink()
    return folder


@pytest.fixture
def official(miniatures, tmp_path):
    """The owners' files, free to be changed."""
    return shutil.copytree(miniatures / "official", tmp_path / "cityscapes")


@pytest.fixture
def adashare(miniatures, tmp_path):
    return shutil.copytree(miniatures / "adashare", tmp_path / "cityscapes")


def load(root, *tasks, split="train", **options):
    data = CityscapesDataModule(str(root), tasks=list(tasks) or None, **options)
    return data.dataset(split, build_tasks(data.task_specs), None)


def targets(root, *tasks, split="train", **options):
    return load(root, *tasks, split=split, **options)[0]["targets"]


# Labels


def test_the_table_has_every_label_once():
    labels = table()["labels"]
    assert sorted(label["id"] for label in labels) == list(range(-1, 34))
    assert sorted({label["train_id"] for label in labels}) == [-1, *range(19), 255]
    assert [len(table()["cities"][split]) for split in ("train", "val", "test")] == [18, 3, 6]


def test_the_table_is_that_of_the_data_sets_own_scripts():
    # Not a dependency: it wants packages for its viewers, and its labels are facts that do not change.
    scripts = pytest.importorskip("cityscapesscripts.helpers.labels", reason="cityscapesscripts is not installed")
    theirs = [(label.id, label.name, label.trainId, label.category, label.categoryId, label.color)
              for label in scripts.labels]  # fmt: skip
    ours = [(label["id"], label["name"], label["train_id"], label["category"], label["category_id"],
             tuple(label["color"])) for label in table()["labels"]]  # fmt: skip
    assert ours == theirs


def test_coarse_classes_are_unions_of_fine_ones():
    fine, categories, ground = semseg_labels(19), semseg_labels(7), semseg_labels(2)
    assert categories.classes == ["flat", "construction", "object", "nature", "sky", "human", "vehicle"]
    assert ground.classes == ["background", "foreground"]
    assert (fine.of_id < 255).sum() == 19
    for coarse in (categories, ground):
        assert ((coarse.of_id == 255) == (fine.of_id == 255)).all()
    named = {name: [fine.classes[fine.of_id[i]] for i in np.flatnonzero(ground.of_id == index)]
             for index, name in enumerate(ground.classes)}  # fmt: skip
    assert named["foreground"] == [
        "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"
    ]  # fmt: skip
    assert (categories.of_id[[24, 25]] == 5).all()
    assert (categories.of_id[[26, 27, 28, 31, 32, 33]] == 6).all()


def test_what_the_benchmark_ignores_is_void():
    for count in (19, 7, 2):
        of_id = semseg_labels(count).of_id
        # Ego vehicle, border, out of the region of interest; parking, rail track, guard rail, caravan, trailer.
        assert (of_id[[0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30]] == 255).all()


# The owners' files


def one_image(root, disparity, camera, ids=None):
    """A training set of one image with these labels."""
    start = root / "{}" / "train" / "aachen" / "aachen_000000_000019_{}"

    def path(package, ending):
        return Path(str(start).format(package, ending))

    write_png(path("leftImg8bit", "leftImg8bit.png"), np.zeros((*disparity.shape, 3), np.uint8))
    write_png(path("gtFine", "gtFine_labelIds.png"), np.zeros(disparity.shape, np.uint8) if ids is None else ids)
    write_png(path("disparity", "disparity.png"), disparity)
    path("camera", "camera.json").parent.mkdir(parents=True)
    path("camera", "camera.json").write_text(json.dumps(camera))
    return root


CAMERA = {"extrinsic": {"baseline": 0.25}, "intrinsic": {"fx": 2000.0}}


def test_depth_by_hand(tmp_path):
    # Baseline times focal length is 500. 257 stands for 1 pixel, 2561 for 10, 129 for 0.5, 1 for 0 pixels, 0 for a
    # failure. Metres end at 500.
    root = one_image(tmp_path, np.array([[257, 2561, 129, 1, 0]], np.uint16), CAMERA)
    found = targets(root)
    np.testing.assert_array_equal(found["depth"], [[500, 50, np.nan, np.nan, np.nan]])
    np.testing.assert_allclose(found["inverse_depth"], [[0.002, 0.02, 0.001, 0, np.nan]], rtol=1e-6)


def test_every_label_id_by_hand(tmp_path):
    ids = np.arange(34, dtype=np.uint8)[None]
    root = one_image(tmp_path, np.ones(ids.shape, np.uint16), CAMERA, ids)
    (found,) = targets(root, "semseg")["semseg"]
    known = {label["id"]: label["train_id"] for label in table()["labels"]}
    assert found.tolist() == [known[i] for i in range(34)]


def test_depth_comes_back_within_its_quantisation(miniatures):
    for split, seed in FIRST.items():
        truth, found = street(*SIZE, seed=seed), targets(miniatures / "official", split=split)
        holes = truth.disparity == 0
        seen = ~holes & np.isfinite(truth.depth)
        assert 0.05 < holes.mean() < 0.2
        assert (~holes & ~seen).any()
        np.testing.assert_array_equal(np.isfinite(found["depth"]), seen)
        np.testing.assert_array_equal(np.isnan(found["inverse_depth"]), holes)
        # Half a step of the disparity, 1/512 pixel, in 1/m.
        step = 1 / 512 / (truth.baseline * truth.focal)
        inverse = 1 / truth.depth.astype(np.float64)
        assert np.abs(found["inverse_depth"] - inverse)[~holes].max() < step * 1.01
        assert (np.abs(1 / found["depth"] - inverse)[seen] < step * 1.01).all()
        assert (found["inverse_depth"][~holes & ~seen] == 0).all()


def test_images_and_labels_come_back_unchanged(miniatures):
    truth = street(*SIZE, seed=0)
    sample = load(miniatures / "official", "semseg")[0]
    np.testing.assert_array_equal(sample["image"], truth.image)
    train_ids = np.full(256, 255)
    for label in table()["labels"]:
        train_ids[label["id"]] = label["train_id"] % 256
    np.testing.assert_array_equal(sample["targets"]["semseg"], train_ids[truth.label_ids])
    assert {0, 1, 2, 3, 9, 10} <= set(np.unique(truth.label_ids))
    assert sample["meta"] == {"id": "aachen_000000_000019", "size": SIZE}


def test_another_reader_accepts_the_miniature(miniatures):
    from torchvision.datasets import Cityscapes as Theirs

    for split, ours in (("train", load(miniatures / "official")), ("val", load(miniatures / "official", split="val"))):
        kinds = ["semantic", "instance"]
        theirs = Theirs(str(miniatures / "official"), split, mode="fine", target_type=kinds)
        assert len(theirs) == len(ours)
        pairs = {Path(path).name.removesuffix("_leftImg8bit.png"): index for index, path in enumerate(theirs.images)}
        image, (semantic, instance) = theirs[pairs[ours.ids[0]]]
        np.testing.assert_array_equal(np.asarray(image), ours[0]["image"])
        classes = semseg_labels(19).of_id[np.asarray(semantic)]
        np.testing.assert_array_equal(classes, ours[0]["targets"]["semseg"])
        people = np.asarray(instance)[np.asarray(semantic) == 24]
        assert people.size
        assert (people // 1000 == 24).all()


def test_resizing_leaves_depth_alone(miniatures):
    full, small = targets(miniatures / "official"), load(miniatures / "official", size=(32, 64))[0]
    assert small["image"].shape == (32, 64, 3)
    for task in ("depth", "inverse_depth", "semseg"):
        np.testing.assert_array_equal(small["targets"][task], full[task][1::2, 1::2])


# The preprocessed arrays


@pytest.mark.parametrize("layout", ["adashare", "mtan"])
@pytest.mark.parametrize("classes", [19, 7, 2])
def test_arrays_come_back(miniatures, layout, classes):
    for split, seed in FIRST.items():
        truth = street(*SIZE, seed=seed)
        sample = load(miniatures / layout, split=split, semseg_classes=classes)[0]
        np.testing.assert_array_equal(sample["image"], truth.image)
        assert set(sample["targets"]) == {"semseg", "inverse_depth"}
        np.testing.assert_array_equal(sample["targets"]["semseg"], semseg_labels(classes).of_id[truth.label_ids])
        expected = np.where(truth.disparity > 1, truth.disparity / 65535, np.nan)
        np.testing.assert_allclose(sample["targets"]["inverse_depth"], expected, rtol=1e-6)


def test_arrays_have_the_order_of_their_numbers(tmp_path):
    root = write_cityscapes(tmp_path, layout="adashare", counts={"train": 12, "val": 1}, size=(16, 32))
    listed = load(root, "semseg").ids
    (root / "cityscape.json").unlink()
    assert load(root, "semseg").ids == listed == [f"train/image/{number}" for number in range(12)]


def test_the_index_decides_where_files_are(adashare):
    (adashare / "elsewhere").mkdir()
    for path in (adashare / "train").rglob("3.npy"):
        path.rename(adashare / "elsewhere" / f"{path.parent.name}.npy")
    index = json.loads((adashare / "cityscape.json").read_text())
    names = ("image", "depth", "label_2", "label_7", "label_19")
    index["train"][3] = [f"elsewhere/{name}.npy" for name in names]
    (adashare / "cityscape.json").write_text(json.dumps(index))
    dataset = load(adashare)
    assert dataset.ids[3] == "elsewhere/image"
    np.testing.assert_array_equal(dataset[3]["image"], street(*SIZE, seed=3).image)


def test_the_unit_of_inverse_depth_is_that_of_the_files(miniatures):
    units = {layout: CityscapesDataModule(str(miniatures / layout)).task_specs["inverse_depth"] for layout in LAYOUTS}
    tasks = {layout: build_tasks({"inverse_depth": spec})["inverse_depth"] for layout, spec in units.items()}
    assert {layout: task.units["mae"] for layout, task in tasks.items()} == {
        "official": "1/m", "adashare": "", "mtan": ""
    }  # fmt: skip


# What is there and what is not


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_test_split_is_validation(miniatures, layout):
    test, val = load(miniatures / layout, split="test"), load(miniatures / layout, split="val")
    assert test.ids == val.ids
    assert len(test) == 2
    np.testing.assert_array_equal(test[1]["image"], val[1]["image"])
    assert list(test.problems()) == []


def test_official_test_images_are_not_used(official):
    shutil.copytree(official / "leftImg8bit" / "val", official / "leftImg8bit" / "test" / "berlin")
    assert len(load(official, split="test")) == 2


@pytest.mark.parametrize(
    ("packages", "task", "message"),
    [
        (["disparity"], "depth", "has no depth: it needs disparity_trainvaltest.zip from https://www.cityscapes-"),
        (["disparity", "camera"], "inverse_depth", "disparity_trainvaltest.zip and camera_trainvaltest.zip from"),
        (["gtFine"], "semseg", "gtFine_trainvaltest.zip.*unpacked there, or leave semseg out of data.init_args.tasks"),
    ],
)
def test_a_package_that_lacks_is_named(official, packages, task, message):
    for package in packages:
        shutil.rmtree(official / package)
    with pytest.raises(DatasetNotFoundError, match=message):
        load(official, task)
    data = CityscapesDataModule(str(official))
    assert task not in data.available()
    assert data.task_names == data.available() != []


def test_arrays_have_no_metric_depth(miniatures):
    with pytest.raises(DatasetNotFoundError, match="without its camera; take the task inverse_depth, or the official"):
        Cityscapes(miniatures / "mtan", "train", build_tasks({"depth": {}}))


def test_folders_that_are_not_cityscapes_are_refused(tmp_path, official):
    with pytest.raises(DatasetNotFoundError, match=r"neither leftImg8bit/ nor train/image/.*taskformer data prepare"):
        load(tmp_path, "semseg")
    shutil.rmtree(official / "leftImg8bit" / "val")
    with pytest.raises(DatasetNotFoundError, match="no images of the split 'val'"):
        load(official, "semseg", split="val")


def test_unknown_tasks_are_refused(miniatures):
    with pytest.raises(UnknownNameError, match=r"'normals'.*known: depth, inverse_depth, semseg"):
        load(miniatures / "official", "normals")


def test_a_missing_file_is_named(official):
    missing = next((official / "gtFine" / "train" / "aachen").glob("*_labelIds.png"))
    missing.unlink()
    with pytest.raises(DatasetNotFoundError, match=missing.name):
        targets(official, "semseg")


# Faults


@pytest.mark.parametrize("layout", ["official", "adashare"])
def test_swapped_splits_are_found(request, layout):
    root = request.getfixturevalue(layout)
    assert list(load(root).problems()) == []
    swap_splits(root)
    (fault,) = load(root).problems()
    assert fault.startswith("2 of the 2 images of the split 'train' belong to 'val'")
    (fault,) = load(root, split="val").problems()
    assert fault.startswith("4 of the 4 images of the split 'val' belong to 'train'")


def test_one_image_of_another_split_is_found(official):
    for package in ("leftImg8bit", "gtFine", "disparity", "camera"):
        shutil.copytree(official / package / "val" / "lindau", official / package / "train" / "lindau")
    (fault,) = load(official).problems()
    assert fault.startswith(
        "1 of the 5 images of the split 'train' belong to 'val' (the first is lindau_000001_000019)"
    )


@pytest.mark.parametrize(
    ("pattern", "spoil", "task", "message"),
    [
        ("gtFine/*_labelIds.png", lambda p: write_png(p, np.full(SIZE, 40, np.uint8)), "semseg", "label id 40"),
        ("gtFine/*_labelIds.png", lambda p: write_png(p, np.zeros((9, 9), np.uint8)), "semseg", "9x9.*64x128"),
        ("disparity/*.png", lambda p: write_png(p, np.zeros(SIZE, np.uint8)), "depth", "uint8.*16-bit"),
        ("disparity/*.png", lambda p: p.write_bytes(p.read_bytes()[:200]), "depth", "truncated"),
        ("camera/*.json", lambda p: p.write_text("{}"), "inverse_depth", "extrinsic.baseline and intrinsic.fx"),
        ("camera/*.json", lambda p: p.write_text(p.read_text().replace("0.2", "-0.2")), "depth", "must be above 0"),
        ("leftImg8bit/*.png", lambda p: p.write_bytes(b""), "semseg", "is empty"),
    ],
)
def test_broken_official_files_are_named(official, pattern, spoil, task, message):
    package, name = pattern.split("/")
    path = min((official / package / "train" / "aachen").glob(name))
    spoil(path)
    with pytest.raises((CorruptFileError, InvalidTargetError), match=message) as error:
        targets(official, task)
    assert path.name in str(error.value)


@pytest.mark.parametrize(
    ("folder", "array"),
    [
        ("image", np.full((*SIZE, 3), 200.0)),
        ("image", np.zeros(SIZE)),
        ("label_19", np.full(SIZE, 19.0)),
        ("label_19", np.full(SIZE, np.nan)),
        ("label_19", np.zeros((*SIZE, 2))),
        ("depth", np.full(SIZE, -1.0)),
        ("depth", np.full(SIZE, "far")),
    ],
)
def test_broken_arrays_are_named(adashare, folder, array):
    write_npy(adashare / "train" / folder / "0.npy", array)
    with pytest.raises(
        (CorruptFileError, InvalidTargetError), match=rf"{folder}/0.npy (holds .* not a map of|has values)"
    ):
        targets(adashare)


def test_a_broken_index_is_named(adashare):
    for content in ('{"train": [["image.npy"]]}', "[1]", "{"):
        (adashare / "cityscape.json").write_text(content)
        with pytest.raises(CorruptFileError, match=r"cityscape\.json"):
            load(adashare)


# Configurations


def config(name, root, *overrides):
    files = [str(ROOT / "configs" / kind) for kind in ("model/baseline.yaml", f"data/{name}.yaml")]
    return taskformer.from_config(*files, overrides=[f"--data.init_args.root={root}", *overrides])


@pytest.mark.parametrize(
    ("name", "window", "whole"),
    [
        ("cityscapes", (512, 1024), SIZE),
        ("cityscapes_256x512", (256, 512), (256, 512)),
        ("cityscapes_adashare", (224, 224), (256, 512)),
    ],
)
def test_configs_load_windows_and_whole_images(miniatures, name, window, whole):
    _, data = config(name, miniatures / "official", "--data.init_args.batch_size=2", "--data.init_args.num_workers=0")
    data.setup("fit")
    train, val = next(iter(data.train_dataloader())), next(iter(data.val_dataloader()))
    assert train["image"].shape == (2, 3, *window)
    assert val["targets"]["inverse_depth"].shape == (2, 1, *whole)
    assert val["targets"]["semseg"].dtype == torch.int64


@pytest.mark.parametrize(("name", "zooms"), [("cityscapes_256x512", True), ("cityscapes_adashare", False)])
def test_only_adashares_zoom_leaves_inverse_depth_alone(miniatures, name, zooms):
    options = ["--data.init_args.batch_size=4", "--data.init_args.num_workers=0"]
    model, data = config(name, miniatures / "official", *options)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))["targets"]["inverse_depth"]
    known = np.unique(np.concatenate([load(miniatures / "official")[i]["targets"]["inverse_depth"] for i in range(4)]))
    found = batch[torch.isfinite(batch)].numpy()
    assert np.isin(found, known).all() == (not zooms)
    assert {task: spec.loss_weight for task, spec in model.tasks.items()} == {"semseg": 1, "inverse_depth": 20}


@pytest.mark.parametrize("classes", [19, 7, 2])
def test_the_model_has_the_chosen_classes(miniatures, classes):
    model, _ = config("cityscapes", miniatures / "official", f"--data.init_args.semseg_classes={classes}")
    assert model.tasks["semseg"].channels == classes


@pytest.mark.parametrize(
    ("model", "layout", "tasks"),
    [
        ("mqtransformer", "official", "[semseg,depth,inverse_depth]"),
        ("baseline", "official", "[semseg,inverse_depth]"),
        ("mqtransformer", "adashare", "[semseg,inverse_depth]"),
        ("baseline", "adashare", "[semseg,inverse_depth]"),
    ],
)
def test_models_train_and_are_tested(miniatures, tmp_path, monkeypatch, tiny, model, layout, tasks):
    monkeypatch.chdir(tmp_path)
    files = [f"--config={ROOT}/configs/{name}.yaml" for name in (f"model/{model}", "data/cityscapes_adashare")]
    flags = [f"--data.root={miniatures / layout}", "--data.size=[64,128]", "--data.train_transforms=null"]
    main(["fit", *files, *tiny, *flags, f"--data.tasks={tasks}", "--data.batch_size=2", "--name=street"])
    main(["test", "--config=runs/street/config.yaml", "--ckpt_path=runs/street/checkpoints/best.ckpt"])
    results = json.loads((tmp_path / "runs/street/metrics.json").read_text())["test"]["tasks"]
    assert set(results) == set(tasks.strip("[]").split(","))
    assert all(np.isfinite(value) for value in results["inverse_depth"].values())
    unit = "| 1/m |" if layout == "official" else "|  |"
    row = next(line for line in (tmp_path / "runs/street/results.md").read_text().splitlines() if "| mae |" in line
               and "inverse_depth" in line)  # fmt: skip
    assert unit in row
    with Image.open(tmp_path / "runs/street/gallery/test.png") as picture:
        assert picture.height > SIZE[0]
