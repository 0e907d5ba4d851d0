"""Tilted planes with analytic labels, and a miniature of the rooms' folder made of them."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from taskformer.data.datasets.rooms import CLASSES, COLORS, PARTS

UNITS_PER_M = 5000


def facing(tilt, azimuth):
    """Unit normal of a plane that faces the camera, turned away by ``tilt`` towards ``azimuth`` (degrees)."""
    tilt, azimuth = np.radians([tilt, azimuth])
    return np.array([np.sin(tilt) * np.cos(azimuth), np.sin(tilt) * np.sin(azimuth), -np.cos(tilt)])


def rays(height, width, focal, center):
    """Viewing rays with z = 1, ``(H, W, 3)``."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack([(x - center[0]) / focal[0], (y - center[1]) / focal[1], np.ones((height, width))], axis=-1)


def plane(height, width, normal, focal, distance=2.0):
    """Depth ``(H, W)`` and normals ``(H, W, 3)`` of a plane; NaN where it is behind the camera or too far."""
    toward = rays(height, width, (focal, focal), ((width - 1) / 2, (height - 1) / 2)) @ normal
    depth = -distance / np.where(toward < -0.1, toward, np.nan)
    normals = np.where(np.isnan(depth)[..., None], np.nan, normal)
    return depth.astype(np.float32), normals.astype(np.float32)


def write_rooms(root: Path, height=8, width=10, images=None):
    """Write a data set in the layout of the rooms; returns its folder."""
    rng = np.random.default_rng(0)
    for split, count in (images or {"train": 5, "val": 3, "test": 2}).items():
        records = []
        for index in range(count):
            name = f"{split}_{index}"
            _write_image(root, name, height, width, rng)
            records.append({"id": name, "room": f"r{index}", "kind": "office", "fov_x_deg": 60.0, "focal_px": 8.0})
        (root / f"{split}.json").write_text(json.dumps(records))
    info = {
        "version": 1,
        "classes": list(CLASSES),
        "palette": [list(color) for color in COLORS],
        "part_names": list(PARTS),
        "size": [height, width],
        "depth_units_per_m": UNITS_PER_M,
    }
    (root / "rooms.json").write_text(json.dumps(info))
    return root


def _write_image(root, name, height, width, rng):
    depth, normals = plane(height, width, facing(rng.uniform(0, 40), rng.uniform(0, 360)), focal=width)
    depth[0, 0], normals[0, 0] = np.nan, np.nan
    semseg = rng.integers(0, len(CLASSES), (height, width))
    semseg[0, 0] = 255
    maps = {
        "semseg": semseg,
        "depth": np.nan_to_num(np.round(depth * UNITS_PER_M)).astype(np.uint16),
        "normals": np.where(np.isnan(normals), 128, np.round((normals + 1) * 127.5)),
        "instance": rng.integers(0, 5, (height, width)),
        "edges": 255 * rng.integers(0, 2, (height, width)),
        "saliency": 255 * rng.integers(0, 2, (height, width)),
        "human_parts": rng.integers(0, len(PARTS), (height, width)),
        "reshading": rng.integers(0, 256, (height, width)),
    }
    photo = np.broadcast_to(np.linspace(60, 200, width)[None, :, None], (height, width, 3)).astype(np.uint8)
    save(root / "image" / f"{name}.jpg", photo)
    for task, pixels in maps.items():
        save(root / task / f"{name}.png", pixels if task == "depth" else pixels.astype(np.uint8))


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
