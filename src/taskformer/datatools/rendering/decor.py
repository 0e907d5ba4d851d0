"""Generated things: lamps, plants, books, boxes and cushions, each placed by its own small rule."""

from __future__ import annotations

from taskformer.datatools.rendering.builder import FABRICS, PASTELS, Builder, Solid, Spot, footprint
from taskformer.datatools.rendering.room import Placement


def cushions(b: Builder, seat: Spot) -> None:
    """Up to three cushions on a sofa."""
    if seat.model.top > 0.6:
        return
    for sign in (-1, 0, 1):
        if b.chance(0.5):
            x, y = seat.local(sign * 0.28 * seat.model.size[0], 0.02 * seat.model.size[1])
            size = (b.uniform(0.34, 0.44), 0.15, b.uniform(0.32, 0.4))
            angle = seat.angle + b.uniform(-15, 15)
            b.shape("cushion", (x, y, seat.z + seat.model.top - 0.02), size, b.color((*PASTELS, *FABRICS)), angle)


def floor_lamp(b: Builder) -> None:
    """A floor lamp in a corner; the catalogues hold hardly any."""
    for _ in range(12):
        size = b.uniform(0.34, 0.48)
        x = b.choice((-1, 1)) * (b.width / 2 - size / 2 - 0.05)
        y = b.depth - size / 2 - 0.05 if b.chance(0.5) else b.uniform(1.8, b.depth - size)
        height = b.uniform(1.35, 1.75)
        solid = Solid(x, y, size, size, 0.0, height)
        if b.fits(solid, 0.01):
            shape = b.choice(("lamp-floor", "lamp-drum"))
            b.shape(shape, (x, y, 0.0), (size, size, height), b.color(PASTELS, 0.03))
            b.solids.append(solid)
            return


def table_lamp(b: Builder, spot: Spot) -> None:
    """A lamp on a bedside or side table."""
    z = spot.z + spot.model.top
    if b.chance(0.5):
        b.on_top(spot, ("lamp.table",), 1)
        return
    size = min(b.uniform(0.22, 0.32), spot.model.size[0], spot.model.size[1])
    height = b.uniform(0.38, 0.55)
    b.shape("lamp-vase", (spot.x, spot.y, z), (size, size, height), b.color(PASTELS, 0.03))


def pendant_lamp(b: Builder, x: float, y: float) -> None:
    """A lamp that hangs from the ceiling."""
    model = b.pick(("lamp.pendant",), lambda m: m.size[0] < 0.9)
    if model is not None and b.chance(0.6):
        squeeze = min(1.0, 0.75 / model.size[2])
        z = b.height - model.size[2] * squeeze
        scale = (squeeze, squeeze, squeeze)
        b.placements.append(Placement(model.key, model.pool, b.next_instance(), (x, y, z), 0.0, scale))
        return
    size, height = b.uniform(0.35, 0.5), b.uniform(0.6, 0.85)
    shape = b.choice(("lamp-cone", "lamp-dome"))
    b.shape(shape, (x, y, b.height - height), (size, size, height), b.color((*PASTELS, *FABRICS)))


def potted_plant(b: Builder) -> None:
    """A potted plant in a corner, beside the few of the catalogues that are light enough to render."""
    for _ in range(12):
        size, height = b.uniform(0.5, 0.95), b.uniform(0.6, 1.5)
        x = b.choice((-1, 1)) * (b.width / 2 - size / 2 - 0.02)
        y = b.depth - size / 2 - 0.02 if b.chance(0.5) else b.uniform(1.8, b.depth - size / 2)
        solid = Solid(x, y, size, size, 0.0, height)
        if b.fits(solid, 0.0):
            shape = b.choice(("plant-broad", "plant-tall", "plant-bushy"))
            color = b.color(((0.28, 0.46, 0.2), (0.36, 0.5, 0.25), (0.2, 0.38, 0.22), (0.45, 0.52, 0.25)))
            b.shape(shape, (x, y, 0.0), (size, size, height), color, b.uniform(-180, 180))
            b.solids.append(solid)
            return


def small_plant(b: Builder, spot: Spot) -> None:
    """A potted plant on a top."""
    size = min(b.uniform(0.2, 0.4), spot.model.size[0], spot.model.size[1])
    x, y = spot.local(b.uniform(-0.3, 0.3) * spot.model.size[0], 0.2 * spot.model.size[1])
    shape = b.choice(("plant-broad", "plant-tall", "plant-bushy"))
    color = b.color(((0.28, 0.46, 0.2), (0.4, 0.55, 0.3), (0.25, 0.42, 0.25)))
    height = size * b.uniform(0.9, 1.4)
    b.shape(shape, (x, y, spot.z + spot.model.top), (size, size, height), color, b.uniform(-180, 180))


def books(b: Builder, spot: Spot) -> None:
    """A small stack of books or boxes in soft colours."""
    x, y = spot.local(b.uniform(-0.35, 0.35) * spot.model.size[0], b.uniform(-0.3, 0.3) * spot.model.size[1])
    z = spot.z + spot.model.top
    for _ in range(int(b.rng.integers(1, 4))):
        size = (b.uniform(0.14, 0.26), b.uniform(0.12, 0.2), b.uniform(0.02, 0.07))
        b.shape("box", (x, y, z), size, b.color((*PASTELS, *FABRICS)), spot.angle + b.uniform(-30, 30))
        z += size[2]


def floor_box(b: Builder) -> None:
    """A carton or stool in a soft colour on the floor."""
    size = (b.uniform(0.25, 0.5), b.uniform(0.25, 0.45), b.uniform(0.2, 0.45))
    angle = b.uniform(-40, 40)
    a, c = footprint(size[0], size[1], angle)
    for _ in range(8):
        x, y = b.uniform(-0.45, 0.45) * b.width, b.uniform(1.8, b.depth - 0.3)
        solid = Solid(x, y, a, c, 0.0, size[2])
        if b.fits(solid):
            b.shape(b.choice(("box", "pot")), (x, y, 0.0), size, b.color((*PASTELS, *FABRICS)), angle)
            b.solids.append(solid)
            return
