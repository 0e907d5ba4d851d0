"""A miniature NYUD-v2 in the three layouts that loaders of it expect."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from taskformer.data.datasets.nyud import ADASHARE_SPLITS, LAYOUTS, official_split
from taskformer.data.images import File, read_json, write_jpg, write_npy, write_png
from taskformer.datatools.miniature.scene import Scene, scene
from taskformer.files import write_json, write_text

#: Classes (1..40) of what stands in the rooms; boxes take turns with the rest.
LABELS = {"wall": 1, "floor": 2, "ceiling": 22, "person": 31}
BOXES = [label for label in range(1, 41) if label not in LABELS.values()]


def write_nyud(
    root: Path,
    *,
    layout: Literal["a", "b", "adashare"] = "a",
    counts: Mapping[str, int] | None = None,
    size: tuple[int, int] = (64, 80),
    seed: int = 0,
    holes: bool = False,
) -> Path:
    """Write a small data set with exact, consistent labels in one of the layouts of :class:`taskformer.data.NYUD`.

    Images have numbers of the official split. Edges of objects are unlabelled, as in the real data.

    Args:
        root: Folder to write to.
        layout: ``a``, ``b`` or ``adashare`` (which has no edges).
        counts: Number of images of ``train`` and ``val``; by default 4 and 2.
        size: Height and width of the images.
        seed: Seed of everything random.
        holes: Leave a part of depth and normals without a value. Real copies have their depth filled.

    Returns:
        The folder.
    """
    numbers = {split: [n for n, home in official_split().items() if home == split] for split in ("train", "val")}
    counts = counts or {"train": 4, "val": 2}
    splits = {split: [f"{number:04d}" for number in numbers[split][:count]] for split, count in counts.items()}
    boxes = iter(BOXES * (1 + sum(counts.values())))  # no room has more boxes than there are classes
    for names in splits.values():
        for name in names:
            room = scene(*size, seed=seed + int(name))
            labels = {key: LABELS[kind] if kind in LABELS else next(boxes) for key, kind in room.kinds.items()}
            _write_image(root, layout, name, room, labels, holes)
    if layout == "adashare":
        write_json(root / ADASHARE_SPLITS, {"train": _rows(splits["train"]), "test": _rows(splits["val"])})
    else:
        for split, names in splits.items():
            write_text(root / "gt_sets" / f"{split}.txt", "\n".join(names) + "\n")
    write_json(root / "miniature.json", {"dataset": "nyud", "layout": layout, "splits": splits})
    return root


def swap_splits(root: Path) -> None:
    """Exchange training and validation in a folder of :func:`write_nyud`."""
    path = root / ADASHARE_SPLITS
    if path.exists():
        index = read_json(File(str(path), path.read_bytes()))
        write_json(path, {"train": index["test"], "test": index["train"]})
        return
    first, second = (root / "gt_sets" / f"{split}.txt" for split in ("train", "val"))
    texts = first.read_text(), second.read_text()
    write_text(first, texts[1])
    write_text(second, texts[0])


def _write_image(root: Path, layout: str, name: str, room: Scene, labels: Mapping[int, int], holes: bool) -> None:
    paths = {key: root / folder / f"{name}{end}" for key, (folder, end) in LAYOUTS[layout].folders.items()}
    of_object = np.zeros(256, dtype=np.uint8)
    of_object[list(labels)] = list(labels.values())
    semseg = np.where(room.edges, 0, of_object[room.objects]).astype(np.uint8)
    depth, normals = room.depth.copy(), room.normals.copy()
    if holes:
        height, width = depth.shape
        hole = np.s_[height // 4 : height // 2, width // 4 : width // 2]
        depth[hole], normals[hole] = 0, 0
    write_npy(paths["depth"], depth)
    if layout == "b":
        write_jpg(paths["image"], room.image)
        write_png(paths["semseg"], semseg)
        write_npy(paths["normals"], normals)
        write_npy(paths["edges"], room.edges.astype(np.float32))
        return
    write_png(paths["image"], room.image)
    if layout == "a":
        write_png(paths["semseg"], semseg)
        write_png(paths["normals"], _quantise(normals))  # no direction becomes the grey 128
        write_png(paths["edges"], room.edges.astype(np.uint8) * np.uint8(255))
        return
    write_png(paths["semseg"], semseg - np.uint8(1))  # 0 becomes 255
    # x right, y into the scene, z up; white where invalid.
    turned = _quantise(np.stack([normals[..., 0], normals[..., 2], -normals[..., 1]], axis=-1))
    turned[(normals == 0).all(axis=-1)] = 255
    write_png(paths["normals"], turned)


def _quantise(vectors: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.asarray(np.round((vectors + 1) * 127.5), dtype=np.uint8)


def _rows(names: list[str]) -> list[list[str]]:
    """Return AdaShare's index: image, semseg, normals and depth of each image."""
    folders = (("img", "png"), ("seg", "png"), ("normal_mask", "png"), ("depth", "npy"))
    return [[f"{folder}/{name}.{ending}" for folder, ending in folders] for name in names]
