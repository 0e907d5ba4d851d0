import numpy as np
import pytest

from taskformer.datatools.miniature.scene import scene

HEIGHT, WIDTH = 60, 80


@pytest.fixture(params=range(4))
def made(request):
    return scene(HEIGHT, WIDTH, request.param)


def points(made):
    x, y = np.meshgrid(np.arange(WIDTH) - (WIDTH - 1) / 2, np.arange(HEIGHT) - (HEIGHT - 1) / 2)
    return np.stack([x / made.focal, y / made.focal, np.ones_like(x)], axis=-1) * made.depth[..., None]


def test_normals_are_those_of_the_depth(made):
    xyz = points(made)
    across, down = xyz[1:-1, 2:] - xyz[1:-1, :-2], xyz[2:, 1:-1] - xyz[:-2, 1:-1]
    estimated = np.cross(down, across)
    estimated /= np.linalg.norm(estimated, axis=-1, keepdims=True)
    cosine = (estimated * made.normals[1:-1, 1:-1]).sum(-1)
    assert np.median(cosine) > 0.9999
    assert (cosine > 0.999).mean() > 0.8  # the rest are pixels beside a boundary


def test_surfaces_face_the_camera(made):
    assert ((points(made) * made.normals).sum(-1) < 0).all()
    np.testing.assert_allclose(np.linalg.norm(made.normals, axis=-1), 1, atol=1e-6)


def test_the_floor_is_below_and_its_normal_points_up(made):
    floor = np.isin(made.objects, [key for key, kind in made.kinds.items() if kind == "floor"])
    assert floor.any()
    assert (made.normals[floor] == (0, -1, 0)).all()
    assert np.ptp(points(made)[floor][:, 1]) < 1e-5  # all at one height


def test_a_person_has_parts_from_head_to_feet(made):
    person = np.isin(made.objects, [key for key, kind in made.kinds.items() if kind == "person"])
    assert ((made.parts > 0) == person).all()
    rows = [np.nonzero(made.parts == part)[0].mean() for part in (1, 2, 5)]
    assert rows == sorted(rows)
    assert not scene(HEIGHT, WIDTH, 0, person=False).parts.any()


def test_edges_lie_between_objects(made):
    down = made.objects[1:] != made.objects[:-1]
    assert made.edges[:-1][down].all()
    assert 0.01 < made.edges.mean() < 0.3


def test_the_same_seed_makes_the_same_scene():
    first, second, other = (scene(HEIGHT, WIDTH, seed) for seed in (5, 5, 6))
    assert (first.image == second.image).all()
    assert (first.depth != other.depth).any()
