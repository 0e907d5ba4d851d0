"""Rooms as plain data: deterministic, without overlap, with the things that each kind needs."""

import numpy as np
import pytest

from taskformer.data.datasets.rooms import CLASSES
from taskformer.datatools.rendering.builder import Builder, Library, Solid, footprint
from taskformer.datatools.rendering.catalog import RULES
from taskformer.datatools.rendering.layout import make_room
from taskformer.datatools.rendering.meshes import Model, Part
from taskformer.datatools.rendering.room import KINDS
from taskformer.datatools.rendering.shapes import generated_models
from taskformer.datatools.rendering.textures import PATTERNS, Surface, draw

SIZES = {
    "person": (0.5, 0.4, 1.7),
    "door": (0.9, 0.15, 2.05),
    "window": (1.1, 0.3, 1.3),
    "bed": (1.5, 2.0, 0.9),
    "sofa": (1.9, 0.9, 0.8),
    "chair": (0.5, 0.5, 0.9),
    "table": (1.2, 0.7, 0.74),
    "cabinet": (0.6, 0.5, 0.85),
    "shelf": (0.9, 0.35, 1.8),
    "lamp": (0.25, 0.25, 0.45),
    "plant": (0.5, 0.5, 0.9),
    "appliance": (0.5, 0.4, 0.5),
    "prop": (0.3, 0.3, 0.4),
}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    models = []
    for pool in sorted({rule.pool for rule in RULES}):
        size = SIZES[pool.split(".")[0]]
        for number in range(3):
            scale = 1.0 + 0.05 * number
            box = (size[0] * scale, size[1] * scale, size[2] * scale)
            elevation = 0.9 if pool == "window.window" else 0.0
            key = f"{pool}-{number}"
            models.append(Model(key, pool, pool, box, elevation, box[2], 0.6, 12, (Part(f"{key}.ply"),)))
    return Library(models + generated_models(tmp_path_factory.mktemp("shapes")))


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_room(library, kind):
    rooms = [make_room(np.random.default_rng(seed), library, kind) for seed in (3, 3, 4)]
    assert rooms[0] == rooms[1]
    assert rooms[0] != rooms[2]


@pytest.mark.parametrize("kind", KINDS)
def test_things_on_the_floor_do_not_overlap_and_stay_inside(library, kind):
    for seed in range(8):
        room = make_room(np.random.default_rng(seed), library, kind)
        solids = []
        for placement in room.placements:
            model = library[placement.model]
            on_floor = placement.position[2] < 1e-6 and placement.cls not in ("door", "window")
            if not on_floor or model.key.startswith("shape--"):
                continue
            extent = footprint(model.size[0], model.size[1], placement.angle)
            solids.append(Solid(*placement.position[:2], *extent, 0.0, model.size[2]))
        for index, solid in enumerate(solids):
            assert abs(solid.x) + solid.a / 2 <= room.size[0] / 2 + 1e-6
            assert solid.y - solid.b / 2 > 0
            assert solid.y + solid.b / 2 <= room.size[1] + 1e-6
            assert not any(solid.hits(other, 0.0) for other in solids[index + 1 :])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("bedroom", {"bed"}),
        ("living", {"sofa", "table", "shelf"}),
        ("office", {"table", "chair"}),
        ("dining", {"table", "chair"}),
        ("kitchen", {"cabinet", "appliance"}),
        ("bathroom", {"prop"}),
    ],
)
def test_each_kind_has_its_pieces(library, kind, expected):
    hits = 0
    for seed in range(20):
        room = make_room(np.random.default_rng(seed), library, kind)
        hits += expected <= {placement.cls for placement in room.placements}
    assert hits >= 14


def test_rare_classes_appear_often_enough(library):
    seen = dict.fromkeys(("bed", "sofa", "lamp", "plant", "shelf", "person"), 0)
    for seed in range(80):
        room = make_room(np.random.default_rng(seed), library)
        for name in seen:
            seen[name] += name in {placement.cls for placement in room.placements}
    assert seen["lamp"] > 40
    assert seen["plant"] > 40
    assert seen["person"] > 20
    assert seen["shelf"] > 20
    assert seen["bed"] > 10
    assert seen["sofa"] > 10


def test_instances_are_unique_and_structure_has_none(library):
    room = make_room(np.random.default_rng(0), library, "living")
    ids = [placement.instance for placement in room.placements]
    assert len(set(ids)) == len(ids)
    assert min(ids) >= 1
    for panel in room.panels:
        assert panel.cls in CLASSES
        assert (panel.instance == 0) is (panel.cls in ("wall", "floor", "ceiling"))


def test_cameras_are_inside_the_room_and_look_into_it(library):
    for seed in range(10):
        room = make_room(np.random.default_rng(seed), library)
        assert len(room.cameras) == 6
        for camera in room.cameras:
            assert abs(camera.origin[0]) < room.size[0] / 2
            assert 0 < camera.origin[1] < 0.5
            assert camera.target[1] > camera.origin[1] + 1.0


def test_a_library_shows_only_its_own_models():
    models = [Model(f"m{i}", "m", "chair.dining", (0.5, 0.5, 0.9)) for i in range(4)]
    library = Library(models[:2])
    assert [model.key for model in library.get(("chair.dining",))] == ["m0", "m1"]
    assert library.get(("sofa.sofa",)) == []


def test_an_empty_pool_is_skipped(tmp_path):
    library = Library(generated_models(tmp_path))
    for kind in KINDS:
        assert make_room(np.random.default_rng(0), library, kind).panels


def test_an_unknown_kind_is_refused(library):
    with pytest.raises(ValueError, match=r"'garage'.*bedroom"):
        make_room(np.random.default_rng(0), library, "garage")


def test_nothing_fits_where_something_stands(library):
    builder = Builder(np.random.default_rng(0), library, (4.0, 5.0, 2.6))
    builder.solids.append(Solid(0.0, 3.0, 1.0, 1.0, 0.0, 1.0))
    assert not builder.fits(Solid(0.5, 3.0, 0.4, 0.4, 0.0, 0.5))
    assert builder.fits(Solid(0.5, 3.0, 0.4, 0.4, 1.1, 1.5))
    assert not builder.fits(Solid(1.9, 3.0, 0.4, 0.4, 0.0, 0.5))


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_patterns_are_images_and_repeatable(pattern):
    surface = Surface(pattern, (0.7, 0.6, 0.5), (0.3, 0.4, 0.5), seed=5)
    image = draw(surface)
    assert image.shape == (256, 256, 3)
    assert image.dtype == np.float32
    assert 0.0 <= image.min() <= image.max() <= 1.0
    np.testing.assert_array_equal(image, draw(surface))


def test_an_unknown_pattern_is_refused():
    with pytest.raises(ValueError, match="'marble'"):
        draw(Surface("marble", (1, 1, 1)))
