"""A miniature of Taskonomy in either of its layouts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from taskformer.data.datasets.taskonomy_index import Layout, domain_folder, find_layout, published_splits
from taskformer.data.images import write_npy, write_png
from taskformer.datatools.miniature.scene import Scene, scene
from taskformer.files import write_json

#: Where the names of files do not end as their folder is called.
SUFFIXES = {"mask_valid": "depth_zbuffer", "segment_semantic": "segmentsemantic"}
#: Class ids in the files: 0 is "uncertain", 1 "background", 2 "bottle", 3 "chair", ...
SEMANTICS = {"wall": 1, "floor": 1, "ceiling": 1, "box": 3, "person": 0}
#: Side of the corner where the scan has a hole.
HOLE = 4
LIGHT = np.array([0.3, -0.5, -0.8]) / np.linalg.norm([0.3, -0.5, -0.8])


def write_taskonomy(
    root: Path,
    *,
    layout: Layout = "building_first",
    counts: Mapping[str, int] | None = None,
    views_per_building: int = 3,
    size: tuple[int, int] = (64, 64),
    seed: int = 0,
) -> Path:
    """Write a folder that a loader of Taskonomy accepts, with buildings of the list ``tiny``.

    Every view has a hole in a corner, and the first training view has no file of ``edge_occlusion``.

    Args:
        root: The folder; made if missing.
        layout: ``building_first`` (``BUILDING/DOMAIN/``) or ``domain_first`` (``DOMAIN/BUILDING/``).
        counts: Buildings of each split; by default 2 for training and 1 each for validation and test.
        views_per_building: Views of each building.
        size: Height and width of the images in pixels.
        seed: Seed of everything random; the same data set each time.

    Returns:
        The folder.
    """
    wanted = dict(counts or {"train": 2, "val": 1, "test": 1})
    ids: dict[str, list[str]] = {split: [] for split in wanted}
    number = 0
    for split, count in wanted.items():
        names = sorted(name for name, place in published_splits("tiny").items() if place == split)
        for building in names[:count]:
            for view in range(views_per_building):
                stem = f"point_{number}_view_{view}"
                made = _maps(scene(*size, seed=1000 * seed + number * views_per_building + view), number, view)
                if not any(ids.values()):
                    del made["edge_occlusion"]
                _write(root, layout, building, stem, made)
                ids[split].append(f"{building}/{stem}")
            number += 1
    write_json(root / "miniature.json", {"dataset": "taskonomy", "layout": layout, "splits": ids})
    return root


def swap_splits(root: Path) -> None:
    """Exchange the folders of a training building and a validation building: a deliberate fault."""
    layout = find_layout(root)
    splits = published_splits("tiny")
    folders = sorted(path for path in (root if layout == "building_first" else root / "rgb").iterdir())
    first, second = (
        next(path.name for path in folders if splits.get(path.name) == split) for split in ("train", "val")
    )
    parents = [root] if layout == "building_first" else [path for path in root.iterdir() if path.is_dir()]
    for parent in parents:
        if (parent / first).is_dir() and (parent / second).is_dir():
            (parent / first).rename(parent / "swapped")
            (parent / second).rename(parent / first)
            (parent / "swapped").rename(parent / second)


def _write(root: Path, layout: Layout, building: str, stem: str, made: Mapping[str, Any]) -> None:
    for domain, values in made.items():
        folder = domain_folder(root, layout, building, domain)
        name = f"{stem}_domain_{SUFFIXES.get(domain, domain)}"
        if isinstance(values, dict):
            write_json(folder / f"{name}.json", values)
        elif values.ndim == 1:
            write_npy(folder / f"{name}.npy", values)
        else:
            write_png(folder / f"{name}.png", values)


def _maps(room: Scene, number: int, view: int) -> dict[str, Any]:
    """Make what lies in each domain of one view: pixels, probabilities or facts."""
    height, width = room.depth.shape
    hole = np.zeros((height, width), dtype=bool)
    hole[:HOLE, :HOLE] = True
    facing = np.clip(room.normals @ LIGHT, 0, 1)
    grey = cv2.cvtColor(room.image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    # Not by cv2.magnitude, whose last bit depends on where the array lies in memory.
    gradient = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
    kinds = np.array([SEMANTICS[room.kinds.get(k, "wall")] for k in range(max(room.kinds) + 1)], dtype=np.uint8)
    bends = np.where(room.edges, 167, 127).astype(np.uint8)
    rows, columns = np.indices((height, width))
    rng = np.random.default_rng([number, view])
    return {
        "rgb": room.image,
        "depth_zbuffer": _millis(room.depth, hole),
        "depth_euclidean": _millis(room.depth * _ray_lengths(room), hole),
        "mask_valid": np.where(hole, 0, 255).astype(np.uint8),
        "normal": np.where(hole[..., None], 128, np.rint((room.normals + 1) * 127.5)).astype(np.uint8),
        "principal_curvature": np.where(hole[..., None], 0, np.stack([bends, 254 - bends, bends], axis=-1)).astype(
            np.uint8
        ),
        "reshading": np.rint(255 * np.where(hole, 0, facing)).astype(np.uint8),
        "edge_texture": _share(gradient / 8),
        "edge_occlusion": _share(np.where(room.edges, 0.004, 0)),
        "keypoints2d": _share(_corners(grey) * 0.005),
        "keypoints3d": _share(_corners(room.depth / room.depth.max())),
        "segment_semantic": kinds[room.objects],
        "segment_unsup2d": (rows // 16 * 8 + columns // 16).astype(np.uint8),
        "segment_unsup25d": room.objects.astype(np.uint8),
        "class_object": rng.dirichlet(np.full(1000, 0.01)).astype(np.float32),
        "class_scene": rng.dirichlet(np.full(365, 0.01)).astype(np.float32),
        "point_info": _point_info(rng, number, view, room),
    }


def _millis(depth: NDArray[Any], hole: NDArray[np.bool_]) -> NDArray[np.uint16]:
    """Store metres in units of 1/512 m, with 65535 in holes."""
    return np.where(hole, 65535, np.rint(depth * 512)).astype(np.uint16)


def _ray_lengths(room: Scene) -> NDArray[np.float64]:
    """Distance over depth of each pixel ``(H, W)``."""
    height, width = room.depth.shape
    y, x = np.indices((height, width))
    return np.asarray(np.sqrt(1 + ((x - (width - 1) / 2) ** 2 + (y - (height - 1) / 2) ** 2) / room.focal**2))


def _corners(plane: NDArray[Any]) -> NDArray[np.float32]:
    """How much a pixel looks like a corner, in 0..1 ``(H, W)``."""
    strength = np.abs(cv2.cornerHarris(plane.astype(np.float32), 3, 3, 0.04))
    return np.asarray(np.sqrt(strength / max(float(strength.max()), 1e-12)), dtype=np.float32)


def _share(values: NDArray[Any]) -> NDArray[np.uint16]:
    """Store shares of the full range of 16 bits."""
    return np.asarray(np.rint(np.clip(values, 0, 1) * 65535), dtype=np.uint16)


def _point_info(rng: np.random.Generator, number: int, view: int, room: Scene) -> dict[str, Any]:
    """Make the facts about the camera that the tasks need, in Blender's frame: x right, y up, z toward the viewer."""
    angles = [np.pi / 2 + rng.uniform(-0.1, 0.1), 0.0, rng.uniform(-np.pi, np.pi)]
    camera = Rotation.from_euler("xyz", angles)
    location = rng.uniform(-2, 2, 3)
    point = location + camera.apply([0.0, 0.0, -float(room.depth[tuple(np.array(room.depth.shape) // 2)])])
    low, high = point - rng.uniform(0.5, 2, 3), point + rng.uniform(0.5, 2, 3)
    axes = camera.inv().apply([[0, -1, 0], [1, 0, 0], [0, 0, 1]])  # a quarter turn away from the world's, as published
    return {
        "point_uuid": str(number),
        "view_id": view,
        "camera_location": location.tolist(),
        "camera_rotation_final": angles,
        "field_of_view_rads": float(2 * np.arctan(room.depth.shape[1] / 2 / room.focal)),
        "resolution": room.depth.shape[0],
        "point_location": point.tolist(),
        "vanishing_points_gaussian_sphere": {name: axis.tolist() for name, axis in zip("xyz", axes, strict=True)},
        # The published files name the box's horizontal axes the wrong way round.
        "bounding_box_ranges": {
            name: [float(low[axis]), float(high[axis])] for name, axis in (("x", 1), ("y", 0), ("z", 2))
        },
    }
