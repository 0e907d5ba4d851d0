"""Denoising, tone mapping and the label maps that are computed from geometry."""

import numpy as np
import pytest

from taskformer.data.datasets.rooms import CLASSES
from taskformer.datatools.rendering.image import denoise, despeckle, develop, shrink, tone_map
from taskformer.datatools.rendering.labels import (
    edges,
    encode_depth,
    encode_normals,
    human_parts,
    reshading,
    saliency,
)
from taskformer.datatools.rendering.render import Job, plan
from taskformer.datatools.rendering.room import Placement

SHAPE = (48, 64)
FACING = np.broadcast_to([0.0, 0.0, -1.0], (*SHAPE, 3))
STRAIGHT = np.broadcast_to([0.0, 0.0, 1.0], (*SHAPE, 3))
WALL, CHAIR, SOFA, PERSON = (CLASSES.index(name) for name in ("wall", "chair", "sofa", "person"))


def noisy_step(labels):
    rng = np.random.default_rng(0)
    clean = np.where(labels[..., None] == 0, 0.3, 0.9) * np.ones((*SHAPE, 3))
    return clean, clean * rng.gamma(8.0, 1 / 8.0, (*SHAPE, 1))


def test_denoising_flattens_noise_and_keeps_a_step_edge():
    labels = (np.arange(SHAPE[1]) >= 32).astype(int)[None, :].repeat(SHAPE[0], 0)
    clean, noisy = noisy_step(labels)
    smooth = denoise(noisy, np.full((*SHAPE, 3), 0.5), FACING, np.full(SHAPE, 3.0), labels)
    assert np.abs(smooth - clean).mean() < 0.4 * np.abs(noisy - clean).mean()
    assert smooth[:, 31].mean() == pytest.approx(0.3, abs=0.05)
    assert smooth[:, 32].mean() == pytest.approx(0.9, abs=0.12)


def test_denoising_keeps_textures():
    albedo = np.where(np.arange(SHAPE[1]) % 2, 0.2, 0.8)[None, :, None] * np.ones((*SHAPE, 3))
    smooth = denoise(albedo * 0.7, albedo, FACING, np.full(SHAPE, 2.0), np.zeros(SHAPE, int))
    np.testing.assert_allclose(smooth, albedo * 0.7, atol=1e-9)


def test_a_firefly_is_removed_and_nothing_else():
    image = np.full((*SHAPE, 3), 0.4)
    image[10, 10] = 50.0
    result = despeckle(image)
    assert result[10, 10].max() < 0.6
    result[10, 10] = image[10, 10] = 0
    np.testing.assert_array_equal(result, image)


@pytest.mark.parametrize("gain", [1e-3, 1.0, 1e3])
def test_tone_mapping_is_in_range_and_does_not_depend_on_exposure(gain):
    radiance = np.random.default_rng(1).gamma(1.0, 1.0, (*SHAPE, 3)) + 0.05
    result = tone_map(radiance * gain) if gain >= 1 else tone_map(radiance)
    assert 0.0 <= result.min() <= result.max() <= 1.0
    np.testing.assert_allclose(result, tone_map(radiance), atol=0.02)


def test_shrinking_takes_means():
    image = np.arange(24, dtype=float).reshape(4, 6, 1)
    np.testing.assert_allclose(shrink(image, 2)[0, 0], image[:2, :2].mean())
    assert shrink(image, 2).shape == (2, 3, 1)


def test_developing_depends_only_on_the_generator():
    image = np.full((*SHAPE, 3), 0.5)
    first, second = (develop(image, np.random.default_rng(2)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.dtype == np.uint8
    assert abs(first.mean() - 128) < 6


def test_depth_and_normals_survive_their_encoding():
    depth = np.array([[0.5, 3.1234, np.nan, 70.0]])
    np.testing.assert_array_equal(encode_depth(depth), [[500, 3123, 0, 0]])
    normals = np.random.default_rng(0).normal(size=(50, 3))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    decoded = encode_normals(normals) / 127.5 - 1
    assert np.abs(decoded - normals).max() < 0.005


def test_edges_are_one_pixel_wide_boundaries():
    cls = np.full(SHAPE, WALL)
    cls[10:20, 10:30] = CHAIR
    result = edges(cls, (cls == CHAIR).astype(int), FACING, np.full(SHAPE, 2.0), STRAIGHT)
    assert set(np.unique(result)) == {0, 255}
    assert (result[15] == 255).sum() == 2
    assert (result[:, 20] == 255).sum() == 2


def test_a_wall_corner_is_an_edge_and_a_slanted_floor_is_not():
    normals = FACING.copy()
    normals[:, 32:] = [-1.0, 0.0, 0.0]
    flat = np.zeros(SHAPE, int)
    corner = edges(flat, flat, normals, np.full(SHAPE, 2.0), STRAIGHT)
    assert (corner[:, 31] == 255).all()
    assert corner.mean() < 255 / 40

    down = np.linspace(0.2, 1.0, SHAPE[0])[:, None] * np.ones(SHAPE)
    rays = np.stack([np.zeros(SHAPE), down, np.ones(SHAPE)], -1)
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    floor = np.broadcast_to([0.0, -1.0, 0.0], (*SHAPE, 3))
    assert edges(flat, flat, floor, 1.4 / down, rays).max() == 0


def test_people_are_salient_and_otherwise_the_central_thing():
    cls, instance = np.full(SHAPE, WALL), np.zeros(SHAPE, int)
    cls[20:30, 25:40], instance[20:30, 25:40] = SOFA, 1
    cls[0:6, 0:6], instance[0:6, 0:6] = CHAIR, 2
    np.testing.assert_array_equal(saliency(cls, instance) == 255, instance == 1)
    cls[30:45, 5:12], instance[30:45, 5:12] = PERSON, 3
    np.testing.assert_array_equal(saliency(cls, instance) == 255, instance == 3)


def test_an_empty_room_has_nothing_salient():
    assert saliency(np.full(SHAPE, WALL), np.zeros(SHAPE, int)).max() == 0


def test_body_parts_follow_the_height_of_a_turned_person():
    person = Placement("p", "person.standing", 1, (1.0, 2.0, 0.0), angle=90.0)
    height = 1.8
    points = np.zeros((1, 5, 3))
    # Head, torso, an arm along the body's own sideways axis (world y after the turn), the same offset forwards, leg.
    points[0] = [(1, 2, 1.7), (1, 2, 1.2), (1, 2.35, 1.2), (1.35, 2, 1.2), (1, 2.1, 0.3)]
    cls, index = np.full((1, 5), PERSON), np.zeros((1, 5), int)
    assert human_parts(cls, index, points, [person], {"p": height}).tolist() == [[1, 2, 3, 2, 4]]


def test_parts_of_sitting_people_are_unknown_and_rooms_without_people_are_zero():
    person = Placement("p", "person.floor", 1, (0.0, 0.0, 0.0))
    cls, index = np.array([[PERSON, WALL]]), np.array([[0, -1]])
    points = np.zeros((1, 2, 3))
    assert human_parts(cls, index, points, [person], {"p": 0.8}).tolist() == [[255, 0]]
    assert human_parts(np.full((1, 2), WALL), index * 0 - 1, points, [], {}).tolist() == [[0, 0]]


def test_reshading_is_the_cosine_to_the_camera():
    normals = np.array([[[0.0, 0.0, -1.0], [0.0, -1.0, 0.0], [0.0, -0.6, -0.8]]])
    rays = np.broadcast_to([0.0, 0.0, 1.0], normals.shape)
    assert reshading(normals, rays).tolist() == [[255, 0, 204]]


def test_the_plan_puts_small_splits_first_and_names_rooms_once():
    jobs = plan({"train": 9, "val": 3, "test": 2}, views_per_room=2)
    assert [sum(job.views for job in jobs if job.split == split) for split in ("train", "val", "test")] == [9, 3, 2]
    assert len({job.room_id for job in jobs}) == len(jobs)
    assert {job.split for job in jobs[:5]} == {"train", "val", "test"}
    assert {job.split for job in jobs[6:]} == {"train"}
    longer = plan({"train": 21, "val": 3, "test": 2}, views_per_room=2)
    assert {job.room_id for job in jobs} <= {job.room_id for job in longer}
    assert Job("val", 2, 1).room_id == "r0007"
