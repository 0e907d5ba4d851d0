"""A whole room from a random generator and a library of models."""

from __future__ import annotations

import numpy as np

from taskformer.datatools.rendering.builder import FABRICS, PASTELS, SIDES, Builder, Library, Spot
from taskformer.datatools.rendering.decor import (
    books,
    floor_box,
    floor_lamp,
    pendant_lamp,
    potted_plant,
    small_plant,
    table_lamp,
)
from taskformer.datatools.rendering.furnish import FURNISH
from taskformer.datatools.rendering.room import KINDS, Room
from taskformer.datatools.rendering.shell import build_shell, cut_openings, hang_picture
from taskformer.errors import ConfigError

# Living rooms and bedrooms are more frequent because only they hold sofas and beds, the rarest large classes.
KIND_WEIGHTS: dict[str, float] = {
    "bedroom": 0.24,
    "living": 0.28,
    "office": 0.11,
    "dining": 0.12,
    "kitchen": 0.16,
    "bathroom": 0.09,
}
PERSON_PROBABILITY = 0.45
CLUTTER: dict[str, tuple[str, ...]] = {
    "bedroom": ("prop.bedroom", "lamp.table", "lamp.table", "plant.small", "prop.living"),
    "living": ("prop.living", "plant.small", "plant.small", "lamp.table", "appliance.small"),
    "office": ("appliance.computer", "appliance.computer", "prop.office", "lamp.table", "plant.small"),
    "dining": ("prop.kitchen", "prop.kitchen", "plant.small", "prop.living"),
    "kitchen": ("appliance.counter", "appliance.counter", "prop.kitchen", "prop.kitchen"),
    "bathroom": ("prop.bathroom", "prop.bathroom", "plant.small"),
}


def make_room(rng: np.random.Generator, library: Library, kind: str | None = None) -> Room:
    """Furnish a room.

    Args:
        rng: Source of every random choice; the same state and library give the same room.
        library: The models that may be shown, generated shapes included.
        kind: One of `KINDS`, drawn at random when None.

    Returns:
        The room with six candidate cameras.

    Raises:
        ConfigError: If ``kind`` is unknown.
    """
    if kind is None:
        kind = str(rng.choice(list(KIND_WEIGHTS), p=list(KIND_WEIGHTS.values())))
    if kind not in KINDS:
        msg = f"unknown kind of room {kind!r}; expected one of {KINDS}"
        raise ConfigError(msg)
    small = 0.75 if kind == "bathroom" else 1.0
    size = (rng.uniform(3.2, 4.7) * small, rng.uniform(3.8, 5.4) * small, rng.uniform(2.4, 2.85))
    builder = Builder(rng, library, (float(size[0]), float(size[1]), float(size[2])))
    build_shell(builder, kind)
    cut_openings(builder, kind)
    FURNISH[kind](builder)
    _common(builder, kind)
    return Room(
        kind,
        (builder.width, builder.depth, builder.height),
        tuple(builder.panels),
        tuple(builder.placements),
        builder.cameras(),
    )


def _person(b: Builder) -> None:
    for _ in range(60):
        floor = b.chance(0.12)
        model = b.pick(("person.floor",) if floor else ("person.standing", "person.mannequin"))
        if model is None:
            return
        x = b.uniform(-0.33, 0.33) * b.width
        y = b.uniform(2.2 if b.depth > 3.6 else 1.9, max(b.depth - 0.5, 2.3))
        angle = b.uniform(-75, 75)
        if b.fits(b.solid_of(model, x, y, angle), 0.03):
            b.place(model, x, y, angle)
            return


def _common(b: Builder, kind: str) -> None:
    """What every room may hold: people, plants, lamps, radiators, clutter, pictures."""
    if b.chance(PERSON_PROBABILITY * (0.5 if kind == "bathroom" else 1.0)):
        _person(b)
        if b.chance(0.2):
            _person(b)
    _greenery_and_light(b, kind)
    if b.chance(0.4):
        b.at_wall(("prop.radiator",))
    if kind not in ("kitchen", "bathroom") and b.chance(0.15):
        b.loose(("prop.pet",))
    for _ in range(int(b.rng.integers(0, 3))):
        if b.chance(0.7):
            b.loose(("prop.floor",))
        else:
            floor_box(b)
    if kind in ("living", "dining", "office") and b.chance(0.5):
        b.loose(("chair.dining", "chair.stool", "chair.armchair"))
    for spot in b.tops:
        _fill_top(b, spot, kind)
    _pictures(b)


def _greenery_and_light(b: Builder, kind: str) -> None:
    if kind != "bathroom":
        b.in_corner(("plant.floor",))
    for _ in range(int(b.rng.integers(0, 3))):
        potted_plant(b)
    if kind not in ("living", "bedroom", "office"):
        return
    if b.chance(0.9):
        floor_lamp(b)
    if b.chance(0.35):
        pendant_lamp(b, b.uniform(-0.15, 0.15) * b.width, b.uniform(0.55, 0.8) * b.depth)


def _fill_top(b: Builder, spot: Spot, kind: str) -> None:
    b.on_top(spot, CLUTTER[kind], int(b.rng.integers(1, 4)))
    if b.chance(0.35):
        books(b, spot)
    if b.chance(0.3):
        small_plant(b, spot)
    elif b.chance(0.25) and kind != "bathroom":
        table_lamp(b, spot)


def _pictures(b: Builder) -> None:
    for _ in range(int(b.rng.integers(2, 6))):
        side = b.choice(SIDES)
        size = (b.uniform(0.35, 0.95), b.uniform(0.35, 0.75))
        span = b.wall_range(side, size[0])
        if span is not None:
            surface = b.surface("picture", b.color(PASTELS), b.color(FABRICS), (1.0, 1.0))
            hang_picture(b, side, b.uniform(*span), b.uniform(1.45, 1.7), size, surface)
