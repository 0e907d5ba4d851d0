"""Label maps derived from geometry: edges, saliency, human parts, reshading and the encodings on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from taskformer.data.datasets.rooms import CLASSES
from taskformer.datatools.rendering.room import Placement

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

DEPTH_UNITS_PER_M = 1000
PART_NAMES: tuple[str, ...] = ("background", "head", "torso", "arms", "legs")
STANDING: tuple[str, ...] = ("person.standing", "person.mannequin")
INVALID = 255
CREASE_COS = float(np.cos(np.radians(40.0)))
DEPTH_JUMP = 0.08
# Share of the body height above which there is head, and below which there are legs; arms are far from the axis.
HEAD_ABOVE, LEGS_BELOW, ARMS_BEYOND, ARMS_FROM, ARMS_TO = 0.86, 0.49, 0.115, 0.38, 0.84


def encode_depth(depth: Floats) -> NDArray[np.uint16]:
    """Metres to millimetres, 0 where invalid or beyond 65.5 m."""
    units = np.round(depth * DEPTH_UNITS_PER_M)
    valid = np.isfinite(depth) & (units >= 1) & (units <= 65535)
    return np.where(valid, units, 0).astype(np.uint16)


def encode_normals(normals: Floats) -> Bytes:
    """Unit vectors to ``round((n + 1) * 127.5)``."""
    return np.clip(np.round((normals + 1.0) * 127.5), 0, 255).astype(np.uint8)


def edges(cls: Ints, instance: Ints, normals: Floats, depth: Floats, rays: Floats) -> Bytes:
    """Boundaries, 0 or 255.

    A pixel is an edge when it differs from its right or its lower neighbour: another class, another instance, a jump
    (the neighbour is further than 8 % of the depth away from the pixel's tangent plane), or, on the structure of the
    room, normals more than 40 degrees apart (corners of walls). Looking in one direction only keeps the lines one
    pixel wide.

    Args:
        cls: Class ids ``(H, W)``.
        instance: Instance ids ``(H, W)``.
        normals: Unit normals ``(H, W, 3)``.
        depth: Z-depth in metres ``(H, W)``.
        rays: Unit viewing directions ``(H, W, 3)``.
    """
    result = np.zeros(cls.shape, bool)
    structure = instance == 0
    points = rays * (depth / rays[..., 2])[..., None]
    for axis in (0, 1):
        a = [slice(None), slice(None)]
        b = [slice(None), slice(None)]
        a[axis], b[axis] = slice(None, -1), slice(1, None)
        here, there = (a[0], a[1]), (b[0], b[1])
        differs = (cls[here] != cls[there]) | (instance[here] != instance[there])
        step = points[there] - points[here]
        # Both tangent planes must be left: a surface seen edge-on leaves only its own.
        leap = np.minimum(np.abs((normals[here] * step).sum(-1)), np.abs((normals[there] * step).sum(-1)))
        jump = leap > DEPTH_JUMP * np.minimum(depth[here], depth[there])
        crease = structure[here] & structure[there] & ((normals[here] * normals[there]).sum(-1) < CREASE_COS)
        result[here] |= differs | jump | crease
    return np.where(result, 255, 0).astype(np.uint8)


def saliency(cls: Ints, instance: Ints) -> Bytes:
    """What a viewer looks at first, 0 or 255.

    People, if they cover at least 0.4 % of the image. Otherwise the things (not structure, windows, doors) with the
    highest score, where the score is the sum over the thing's pixels of a Gaussian around the image centre with a
    spread of a quarter of the image: the best one and all with at least 60 % of its score, three at most.
    """
    person = cls == CLASSES.index("person")
    if person.mean() >= 0.004:
        return np.where(person, 255, 0).astype(np.uint8)
    height, width = cls.shape
    y, x = np.mgrid[0:height, 0:width]
    focus = np.exp(-0.5 * (((x + 0.5) / width - 0.5) ** 2 + ((y + 0.5) / height - 0.5) ** 2) / 0.25**2)
    background = [CLASSES.index(name) for name in ("wall", "floor", "ceiling", "window", "door")]
    things = (instance > 0) & ~np.isin(cls, background) & (cls != INVALID)
    scores = np.bincount(instance[things], weights=focus[things], minlength=1)
    order = np.argsort(-scores)[:3]
    best = [int(k) for k in order if scores[k] > 0 and scores[k] >= 0.6 * scores[order[0]]]
    return np.where(np.isin(instance, best) & things, 255, 0).astype(np.uint8)


def human_parts(
    cls: Ints, placement: Ints, points: Floats, placements: Sequence[Placement], sizes: Mapping[str, float]
) -> Bytes:
    """Part ids (`PART_NAMES`) of standing people by where a point is on the body; 255 on all other people.

    Args:
        cls: Class ids ``(H, W)``.
        placement: Positions in ``placements`` ``(H, W)``, -1 for none.
        points: World positions in metres ``(H, W, 3)``.
        placements: The room's models.
        sizes: Height in metres by model key.
    """
    parts = np.zeros(cls.shape, np.uint8)
    for index in np.unique(placement[cls == CLASSES.index("person")]):
        person = placements[int(index)]
        mask = placement == index
        if person.pool not in STANDING:
            parts[mask] = INVALID
            continue
        height = sizes[person.model]
        offset = points[mask] - np.array(person.position)
        turn = np.radians(person.angle)
        side = np.abs(offset[:, 0] * np.cos(turn) + offset[:, 1] * np.sin(turn)) / height
        level = offset[:, 2] / height
        arms = (side > ARMS_BEYOND) & (level > ARMS_FROM) & (level < ARMS_TO)
        parts[mask] = np.select([level > HEAD_ABOVE, arms, level < LEGS_BELOW], [1, 3, 4], 2)
    return parts


def reshading(normals: Floats, rays: Floats) -> Bytes:
    """Lambert shading under a light at the camera: ``round(255 * max(0, n . -ray))``."""
    shading: Bytes = np.round(255 * np.clip(-(normals * rays).sum(-1), 0.0, 1.0)).astype(np.uint8)
    return shading
