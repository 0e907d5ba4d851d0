"""A miniature PASCAL-Context in the layout that every loader of it accepts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskformer.data.datasets.pascal_context import CLASSES, CONTEXT, PALETTE, PERSON_PARTS, VOC_CLASS
from taskformer.data.images import write_jpg, write_mat, write_png
from taskformer.datatools.miniature.scene import Scene, scene
from taskformer.files import write_json, write_text

#: What images show in turn: annotated parts, a person without parts, things only, nothing that is annotated.
KINDS = ("parts", "person", "things", "nothing")
#: Context labels of structures; the boxes take turns. Normals count of some of them (wall) and not of others (sky).
_LABELS = {"wall": "wall", "floor": "floor", "ceiling": "sky", "person": "person"}
_BOXES = ("sofa", "aeroplane", "box")


def write_pascal_context(
    root: Path, *, counts: Mapping[str, int] | None = None, size: tuple[int, int] = (60, 80), seed: int = 0
) -> Path:
    """Write a small data set with consistent labels in the layout of :class:`taskformer.data.datasets.PASCALContext`.

    The images of a split show in turn: a person with parts, a person without, things without parts, and nothing that
    is annotated. They have different sizes.

    Args:
        root: Folder to write to.
        counts: Number of images of ``train`` and ``val``; by default 4 and 3.
        size: Height and width of the first image; others are turned or lower.
        seed: Seed of everything random.

    Returns:
        The folder.
    """
    height, width = size
    sizes = ((height, width), (width, height), (height * 3 // 4, width))
    splits: dict[str, list[str]] = {}
    number = 0
    for split, count in (counts or {"train": 4, "val": 3}).items():
        splits[split] = []
        for index in range(count):
            number += 1
            name = f"2008_{number:06d}"
            kind = KINDS[index % len(KINDS)]
            rng = np.random.default_rng([seed, number])
            view = scene(*sizes[index % len(sizes)], seed=seed + number, person=kind in ("parts", "person"))
            _write_image(root, name, kind, view, rng)
            splits[split].append(name)
        write_text(root / "ImageSets" / "Context" / f"{split}.txt", "\n".join(splits[split]) + "\n")
    write_json(root / "miniature.json", {"dataset": "pascal_context", "layout": "PASCALContext", "splits": splits})
    return root


def swap_splits(root: Path) -> None:
    """Exchange the lists of training and validation images: a fault for tests."""
    train, val = (root / "ImageSets" / "Context" / f"{split}.txt" for split in ("train", "val"))
    lists = train.read_text(), val.read_text()
    write_text(val, lists[0])
    write_text(train, lists[1])


def _write_image(root: Path, name: str, kind: str, view: Scene, rng: np.random.Generator) -> None:
    labels = _context_labels(view, kind)
    semseg = VOC_CLASS[labels]
    salient = np.where(semseg > 0, rng.integers(128, 256, labels.shape), rng.integers(0, 128, labels.shape))
    write_jpg(root / "JPEGImages" / f"{name}.jpg", view.image)
    write_mat(root / "pascal-context" / "trainval" / f"{name}.mat", {"LabelMap": labels})
    write_png(root / "semseg" / "pascal-context" / f"{name}.png", semseg, PALETTE)
    if kind == "parts":  # VOC's own masks, which exist for some images and come first, leave boundaries unlabelled
        write_png(root / "semseg" / "VOC12" / f"{name}.png", np.where(view.edges, np.uint8(255), semseg), PALETTE)
    write_mat(root / "human_parts" / f"{name}.mat", {"anno": _annotation(name, view, kind)})
    normals = np.rint((1 - view.normals) * 127.5).astype(np.uint8)  # left, up and toward the camera
    write_png(root / "normals_distill" / f"{name}.png", normals)
    write_png(root / "sal_distill" / f"{name}.png", salient.astype(np.uint8))


def _context_labels(view: Scene, kind: str) -> NDArray[np.uint16]:
    labels = np.zeros(view.objects.shape, dtype=np.uint16)
    boxes = 0
    for index, what in view.kinds.items():
        box = _BOXES[-1 if kind == "nothing" else boxes % len(_BOXES)]
        boxes += what == "box"
        labels[view.objects == index] = CONTEXT[_LABELS.get(what, box)]
    return labels


def _annotation(name: str, view: Scene, kind: str) -> NDArray[Any]:
    """Build PASCAL-Part's ``anno``: a struct with a struct array of objects, each with a struct array of parts."""
    labels = _context_labels(view, kind)
    things = []
    for index, what in view.kinds.items():
        mask = view.objects == index
        number = VOC_CLASS[labels[mask]].max(initial=0)
        if number:
            parts = _person_parts(view, mask) if what == "person" and kind == "parts" else []
            things.append((CLASSES[number], number, mask.astype(np.uint8), _structs(parts, "part_name", "mask")))
    return _structs([(name, _structs(things, "class", "class_ind", "mask", "parts"))], "imname", "objects")


def _person_parts(view: Scene, mask: NDArray[np.bool_]) -> list[tuple[str, NDArray[np.uint8]]]:
    """Split each part into PASCAL-Part's finer ones, column by column; the torso lies below all others."""
    parts = [("torso", mask.astype(np.uint8))]
    for number in (1, 3, 4, 5, 6):
        names = [name for name, part in PERSON_PARTS.items() if part == number]
        share = np.arange(mask.shape[1]) % len(names)
        drawn = ((name, (mask & (view.parts == number) & (share == index))) for index, name in enumerate(names))
        parts += [(name, part.astype(np.uint8)) for name, part in drawn if part.any()]
    return parts


def _structs(rows: list[tuple[Any, ...]], *fields: str) -> NDArray[Any]:
    """Build what becomes MATLAB's struct array; without elements it is ``[]``, as in the published files."""
    if not rows:
        return np.zeros((0, 0))
    array = np.zeros((1, len(rows)), dtype=[(field, object) for field in fields])
    for index, row in enumerate(rows):
        array[0, index] = row
    return array
