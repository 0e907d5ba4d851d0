"""A furnished room as plain data: what stands where, what the surfaces look like, where the cameras are.

World frame, metres: x to the right, y into the room (0 = the wall behind the camera), z up from the floor.
"""

from __future__ import annotations

from dataclasses import dataclass, field

Vec2 = tuple[float, float]
Vec3 = tuple[float, float, float]

KINDS: tuple[str, ...] = ("bedroom", "living", "office", "dining", "kitchen", "bathroom")


@dataclass(frozen=True)
class Surface:
    """What a rectangle looks like.

    Attributes:
        pattern: name of a drawing function in `textures`.
        color: main sRGB colour in 0..1.
        accent: second sRGB colour in 0..1.
        seed: seed of the drawing.
        repeat: how often the drawing repeats along width and height.
    """

    pattern: str
    color: Vec3
    accent: Vec3 = (0.5, 0.5, 0.5)
    seed: int = 0
    repeat: Vec2 = (1.0, 1.0)


@dataclass(frozen=True)
class Panel:
    """A rectangle: wall, floor, window pane, picture, rug or ceiling light.

    Attributes:
        name: unique name in the room.
        cls: semantic class name.
        center: middle in metres.
        u: unit vector along the width.
        v: unit vector along the height; the front is the side that ``u x v`` points to.
        size: width and height in metres.
        surface: what it looks like.
        instance: instance id; 0 for walls, floor and ceiling.
        radiance: emitted light (RGB, linear), or None; a pane with the ``view`` pattern emits its drawing times this.
    """

    name: str
    cls: str
    center: Vec3
    u: Vec3
    v: Vec3
    size: Vec2
    surface: Surface
    instance: int = 0
    radiance: Vec3 | None = None


@dataclass(frozen=True)
class Placement:
    """A model in the room.

    Attributes:
        model: key of a converted model or of a generated shape (``shape--box`` and so on).
        pool: ``class.role``.
        instance: instance id, at least 1.
        position: where the middle of its foot is, metres.
        angle: rotation about z in degrees, counter-clockwise from above; 0 faces the camera wall.
        scale: factor along the model's width, depth, height.
        tint: factor on the colours of untextured materials.
        recolor: sRGB colour for the largest untextured material, or None.
    """

    model: str
    pool: str
    instance: int
    position: Vec3
    angle: float = 0.0
    scale: Vec3 = (1.0, 1.0, 1.0)
    tint: Vec3 = (1.0, 1.0, 1.0)
    recolor: Vec3 | None = None

    @property
    def cls(self) -> str:
        """Semantic class name."""
        return self.pool.split(".", 1)[0]


@dataclass(frozen=True)
class Camera:
    """A camera without lens distortion.

    Attributes:
        origin: position in metres.
        target: point it looks at.
        fov_x_deg: horizontal field of view in degrees.
        roll: sideways lean of the up vector, radians.
    """

    origin: Vec3
    target: Vec3
    fov_x_deg: float
    roll: float = 0.0


@dataclass(frozen=True)
class Room:
    """A room with candidate cameras.

    Attributes:
        kind: one of `KINDS`.
        size: width (x), depth (y), height (z) in metres.
        panels: rectangles.
        placements: models.
        cameras: candidate views, best first.
    """

    kind: str
    size: Vec3
    panels: tuple[Panel, ...] = ()
    placements: tuple[Placement, ...] = ()
    cameras: tuple[Camera, ...] = field(default=())
