"""The committed data set in data/rooms: complete, in range, consistent, disjoint and credited."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2] / "data" / "rooms"
SPLITS = ("train", "val", "test")
MINIMUM = {"train": 400, "val": 100, "test": 100}
MAPS = ("semseg", "depth", "normals", "instance", "edges", "saliency", "human_parts", "reshading")
MODES = {"depth": np.uint16}
WALL, FLOOR, CEILING, PERSON = 0, 1, 2, 14


@cache
def index():
    return json.loads((ROOT / "rooms.json").read_text())


@cache
def records(split):
    return json.loads((ROOT / f"{split}.json").read_text())


def load(name, view_id):
    suffix = "jpg" if name == "image" else "png"
    with Image.open(ROOT / name / f"{view_id}.{suffix}") as picture:
        return np.asarray(picture)


def every(step=1):
    return [record for split in SPLITS for record in records(split)[::step]]


def test_there_are_enough_images_and_the_index_counts_them():
    counts = {split: len(records(split)) for split in SPLITS}
    assert counts == index()["splits"]
    assert all(counts[split] >= MINIMUM[split] for split in SPLITS)
    assert len(index()["classes"]) == len(index()["palette"]) == 16
    assert index()["size"] == [128, 160]


def test_every_listed_file_exists_and_no_other():
    ids = {record["id"] for record in every()}
    assert len(ids) == sum(index()["splits"].values())
    for name in ("image", *MAPS):
        assert {path.stem for path in (ROOT / name).iterdir()} == ids


def test_the_folder_is_small():
    assert sum(path.stat().st_size for path in ROOT.rglob("*") if path.is_file()) < 40_000_000


@pytest.mark.parametrize("name", MAPS)
def test_shapes_and_types(name):
    for record in every(7):
        pixels = load(name, record["id"])
        assert pixels.dtype == MODES.get(name, np.uint8)
        assert pixels.shape == ((128, 160, 3) if name == "normals" else (128, 160))
        assert load("image", record["id"]).shape == (128, 160, 3)


def test_values_are_in_range():
    for record in every(3):
        maps = {name: load(name, record["id"]) for name in MAPS}
        assert maps["semseg"].max() < 16
        assert maps["depth"].min() > 300
        assert maps["depth"].max() < 9 * index()["depth_units_per_m"]
        assert set(np.unique(maps["edges"])) == {0, 255}
        assert set(np.unique(maps["saliency"])) <= {0, 255}
        assert set(np.unique(maps["human_parts"])) <= {0, 1, 2, 3, 4, 255}
        np.testing.assert_array_equal(maps["human_parts"] > 0, maps["semseg"] == PERSON)
        np.testing.assert_array_equal(maps["instance"] == 0, maps["semseg"] <= CEILING)
        lengths = np.linalg.norm(maps["normals"] / 127.5 - 1, axis=-1)
        assert np.abs(lengths - 1).max() < 0.01


def test_an_instance_has_one_class():
    for record in every(5):
        semseg, instance = load("semseg", record["id"]), load("instance", record["id"])
        for number in np.unique(instance[instance > 0]):
            assert len(np.unique(semseg[instance == number])) == 1


def rays(focal):
    y, x = np.mgrid[0:128, 0:160]
    return np.stack([(x + 0.5 - 80) / focal, (y + 0.5 - 64) / focal, np.ones((128, 160))], -1)


@pytest.mark.parametrize("label", [WALL, FLOOR])
def test_depth_and_normals_describe_the_same_planes(label):
    """Points of a wall or floor that share a normal lie on few planes; steps along it stay in the plane."""
    for record in every(5):
        depth = load("depth", record["id"]) / index()["depth_units_per_m"]
        normals = load("normals", record["id"]) / 127.5 - 1
        same = load("semseg", record["id"]) == label
        points = rays(record["focal_px"]) * depth[..., None]
        step, gap = 4, []
        for axis in (0, 1):
            shift = np.roll(points, -step, axis) - points
            inside = same & np.roll(same, -step, axis) & (np.roll(normals, -step, axis) == normals).all(-1)
            cut = [slice(None)] * 2
            cut[axis] = slice(None, -step)
            off = np.abs((shift * normals).sum(-1)) / np.maximum(np.linalg.norm(shift, axis=-1), 1e-6)
            gap.append(off[tuple(cut)][inside[tuple(cut)]])
        gap = np.concatenate(gap)
        if len(gap) > 200:
            assert np.median(gap) < 0.02, record["id"]
            assert (gap < 0.08).mean() > 0.9, record["id"]


def test_floors_point_up_and_lie_below_the_camera():
    for record in every(3):
        floor = load("semseg", record["id"]) == FLOOR
        if floor.sum() < 200:
            continue
        pitch = np.radians(record["camera_pitch_deg"])
        up = np.array([0.0, -np.cos(pitch), np.sin(pitch)])
        normals = load("normals", record["id"])[floor] / 127.5 - 1
        # The camera rolls by a degree or two.
        assert (normals @ up > 0.99).mean() > 0.99, record["id"]
        points = rays(record["focal_px"])[floor] * (load("depth", record["id"])[floor] / 1000)[:, None]
        height = -points @ np.median(normals, axis=0)
        assert abs(np.median(height) - record["camera_height_m"]) < 0.03, record["id"]


def test_surfaces_face_the_camera_and_reshading_is_their_cosine():
    for record in every(5):
        normals = load("normals", record["id"]) / 127.5 - 1
        directions = rays(record["focal_px"])
        directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
        cosine = -(normals * directions).sum(-1)
        assert cosine.min() > -0.02
        shading = load("reshading", record["id"]) / 255
        assert np.abs(shading - np.clip(cosine, 0, 1)).max() < 0.02


def test_splits_share_no_room_and_no_model():
    for field in ("room", "models"):
        seen = {}
        for split in SPLITS:
            values = [record[field] for record in records(split)]
            seen[split] = set(values) if field == "room" else {key for keys in values for key in keys}
            assert seen[split]
        assert not seen["train"] & seen["val"]
        assert not seen["train"] & seen["test"]
        assert not seen["val"] & seen["test"]


def test_every_model_is_credited():
    text = (ROOT / "ATTRIBUTION.md").read_text()
    used = {key for record in every() for key in record["models"]}
    listed = {line.split("`")[1] for line in text.splitlines() if line.startswith("| `")}
    assert used == listed


def test_every_class_is_in_every_split():
    for split in SPLITS:
        pixels = np.zeros(256, int)
        for record in records(split):
            pixels += np.bincount(load("semseg", record["id"]).ravel(), minlength=256)
        assert (pixels[:16] > 0).all()


def test_pictures_are_bright_and_have_contrast():
    for record in every(3):
        picture = load("image", record["id"])
        assert 90 < picture.mean() < 190, record["id"]
        assert picture.std() > 20, record["id"]
