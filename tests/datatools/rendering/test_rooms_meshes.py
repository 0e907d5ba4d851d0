"""OBJ and MTL parsing, scaling to the catalogue, crease normals and the mesh cache."""

import io
import math
import zipfile

import numpy as np
import pytest
from PIL import Image

from taskformer.datatools.rendering.catalog import Entry
from taskformer.datatools.rendering.meshes import (
    Archive,
    convert,
    crease_normals,
    parse_mtl,
    parse_obj,
    to_model_frame,
    write_ply,
)
from taskformer.datatools.rendering.shapes import generated_models

CUBE = """
mtllib cube.mtl
v 0 0 0
v 2 0 0
v 2 3 0
v 0 3 0
v 0 0 5
v 2 0 5
v 2 3 5
v 0 3 5
v 900 900 900
vt 0 0
vt 1 0
vt 1 1
vt 0 1
usemtl red paint
f 1/1 2/2 3/3 4/4
f 5/1 6/2 7/3 8/4
f 1/1 2/2 6/3 5/4
usemtl glass
f 4 3 7 8
f 1 4 8 5
f -8 -7 -3 -4
"""
MTL = """
newmtl red paint
Kd 0.8 0.1 0.1
map_Kd C:\\art\\Wood.PNG
newmtl glass
Kd 1 1 1
d 0.2
"""


def read_ply(path):
    data = path.read_bytes()
    header, body = data.split(b"end_header\n", 1)
    lines = header.decode().splitlines()
    count = next(int(line.split()[-1]) for line in lines if line.startswith("element vertex"))
    return np.frombuffer(body[: count * 32], "<f4").reshape(count, 8)


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "Scopia.sh3f"
    picture = io.BytesIO()
    Image.new("RGB", (600, 300), (200, 100, 50)).save(picture, format="PNG")
    with zipfile.ZipFile(path, "w") as handle:
        handle.writestr("demo/cube.obj", CUBE)
        handle.writestr("demo/cube.mtl", MTL)
        handle.writestr("demo/wood.png", picture.getvalue())
        handle.writestr("../outside.txt", "secret")
    return Archive(path)


def cube_entry(**changes):
    fields = {"size": (1.0, 2.0, 0.5), "member": "demo/cube.obj", "top": 0.5, **changes}
    return Entry("demo--cube", "Cube", "Living room", "Scopia", "someone", **fields)


def test_polygons_become_fans_and_negative_indices_count_back():
    mesh = parse_obj(CUBE)
    assert {name: len(faces) for name, faces in mesh.faces.items()} == {"red paint": 6, "glass": 6}
    assert mesh.faces["glass"][:, :, 0].min() >= 0
    assert (mesh.faces["glass"][:, :, 1] == -1).all()


def test_a_file_without_faces_is_refused():
    with pytest.raises(ValueError, match="no face"):
        parse_obj("v 0 0 0\n")


def test_materials():
    materials = parse_mtl(MTL)
    assert materials["red paint"].color == (0.8, 0.1, 0.1)
    assert materials["red paint"].texture == "C:\\art\\Wood.PNG"
    assert materials["glass"].opacity == pytest.approx(0.2)


def test_the_box_is_the_catalogues_and_stands_on_the_floor():
    mesh = parse_obj(CUBE)
    used = np.unique(np.concatenate([faces[:, :, 0].ravel() for faces in mesh.faces.values()]))
    points = to_model_frame(mesh.vertices, used, cube_entry())[used]
    np.testing.assert_allclose(points.min(0), [-0.5, -1.0, 0.0], atol=1e-9)
    np.testing.assert_allclose(points.max(0), [0.5, 1.0, 0.5], atol=1e-9)
    # The file's +z (its front) becomes -y.
    assert points[mesh.vertices[used][:, 2] == 5][:, 1].max() == pytest.approx(-1.0)


def test_a_rotation_is_applied_before_measuring():
    mesh = parse_obj(CUBE)
    used = np.arange(8)
    swap = (0.0, 0.0, 1.0, 0.0, 1.0, 0.0, -1.0, 0.0, 0.0)
    points = to_model_frame(mesh.vertices, used, cube_entry(rotation=swap))[used]
    np.testing.assert_allclose(np.ptp(points, axis=0), [1.0, 2.0, 0.5])


@pytest.mark.parametrize(("bend", "smooth"), [(20.0, True), (60.0, False)])
def test_normals_are_smoothed_across_small_angles_only(bend, smooth):
    tilt = math.radians(bend)
    faces = np.array([[0.0, 0.0, 1.0], [math.sin(tilt), 0.0, math.cos(tilt)]])
    normals = crease_normals(np.array([[0, 1, 2], [1, 0, 3]]), faces, np.ones(2))
    np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1.0)
    shared, own = normals[0, 0], normals[0, 2]
    np.testing.assert_allclose(own, faces[0])
    assert bool(abs(shared[0]) > 0.1) == smooth


def test_conversion_writes_one_mesh_per_material(archive, tmp_path):
    model = convert(cube_entry(), "prop.floor", archive, tmp_path / "cache")
    paint, glass = model.parts
    assert (model.triangles, paint.glass, glass.glass) == (12, False, True)
    assert glass.texture is None
    assert paint.area + glass.area == pytest.approx(2 * (1 * 2 + 1 * 0.5 + 2 * 0.5))
    vertices = read_ply(tmp_path / "cache" / paint.ply)
    np.testing.assert_allclose(np.abs(vertices[:, 3:6]).max(1), 1.0, atol=1e-6)
    with Image.open(tmp_path / "cache" / paint.texture) as texture:
        assert max(texture.size) == 256


def test_conversion_is_cached(archive, tmp_path):
    cache = tmp_path / "cache"
    first = convert(cube_entry(), "prop.floor", archive, cache)
    archive.close()
    assert convert(cube_entry(), "prop.floor", archive, cache) == first
    assert [path.name for path in cache.iterdir()] == ["demo--cube"]


def test_a_missing_model_gives_none(archive, tmp_path):
    assert convert(cube_entry(member="demo/none.obj"), "prop.floor", archive, tmp_path / "cache") is None


def test_mesh_files_may_name_nothing_outside_the_zip(archive):
    assert archive.near("demo/cube.obj", "/etc/passwd") is None
    assert archive.near("demo/cube.obj", "../../../etc/passwd") is None


def test_ply_shares_equal_vertices(tmp_path):
    corners = np.array([[[0, 0, 0], [1, 0, 0], [1, 1, 0]], [[0, 0, 0], [1, 1, 0], [0, 1, 0]]], dtype=float)
    normals = np.broadcast_to([0.0, 0.0, 1.0], corners.shape)
    write_ply(tmp_path / "quad.ply", corners, normals, np.zeros((2, 3, 2)))
    assert len(read_ply(tmp_path / "quad.ply")) == 4


def test_generated_shapes_fill_a_unit_box(tmp_path):
    for model in generated_models(tmp_path):
        points = np.concatenate([read_ply(tmp_path / part.ply)[:, :3] for part in model.parts])
        assert (np.abs(points[:, :2]) <= 0.56).all(), model.key
        assert points[:, 2].min() >= -1e-6, model.key
        assert points[:, 2].max() <= 1.0 + 1e-6, model.key
