import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskformer.data.geometry import (
    decode_normals,
    map_kind,
    mirror,
    normal_vectors,
    pad,
    resize_image,
    resize_map,
    rotate_normals,
    thicken,
    zoom_depth,
    zoom_image,
    zoom_values,
)
from taskformer.tasks import build_tasks

RNG = np.random.default_rng(0)
PHOTO = cv2.GaussianBlur(RNG.integers(0, 256, (60, 80, 3), dtype=np.uint8), (3, 3), 0)
MAPS = {
    "label": RNG.integers(0, 40, (60, 80), dtype=np.uint8),
    "value": RNG.normal(size=(60, 80, 2)).astype(np.float32),
    "lines": (RNG.random((60, 80)) < 0.1).astype(np.float32),
    "vector": RNG.normal(size=(60, 80, 3)).astype(np.float32),
}
sizes = st.integers(20, 200)


@st.composite
def windows(draw):
    """A size and a window in it."""
    height, width = draw(sizes), draw(sizes)
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    return (height, width), (slice(top, top + draw(st.integers(1, 50))), slice(left, left + draw(st.integers(1, 50))))


@pytest.mark.parametrize("kind", MAPS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(drawn=windows())
def test_a_window_of_a_map_is_cut_from_the_whole(kind, drawn):
    size, window = drawn
    whole = resize_map(MAPS[kind], kind, *size)
    np.testing.assert_array_equal(resize_map(MAPS[kind], kind, *size, *window), whole[window])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(drawn=windows())
def test_a_window_of_an_image_is_cut_from_the_bilinear_whole(drawn):
    (height, width), window = drawn
    whole = cv2.resize(PHOTO, (width, height), interpolation=cv2.INTER_LINEAR)[window].astype(int)
    assert np.abs(zoom_image(PHOTO, height, width, *window) - whole).max() <= 1


def test_small_windows_of_large_images_are_computed_alone(monkeypatch):
    monkeypatch.setattr(cv2, "resize", None)
    assert zoom_image(PHOTO, 6000, 8000, slice(100, 110), slice(200, 220)).shape == (10, 20, 3)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(height=sizes, width=sizes)
def test_maps_are_sampled_at_the_nearest_centre(height, width):
    centers = np.stack(np.meshgrid(np.arange(60) + 0.5, np.arange(80) + 0.5, indexing="ij"), axis=-1)
    wanted = np.meshgrid((np.arange(height) + 0.5) * 60 / height, (np.arange(width) + 0.5) * 80 / width, indexing="ij")
    assert np.abs(resize_map(centers, "value", height, width) - np.stack(wanted, axis=-1)).max() <= 0.5


@settings(max_examples=60, deadline=None, derandomize=True)
@given(drawn=windows(), kind=st.sampled_from(list(MAPS)))
def test_maps_can_be_sampled_as_opencv_does(drawn, kind):
    (height, width), window = drawn
    expected = cv2.resize(MAPS[kind], (width, height), interpolation=cv2.INTER_NEAREST)[window]
    found = resize_map(MAPS[kind], kind, height, width, *window, sampling="corner", keep_lines=False)
    np.testing.assert_array_equal(found, expected)


def test_the_two_samplings_are_at_most_one_pixel_apart():
    places = np.stack(np.meshgrid(np.arange(60), np.arange(80), indexing="ij"), axis=-1)
    for height, width in ((30, 40), (41, 57), (60, 80), (97, 131)):
        center, corner = (resize_map(places, "value", height, width, sampling=way) for way in ("center", "corner"))
        apart = center - corner
        assert set(np.unique(apart)) <= {0, 1}  # the corner is above and to the left
        assert apart.any() == ((height, width) != (60, 80))


def test_shrinking_averages_and_zooming_interpolates():
    checkers = np.tile(np.array([[0, 255], [255, 0]], np.uint8), (20, 20))[..., None].repeat(3, axis=2)
    assert np.abs(resize_image(checkers, 10, 10).astype(int) - 127).max() <= 1
    assert resize_image(checkers, 80, 80).shape == (80, 80, 3)
    third = zoom_image(PHOTO, 20, 20)
    np.testing.assert_array_equal(third[:, :, 0], cv2.resize(PHOTO, (20, 20))[:, :, 0])


def test_lines_survive_shrinking_and_keep_holes():
    lines = np.zeros((60, 80), np.float32)
    lines[:, 7] = 1
    lines[5, 40:] = np.nan
    small = resize_map(lines, "lines", 15, 20)
    assert (np.nansum(small, axis=1) == 1).all()
    assert np.nansum(resize_map(lines, "lines", 15, 20, keep_lines=False)) == 0  # column 7 is no nearest one
    assert np.isnan(thicken(lines, 4, 4)).sum() == 40
    np.testing.assert_array_equal(thicken(lines, 1, 1), lines)


@pytest.mark.parametrize("pixels", [PHOTO, *MAPS.values()], ids=["image", *MAPS])
def test_mirroring_turns_columns_around(pixels):
    np.testing.assert_array_equal(mirror(pixels)[:, 3], pixels[:, -4])


def test_mirrored_normals_point_the_other_way():
    normals = MAPS["vector"]
    expected = np.stack([-normals[..., 0], normals[..., 1], normals[..., 2]], axis=-1)[:, ::-1]
    before = normals.copy()
    np.testing.assert_array_equal(mirror(normals, "vector"), expected)
    np.testing.assert_array_equal(normals, before)


def test_vectors_turn_with_the_image():
    normal = np.array([[0.6, 0.0, -0.8], [np.nan] * 3], dtype=np.float32)
    before = normal.copy()
    quarter = np.array([[0.0, 1.0], [-1.0, 0.0]])  # what is right of the centre goes up
    np.testing.assert_allclose(rotate_normals(normal, quarter)[0], [0, -0.6, -0.8], atol=1e-7)
    assert np.isnan(rotate_normals(normal, quarter)[1]).all()
    np.testing.assert_array_equal(normal, before)


@given(scale=st.floats(0.3, 3.0))
@settings(max_examples=10, deadline=None)
def test_zooming_changes_depth_and_inverse_depth_alike(scale):
    depth = np.array([[1.0, 4.0, np.nan]], np.float32)
    np.testing.assert_allclose(zoom_depth(zoom_depth(depth, scale), 1 / scale), depth, rtol=1e-5)
    np.testing.assert_allclose(1 / zoom_values(1 / depth, "inverse_depth", scale), depth / scale, rtol=1e-5)
    np.testing.assert_array_equal(zoom_values(depth, "depth", scale), zoom_depth(depth, scale))
    np.testing.assert_array_equal(zoom_values(depth, "value", scale), depth)
    assert zoom_values(depth, "inverse_depth", scale).dtype == np.float32


@pytest.mark.parametrize(
    ("pixels", "fill"), [(PHOTO, (1, 2, 3)), (MAPS["label"], 255), (MAPS["vector"], np.nan)], ids=str
)
def test_padding_surrounds(pixels, fill):
    padded = pad(pixels, ((1, 2), (3, 0)), fill)
    assert padded.dtype == pixels.dtype
    assert padded.shape[:2] == (63, 83)
    np.testing.assert_array_equal(padded[1:-2, 3:], pixels)
    border = np.concatenate([padded[0], padded[-2], padded[-1]])
    np.testing.assert_array_equal(border, np.broadcast_to(np.array(fill, pixels.dtype), border.shape))


def test_padding_by_nothing_is_the_map_itself():
    assert pad(PHOTO, ((0, 0), (0, 0)), (1, 2, 3)) is PHOTO


def test_normals_are_decoded_to_unit_length_or_nothing():
    direction = RNG.normal(size=(50, 60, 3))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    pixels = np.rint((direction + 1) * 127.5).astype(np.uint8)
    pixels[0] = 127  # no direction
    pixels[1] = 255  # white, longer than any normal
    normals = decode_normals(pixels)
    assert normals.dtype == np.float32
    assert np.isnan(normals[:2]).all()
    np.testing.assert_allclose(np.linalg.norm(normals[2:], axis=-1), 1, rtol=1e-6)
    assert np.degrees(np.arccos((normals[2:] * direction[2:]).sum(axis=-1).clip(-1, 1))).max() < 0.6


def test_vectors_of_any_float_type_become_normals():
    vectors = np.array([[[0, 0, 0.6], [0, 0, 0], [0, 1.4, 0], [np.nan, 0, 1], [0, 1.6, 0]]])
    for dtype in (np.float64, np.float32, np.float16):
        normals = normal_vectors(vectors.astype(dtype))
        np.testing.assert_allclose(normals[0, [0, 2]], [[0, 0, 1], [0, 1, 0]], atol=1e-6)
        assert np.isnan(normals[0, [1, 3, 4]]).all()


def test_tasks_have_kinds():
    tasks = build_tasks(
        {"semseg": {"classes": ["a", "b"]}, "edges": {}, "depth": {}, "class_scene": {"classes": ["a", "b"]}}
    )
    kinds = {name: map_kind(task) for name, task in tasks.items()}
    assert kinds == {"semseg": "label", "edges": "lines", "depth": "depth", "class_scene": None}
