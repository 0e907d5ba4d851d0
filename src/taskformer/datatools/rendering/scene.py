"""From a room to pictures: the Mitsuba scene, its rendering and exact labels at pixel centres.

Mitsuba and Dr.Jit are imported inside functions: the rest of the package works without them.
"""

from __future__ import annotations

import ctypes.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from taskformer.data.datasets.rooms import CLASSES
from taskformer.datatools.rendering.meshes import Model, Part
from taskformer.datatools.rendering.room import Camera, Panel, Placement, Room
from taskformer.datatools.rendering.textures import draw
from taskformer.errors import TaskformerError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MAX_BOUNCES = 5
NEAR_M = 0.01
# Pure black and pure white materials look wrong in a bright room: sRGB values are kept inside this range.
ALBEDO_RANGE = (0.16, 0.93)
GLASS_COLOR = (0.8, 0.86, 0.88)
INVALID_CLASS = 255


class RendererMissingError(TaskformerError, ImportError):
    """Mitsuba, or the LLVM library that it compiles its kernels with, is not installed."""


@dataclass(frozen=True)
class Label:
    """What a shape of the scene is.

    Attributes:
        cls: Class id.
        instance: Instance id, 0 for walls, floor and ceiling.
        placement: Position in `Room.placements`, -1 for panels.
    """

    cls: int
    instance: int
    placement: int = -1


@dataclass(frozen=True)
class View:
    """What one camera sees, pixel by pixel; all maps are ``(H, W)`` or ``(H, W, 3)``.

    Attributes:
        cls: Class ids, 255 where a ray left the room.
        instance: Instance ids.
        placement: Positions in `Room.placements`, -1 elsewhere.
        depth: Z-depth in metres.
        normals: Unit normals, x right, y down, z into the scene.
        points: World positions in metres.
        rays: Unit directions from the camera in the frame of ``normals``.
        albedo: Linear reflectance in 0..1.
        emits: Whether the surface is a light.
    """

    cls: Ints
    instance: Ints
    placement: Ints
    depth: Floats
    normals: Floats
    points: Floats
    rays: Floats
    albedo: Floats
    emits: NDArray[np.bool_]


def find_llvm() -> str | None:
    """Path of the LLVM library that Dr.Jit should load; None leaves the search to Dr.Jit."""
    given = os.environ.get("DRJIT_LIBLLVM_PATH")
    if given:
        return given
    # Debian installs no unversioned libLLVM.so, so Dr.Jit's own search misses it.
    folders = [Path("/usr/lib"), Path("/usr/local/lib"), *Path("/usr/lib").glob("*-linux-gnu")]
    folders += [path / "lib" for path in Path("/usr/lib").glob("llvm-*")]
    found: dict[int, Path] = {}
    for folder in folders:
        for path in [*folder.glob("libLLVM.so.*"), *folder.glob("libLLVM-*.so*")]:
            digits = "".join(c if c.isdigit() else " " for c in path.name.removeprefix("libLLVM")).split()
            if digits:
                found.setdefault(int(digits[0]), path)
    # Versions below 15 lack what Dr.Jit needs with opaque pointers.
    usable = [version for version in found if version >= 15]
    if usable:
        return str(found[max(usable)])
    return ctypes.util.find_library("LLVM")


@lru_cache(maxsize=1)
def mitsuba() -> Any:
    """The Mitsuba module with its LLVM variant selected.

    Raises:
        RendererMissingError: If Mitsuba or LLVM is missing.
    """
    llvm = find_llvm()
    if llvm is not None:
        os.environ["DRJIT_LIBLLVM_PATH"] = llvm
    try:
        import mitsuba as mi
    except ImportError as error:
        msg = 'rendering needs Mitsuba, which is not installed: pip install "taskformer[render]"'
        raise RendererMissingError(msg) from error
    try:
        mi.set_variant("llvm_ad_rgb")
        float(mi.Float(1.0)[0])  # the first kernel is what loads LLVM
    except (ImportError, RuntimeError) as error:
        msg = (
            "Mitsuba cannot load LLVM, which compiles its kernels; run apt-get install libllvm19, or set "
            f"DRJIT_LIBLLVM_PATH to a libLLVM.so (now {llvm!r})"
        )
        raise RendererMissingError(msg) from error
    return mi


def linear(color: tuple[float, ...] | Floats) -> list[float]:
    """SRGB colour to linear reflectance, kept away from black and white."""
    return [float(min(max(value, ALBEDO_RANGE[0]), ALBEDO_RANGE[1]) ** 2.2) for value in color]


@lru_cache(maxsize=512)
def _texture(path: str) -> Any:
    with Image.open(path) as opened:
        pixels = np.asarray(opened.convert("RGB"), dtype=np.float32)
    low, high = ALBEDO_RANGE[0] * 255, ALBEDO_RANGE[1] * 255
    return mitsuba().Bitmap(np.clip(pixels, 0.6 * low, high).astype(np.uint8))


def _two_sided(reflectance: dict[str, Any]) -> dict[str, Any]:
    return {"type": "twosided", "bsdf": {"type": "diffuse", "reflectance": reflectance}}


def _part_bsdf(part: Part, placement: Placement, cache: Path, recolored: bool) -> dict[str, Any]:
    if part.glass:
        return _two_sided({"type": "rgb", "value": linear(GLASS_COLOR)})
    if recolored and placement.recolor is not None:
        return _two_sided({"type": "rgb", "value": linear(placement.recolor)})
    if part.texture is not None:
        texture = {"type": "bitmap", "bitmap": _texture(str(cache / part.texture)), "filter_type": "bilinear"}
        return _two_sided(texture)
    return _two_sided({"type": "rgb", "value": linear(np.array(part.color) * np.array(placement.tint))})


def _add_placement(
    scene: dict[str, Any], labels: dict[str, Label], index: int, placement: Placement, model: Model, cache: Path
) -> None:
    transform = mitsuba().ScalarTransform4f
    to_world = (
        transform()
        .translate(list(placement.position))
        .rotate([0, 0, 1], placement.angle)
        .scale([float(value) for value in placement.scale])
    )
    plain = [part for part in model.parts if part.texture is None and not part.glass]
    largest = max(plain, key=lambda part: part.area, default=None)
    for number, part in enumerate(model.parts):
        # A window shows the view behind it; its own panes would only darken it.
        if part.glass and placement.cls == "window":
            continue
        name = f"s{placement.instance}_{number}"
        scene[name] = {
            "type": "ply",
            "filename": str(cache / part.ply),
            "flip_tex_coords": True,
            "to_world": to_world,
            "bsdf": _part_bsdf(part, placement, cache, part is largest),
        }
        labels[name] = Label(CLASSES.index(placement.cls), placement.instance, index)


def _add_panel(scene: dict[str, Any], labels: dict[str, Label], panel: Panel) -> None:
    mi = mitsuba()
    u, v = np.array(panel.u), np.array(panel.v)
    matrix = np.eye(4)
    matrix[:3, 0], matrix[:3, 1] = u * panel.size[0] / 2, v * panel.size[1] / 2
    matrix[:3, 2], matrix[:3, 3] = np.cross(u, v), panel.center
    # Row 0 of a drawing is its top, but v = 0 is the bottom of a rectangle.
    drawing = draw(panel.surface)[::-1]
    shape: dict[str, Any] = {"type": "rectangle", "to_world": mi.ScalarTransform4f(matrix)}
    if panel.surface.pattern == "plain":
        shape["bsdf"] = _two_sided({"type": "rgb", "value": linear(panel.surface.color)})
    else:
        repeat = mi.ScalarTransform4f().scale([*(float(value) for value in panel.surface.repeat), 1.0])
        bitmap = mi.Bitmap((np.ascontiguousarray(drawing) * 255).astype(np.uint8))
        shape["bsdf"] = _two_sided({"type": "bitmap", "bitmap": bitmap, "to_uv": repeat})
    if panel.radiance is not None:
        radiance: dict[str, Any] = {"type": "rgb", "value": list(panel.radiance)}
        if panel.surface.pattern == "view":
            light = np.ascontiguousarray(drawing**2.2 * np.array(panel.radiance, np.float32), dtype=np.float32)
            radiance = {"type": "bitmap", "bitmap": mi.Bitmap(light), "raw": True}
            shape["bsdf"] = _two_sided({"type": "rgb", "value": [0.1, 0.1, 0.1]})
        shape["emitter"] = {"type": "area", "radiance": radiance}
    scene[panel.name] = shape
    labels[panel.name] = Label(CLASSES.index(panel.cls), panel.instance)


def build(room: Room, models: Mapping[str, Model], cache: Path) -> tuple[Any, dict[str, Label]]:
    """Load a room.

    Args:
        room: The room.
        models: Converted models by key.
        cache: Folder that holds their meshes and textures.

    Returns:
        The Mitsuba scene without a camera, and what each of its shapes is, by shape id.
    """
    scene: dict[str, Any] = {"type": "scene", "integrator": {"type": "path", "max_depth": MAX_BOUNCES}}
    labels: dict[str, Label] = {}
    for panel in room.panels:
        _add_panel(scene, labels, panel)
    for index, placement in enumerate(room.placements):
        _add_placement(scene, labels, index, placement, models[placement.model], cache)
    # The default merges shapes of equal material into one without a name: every label would be lost.
    return mitsuba().load_dict(scene, optimize=False), labels


def make_sensor(camera: Camera, width: int, height: int) -> Any:
    """The Mitsuba sensor of a camera; ``width`` and ``height`` in pixels."""
    mi = mitsuba()
    up = [float(np.sin(camera.roll)), 0.0, float(np.cos(camera.roll))]
    to_world = mi.ScalarTransform4f().look_at(origin=list(camera.origin), target=list(camera.target), up=up)
    film = {"type": "hdrfilm", "width": width, "height": height, "pixel_format": "rgb", "rfilter": {"type": "box"}}
    sensor = {"type": "perspective", "fov": camera.fov_x_deg, "fov_axis": "x", "near_clip": NEAR_M}
    return mi.load_dict({**sensor, "to_world": to_world, "film": film, "sampler": {"type": "independent"}})


def render(scene: Any, sensor: Any, samples: int, seed: int) -> Floats:
    """Render; returns linear RGB ``(H, W, 3)``."""
    return np.array(mitsuba().render(scene, sensor=sensor, spp=samples, seed=seed), dtype=np.float64)


def _rows(values: Any) -> Floats:
    """A Dr.Jit 3-vector of N values as ``(N, 3)``."""
    return np.array(values, dtype=np.float64).reshape(3, -1).T


def _shape_index(scene: Any, interaction: Any) -> Ints:
    """Position in ``scene.shapes()`` of the shape that each ray hit, -1 for none."""
    import drjit as dr

    mi = mitsuba()
    hit = np.array(dr.reinterpret_array(mi.UInt32, interaction.shape), dtype=np.int64)
    registered = np.array(dr.reinterpret_array(mi.UInt32, scene.shapes_dr()), dtype=np.int64)
    lookup = np.full(max(int(hit.max(initial=0)), int(registered.max(initial=0))) + 1, -1, dtype=np.int64)
    lookup[registered] = np.arange(len(registered))
    lookup[0] = -1
    return np.asarray(lookup[hit])


def pixel_rays(fov_x_deg: float, width: int, height: int) -> Floats:
    """Unit directions ``(H, W, 3)`` through the pixel centres: x right, y down, z into the scene."""
    rows, columns = np.mgrid[0:height, 0:width]
    focal = 0.5 * width / np.tan(np.radians(fov_x_deg) / 2)
    plane = np.stack([columns + 0.5 - width / 2, rows + 0.5 - height / 2, np.full(rows.shape, focal)], -1)
    return np.asarray(plane / np.linalg.norm(plane, axis=-1, keepdims=True))


def look(scene: Any, labels: Mapping[str, Label], camera: Camera, sensor: Any, width: int, height: int) -> View:
    """Exact labels: one ray through the middle of every pixel.

    Args:
        scene: From `build`.
        labels: From `build`.
        camera: The camera that looks.
        sensor: The same camera from `make_sensor`.
        width: Image width in pixels.
        height: Image height in pixels.
    """
    mi = mitsuba()
    pose = np.array(sensor.world_transform().matrix, dtype=np.float64).reshape(4, 4)
    # Mitsuba's camera axes are left, up, forward; ours are right, down, forward.
    to_camera = pose[:3, :3] * np.array([-1.0, -1.0, 1.0])
    rays = pixel_rays(camera.fov_x_deg, width, height).reshape(-1, 3)
    # Rays passed as arrays keep the kernel free of constants, so all views of a room share one compilation.
    origin = mi.Point3f(*(mi.Float(np.full(len(rays), value, np.float32)) for value in pose[:3, 3]))
    direction = mi.Vector3f(*(mi.Float(column.astype(np.float32)) for column in (rays @ to_camera.T).T))
    ray = mi.Ray3f(origin, direction)
    hit = scene.ray_intersect(ray)
    bsdf = hit.bsdf(ray)
    shapes = scene.shapes()
    found = [labels.get(shape.id(), Label(INVALID_CLASS, 0)) for shape in shapes] + [Label(INVALID_CLASS, 0)]
    index = _shape_index(scene, hit)
    points = _rows(hit.p)
    geometric = _towards(_rows(hit.n) @ to_camera, -rays)
    smooth = _towards(_rows(hit.sh_frame.n) @ to_camera, geometric)
    # Near a silhouette an interpolated normal may face away; the true surface cannot.
    normals = np.where((smooth * rays).sum(-1, keepdims=True) < -1e-3, smooth, geometric)
    depth = ((points - pose[:3, 3]) @ to_camera)[:, 2]
    emits = np.array([shape.is_emitter() for shape in shapes] + [False])
    shape2, shape3 = (height, width), (height, width, 3)
    return View(
        cls=np.array([label.cls for label in found])[index].reshape(shape2),
        instance=np.array([label.instance for label in found])[index].reshape(shape2),
        placement=np.array([label.placement for label in found])[index].reshape(shape2),
        depth=depth.reshape(shape2),
        normals=normals.reshape(shape3),
        points=points.reshape(shape3),
        rays=rays.reshape(shape3),
        albedo=_rows(bsdf.eval_diffuse_reflectance(hit)).reshape(shape3),
        emits=emits[index].reshape(shape2),
    )


def _towards(vectors: Floats, reference: Floats) -> Floats:
    """Unit vectors, flipped where they point away from ``reference``."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return np.asarray(np.where((unit * reference).sum(-1, keepdims=True) < 0, -unit, unit))
