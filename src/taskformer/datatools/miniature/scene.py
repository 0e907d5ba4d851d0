"""A small room with boxes and a person whose labels are exact: every ray's nearest surface, in closed form.

The camera stands in a box-shaped room and looks along z (x right, y down). Everything in it is an axis-aligned box, the
room itself one that is seen from inside, so depth, normals, object ids and parts of one scene always agree.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Where parts 1..6 of a person are (head, torso, upper arms, lower arms, upper legs, lower legs): shares of the height
#: from the top, and metres from the middle of one or two boxes.
_PARTS = {
    1: ((0.00, 0.15), (-0.10, 0.10)),
    2: ((0.15, 0.50), (-0.17, 0.17)),
    3: ((0.15, 0.33), (-0.30, -0.17), (0.17, 0.30)),
    4: ((0.33, 0.55), (-0.30, -0.17), (0.17, 0.30)),
    5: ((0.50, 0.75), (-0.17, 0.17)),
    6: ((0.75, 1.00), (-0.17, 0.17)),
}
_COLORS = {"wall": (196, 188, 170), "floor": (130, 104, 80), "ceiling": (235, 235, 230), "person": (190, 60, 70)}


@dataclass(frozen=True)
class Scene:
    """An image and its labels; every map has the image's height and width.

    Attributes:
        image: RGB ``(H, W, 3)`` uint8.
        depth: Along the optical axis, in metres ``(H, W)`` float32, without holes.
        normals: Unit vectors toward the camera ``(H, W, 3)`` float32: x right, y down, z into the scene.
        objects: Object ids ``(H, W)`` uint8: keys of ``kinds``.
        kinds: What each object id is: ``wall``, ``floor``, ``ceiling``, ``box`` or ``person``.
        parts: Body parts ``(H, W)`` uint8: 0 none, 1 head, 2 torso, 3 upper arms, 4 lower arms, 5 upper legs, 6 lower
            legs.
        edges: Whether a pixel's right or lower neighbour belongs to another object ``(H, W)`` bool.
        focal: Focal length in pixels; the principal point is the centre of the image.
    """

    image: NDArray[np.uint8]
    depth: NDArray[np.float32]
    normals: NDArray[np.float32]
    objects: NDArray[np.uint8]
    kinds: dict[int, str]
    parts: NDArray[np.uint8]
    edges: NDArray[np.bool_]
    focal: float


@dataclass(frozen=True)
class _Box:
    """An axis-aligned box in metres, corners ``low`` and ``high``, and what it is."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    object_id: int
    part: int = 0


def scene(height: int, width: int, seed: int, focal: float | None = None, person: bool = True) -> Scene:
    """Build a random room with two or three boxes on the floor and, if wanted, a person.

    Args:
        height: Image height in pixels.
        width: Image width in pixels.
        seed: Seed of everything random; the same scene each time.
        focal: Focal length in pixels, by default 0.9 times the width.
        person: Whether a person stands in the room.

    Returns:
        The scene.
    """
    rng = np.random.default_rng(seed)
    focal = 0.9 * width if focal is None else focal
    rays = _rays(height, width, focal)
    low = np.array([-rng.uniform(1.5, 2.5), -rng.uniform(1.0, 1.4), -1.0])
    high = np.array([rng.uniform(1.5, 2.5), rng.uniform(1.2, 1.6), rng.uniform(4.0, 6.0)])
    depth, normals, axis = _room(rays, low, high)
    # The two sides of the room are one wall each: 1 left, 2 right, 3 back; 4 floor, 5 ceiling.
    objects = np.select([axis == 0, axis == 1, axis == 2], [_side(rays, 0, 1, 2), _side(rays, 1, 5, 4), 3]).astype(
        np.uint8
    )
    kinds = {1: "wall", 2: "wall", 3: "wall", 4: "floor", 5: "ceiling"}
    parts = np.zeros((height, width), dtype=np.uint8)
    for box in _furniture(rng, low, high, kinds) + (_person(rng, high, kinds) if person else []):
        distance, facing = _box(rays, box.low, box.high)
        nearer = distance < depth
        depth = np.where(nearer, distance, depth)
        normals = np.where(nearer[..., None], facing, normals)
        objects[nearer] = box.object_id
        parts[nearer] = box.part
    image = _shade(rng, rays * depth[..., None], normals, objects, kinds)
    edges = _boundaries(objects)
    return Scene(image, depth.astype(np.float32), normals.astype(np.float32), objects, kinds, parts, edges, focal)


def _rays(height: int, width: int, focal: float) -> NDArray[np.float64]:
    """Viewing rays with z = 1, ``(H, W, 3)``."""
    x, y = np.meshgrid(np.arange(width) - (width - 1) / 2, np.arange(height) - (height - 1) / 2)
    return np.stack([x / focal, y / focal, np.ones_like(x)], axis=-1)


def _room(
    rays: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Where rays from the origin leave the box around it: depth, inward normals, axis of the face."""
    with np.errstate(divide="ignore"):
        distance = np.where(rays > 0, high / rays, np.where(rays < 0, low / rays, np.inf))  # (H, W, 3)
    axis = distance.argmin(axis=-1)
    return distance.min(axis=-1), -np.sign(rays) * np.eye(3)[axis], axis


def _box(
    rays: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where rays from the origin enter a box: depth (infinite if they miss it) and outward normals (slab method)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        first, second = low / rays, high / rays
    near, far = np.fmin(first, second), np.fmax(first, second)  # (H, W, 3)
    axis = near.argmax(axis=-1)
    enters, leaves = near.max(axis=-1), far.min(axis=-1)
    distance = np.where((enters <= leaves) & (enters > 0), enters, np.inf)
    return distance, -np.sign(rays) * np.eye(3)[axis]


def _side(rays: NDArray[np.float64], axis: int, negative: int, positive: int) -> NDArray[np.int64]:
    return np.where(rays[..., axis] < 0, negative, positive)


def _furniture(
    rng: np.random.Generator, low: NDArray[np.float64], high: NDArray[np.float64], kinds: dict[int, str]
) -> list[_Box]:
    """Boxes that stand on the floor in front of the back wall."""
    boxes = []
    for _ in range(rng.integers(2, 4)):
        size = rng.uniform([0.5, 0.4, 0.4], [1.0, 1.2, 0.9])
        x = rng.uniform(low[0], high[0] - size[0])
        z = rng.uniform(2.7, high[2] - size[2])
        kinds[len(kinds) + 1] = "box"
        boxes.append(
            _Box(np.array([x, high[1] - size[1], z]), np.array([x + size[0], high[1], z + size[2]]), len(kinds))
        )
    return boxes


def _person(rng: np.random.Generator, high: NDArray[np.float64], kinds: dict[int, str]) -> list[_Box]:
    """One box per part, standing on the floor."""
    kinds[len(kinds) + 1] = "person"
    center, z = rng.uniform(-0.4, 0.4), rng.uniform(2.1, 2.4)
    height = rng.uniform(1.5, 1.8)
    return [
        _Box(
            np.array([center + left, high[1] - height * (1 - top), z]),
            np.array([center + right, high[1] - height * (1 - bottom), z + 0.2]),
            len(kinds),
            part,
        )
        for part, ((top, bottom), *sides) in _PARTS.items()
        for left, right in sides
    ]


def _shade(
    rng: np.random.Generator,
    points: NDArray[np.float64],
    normals: NDArray[np.float64],
    objects: NDArray[np.uint8],
    kinds: dict[int, str],
) -> NDArray[np.uint8]:
    """Colour each object, with a checkered surface of 25 cm squares and light from above and the camera."""
    colors = np.zeros((256, 3))
    for object_id, kind in kinds.items():
        colors[object_id] = _COLORS.get(kind, rng.uniform(60, 220, 3))
    light = 0.6 + 0.25 * np.clip(-normals[..., 2], 0, 1) + 0.15 * np.clip(-normals[..., 1], 0, 1)
    checkered = 1 - 0.12 * (np.floor(points * 4 + 1e-6).sum(axis=-1) % 2)
    noise = rng.normal(0, 3, objects.shape)[..., None]
    image: NDArray[np.uint8] = np.clip(colors[objects] * (light * checkered)[..., None] + noise, 0, 255).astype(
        np.uint8
    )
    return image


def _boundaries(objects: NDArray[np.uint8]) -> NDArray[np.bool_]:
    edges = np.zeros(objects.shape, dtype=bool)
    edges[:, :-1] |= objects[:, :-1] != objects[:, 1:]
    edges[:-1] |= objects[:-1] != objects[1:]
    return edges
