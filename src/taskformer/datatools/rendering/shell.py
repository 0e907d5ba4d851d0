"""The empty room: floor, ceiling, walls, light, doors, windows with a view and curtains, pictures."""

from __future__ import annotations

from dataclasses import replace

from taskformer.datatools.rendering.builder import (
    DOOR_CLEARANCE_M,
    FABRICS,
    PASTELS,
    SIDES,
    WOODS,
    Builder,
    Solid,
    footprint,
)
from taskformer.datatools.rendering.room import Panel, Placement, Surface, Vec3

MIN_DOOR_BRIGHTNESS = 0.2
PAINTS: tuple[Vec3, ...] = (
    (0.88, 0.85, 0.78),
    (0.78, 0.81, 0.76),
    (0.74, 0.79, 0.85),
    (0.87, 0.77, 0.69),
    (0.93, 0.92, 0.9),
    (0.66, 0.73, 0.67),
    (0.83, 0.7, 0.64),
    (0.9, 0.85, 0.66),
    (0.78, 0.72, 0.8),
    (0.6, 0.68, 0.74),
)
FLOOR_WOODS: tuple[Vec3, ...] = (
    (0.6, 0.42, 0.26),
    (0.47, 0.31, 0.2),
    (0.72, 0.56, 0.38),
    (0.4, 0.27, 0.18),
    (0.68, 0.63, 0.56),
    (0.8, 0.68, 0.5),
)
TILES: tuple[Vec3, ...] = (
    (0.85, 0.84, 0.8),
    (0.75, 0.7, 0.62),
    (0.7, 0.75, 0.77),
    (0.6, 0.58, 0.56),
    (0.78, 0.85, 0.83),
    (0.88, 0.8, 0.72),
)
WALL_TILES: tuple[Vec3, ...] = ((0.9, 0.9, 0.88), (0.78, 0.86, 0.86), (0.86, 0.88, 0.8), (0.9, 0.83, 0.76))
GROUT: Vec3 = (0.55, 0.54, 0.52)
UP: Vec3 = (0.0, 0.0, 1.0)
WALL_NORMALS: dict[str, Vec3] = {"back": (0.0, -1.0, 0.0), "left": (1.0, 0.0, 0.0), "right": (-1.0, 0.0, 0.0)}
WALL_AXES: dict[str, Vec3] = {"back": (1.0, 0.0, 0.0), "left": (0.0, 1.0, 0.0), "right": (0.0, -1.0, 0.0)}


def _wall_surface(b: Builder, length: float, kind: str) -> Surface:
    repeat = (length / 1.3, b.height / 1.3)
    if kind == "bathroom" or (kind == "kitchen" and b.chance(0.3)):
        return b.surface("tiles", b.color(WALL_TILES, 0.02), (0.72, 0.72, 0.7), repeat)
    pattern = b.choice(("paint", "paint", "paint", "stripes", "wallpaper"))
    color = b.color(PAINTS, 0.02)
    accent = (color[0] * 0.8, color[1] * 0.8, color[2] * 0.82)
    return b.surface(pattern, color, accent, repeat)


def _floor_surface(b: Builder, kind: str) -> Surface:
    options = {"bathroom": ("tiles", "checker"), "kitchen": ("tiles", "checker", "planks")}
    pattern = b.choice(options.get(kind, ("planks", "planks", "planks", "carpet", "tiles")))
    palette = {"planks": FLOOR_WOODS, "carpet": FABRICS}.get(pattern, TILES)
    accent = GROUT if pattern == "tiles" else b.color(TILES)
    period = {"planks": 1.3, "tiles": 1.6, "checker": 1.2, "carpet": 1.0}[pattern]
    return b.surface(pattern, b.color(palette, 0.03), accent, (b.width / period, b.depth / period))


def build_shell(b: Builder, kind: str) -> None:
    """Floor, ceiling, walls, skirting boards and the ceiling light."""
    w, d, h = b.width, b.depth, b.height
    x_axis, y_axis = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)
    b.panels.append(Panel("floor", "floor", (0, d / 2, 0), x_axis, y_axis, (w, d), _floor_surface(b, kind)))
    white = Surface("plain", (0.93, 0.93, 0.91))
    b.panels.append(Panel("ceiling", "ceiling", (0, d / 2, h), x_axis, (0.0, -1.0, 0.0), (w, d), white))
    paint = _wall_surface(b, w, kind)
    accent = _wall_surface(b, w, kind) if b.chance(0.35) else paint
    skirting = Surface("plain", b.choice(((0.92, 0.91, 0.88), (0.5, 0.36, 0.24), (0.92, 0.91, 0.88))))
    for side in SIDES:
        normal, axis, length = WALL_NORMALS[side], WALL_AXES[side], b.wall_length(side)
        middle = _on_wall(b, side, 0.0 if side == "back" else d / 2, h / 2, 0.0)
        base = accent if side == "back" else paint
        surface = Surface(base.pattern, base.color, base.accent, base.seed, (length / 1.3, h / 1.3))
        b.panels.append(Panel(f"wall_{side}", "wall", middle, axis, UP, (length, h), surface))
        if kind != "bathroom":
            foot = (middle[0] + 0.012 * normal[0], middle[1] + 0.012 * normal[1], 0.045)
            b.panels.append(Panel(f"skirting_{side}", "wall", foot, axis, UP, (length, 0.09), skirting))
    # The wall behind the camera glows a little: it stands for the light of the rest of the house.
    glow = b.uniform(0.22, 0.6)
    front = Panel("wall_front", "wall", (0, 0, h / 2), (-1.0, 0.0, 0.0), UP, (w, h), paint)
    b.panels.append(replace(front, radiance=(glow, 0.98 * glow, 0.94 * glow)))
    level, warm, side_m = b.uniform(4, 9), b.uniform(0.72, 1.0), b.uniform(0.35, 0.7)
    center = (b.uniform(-0.2, 0.2) * w, d * b.uniform(0.45, 0.6), h - 0.03)
    light = Panel("light", "lamp", center, x_axis, (0.0, -1.0, 0.0), (side_m, side_m), white, b.next_instance())
    b.panels.append(replace(light, radiance=(level, level * (0.9 + 0.1 * warm), level * warm)))


def _on_wall(b: Builder, side: str, along: float, z: float, off: float) -> Vec3:
    """A point ``off`` metres in front of a wall."""
    if side == "back":
        return along, b.depth - off, z
    return (-b.width / 2 + off, along, z) if side == "left" else (b.width / 2 - off, along, z)


def cut_openings(b: Builder, kind: str) -> None:
    """One or two windows and perhaps a door, each in another wall."""
    sides = [SIDES[int(i)] for i in b.rng.permutation(3)]
    _opening(b, "window.window", sides[0])
    if b.chance(0.5) and kind != "bathroom":
        _opening(b, "window.window", sides[1])
    if b.chance(0.7):
        _opening(b, "door.door", sides[2])


def _opening(b: Builder, pool: str, side: str) -> None:
    """A door or window: flattened to 6 cm and set on the wall, because a deep frame would hide its leaf."""
    limit = b.wall_length(side) - 0.6
    model = b.pick((pool,), lambda m: m.size[0] < limit and (m.brightness > MIN_DOOR_BRIGHTNESS or "window" in pool))
    if model is None:
        return
    width, depth, height = model.size
    sill = model.elevation if pool.startswith("window") else 0.0
    squeeze = min(1.0, (b.height - 0.12 - sill) / height)
    width, height = width * squeeze, height * squeeze
    span = b.wall_range(side, width)
    if span is None:
        return
    along = b.uniform(*span)
    x, y, angle = b.wall_pose(side, along, 0.06)
    is_door = pool.startswith("door")
    reach = DOOR_CLEARANCE_M if is_door else 0.22
    middle = _on_wall(b, side, along, sill, reach / 2)
    solid = Solid(*middle[:2], *footprint(width, reach, angle), sill, sill + height)
    if any(solid.hits(other, 0.05) for other in b.solids):
        return
    b.solids.append(solid)
    instance = b.next_instance()
    scale = (squeeze, 0.06 / depth, squeeze)
    recolor = b.color(WOODS) if is_door and (model.brightness < 0.5 or b.chance(0.3)) else None
    b.placements.append(Placement(model.key, pool, instance, (x, y, sill), angle, scale, recolor=recolor))
    if not is_door:
        _pane(b, side, along, sill, (width, height), instance)
        if b.chance(0.6):
            _curtains(b, side, along, sill, (width, height))


def _pane(b: Builder, side: str, along: float, sill: float, size: tuple[float, float], instance: int) -> None:
    """The view behind a window, which also lights the room."""
    level = b.uniform(1.5, 3.2)
    sky = b.choice(((0.75, 0.87, 1.0), (0.95, 0.95, 0.95), (1.0, 0.93, 0.8), (0.6, 0.78, 1.0)))
    green = b.choice(((0.3, 0.42, 0.22), (0.42, 0.45, 0.3), (0.5, 0.47, 0.42)))
    surface = b.surface("view", sky, green, (1.0, 1.0))
    center = _on_wall(b, side, along, sill + size[1] / 2, 0.008)
    extent = (size[0] * 0.92, size[1] * 0.93)
    pane = Panel(f"pane{instance}", "window", center, WALL_AXES[side], UP, extent, surface, instance)
    b.panels.append(replace(pane, radiance=(level, level, level)))


def _curtains(b: Builder, side: str, along: float, sill: float, size: tuple[float, float]) -> None:
    color = b.color((*PASTELS, *FABRICS), 0.04)
    top = min(b.height - 0.04, sill + size[1] + 0.12)
    foot = 0.03 if sill < 0.5 or b.chance(0.5) else sill - 0.15
    width = b.uniform(0.22, 0.4)
    for sign in (-1, 1):
        at = along + sign * (size[0] / 2 + 0.25 * width)
        x, y, angle = b.wall_pose(side, at, 0.2)
        extent = footprint(width, 0.2, angle)
        solid = Solid(x, y, *extent, foot, top)
        if abs(x) + extent[0] / 2 > b.width / 2 or y + extent[1] / 2 > b.depth + 0.01:
            continue
        if any(solid.hits(other, 0.0) for other in b.solids[:-1] if other.b != 0):
            continue
        b.shape("curtain", (x, y, foot), (width, 0.11, top - foot), color, angle)
        b.solids.append(solid)


def hang_picture(b: Builder, side: str, along: float, z: float, size: tuple[float, float], surface: Surface) -> None:
    """Something flat on a wall, unless something else is there."""
    x, y, angle = b.wall_pose(side, along, 0.0)
    solid = Solid(x, y, *footprint(size[0], 0.06, angle), z - size[1] / 2, z + size[1] / 2)
    if any(solid.hits(other, 0.03) for other in b.solids):
        return
    b.solids.append(solid)
    center = _on_wall(b, side, along, z, 0.02)
    instance = b.next_instance()
    b.panels.append(Panel(f"picture{instance}", "prop", center, WALL_AXES[side], UP, size, surface, instance))
