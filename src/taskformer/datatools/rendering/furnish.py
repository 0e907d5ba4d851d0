"""What each kind of room is furnished with; every rule tries, and skips what does not fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from taskformer.datatools.rendering.builder import WOODS, Builder, Spot, footprint
from taskformer.datatools.rendering.decor import cushions, pendant_lamp, table_lamp
from taskformer.datatools.rendering.meshes import Model
from taskformer.datatools.rendering.room import Vec3
from taskformer.datatools.rendering.shell import hang_picture


def _chairs_around(b: Builder, table: Spot, probability: float = 0.8) -> None:
    """The same chair at the sides of a table, turned to it."""
    chair = b.pick(("chair.dining",), lambda m: m.size[0] < 0.7)
    if chair is None:
        return
    recolor = b.color(WOODS) if b.chance(0.4) else None
    a, c = footprint(table.model.size[0], table.model.size[1], table.angle)
    # A chair faces -y at angle 0, so the one behind the table (+y) is not turned.
    for dx, dy, angle in ((-1, 0, 90.0), (1, 0, -90.0), (0, 1, 0.0), (0, -1, 180.0)):
        count = 2 if (a if dx == 0 else c) > 1.45 else 1
        for slot in range(count):
            shift = 0.0 if count == 1 else (slot - 0.5) * 0.7
            width, depth = footprint(chair.size[0], chair.size[1], angle)
            x = table.x + dx * (a + width + 0.06) / 2 + (shift if dx == 0 else 0.0)
            y = table.y + dy * (c + depth + 0.06) / 2 + (shift if dx != 0 else 0.0)
            turned = angle + b.uniform(-8, 8)
            if b.chance(probability) and b.fits(b.solid_of(chair, x, y, turned), 0.01):
                b.place(chair, x, y, turned, recolor=recolor)


def _bedside_box(b: Builder, bed: Spot) -> Spot | None:
    """A plain box as bedside table, for splits whose catalogue share has none that fits."""
    size = (b.uniform(0.38, 0.5), b.uniform(0.35, 0.42), b.uniform(0.4, 0.55))
    box = replace(b.library["shape--box"], size=size, top=size[2])
    reach = (bed.model.size[0] + size[0]) / 2 + 0.06
    for sign in (-1, 1):
        x, y = bed.local(sign * reach, (bed.model.size[1] - size[1]) / 2)
        solid = b.solid_of(box, x, y, bed.angle)
        if b.fits(solid):
            b.shape("box", (x, y, 0.0), size, b.color(WOODS), bed.angle, "cabinet.generated")
            b.solids.append(solid)
            return Spot(box, x, y, bed.angle)
    return None


def _bedroom(b: Builder) -> None:
    child = b.chance(0.2)
    pools = ("bed.child",) if child else ("bed.bed",)
    bed = b.at_wall(pools, None, ("back", "back", "left", "right")) or b.at_wall(("bed.bed", "bed.child"))
    if bed is not None:
        for _ in range(2):
            table = b.beside(bed, ("cabinet.low", "table.small"), lambda m: m.size[0] < 0.75)
            table = table or _bedside_box(b, bed)
            if table is not None:
                table_lamp(b, table)
        if b.chance(0.5):
            b.rug(bed.x, max(bed.y - 0.6, 1.6), b.uniform(1.6, 2.4), b.uniform(1.2, 1.8))
        person = b.pick(("person.lying",), lambda m: m.size[0] < bed.model.size[0])
        if person is not None and not child and bed.model.top < 0.8 and b.chance(0.2):
            b.place(person, bed.x, bed.y, bed.angle, bed.model.top, solid=False)
    _maybe_top(b, b.at_wall(("cabinet.wardrobe",), None, ("left", "right", "back")))
    if b.chance(0.7):
        _maybe_top(b, b.at_wall(("cabinet.low",)))
    if b.chance(0.5):
        _desk(b, ("table.desk",), lambda m: m.size[0] < 1.3)
    if b.chance(0.7):
        b.loose(("chair.armchair", "chair.stool", "chair.dining"))
    if b.chance(0.6):
        b.at_wall(("shelf.shelf",), lambda m: m.size[0] < 1.3)


def _living(b: Builder) -> None:
    sofa = b.at_wall(("sofa.sofa",), lambda m: m.size[0] < b.width - 0.8, ("back", "left", "right"))
    if sofa is not None:
        cushions(b, sofa)
        table = b.pick(("table.coffee",))
        if table is not None:
            spot = b.in_front(sofa, table, b.uniform(0.3, 0.5), 0.0)
            _maybe_top(b, spot)
            if spot is not None and b.chance(0.6):
                b.rug(spot.x, spot.y, b.uniform(1.6, 2.4), b.uniform(1.3, 1.9))
        if b.chance(0.5):
            _maybe_lamp(b, b.beside(sofa, ("table.small", "cabinet.low"), lambda m: m.size[0] < 0.8))
        pet = b.pick(("prop.pet",), lambda m: m.size[1] < 0.6)
        if pet is not None and b.chance(0.12) and sofa.model.top < 0.6:
            b.place(pet, *sofa.local(0.25, -0.1), sofa.angle, sofa.model.top, solid=False)
    _television(b)
    b.at_wall(("shelf.shelf",), lambda m: m.size[0] < 2.0)
    if b.chance(0.35):
        b.at_wall(("prop.big",), lambda m: m.size[1] < 0.6)
    for _ in range(int(b.rng.integers(1, 3))):
        b.loose(("chair.armchair",))
    if b.chance(0.45):
        b.at_wall(("sofa.sofa",), lambda m: m.size[0] < 2.2, ("left", "right", "back"))
    if b.chance(0.4):
        _maybe_top(b, b.at_wall(("cabinet.low", "cabinet.wardrobe", "table.desk"), lambda m: m.size[0] < 1.7))


def _television(b: Builder) -> None:
    stand = b.at_wall(("cabinet.low",), lambda m: m.size[0] > 0.9, ("left", "right", "back"))
    if stand is not None:
        television = b.pick(("appliance.tv",), lambda m: m.size[0] < stand.model.size[0])
        if television is not None:
            b.place(television, stand.x, stand.y, stand.angle, stand.model.top, solid=False)
            return
        b.tops.append(stand)
        return
    b.at_wall(("appliance.tv",), None, z=1.0)


def _desk(b: Builder, pools: Sequence[str], accept: Callable[[Model], bool] | None = None) -> None:
    desk = b.at_wall(pools, accept)
    if desk is None:
        return
    b.tops.append(desk)
    chair = b.pick(("chair.office", "chair.dining"), lambda m: m.size[0] < 0.75)
    if chair is not None:
        b.in_front(desk, chair, 0.04, 180 + b.uniform(-30, 30))


def _office(b: Builder) -> None:
    _desk(b, ("table.desk",))
    if b.chance(0.6):
        middle = b.in_middle(("table.desk",), lambda m: m.size[0] < 1.7)
        if middle is not None:
            b.tops.append(middle)
            chair = b.pick(("chair.office",), lambda m: m.size[0] < 0.75)
            if chair is not None:
                b.in_front(middle, chair, 0.04, 180 + b.uniform(-30, 30))
    for _ in range(2):
        b.at_wall(("shelf.shelf",), lambda m: m.size[0] < 2.0)
    _maybe_top(b, b.at_wall(("cabinet.low", "cabinet.wardrobe"), lambda m: m.size[0] < 1.5))
    b.loose(("chair.office", "chair.armchair"))
    if b.chance(0.3):
        b.at_wall(("appliance.cooler",))
    if b.chance(0.35):
        b.at_wall(("sofa.sofa",), lambda m: m.size[0] < 2.1)


def _dining(b: Builder) -> None:
    table = b.in_middle(("table.dining",), lambda m: m.size[0] > 0.9, 0.45) or b.in_middle(("table.dining",))
    if table is not None:
        b.tops.append(table)
        _chairs_around(b, table, 0.9)
        if b.chance(0.6):
            pendant_lamp(b, table.x, table.y)
        if b.chance(0.4):
            b.rug(table.x, table.y, b.uniform(2.0, 2.6), b.uniform(1.8, 2.4))
    _maybe_top(b, b.at_wall(("cabinet.low",)))
    b.at_wall(("shelf.shelf", "cabinet.wardrobe"), lambda m: m.size[0] < 1.8)
    if b.chance(0.3):
        b.at_wall(("appliance.fridge",))
    if b.chance(0.3):
        b.at_wall(("prop.big",), lambda m: m.size[1] < 0.6)


def _kitchen(b: Builder) -> None:
    recolor = b.color(WOODS, 0.04) if b.chance(0.6) else None
    _kitchen_row(b, b.choice(("back", "back", "left", "right")), recolor)
    island = b.in_middle(("cabinet.island",)) if b.chance(0.35) else None
    if island is not None:
        b.tops.append(island)
        for _ in range(2):
            b.loose(("chair.stool",), lambda m: m.size[2] > 0.7)
        return
    table = b.in_middle(("table.dining", "table.small"), lambda m: m.size[0] < 1.7)
    if table is not None:
        b.tops.append(table)
        _chairs_around(b, table)
        if b.chance(0.5):
            pendant_lamp(b, table.x, table.y)


def _kitchen_row(b: Builder, side: str, recolor: Vec3 | None) -> None:
    """Fridge, cabinets, oven and sink in a row, with cabinets and a hood above."""
    pools = [("cabinet.lower",), ("appliance.range",), ("cabinet.lower",), ("appliance.washer", "cabinet.lower")]
    pools += [("cabinet.lower",), ("cabinet.lower",)]
    pools.insert(b.choice((0, len(pools))), ("appliance.fridge", "cabinet.tall"))
    span = b.wall_range(side, 0.0)
    if span is None:
        return
    cursor = span[0] + (b.uniform(0.0, 0.4) if side == "back" else 0.1)
    for pool in pools:
        model = b.pick(pool)
        if model is None or cursor + model.size[0] > span[1]:
            continue
        along = cursor + model.size[0] / 2
        x, y, angle = b.wall_pose(side, along, model.size[1])
        paint = recolor if model.pool.startswith("cabinet") else None
        if not b.fits(b.solid_of(model, x, y, angle), 0.0):
            cursor += 0.3
            continue
        spot = b.place(model, x, y, angle, recolor=paint)
        cursor += model.size[0] + 0.01
        if model.size[2] < 1.0 and model.pool == "cabinet.lower":
            b.tops.append(spot)
        if model.size[2] < 1.25:
            _above(b, side, along, model, recolor)


def _above(b: Builder, side: str, along: float, below: Model, recolor: Vec3 | None) -> None:
    pools = ("appliance.hood",) if below.pool == "appliance.range" else ("cabinet.upper",)
    model = b.pick(pools, lambda m: m.size[0] <= below.size[0] + 0.12 and m.size[1] < 0.5)
    if model is None or b.chance(0.15):
        return
    x, y, angle = b.wall_pose(side, along, model.size[1])
    z = 1.5 if model.pool == "cabinet.upper" else 1.6
    if b.fits(b.solid_of(model, x, y, angle, z), 0.0):
        b.place(model, x, y, angle, z, recolor=recolor if model.pool == "cabinet.upper" else None)


def _bathroom(b: Builder) -> None:
    b.at_wall(("prop.bath",), None, ("back", "back", "left", "right"))
    for pool in ("prop.basin", "cabinet.vanity") if b.chance(0.4) else (b.choice(("prop.basin", "cabinet.vanity")),):
        basin = b.at_wall((pool,))
        if basin is None:
            continue
        if pool == "cabinet.vanity":
            b.tops.append(basin)
        if basin.model.size[2] < 1.2:
            _mirror(b, basin)
    b.at_wall(("prop.toilet",))
    if b.chance(0.3):
        b.at_wall(("prop.toilet",))
    if b.chance(0.5):
        _maybe_top(b, b.at_wall(("appliance.washer",)))
    b.at_wall(("prop.towel",), lambda m: m.size[0] > 0.3)
    if b.chance(0.5):
        _maybe_top(b, b.at_wall(("cabinet.low", "shelf.shelf"), lambda m: m.size[0] < 1.1))
    if b.chance(0.6):
        b.rug(b.uniform(-0.3, 0.3), b.uniform(0.5, 0.65) * b.depth, b.uniform(0.7, 1.1), b.uniform(0.5, 0.8))


def _mirror(b: Builder, basin: Spot) -> None:
    side = {0.0: "back", 90.0: "left", -90.0: "right"}[basin.angle]
    along = basin.x if side == "back" else basin.y
    size = (b.uniform(0.5, 0.8), b.uniform(0.6, 0.8))
    hang_picture(b, side, along, 1.6, size, b.surface("picture", (0.8, 0.86, 0.88), (0.88, 0.92, 0.93), (1.0, 1.0)))


def _maybe_top(b: Builder, spot: Spot | None) -> None:
    if spot is not None and spot.model.top < 1.15:
        b.tops.append(spot)


def _maybe_lamp(b: Builder, spot: Spot | None) -> None:
    if spot is not None:
        table_lamp(b, spot)


FURNISH: dict[str, Callable[[Builder], None]] = {
    "bedroom": _bedroom,
    "living": _living,
    "office": _office,
    "dining": _dining,
    "kitchen": _kitchen,
    "bathroom": _bathroom,
}
