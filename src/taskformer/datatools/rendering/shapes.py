"""Generated shapes for clutter: box, cushion, curtain and a few lamps, cached like converted models.

All have unit width, depth and height in the model frame of `meshes.Model` and are scaled where they are placed.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from taskformer.datatools.rendering.meshes import Floats, Model, Part, write_mesh
from taskformer.files import replacing

CREAM = (0.93, 0.89, 0.78)
METAL = (0.45, 0.43, 0.4)
GREEN = (0.28, 0.46, 0.2)
CLAY = (0.68, 0.45, 0.34)
SHAPE_PREFIX = "shape--"


def _grid(points: Floats) -> Floats:
    """Triangles of a ``(rows, columns, 3)`` grid of points, as ``(F, 3, 3)`` corners."""
    a, b, c, d = points[:-1, :-1], points[:-1, 1:], points[1:, 1:], points[1:, :-1]
    quads = np.stack([np.stack([a, b, c], -2), np.stack([a, c, d], -2)])
    return quads.reshape(-1, 3, 3)


def _box() -> Floats:
    x0, x1, y0, y1, z0, z1 = -0.5, 0.5, -0.5, 0.5, 0.0, 1.0
    corner = {
        (i, j, k): np.array([(x0, x1)[i], (y0, y1)[j], (z0, z1)[k]]) for i in (0, 1) for j in (0, 1) for k in (0, 1)
    }
    sides = []
    for axis in range(3):
        for end in (0, 1):
            face = [key for key in corner if key[axis] == end]
            p, q, r, s = (corner[key] for key in (face[0], face[1], face[3], face[2]))
            sides += [np.stack([p, q, r]), np.stack([p, r, s])]
    return np.stack(sides)


def _cushion(power: float = 0.55) -> Floats:
    """A pillow lying flat: a superellipsoid, rounded square from above."""
    theta = np.linspace(-math.pi / 2, math.pi / 2, 13)[:, None]
    phi = np.linspace(-math.pi, math.pi, 33)[None, :]

    def soft(value: Floats, exponent: float) -> Floats:
        return np.asarray(np.sign(value) * np.abs(value) ** exponent)

    x = soft(np.cos(theta), 0.7) * soft(np.cos(phi), power)
    y = soft(np.cos(theta), 0.7) * soft(np.sin(phi), power)
    z = np.broadcast_to(np.sin(theta), x.shape)
    return _grid(np.stack([x * 0.5, y * 0.5, z * 0.5 + 0.5], -1))


def _curtain(folds: int = 7) -> Floats:
    """A wavy cloth in the x-z plane."""
    x = np.linspace(-0.5, 0.5, folds * 8 + 1)[None, :]
    z = np.linspace(0.0, 1.0, 9)[:, None]
    y = 0.5 * np.sin(2 * math.pi * folds * (x + 0.5)) * (0.75 + 0.25 * (1 - z))
    shape = np.broadcast_shapes(x.shape, z.shape)
    return _grid(np.stack([np.broadcast_to(x, shape), y, np.broadcast_to(z, shape)], -1))


def _lathe(profile: list[tuple[float, float]], segments: int = 24) -> Floats:
    """Surface of revolution about z of (radius, height) points."""
    angle = np.linspace(0, 2 * math.pi, segments + 1)[None, :]
    radius = np.array([point[0] for point in profile])[:, None]
    height = np.broadcast_to(np.array([point[1] for point in profile])[:, None], (len(profile), segments + 1))
    return _grid(np.stack([radius * np.cos(angle), radius * np.sin(angle), height], -1))


def _leaves(count: int, spread: float, seed: int) -> Floats:
    """Arched leaves growing from the middle, in a box of unit width, depth and height above 0.2."""
    rng = np.random.default_rng(seed)
    blades = []
    for turn in rng.uniform(0, 2 * math.pi, count):
        along = np.linspace(0, 1, 6)[:, None]
        reach, rise = rng.uniform(0.25, 0.48), rng.uniform(0.35, 0.78)
        radius = reach * along**spread
        height = 0.2 + rise * np.sin(along * rng.uniform(1.3, 2.3))
        width = rng.uniform(0.05, 0.09) * np.sin(math.pi * np.clip(along * 0.95 + 0.03, 0, 1)) ** 0.6
        side = np.array([[-1.0, 0.0, 1.0]])
        x = radius * math.cos(turn) - side * width * math.sin(turn)
        y = radius * math.sin(turn) + side * width * math.cos(turn)
        z = np.minimum(height - 0.04 * np.abs(side) * along, 1.0)
        blades.append(_grid(np.stack([x, y, z], -1)))
    return np.concatenate(blades)


def _shade(low: float, high: float, bottom: float, top: float) -> Floats:
    return _lathe([(bottom, low), (top, high)])


def _shapes() -> dict[str, tuple[str, list[tuple[Floats, tuple[float, float, float]]]]]:
    stand = _lathe([(0.0, 0.0), (0.32, 0.0), (0.32, 0.02), (0.035, 0.03), (0.035, 0.85), (0.0, 0.85)])
    vase = _lathe([(0.0, 0.0), (0.2, 0.0), (0.26, 0.2), (0.22, 0.4), (0.07, 0.5), (0.05, 0.75), (0.0, 0.75)])
    tripod = _lathe([(0.0, 0.0), (0.5, 0.0), (0.48, 0.01), (0.05, 0.04), (0.05, 0.88), (0.0, 0.88)])
    cord = _lathe([(0.012, 0.45), (0.012, 1.0)])
    pot = _lathe([(0.0, 0.0), (0.38, 0.0), (0.5, 1.0), (0.44, 1.0), (0.42, 0.85), (0.0, 0.85)])
    dome = [(0.5 * math.cos(t), 0.05 + 0.4 * math.sin(t)) for t in np.linspace(0, math.pi / 2, 9)]
    planter = _lathe([(0.0, 0.0), (0.15, 0.0), (0.2, 0.24), (0.17, 0.24), (0.16, 0.21), (0.0, 0.21)], 16)
    return {
        "plant-broad": ("plant.generated", [(_leaves(26, 0.8, 1), GREEN), (planter, CLAY)]),
        "plant-tall": ("plant.generated", [(_leaves(40, 1.3, 2), GREEN), (planter, CLAY)]),
        "plant-bushy": ("plant.generated", [(_leaves(70, 1.0, 3), GREEN), (planter, CLAY)]),
        "box": ("prop.generated", [(_box(), CREAM)]),
        "cushion": ("prop.generated", [(_cushion(), CREAM)]),
        "curtain": ("prop.generated", [(_curtain(), CREAM)]),
        "pot": ("prop.generated", [(pot, CREAM)]),
        "lamp-floor": ("lamp.generated", [(_shade(0.76, 1.0, 0.5, 0.34), CREAM), (stand, METAL)]),
        "lamp-drum": ("lamp.generated", [(_shade(0.8, 1.0, 0.5, 0.5), CREAM), (tripod, METAL)]),
        "lamp-vase": ("lamp.generated", [(_shade(0.58, 1.0, 0.5, 0.3), CREAM), (vase, METAL)]),
        "lamp-cone": ("lamp.generated", [(_shade(0.0, 0.45, 0.5, 0.08), CREAM), (cord, METAL)]),
        "lamp-dome": ("lamp.generated", [(_lathe(dome), CREAM), (cord, METAL)]),
    }


def generated_models(cache: Path) -> list[Model]:
    """Write the generated shapes into the cache (once) and return them."""
    models: list[Model] = []
    for name, (pool, meshes) in _shapes().items():
        key = SHAPE_PREFIX + name
        folder = cache / key
        folder.mkdir(parents=True, exist_ok=True)
        parts = []
        for index, (triangles, color) in enumerate(meshes):
            path = folder / f"{index}.ply"
            with replacing(path) as work:
                area = write_mesh(work, triangles)
            # The first part, a shade or the whole thing, is always the one that a new colour goes to.
            parts.append(Part(f"{key}/{index}.ply", color, area=area if index else area + 1e3))
        models.append(Model(key, name, pool, (1.0, 1.0, 1.0), top=1.0, parts=tuple(parts)))
    return models
