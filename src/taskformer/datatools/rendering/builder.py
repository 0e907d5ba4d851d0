"""The mutable half of the layout: places models in a room without overlap and remembers what is taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from taskformer.datatools.rendering.meshes import Model
from taskformer.datatools.rendering.room import Camera, Panel, Placement, Surface, Vec3

Accept = Callable[[Model], bool]
T = TypeVar("T")

SIDES: tuple[str, ...] = ("back", "left", "right")
CAMERA_CLEARANCE_M = 0.8
DOOR_CLEARANCE_M = 0.8
TRIES = 30

PASTELS: tuple[Vec3, ...] = (
    (0.93, 0.78, 0.75),
    (0.78, 0.87, 0.76),
    (0.74, 0.83, 0.92),
    (0.95, 0.89, 0.72),
    (0.84, 0.78, 0.9),
    (0.93, 0.92, 0.89),
    (0.9, 0.66, 0.55),
    (0.45, 0.62, 0.68),
)
FABRICS: tuple[Vec3, ...] = (
    (0.55, 0.57, 0.6),
    (0.3, 0.36, 0.47),
    (0.7, 0.63, 0.53),
    (0.62, 0.3, 0.27),
    (0.38, 0.47, 0.36),
    (0.85, 0.8, 0.7),
    (0.75, 0.55, 0.25),
    (0.3, 0.5, 0.52),
)
WOODS: tuple[Vec3, ...] = (
    (0.62, 0.44, 0.27),
    (0.78, 0.62, 0.42),
    (0.45, 0.3, 0.19),
    (0.9, 0.88, 0.84),
    (0.85, 0.74, 0.56),
    (0.56, 0.56, 0.55),
    (0.7, 0.77, 0.76),
)

# How often the largest untextured material of a model gets a new colour, and from which palette.
REPAINTED: dict[str, tuple[float, tuple[Vec3, ...]]] = {
    "sofa.sofa": (0.6, FABRICS),
    "chair.armchair": (0.6, FABRICS),
    "chair.dining": (0.35, (*WOODS, *PASTELS)),
    "chair.office": (0.4, FABRICS),
    "chair.stool": (0.4, WOODS),
    "bed.bed": (0.5, (*PASTELS, *FABRICS)),
    "bed.child": (0.5, PASTELS),
    "table.coffee": (0.4, WOODS),
    "table.dining": (0.4, WOODS),
    "table.desk": (0.4, WOODS),
    "table.small": (0.4, WOODS),
    "cabinet.low": (0.6, WOODS),
    "cabinet.wardrobe": (0.6, WOODS),
    "shelf.shelf": (0.5, WOODS),
    "lamp.table": (0.4, PASTELS),
    "prop.radiator": (0.7, ((0.92, 0.91, 0.88),)),
    "prop.floor": (0.4, PASTELS),
}


@dataclass(frozen=True)
class Solid:
    """An axis-aligned box that nothing else may enter: middle x, y, extents a, b, from z0 to z1 (metres)."""

    x: float
    y: float
    a: float
    b: float
    z0: float
    z1: float

    def hits(self, other: Solid, pad: float) -> bool:
        """Whether two boxes come closer than ``pad`` metres sideways while overlapping in height."""
        return (
            abs(self.x - other.x) < (self.a + other.a) / 2 + pad
            and abs(self.y - other.y) < (self.b + other.b) / 2 + pad
            and self.z0 < other.z1
            and other.z0 < self.z1
        )


@dataclass(frozen=True)
class Spot:
    """A placed model with the numbers that neighbours need: where, how turned, how high its foot is."""

    model: Model
    x: float
    y: float
    angle: float
    z: float = 0.0

    def local(self, right: float, back: float) -> tuple[float, float]:
        """World x, y of a point given in the model's own axes (metres)."""
        turn = math.radians(self.angle)
        cos, sin = math.cos(turn), math.sin(turn)
        return self.x + right * cos - back * sin, self.y + right * sin + back * cos


def footprint(width: float, depth: float, angle: float) -> tuple[float, float]:
    """Extents along x and y of a ``width`` x ``depth`` rectangle turned by ``angle`` degrees."""
    cos, sin = abs(math.cos(math.radians(angle))), abs(math.sin(math.radians(angle)))
    return width * cos + depth * sin, width * sin + depth * cos


class Library:
    """Models by pool.

    Args:
        models: The models that may be shown.
    """

    def __init__(self, models: Iterable[Model]) -> None:
        self._pools: dict[str, list[Model]] = {}
        self._by_key: dict[str, Model] = {}
        for model in sorted(models, key=lambda item: item.key):
            self._pools.setdefault(model.pool, []).append(model)
            self._by_key[model.key] = model

    def get(self, pools: Sequence[str], accept: Accept | None = None) -> list[Model]:
        """All models of some pools that pass a test."""
        found = [model for pool in pools for model in self._pools.get(pool, [])]
        return [model for model in found if accept is None or accept(model)]

    def __getitem__(self, key: str) -> Model:
        return self._by_key[key]


class Builder:
    """Fills one room.

    Args:
        rng: Source of every random choice.
        library: The models that may be used.
        size: Width, depth, height of the room in metres.
    """

    def __init__(self, rng: np.random.Generator, library: Library, size: Vec3) -> None:
        self.rng = rng
        self.library = library
        self.width, self.depth, self.height = size
        self.panels: list[Panel] = []
        self.placements: list[Placement] = []
        self.solids: list[Solid] = []
        self.tops: list[Spot] = []
        self.anchors: list[Spot] = []
        self.instances = 0
        self.origins = [self._origin(side) for side in (-1, 0, 1)]

    def _origin(self, side: int) -> Vec3:
        x = (0.32 * side + self.uniform(-0.06, 0.06)) * self.width
        return x, self.uniform(0.12, 0.35), self.uniform(1.25, 1.65)

    def uniform(self, low: float, high: float) -> float:
        """A uniform float."""
        return float(self.rng.uniform(low, high))

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return bool(self.rng.random() < probability)

    def choice(self, options: Sequence[T]) -> T:
        """A random element."""
        return options[int(self.rng.integers(len(options)))]

    def color(self, palette: Sequence[Vec3], jitter: float = 0.035) -> Vec3:
        """A colour of a palette, slightly changed."""
        base = np.array(self.choice(palette)) + self.rng.normal(0.0, jitter, 3)
        r, g, b = np.clip(base, 0.08, 0.95)
        return float(r), float(g), float(b)

    def next_instance(self) -> int:
        """A fresh instance id, from 1."""
        self.instances += 1
        return self.instances

    def pick(self, pools: Sequence[str], accept: Accept | None = None) -> Model | None:
        """A random model of some pools, None when there is none."""
        found = self.library.get(pools, accept)
        return self.choice(found) if found else None

    def fits(self, solid: Solid, pad: float = 0.03) -> bool:
        """Whether a box is inside the room, clear of the cameras and of everything placed so far."""
        half = self.width / 2 + 1e-6
        if solid.x - solid.a / 2 < -half or solid.x + solid.a / 2 > half:
            return False
        if solid.y - solid.b / 2 < 0.15 or solid.y + solid.b / 2 > self.depth + 1e-6:
            return False
        if solid.z1 > self.height:
            return False
        for x, y, _ in self.origins:
            gap_x = max(abs(x - solid.x) - solid.a / 2, 0.0)
            gap_y = max(abs(y - solid.y) - solid.b / 2, 0.0)
            if math.hypot(gap_x, gap_y) < CAMERA_CLEARANCE_M:
                return False
        return not any(solid.hits(other, pad) for other in self.solids)

    def solid_of(self, model: Model, x: float, y: float, angle: float, z: float = 0.0) -> Solid:
        """The box around a model standing at a place."""
        a, b = footprint(model.size[0], model.size[1], angle)
        return Solid(x, y, a, b, z, z + model.size[2])

    def place(
        self,
        model: Model,
        x: float,
        y: float,
        angle: float,
        z: float = 0.0,
        *,
        solid: bool = True,
        recolor: Vec3 | None = None,
    ) -> Spot:
        """Put a model at a place without asking whether it fits."""
        if recolor is None and model.pool in REPAINTED and self.chance(REPAINTED[model.pool][0]):
            recolor = self.color(REPAINTED[model.pool][1])
        tint = (1.0, 1.0, 1.0)
        if self.chance(0.4) and not model.pool.startswith("person"):
            tint = (self.uniform(0.8, 1.2), self.uniform(0.8, 1.2), self.uniform(0.8, 1.2))
        position = (x, y, z)
        self.placements.append(
            Placement(model.key, model.pool, self.next_instance(), position, angle, tint=tint, recolor=recolor)
        )
        spot = Spot(model, x, y, angle, z)
        if solid:
            self.solids.append(self.solid_of(model, x, y, angle, z))
        if solid and model.size[0] * model.size[2] > 0.2:
            self.anchors.append(spot)
        return spot

    def shape(
        self, name: str, position: Vec3, size: Vec3, color: Vec3, angle: float = 0.0, pool: str = ""
    ) -> Placement:
        """Put a generated shape of a given size (metres); it blocks nothing."""
        model = self.library["shape--" + name]
        placement = Placement(
            model.key, pool or model.pool, self.next_instance(), position, angle, scale=size, recolor=color
        )
        self.placements.append(placement)
        return placement

    def wall_length(self, side: str) -> float:
        """Length of a wall in metres."""
        return self.width if side == "back" else self.depth

    def wall_pose(self, side: str, along: float, depth: float) -> tuple[float, float, float]:
        """Place x, y and angle of a thing of some depth whose back touches a wall.

        Args:
            side: Back, left or right.
            along: Where along the wall: x on the back wall, y on the others.
            depth: Twice the distance of its middle from the wall, in metres.
        """
        gap = depth / 2 + 0.02
        if side == "back":
            return along, self.depth - gap, 0.0
        return (-self.width / 2 + gap, along, 90.0) if side == "left" else (self.width / 2 - gap, along, -90.0)

    def wall_range(self, side: str, width: float) -> tuple[float, float] | None:
        """Where the middle of a thing of some width may be along a wall; None when it is too wide."""
        if side == "back":
            low, high = -self.width / 2 + width / 2 + 0.02, self.width / 2 - width / 2 - 0.02
        else:
            low, high = max(1.0, 0.25 * self.depth) + width / 2, self.depth - width / 2 - 0.02
        return (low, high) if high > low else None

    def at_wall(
        self,
        pools: Sequence[str],
        accept: Accept | None = None,
        sides: Sequence[str] = ("back", "back", "left", "right"),
        z: float | None = None,
        recolor: Vec3 | None = None,
    ) -> Spot | None:
        """Stand (or hang) a random model against a wall; None when no try fits."""
        for _ in range(TRIES):
            model = self.pick(pools, accept)
            if model is None:
                return None
            side = self.choice(sides)
            span = self.wall_range(side, model.size[0])
            if span is None:
                continue
            x, y, angle = self.wall_pose(side, self.uniform(*span), model.size[1])
            height = model.elevation if z is None else z
            if self.fits(self.solid_of(model, x, y, angle, height)):
                return self.place(model, x, y, angle, height, recolor=recolor)
        return None

    def beside(self, spot: Spot, pools: Sequence[str], accept: Accept | None = None) -> Spot | None:
        """Stand a model beside another one, backs in line, facing the same way."""
        model = self.pick(pools, accept)
        if model is None:
            return None
        reach = (spot.model.size[0] + model.size[0]) / 2 + 0.08
        first = self.choice((-1, 1))
        for sign in (first, -first):
            x, y = spot.local(sign * reach, (spot.model.size[1] - model.size[1]) / 2)
            if self.fits(self.solid_of(model, x, y, spot.angle)):
                return self.place(model, x, y, spot.angle)
        return None

    def in_front(self, spot: Spot, model: Model, gap: float, turn: float) -> Spot | None:
        """Stand a model in front of another one, turned by ``turn`` degrees against it."""
        reach = (spot.model.size[1] + model.size[1]) / 2 + gap
        x, y = spot.local(0.0, -reach)
        angle = spot.angle + turn
        return self.place(model, x, y, angle) if self.fits(self.solid_of(model, x, y, angle), 0.02) else None

    def in_middle(self, pools: Sequence[str], accept: Accept | None = None, pad: float = 0.3) -> Spot | None:
        """Stand a model in the middle of the room, parallel to the walls."""
        for _ in range(TRIES):
            model = self.pick(pools, accept)
            if model is None:
                return None
            angle = self.choice((0.0, 90.0, 180.0, -90.0))
            x = self.uniform(-0.25, 0.25) * self.width
            y = self.uniform(0.42, 0.72) * self.depth
            if self.fits(self.solid_of(model, x, y, angle), pad):
                return self.place(model, x, y, angle)
        return None

    def loose(self, pools: Sequence[str], accept: Accept | None = None, spread: float = 70.0) -> Spot | None:
        """Stand a model anywhere, turned by up to ``spread`` degrees."""
        for _ in range(TRIES):
            model = self.pick(pools, accept)
            if model is None:
                return None
            angle = self.uniform(-spread, spread)
            a, b = footprint(model.size[0], model.size[1], angle)
            x = self.uniform(-1, 1) * max(self.width / 2 - a / 2 - 0.05, 0.0)
            y = self.uniform(1.3, max(self.depth - b / 2 - 0.05, 1.4))
            if self.fits(self.solid_of(model, x, y, angle), 0.05):
                return self.place(model, x, y, angle)
        return None

    def in_corner(self, pools: Sequence[str], accept: Accept | None = None) -> Spot | None:
        """Stand a model in a back corner or along a side wall."""
        for _ in range(TRIES):
            model = self.pick(pools, accept)
            if model is None:
                return None
            angle = self.uniform(-180, 180)
            a, b = footprint(model.size[0], model.size[1], angle)
            x = self.choice((-1, 1)) * (self.width / 2 - a / 2 - 0.04)
            y = self.depth - b / 2 - 0.04 if self.chance(0.6) else self.uniform(1.8, self.depth - b / 2 - 0.04)
            if self.fits(self.solid_of(model, x, y, angle), 0.02):
                return self.place(model, x, y, angle)
        return None

    def on_top(self, spot: Spot, pools: Sequence[str], count: int) -> None:
        """Put up to ``count`` small things on a top, inside its edges and apart from each other."""
        width, depth = spot.model.size[0], spot.model.size[1]
        used: list[Solid] = []
        limit = min(0.6, 0.9 * min(width, depth))
        for _ in range(count):
            model = self.pick(pools, lambda m: max(m.size[:2]) < limit and m.elevation < 0.02)
            if model is None:
                continue
            room_x, room_y = (width - model.size[0]) / 2 - 0.04, (depth - model.size[1]) / 2 - 0.04
            right, back = self.uniform(-1, 1) * max(room_x, 0.0), self.uniform(-0.3, 1) * max(room_y, 0.0)
            reach = max(model.size[0], model.size[1])
            solid = Solid(right, back, reach, reach, 0.0, 1.0)
            if any(solid.hits(other, 0.0) for other in used):
                continue
            used.append(solid)
            x, y = spot.local(right, back)
            self.place(model, x, y, spot.angle + self.uniform(-25, 25), spot.z + spot.model.top, solid=False)

    def rug(self, x: float, y: float, width: float, depth: float) -> None:
        """Lay a rug."""
        width = min(width, 2 * (self.width / 2 - abs(x)) - 0.1)
        surface = Surface("rug", self.color(FABRICS), self.color(PASTELS), self._seed())
        center = (x, y, 0.008)
        u, v = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)
        name = f"rug{self.instances + 1}"
        self.panels.append(Panel(name, "prop", center, u, v, (width, depth), surface, self.next_instance()))

    def _seed(self) -> int:
        return int(self.rng.integers(2**31))

    def surface(self, pattern: str, color: Vec3, accent: Vec3, repeat: tuple[float, float]) -> Surface:
        """A surface with a fresh seed."""
        return Surface(pattern, color, accent, self._seed(), repeat)

    def cameras(self) -> tuple[Camera, ...]:
        """Six candidate views from three places, alternating between places."""
        views: list[Camera] = []
        order = [int(index) for index in self.rng.permutation(3)]
        for index in order + order:
            x, y, z = self.origins[index]
            target = self._target(x, anchored=self.chance(0.5))
            fov = self.uniform(58, 74)
            views.append(Camera((x, y, z), target, fov, float(self.rng.normal(0.0, 0.012))))
        return tuple(views)

    def _target(self, camera_x: float, *, anchored: bool) -> Vec3:
        anchors = [spot for spot in self.anchors if spot.y > 1.9]
        if anchored and anchors:
            spot = self.choice(anchors)
            return spot.x * 0.85, max(spot.y, 0.6 * self.depth), self.uniform(0.6, 1.0)
        # From a corner look across, so that a side wall comes into view.
        x = self.uniform(-0.25, 0.25) * self.width - 0.35 * camera_x
        return x, 0.85 * self.depth, self.uniform(0.6, 1.05)
