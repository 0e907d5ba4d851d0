"""Taskonomy: splits, index, both layouts, and every domain's values."""

import json
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation

from taskformer.commands.trainer import TaskformerCLI
from taskformer.data.datamodules.taskonomy import DENSE, TaskonomyDataModule
from taskformer.data.datasets.taskonomy import CLASSES, Taskonomy, room_layout, vanishing_point
from taskformer.data.datasets.taskonomy_index import (
    DOMAINS,
    VIEW,
    Index,
    Views,
    open_index,
    published_splits,
    read_splits,
    read_views,
)
from taskformer.datatools.miniature.scene import scene
from taskformer.datatools.miniature.taskonomy import swap_splits, write_taskonomy
from taskformer.errors import ConfigError, CorruptFileError, DatasetNotFoundError
from taskformer.tasks import build_tasks

ROOT = Path(__file__).parent.parent.parent
SPLITS_ZIP = ROOT.parent / "shared" / "data" / "tables" / "taskonomy_splits.zip"
COUNTS = {"tiny": (25, 5, 5), "medium": (99, 20, 19), "full": (346, 67, 69), "fullplus": (383, 75, 79)}
FILES = [*DENSE, "class_object", "class_scene", "vanishing_point", "room_layout"]  # tasks with a file each


@pytest.fixture(scope="module", params=["building_first", "domain_first"])
def root(request, tmp_path_factory):
    return write_taskonomy(tmp_path_factory.mktemp(request.param), layout=request.param)


@pytest.fixture
def copy(tmp_path):
    return write_taskonomy(tmp_path / "copy", counts={"train": 1, "val": 1}, size=(32, 40))


def dataset(root, split="train", tasks=tuple(FILES), **options):
    module = TaskonomyDataModule(str(root), tasks=list(tasks), **options)
    return module.dataset(split, build_tasks(module.task_specs), None)


def path_of(root, view, domain):
    """The file of a view in the folder of the domain."""
    building, stem = view.split("/")
    return next(path for path in Path(root).rglob(f"{stem}_domain_*") if {building, domain} <= set(path.parts))


# Splits


@pytest.mark.parametrize("name", COUNTS)
def test_published_lists_have_the_counts_of_their_files(name):
    splits = published_splits(name)
    assert tuple(list(splits.values()).count(split) for split in ("train", "val", "test")) == COUNTS[name]


def test_the_tiny_list_is_the_published_one():
    splits = published_splits("tiny")
    assert {name for name, split in splits.items() if split == "val"} == {
        "wiconisco", "corozal", "collierville", "markleeville", "darden"
    }  # fmt: skip
    assert {name for name, split in splits.items() if split == "test"} == {
        "ihlen", "muleshoe", "uvalda", "noxapater", "mcdade"
    }  # fmt: skip


@pytest.mark.skipif(not SPLITS_ZIP.exists(), reason="the published lists are not part of the repository")
@pytest.mark.parametrize("name", COUNTS)
def test_embedded_lists_are_the_owners_files(name, tmp_path):
    with zipfile.ZipFile(SPLITS_ZIP) as archive:
        path = Path(archive.extract(f"splits_taskonomy/train_val_test_{name}.csv", tmp_path))
    assert b"\r" in path.read_bytes()
    assert b"\n" not in path.read_bytes()
    assert read_splits(path) == published_splits(name)


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
def test_tables_may_have_any_line_ends(tmp_path, end):
    path = tmp_path / "mine.csv"
    path.write_bytes(end.join(["id,train,val,test", "merom,1,0,0", "darden,0,1,0", ""]).encode())
    assert read_splits(path) == {"merom": "train", "darden": "val"}
    path.write_bytes(end.join(["building,point,view", "merom,12,3", "merom,1,0"]).encode())
    assert read_views(path) == {"merom": {(12, 3), (1, 0)}}


@pytest.mark.parametrize(
    ("text", "message"),
    [("id,train\nmerom,1", "has the columns"), ("id,train,val,test\nmerom,1,1,0", "'merom' has 2 splits")],
)
def test_wrong_tables_are_refused(tmp_path, text, message):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_splits(path)


# The index


def test_every_view_is_found_in_order(root):
    expected = json.loads((root / "miniature.json").read_text())["splits"]
    for split, ids in expected.items():
        assert list(dataset(root, split, ["semseg"]).ids) == ids


def test_a_missing_file_is_a_missing_label(root):
    data = dataset(root)
    assert "edge_occlusion" not in data.files(0)
    assert "edge_occlusion" not in data.raw(0)["targets"]
    assert set(data.raw(1)["targets"]) == set(FILES)


def test_the_index_is_kept_and_follows_changes(copy):
    first = list(dataset(copy, tasks=["normals"]).ids)
    table = copy / ".taskformer" / "taskonomy.npy"
    written = table.stat().st_mtime_ns
    dataset(copy, tasks=["normals"])
    assert table.stat().st_mtime_ns == written
    path_of(copy, first[0], "normal").unlink()
    assert "normals" not in dataset(copy, tasks=["normals"]).files(0)
    path_of(copy, first[0], "rgb").unlink()
    assert list(dataset(copy, tasks=["normals"]).ids) == first[1:]


def test_files_that_are_no_views_are_named_and_hidden_ones_are_not(copy):
    before = dataset(copy, tasks=["normals"])
    assert list(before.doubts()) == []
    building = before.buildings[0]
    folder = before.paths(0)["image"].parent
    image = before.paths(0)["image"].read_bytes()
    for name in ("._point_0_view_0_domain_rgb.png", "photo.png", "point_77_view_0_domain_rgb.PNG"):
        (folder / name).write_bytes(image)
    after = dataset(copy, tasks=["normals"])
    assert list(after.ids) == list(before.ids)
    (doubt,) = after.doubts()
    assert doubt.endswith(f"rgb/photo.png of {building}, rgb/point_77_view_0_domain_rgb.PNG of {building}")


def test_a_broken_index_is_built_again(copy):
    dataset(copy, tasks=["normals"])
    (copy / ".taskformer" / "taskonomy.json").write_text("{")
    assert len(dataset(copy, tasks=["normals"])) == 3


def test_the_index_may_lie_elsewhere(copy, tmp_path):
    dataset(copy, tasks=["normals"], index_dir=str(tmp_path / "index"))
    assert {path.name for path in (tmp_path / "index").iterdir()} == {"taskonomy.json", "taskonomy.npy"}
    assert not (copy / ".taskformer").exists()


def test_swapped_buildings_change_the_ids(root, tmp_path):
    layout = json.loads((root / "miniature.json").read_text())["layout"]
    swapped = write_taskonomy(tmp_path / "swapped", layout=layout)
    before = {split: set(dataset(swapped, split, ["semseg"]).ids) for split in ("train", "val")}
    swap_splits(swapped)
    for split, ids in before.items():
        assert set(dataset(swapped, split, ["semseg"]).ids) != ids
        assert len(dataset(swapped, split, ["semseg"])) == len(ids)


def test_only_listed_views_are_kept(root, tmp_path):
    ids = list(dataset(root, tasks=["semseg"]).ids)
    building, stem = ids[4].split("/")
    _, point, _, view = stem.split("_")
    (tmp_path / "train.csv").write_text(f"building,point,view\n{building},{point},{view}\nhanson,0,0\n")
    data = dataset(root, tasks=["semseg"], views_file=str(tmp_path / "{split}.csv"))
    assert list(data.ids) == [ids[4]]
    assert data.raw(0)["meta"]["id"] == ids[4]


def test_your_own_list_of_buildings(root, tmp_path):
    building = dataset(root, "val", ["semseg"]).ids[0].split("/")[0]
    (tmp_path / "mine.csv").write_text(f"id,train,val,test\n{building},1,0,0\n")
    data = dataset(root, tasks=["semseg"], splits_file=str(tmp_path / "mine.csv"))
    assert {name.split("/")[0] for name in data.ids} == {building}


def test_missing_folders_are_explained(tmp_path, copy):
    with pytest.raises(DatasetNotFoundError, match=r"nowhere/rgb/BUILDING nor .*data.init_args.root"):
        dataset(tmp_path / "nowhere", tasks=["semseg"])
    with pytest.raises(DatasetNotFoundError, match="none of the 5 buildings of the split 'test'"):
        dataset(copy, "test", ["semseg"])


def test_millions_of_views_stay_small_and_quick(tmp_path):
    buildings, each = 537, 8400
    views = np.zeros(buildings * each, VIEW)
    views["building"] = np.repeat(np.arange(buildings), each)
    views["point"] = np.tile(np.arange(each) // 6, buildings)
    views["view"] = np.tile(np.arange(each) % 6, buildings)
    views["domains"] = (1 << len(DOMAINS)) - 1
    np.save(tmp_path / "taskonomy.npy", views)
    names = sorted(published_splits("fullplus"))
    tails = [{domain: f"_domain_{domain}.png" for domain in DOMAINS}] * buildings
    index = Index("building_first", names, tails, np.arange(buildings + 1) * each, tmp_path / "taskonomy.npy")
    train = [name for name, split in published_splits("fullplus").items() if split == "train"]
    split = Views(index, train)
    assert len(views) > 4.5e6
    assert len(split) == 383 * each
    assert split[0] == f"{min(train)}/point_0_view_0"
    assert split[-1] == f"{max(train)}/point_{(each - 1) // 6}_view_{(each - 1) % 6}"
    assert (tmp_path / "taskonomy.npy").stat().st_size < 60e6
    assert len(pickle.dumps(split)) < 1e6  # what a loader process gets
    tracemalloc.start()
    for position in np.linspace(0, len(split) - 1, 1000).astype(int):
        split.view(position)
    assert tracemalloc.get_traced_memory()[1] < 1e6  # looking views up copies nothing of the index
    tracemalloc.stop()


def test_ids_are_a_sequence(root):
    ids = dataset(root, tasks=["semseg"]).ids
    assert ids[1:3] == [ids[1], ids[2]]
    assert ids[-1] == list(ids)[-1]
    with pytest.raises(IndexError):
        ids[len(ids)]


# Values


@pytest.fixture(scope="module")
def room():
    """The scene of the second training view."""
    return scene(64, 64, seed=1)


@pytest.fixture
def sample(root):
    return dataset(root).raw(1)


HOLE = (slice(4), slice(4))


def seen(values):
    """Pixels outside the hole in the corner, as rows."""
    mask = np.ones(values.shape[:2], dtype=bool)
    mask[HOLE] = False
    return values[mask]


def test_images_come_back(sample, room):
    np.testing.assert_array_equal(sample["image"], room.image)


def test_depth_comes_back_within_its_unit(sample, room):
    depth = sample["targets"]["depth_zbuffer"]
    np.testing.assert_allclose(seen(depth), seen(room.depth), atol=0.5 / 512 + 1e-6)
    assert np.isnan(depth[HOLE]).all()
    y, x = np.indices((64, 64)) - 31.5
    distance = room.depth * np.sqrt(1 + (x**2 + y**2) / room.focal**2)
    np.testing.assert_allclose(seen(sample["targets"]["depth_euclidean"]), seen(distance), atol=0.5 / 512 + 1e-6)


def test_depth_is_in_units_of_a_512th_of_a_metre(copy):
    data = dataset(copy, tasks=["depth_zbuffer"])
    raw = np.full((32, 40), 512, dtype=np.uint16)
    raw[0, :4] = 65535, 64500, 64499, 0
    Image.fromarray(raw).save(data.files(0)["depth_zbuffer"])
    depth = data.raw(0)["targets"]["depth_zbuffer"]
    assert depth[1, 1] == 1
    assert np.isnan(depth[0, :4]).tolist() == [True, True, False, True]


def test_normals_come_back_within_a_degree(sample, room):
    normals = sample["targets"]["normals"]
    cosine = (seen(normals) * seen(room.normals)).sum(-1)
    assert np.degrees(np.arccos(cosine.clip(-1, 1))).max() < 1
    assert np.isnan(normals[HOLE]).all()


def test_normals_face_the_camera_whichever_way_blue_does(copy):
    data = dataset(copy, tasks=["normals"])
    before = data.raw(0)["targets"]["normals"]
    path = data.files(0)["normals"]
    pixels = np.array(Image.open(path))
    pixels[..., 2] = 255 - pixels[..., 2]
    Image.fromarray(pixels).save(path)
    np.testing.assert_allclose(data.raw(0)["targets"]["normals"], before, atol=0.01)
    assert np.nanmean(before[..., 2]) < 0


def test_normals_of_another_convention_are_found(sample, root):
    data = dataset(root, tasks=["normals", "depth_zbuffer"])
    files, normals = data.read_files(1), sample["targets"]["normals"]
    assert list(data.faults("normals", files, normals)) == []
    for axis, name in enumerate("xy"):
        turned = normals.copy()
        turned[..., axis] *= -1
        (fault,) = data.faults("normals", files, turned)
        assert fault.startswith(f"the {name} of the normals contradicts the depth")


def test_semantic_classes_are_shifted_and_uncertain_is_invalid(sample, room):
    kinds = np.vectorize(lambda k: room.kinds[k])(room.objects)
    semseg = sample["targets"]["semseg"]
    names = {"person": 255, "box": CLASSES.index("chair")}
    np.testing.assert_array_equal(semseg, np.vectorize(lambda kind: names.get(kind, 0))(kinds))
    assert {0, 255, 2} == set(np.unique(semseg))
    assert len(CLASSES) == 17


def test_segments_come_back_and_holes_of_the_scan_are_none(sample, room):
    rows, columns = np.indices((64, 64))
    np.testing.assert_array_equal(sample["targets"]["segment_unsup2d"], rows // 16 * 8 + columns // 16)
    segments = sample["targets"]["segment_unsup25d"]
    np.testing.assert_array_equal(seen(segments), seen(room.objects))
    assert (segments[HOLE] == 255).all()


def test_curvature_is_flat_at_127(sample, room):
    curvature = sample["targets"]["curvature"]
    bent = np.stack([np.where(room.edges, 40, 0), np.where(room.edges, -40, 0)], axis=-1) / 128
    np.testing.assert_allclose(seen(curvature), seen(bent))
    assert np.isnan(curvature[HOLE]).all()


def test_16_bit_maps_are_shares_of_their_range(sample, room):
    targets = sample["targets"]
    np.testing.assert_allclose(seen(targets["edge_occlusion"]), seen(np.where(room.edges, 0.64, 0)), atol=2e-3)
    for name in ("edge_texture", "keypoints2d", "keypoints3d"):
        values = seen(targets[name])
        assert values.dtype == np.float32
        assert values.min() >= 0
        assert 0.5 < values.max() <= 1
    assert np.isfinite(targets["edge_texture"]).all()
    assert np.isnan(targets["keypoints3d"][HOLE]).all()


@pytest.mark.parametrize(
    ("task", "raw", "expected"),
    [("edge_texture", [0, 2621, 5243, 60000], [0, 0.5, 1, 1]), ("keypoints2d", [0, 164, 328, 9000], [0, 0.5, 1, 1]),
     ("keypoints3d", [0, 32768, 65535, 6554], [0, 0.5, 1, 0.1])],
)  # fmt: skip
def test_ranges(copy, task, raw, expected):
    data = dataset(copy, tasks=[task])
    pixels = np.zeros((32, 40), dtype=np.uint16)
    pixels[10, 10:14] = raw
    Image.fromarray(pixels).save(data.files(0)[task])
    np.testing.assert_allclose(data.raw(0)["targets"][task][10, 10:14], expected, atol=2e-3)


def test_reshading_may_have_one_channel_or_three(copy):
    data = dataset(copy, tasks=["reshading"])
    before = data.raw(0)["targets"]["reshading"]
    path = data.files(0)["reshading"]
    Image.open(path).convert("RGB").save(path)
    np.testing.assert_allclose(data.raw(0)["targets"]["reshading"], before, atol=1e-6)
    assert 0 < np.nanmax(before) <= 1


def test_masks_may_be_widened_by_blocks(root):
    normals = dataset(root, tasks=["normals"], mask_blocks=7).raw(1)["targets"]["normals"]
    invalid = np.isnan(normals).all(axis=-1)
    assert invalid[:7, :7].all()
    assert not invalid[7:].any()
    assert not invalid[:, 7:].any()


def test_depth_masks_where_there_is_no_mask(copy):
    data = dataset(copy, tasks=["keypoints3d"])
    for path in Path(copy).rglob("mask_valid"):
        for file in path.iterdir():
            file.unlink()
    data = dataset(copy, tasks=["keypoints3d"])
    assert data.files(0)["mask"].parent.name == "depth_zbuffer"
    assert np.isnan(data.raw(0)["targets"]["keypoints3d"][HOLE]).all()


def test_soft_labels_are_probabilities_and_zeros_are_none(copy):
    data = dataset(copy, tasks=["class_object", "class_scene"])
    files = data.files(0)
    stored = np.load(files["class_scene"])
    np.testing.assert_allclose(data.raw(0)["targets"]["class_scene"], stored / stored.sum(), rtol=1e-5)
    np.save(files["class_object"], np.zeros(1000, dtype=np.float32))
    assert "class_object" not in data.raw(0)["targets"]
    np.save(files["class_object"], np.ones(999, dtype=np.float32))
    with pytest.raises(CorruptFileError, match=r"class_object.npy.*expected 1000 probabilities"):
        data.raw(0)


def test_truncated_files_are_named_or_skipped(copy):
    data = dataset(copy, tasks=["depth_zbuffer"])
    path = data.files(0)["depth_zbuffer"]
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CorruptFileError, match=path.name):
        data[0]
    lenient = dataset(copy, tasks=["depth_zbuffer"], on_error="skip")
    assert "image" not in lenient[0]  # left out of evaluations
    lenient.substitutes = range(len(lenient))  # as in training
    assert lenient[0]["meta"]["id"] == lenient.ids[1]


@pytest.mark.parametrize(
    ("task", "domain", "dtype", "message"),
    [("depth_zbuffer", "depth_zbuffer", np.uint8, "16 bits"), ("semseg", "segment_semantic", np.uint16, "8 bits"),
     ("normals", "normal", np.uint8, "3 channels")],
)  # fmt: skip
def test_files_of_another_type_are_refused(copy, task, domain, dtype, message):
    data = dataset(copy, tasks=[task])
    Image.fromarray(np.ones((32, 40), dtype=dtype)).save(path_of(copy, data.ids[0], domain))
    with pytest.raises(CorruptFileError, match=message):
        data.raw(0)


# Facts about the camera. Two files of the owners' sample building (github.com/alexsax/taskonomy-sample-model-1).

REAL = {
    "vanishing_points_gaussian_sphere": {
        "x": [0.18888055341209584, 0.051538081278779, 0.9806467063733211],
        "y": [0.9819745306068586, -0.0027106237760473034, -0.18899384582092812],
        "z": [-0.007082215908910018, 0.9986673513722408, -0.05112106729101894],
    },
    "camera_location": [-3.8659191131591797, -9.080220222473145, 1.4999077320098877],
    "camera_rotation_final": [1.6219409704208374, 0.007082275114953518, -0.1900268793106079],
    "point_location": [-3.5486674308776855, -7.434072017669678, 1.5857212543487549],
    "bounding_box_ranges": {
        "x": [-8.63851012238149, -6.089721977350852],
        "y": [-3.551269267867042, -3.4009918976266516],
        "z": [0.3028184435450796, 2.3744664415398264],
    },
}


def test_vanishing_points_are_the_axes_seen_from_the_camera():
    vectors = vanishing_point(REAL).reshape(3, 3)
    axes = Rotation.from_euler("xyz", REAL["camera_rotation_final"]).as_matrix()
    # The file's x and y are those of the world after a quarter turn.
    np.testing.assert_allclose(vectors, [-axes[1], axes[0], axes[2]], atol=1e-6)


def test_room_layout_is_the_box_as_the_camera_sees_it():
    from taskformer.data.datasets.taskonomy import LAYOUT_MEAN, LAYOUT_STD

    layout = room_layout(REAL) * LAYOUT_STD + LAYOUT_MEAN
    ranges = REAL["bounding_box_ranges"]
    box = np.array([ranges["y"], ranges["x"], ranges["z"]])
    assert (box[:, 0] <= REAL["point_location"]).all()
    assert (box[:, 1] >= REAL["point_location"]).all()
    right, up, back = Rotation.from_euler("xyz", REAL["camera_rotation_final"]).as_matrix().T
    offset = box.mean(axis=1) - REAL["camera_location"]
    np.testing.assert_allclose(layout[:3], [offset @ right, offset @ up, offset @ back], atol=1e-6)
    assert layout[2] < 0  # in front of the camera
    # It looks along +y, which a quarter turn to the right makes +x: x and y of the box change places.
    assert -back[1] > 0.9
    np.testing.assert_allclose(layout[6:], (box[:, 1] - box[:, 0])[[1, 0, 2]])
    np.testing.assert_allclose(layout[5], REAL["camera_rotation_final"][2] - np.pi / 2, atol=1e-3)
    assert np.abs(room_layout(REAL)).max() < 4  # standardised with the owners' numbers


def test_camera_facts_come_back(sample, root):
    info = json.loads(dataset(root).files(1)["vanishing_point"].read_text())
    expected = np.concatenate([info["vanishing_points_gaussian_sphere"][axis] for axis in "xyz"])
    np.testing.assert_allclose(sample["targets"]["vanishing_point"], expected, rtol=1e-5)
    np.testing.assert_allclose(sample["targets"]["room_layout"], room_layout(info), rtol=1e-4)


def test_views_without_camera_facts_have_no_label(copy):
    data = dataset(copy, tasks=["vanishing_point", "room_layout"])
    path = data.files(0)["room_layout"]
    path.write_text("{}")
    assert data.raw(0)["targets"] == {}
    path.write_text('{"vanishing_points_gaussian_sphere": {"x": [1, 0, 0]}}')
    with pytest.raises(CorruptFileError, match=r"point_info.json lacks"):
        data.raw(0)


# The data module


def test_the_dense_tasks_are_the_default_and_all_are_offered():
    module = TaskonomyDataModule("nowhere")
    assert module.task_names == list(DENSE)
    assert len(DENSE) == 12
    assert len(module.offers) == 20
    assert len(build_tasks(module.offers)["class_scene"].classes) == 365
    assert json.loads(json.dumps(module.offers)) == module.offers


def test_available_tasks_have_files(root, copy):
    assert TaskonomyDataModule(str(root)).available() == FILES
    for path in Path(copy).rglob("class_scene"):
        for file in path.iterdir():
            file.unlink()
    assert "class_scene" not in TaskonomyDataModule(str(copy)).available()


def test_moved_pixels_are_refused_with_camera_labels(root):
    from taskformer.data.transforms import PhotoMetricDistortion, RandomHorizontalFlip, Resize

    flipped = TaskonomyDataModule(str(root), tasks=["vanishing_point"], train_transforms=[RandomHorizontalFlip()])
    with pytest.raises(ConfigError, match=r"the label vanishing_point .* RandomHorizontalFlip would"):
        flipped.setup("fit")
    TaskonomyDataModule(str(root), tasks=["semseg"], train_transforms=[RandomHorizontalFlip()]).setup("fit")
    steps = [Resize(32, 32), PhotoMetricDistortion()]
    TaskonomyDataModule(str(root), tasks=["room_layout"], train_transforms=steps).setup("fit")


def test_partial_downloads_are_a_problem_but_miniatures_are_not(copy):
    assert list(dataset(copy, tasks=["semseg"]).problems()) == []
    (copy / "miniature.json").unlink()
    (problem,) = dataset(copy, tasks=["semseg"]).problems()
    assert problem.startswith("24 of 25 buildings are not in")


def test_wrong_options_are_explained():
    with pytest.raises(ConfigError, match="mask_blocks must be at least 1 and spoilt_share"):
        TaskonomyDataModule(spoilt_share=1.5)


def test_batches_have_every_task(root):
    module = TaskonomyDataModule(str(root), tasks=FILES, batch_size=3, size=(32, 48))
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    assert batch["image"].shape == (3, 3, 32, 48)
    for name, task in build_tasks(module.task_specs).items():
        shape = (3, task.channels) if task.geometry == "image" else (3, task.channels, 32, 48)
        assert torch.isfinite(task.loss(torch.zeros(shape), batch["targets"][name]))


@pytest.mark.parametrize("model", ["mqtransformer", pytest.param("baseline", marks=pytest.mark.slow)])
def test_both_models_train_and_test_from_the_command_line(model, tmp_path, monkeypatch):
    from taskformer.cli import main

    root = write_taskonomy(tmp_path / "data", size=(32, 32), views_per_building=2)
    monkeypatch.chdir(tmp_path)
    tasks = "[normals,depth_zbuffer,segment_unsup2d,class_object,keypoints2d,autoencoding]"
    flags = [
        f"--config={ROOT}/configs/model/{model}.yaml",
        f"--config={ROOT}/configs/data/taskonomy.yaml",
        f"--data.root={root}",
        f"--data.tasks={tasks}",
        "--data.batch_size=2",
        "--data.num_workers=0",
        "--data.size=null",
        "--data.train_transforms=[]",
        "--model.weights=random",
        "--model.embed_dim=16",
        "--model.head_dim=8",
        "--trainer.accelerator=cpu",
        "--trainer.max_epochs=1",
        "--trainer.num_sanity_val_steps=0",
        "--trainer.log_every_n_steps=1",
        "--trainer.enable_progress_bar=false",
    ]
    main(["fit", *flags, "--name=run"])
    main(["test", "--config=runs/run/config.yaml", "--ckpt_path=runs/run/checkpoints/last.ckpt"])
    results = json.loads(Path("runs/run/metrics.json").read_text())["test"]["tasks"]
    assert np.isfinite(results["depth_zbuffer"]["rmse"])
    assert 0 <= results["class_object"]["top1"] <= 1
    assert 0 <= results["segment_unsup2d"]["pair_f"] <= 1


@pytest.mark.parametrize("name", ["taskonomy", "taskonomy_16a", "taskonomy_16b", "taskonomy_adashare"])
def test_configs_load_a_batch(name, root, monkeypatch):
    monkeypatch.chdir(ROOT)
    args = [
        "--config=configs/model/baseline.yaml",
        f"--config=configs/data/{name}.yaml",
        f"--data.root={root}",
        "--data.batch_size=2",
        "--data.num_workers=0",
        "--model.weights=random",
    ]
    cli = TaskformerCLI(args=args, run=False)
    assert len(cli.datamodule.task_names) == {"taskonomy": 12, "taskonomy_adashare": 5}.get(name, 16)
    cli.datamodule.setup("fit")
    batch = next(iter(cli.datamodule.train_dataloader()))
    assert batch["image"].shape == (2, 3, *((256, 256) if name == "taskonomy_16b" else (224, 224)))
    assert set(batch["targets"]) == set(cli.model.tasks)


def test_the_dataset_itself_takes_the_folder(root):
    assert isinstance(dataset(root, tasks=["semseg"]), Taskonomy)
    assert open_index(root).layout == json.loads((root / "miniature.json").read_text())["layout"]
