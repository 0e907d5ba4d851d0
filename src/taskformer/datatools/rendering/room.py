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
        pattern: Name of a drawing function in `textures`.
        color: Main sRGB colour in 0..1.
        accent: Second sRGB colour in 0..1.
        seed: Seed of the drawing.
        repeat: How often the drawing repeats along width and height.
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
        name: Unique name in the room.
        cls: Semantic class name.
        center: Middle in metres.
        u: Unit vector along the width.
        v: Unit vector along the height; the front is the side that ``u x v`` points to.
        size: Width and height in metres.
        surface: What it looks like.
        instance: Instance id; 0 for walls, floor and ceiling.
        radiance: Emitted light (RGB, linear), or None; a pane with the ``view`` pattern emits its drawing times this.
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
        model: Key of a converted model or of a generated shape (``shape--box`` and so on).
        pool: ``class.role``.
        instance: Instance id, at least 1.
        position: Where the middle of its foot is, metres.
        angle: Rotation about z in degrees, counter-clockwise from above; 0 faces the camera wall.
        scale: Factor along the model's width, depth, height.
        tint: Factor on the colours of untextured materials.
        recolor: Colour (sRGB) for the largest untextured material, or None.
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
        origin: Position in metres.
        target: Point it looks at.
        fov_x_deg: Horizontal field of view in degrees.
        roll: Sideways lean of the up vector, radians.
    """

    origin: Vec3
    target: Vec3
    fov_x_deg: float
    roll: float = 0.0


@dataclass(frozen=True)
class Room:
    """A room with candidate cameras.

    Attributes:
        kind: One of `KINDS`.
        size: Width (x), depth (y), height (z) in metres.
        panels: Rectangles.
        placements: Models.
        cameras: Candidate views, best first.
    """

    kind: str
    size: Vec3
    panels: tuple[Panel, ...] = ()
    placements: tuple[Placement, ...] = ()
    cameras: tuple[Camera, ...] = field(default=())
