"""One tiny rendered room: labels against geometry. Skips without Mitsuba, LLVM or the furniture catalogues."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from taskformer.data.datasets.rooms import CLASSES
from taskformer.datatools.rendering import RendererMissingError, render_rooms
from taskformer.datatools.rendering import scene as scenes
from taskformer.datatools.rendering.render import DEFAULT_FURNITURE, MAPS, flaw
from taskformer.datatools.rendering.room import Camera, Panel, Placement, Room, Surface
from taskformer.datatools.rendering.shapes import generated_models

FURNITURE = Path(os.environ.get("TASKFORMER_FURNITURE", DEFAULT_FURNITURE))
W, H = 48, 40


@pytest.fixture(scope="module")
def renderer():
    try:
        return scenes.mitsuba()
    except RendererMissingError as error:
        pytest.skip(str(error))


def panel(name, cls, center, u, v, size, radiance=None):
    return Panel(name, cls, center, u, v, size, Surface("plain", (0.8, 0.8, 0.8)), radiance=radiance)


@pytest.fixture(scope="module")
def view(renderer, tmp_path_factory):
    """A bare room of 4 x 5 x 2.5 m with one box in it, seen from 0.3 m inside the front wall."""
    cache = tmp_path_factory.mktemp("cache")
    models = {model.key: model for model in generated_models(cache)}
    x, y, z = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
    panels = (
        panel("floor", "floor", (0, 2.5, 0), x, y, (4, 5)),
        panel("ceiling", "ceiling", (0, 2.5, 2.5), x, (0, -1, 0), (4, 5), (2.0, 2.0, 2.0)),
        panel("back", "wall", (0, 5, 1.25), x, z, (4, 2.5)),
        panel("left", "wall", (-2, 2.5, 1.25), y, z, (5, 2.5)),
        panel("right", "wall", (2, 2.5, 1.25), (0, -1, 0), z, (5, 2.5)),
        panel("front", "wall", (0, 0, 1.25), (-1, 0, 0), z, (4, 2.5)),
    )
    box = Placement("shape--box", "prop.generated", 7, (0.5, 3.0, 0.0), 0.0, (0.8, 0.6, 0.5), recolor=(0.8, 0.2, 0.2))
    camera = Camera((0.0, 0.3, 1.5), (0.0, 4.3, 0.9), 70.0)
    room = Room("living", (4.0, 5.0, 2.5), panels, (box,), (camera,))
    scene, labels = scenes.build(room, models, cache)
    sensor = scenes.make_sensor(camera, W, H)
    seen = scenes.look(scene, labels, camera, sensor, W, H)
    return seen, camera, scenes.render(scene, sensor, 4, 0)


def unproject(depth, fov_x_deg):
    focal = 0.5 * depth.shape[1] / math.tan(math.radians(fov_x_deg) / 2)
    y, x = np.mgrid[0 : depth.shape[0], 0 : depth.shape[1]]
    rays = [(x + 0.5 - depth.shape[1] / 2) / focal, (y + 0.5 - depth.shape[0] / 2) / focal, np.ones(depth.shape)]
    return np.stack(rays, -1) * depth[..., None]


def is_class(view, name):
    return view.cls == CLASSES.index(name)


def test_classes_and_instances_are_where_they_should_be(view):
    seen = view[0]
    assert is_class(seen, "floor")[-1, 2]
    assert is_class(seen, "wall")[H // 2 - 6, W // 2]
    assert is_class(seen, "ceiling")[0, W // 2]
    np.testing.assert_array_equal(seen.instance == 7, is_class(seen, "prop"))
    assert (seen.placement[seen.instance == 7] == 0).all()
    assert 0.01 < is_class(seen, "prop").mean() < 0.4


def test_floor_normals_point_up_after_removing_the_pitch(view):
    seen, camera, _ = view
    pitch = math.atan2(camera.target[2] - camera.origin[2], camera.target[1] - camera.origin[1])
    up = np.array([0.0, -math.cos(pitch), math.sin(pitch)])
    floor = seen.normals[is_class(seen, "floor")]
    np.testing.assert_allclose(floor, np.broadcast_to(up, floor.shape), atol=1e-5)


def test_depth_is_the_distance_along_the_axis(view):
    seen, camera, _ = view
    origin, target = np.array(camera.origin), np.array(camera.target)
    forward = (target - origin) / np.linalg.norm(target - origin)
    np.testing.assert_allclose(seen.depth, (seen.points - origin) @ forward, atol=1e-5)
    # A pixel that looks at the back wall sees it where the wall is.
    np.testing.assert_allclose(seen.points[H // 2 - 6, W // 2, 1], 5.0, atol=1e-4)


def test_unprojected_depth_agrees_with_the_normals(view):
    seen, camera, _ = view
    points = unproject(seen.depth, camera.fov_x_deg)
    normals = np.cross(np.diff(points, axis=1)[:-1], np.diff(points, axis=0)[:, :-1])
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    given = seen.normals[:-1, :-1]
    same = (given == seen.normals[1:, :-1]).all(-1) & (given == seen.normals[:-1, 1:]).all(-1)
    same &= (seen.instance[:-1, :-1] == seen.instance[1:, :-1]) & (seen.instance[:-1, :-1] == seen.instance[:-1, 1:])
    agreement = np.abs((normals * given).sum(-1))[same]
    assert same.mean() > 0.7
    assert np.median(agreement) > 0.9999
    assert (agreement > 0.99).mean() > 0.98


def test_normals_face_the_camera(view):
    seen = view[0]
    np.testing.assert_allclose(np.linalg.norm(seen.normals, axis=-1), 1.0, atol=1e-6)
    assert ((seen.normals * seen.rays).sum(-1) < 0).all()


def test_the_picture_shows_the_red_box(view):
    seen, _, radiance = view
    box = radiance[is_class(seen, "prop")].mean(0)
    assert radiance.shape == (H, W, 3)
    assert np.isfinite(radiance).all()
    assert box[0] > 2 * box[1]


def test_an_empty_view_is_refused(view):
    assert "fewer than 5 classes" in flaw(view[0])


def test_a_missing_furniture_folder_says_what_to_do(renderer, tmp_path):
    with pytest.raises(FileNotFoundError, match="sweethome3d-furniture"):
        render_rooms(tmp_path / "out", furniture=tmp_path, cache=tmp_path / "cache", progress=False)


def test_impossible_sizes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="width=0"):
        render_rooms(tmp_path, width=0)


def test_a_data_set_of_another_seed_is_not_continued(tmp_path):
    (tmp_path / "rooms.json").write_text(json.dumps({"size": [128, 160], "seed": 1, "samples_per_pixel": 32}))
    with pytest.raises(ValueError, match="'seed': 1"):
        render_rooms(tmp_path, seed=0)


@pytest.mark.slow
def test_rendering_is_resumable_and_complete(renderer, tmp_path):
    if not list(FURNITURE.glob("*.sh3f")):
        pytest.skip(
            f"No furniture catalogues in {FURNITURE}; set TASKFORMER_FURNITURE or install sweethome3d-furniture"
        )
    options = {"furniture": FURNITURE, "cache": tmp_path / "cache", "width": W, "height": H, "samples": 1}
    options |= {"workers": 1, "progress": False, "val": 1, "test": 1}
    assert render_rooms(tmp_path / "out", train=1, **options) == {"train": 1, "val": 1, "test": 1}
    first = (tmp_path / "out" / "image" / "r0000_c0.jpg").stat().st_mtime_ns
    assert render_rooms(tmp_path / "out", train=2, **options)["train"] >= 2
    assert json.loads((tmp_path / "out" / "rooms.json").read_text())["size"] == [H, W]
    records = json.loads((tmp_path / "out" / "val.json").read_text())
    for name in MAPS:
        with Image.open(tmp_path / "out" / name / f"{records[0]['id']}.png") as picture:
            assert picture.size == (W, H)
    assert all(key in (tmp_path / "out" / "ATTRIBUTION.md").read_text() for key in records[0]["models"])
    assert not list((tmp_path / "out").rglob(".*"))
    assert first > 0
