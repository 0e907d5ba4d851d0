"""Cityscapes in miniature: the owners' tree of files, or MTAN's and AdaShare's, with drawn streets."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from taskformer.data.datasets.cityscapes import ArrayLayout, SemsegClasses, semseg_labels, table
from taskformer.data.images import write_npy, write_png
from taskformer.datatools.miniature.scene import scene
from taskformer.files import write_json

COUNTS = {"train": 4, "val": 2}
#: Baseline in metres of the data set's two cameras. Real lenses are longer: 1.1 times the width.
BASELINES = (0.209313, 0.222126)
#: Focal length divided by the width: wide enough to show road and sky.
FOCAL = 0.6
#: A room becomes a street: everything is this many times as large and as far away.
SCALE = 6.0
#: Label ids of what is in a room: the floor is a road, the ceiling the sky, ...
LABELS = {"floor": 7, "ceiling": 23, "wall": 11, "person": 24}
#: Label ids of the boxes in turn: car, traffic sign, bus.
BOXES = (26, 20, 28)
#: Label ids of patches that the benchmark ignores, with their names: 0 unlabeled, 4 static, ..., 10 rail track.
IGNORED = (0, 4, 5, 6, 9, 10, 14)


@dataclass(frozen=True)
class Street:
    """What a camera of Cityscapes records and its annotators draw.

    Attributes:
        image: RGB ``(H, W, 3)`` uint8.
        label_ids: ``(H, W)`` uint8, some of them void.
        objects: Object ids ``(H, W)`` uint8.
        depth: Metres ``(H, W)`` float32, infinite in the sky.
        disparity: As in the files ``(H, W)`` uint16: 256 times the pixels plus 1; 0 where the stereo camera failed.
        baseline: Distance of the two lenses in metres.
        focal: Focal length in pixels.
    """

    image: NDArray[np.uint8]
    label_ids: NDArray[np.uint8]
    objects: NDArray[np.uint8]
    depth: NDArray[np.float32]
    disparity: NDArray[np.uint16]
    baseline: float
    focal: float


def street(height: int, width: int, seed: int) -> Street:
    """Draw a street with every kind of pixel that the files have: holes, infinite distance, void labels."""
    baseline, focal = BASELINES[seed % len(BASELINES)], FOCAL * width
    room = scene(height, width, seed, focal=focal)
    label_of = np.zeros(256, dtype=np.uint8)
    for object_id, kind in room.kinds.items():
        label_of[object_id] = LABELS.get(kind, BOXES[object_id % len(BOXES)])
    label_ids = label_of[room.objects]
    sky = label_ids == LABELS["ceiling"]
    label_ids[-(height // 8) :, width // 4 : -(width // 4)] = 1  # the ego vehicle's bonnet
    label_ids[:, :2] = 2  # the rectification border
    label_ids[:2] = 3  # out of the region of interest
    rng = np.random.default_rng(seed)
    for label_id in IGNORED:
        label_ids[_patch(rng, height, width)] = label_id
    depth = np.where(sky, np.float32(np.inf), np.float32(SCALE) * room.depth)
    disparity = np.rint(256 * baseline * focal / depth.astype(np.float64)).astype(np.uint16) + np.uint16(1)
    disparity[:, : width // 16] = 0  # the other camera does not see the left border
    disparity[_patch(rng, height, width)] = 0
    return Street(room.image, label_ids, room.objects, depth, disparity, baseline, focal)


def write_cityscapes(
    root: Path,
    *,
    layout: Literal["official", "adashare"] = "official",
    counts: Mapping[str, int] = COUNTS,
    size: tuple[int, int] = (64, 128),
    seed: int = 0,
) -> Path:
    """Write a miniature copy of Cityscapes.

    Args:
        root: Folder to write to, made if missing.
        layout: ``"official"``, the owners' packages unpacked, or ``"adashare"``, the arrays of MTAN with the index of
            AdaShare.
        counts: Number of images per split.
        size: Height and width of the images.
        seed: Seed of the streets.

    Returns:
        The folder.
    """
    root = Path(root)
    write = _write_official if layout == "official" else _write_arrays
    splits: dict[str, list[str]] = {}
    for number, (split, count) in enumerate(counts.items()):
        # Streets of different splits differ.
        streets = (street(*size, seed=1000 * (10 * seed + number) + index) for index in range(count))
        splits[split] = [write(root, split, index, made) for index, made in enumerate(streets)]
    if layout == "adashare":
        write_json(root / ArrayLayout.index, _index(splits))
    write_json(root / "miniature.json", {"dataset": "cityscapes", "layout": layout, "splits": splits})
    return root


def swap_splits(root: Path) -> None:
    """Exchange training and validation images, a fault to be found."""
    index = Path(root) / ArrayLayout.index
    if index.exists():
        splits = {split: [f"{split}/image/{path.stem}" for path in _numbered(Path(root), split)] for split in COUNTS}
        write_json(index, _index({"train": splits["val"], "val": splits["train"]}))
        return
    for package in ("leftImg8bit", "gtFine", "disparity", "camera"):
        train, val, aside = (Path(root) / package / name for name in ("train", "val", "aside"))
        train.rename(aside)
        val.rename(train)
        aside.rename(val)


def _patch(rng: np.random.Generator, height: int, width: int) -> tuple[slice, slice]:
    """Draw a random rectangle of an eighth of the image's height and width."""
    top, left = rng.integers(0, height * 7 // 8), rng.integers(0, width * 7 // 8)
    return slice(top, top + height // 8), slice(left, left + width // 8)


def _write_official(root: Path, split: str, index: int, made: Street) -> str:
    cities = table()["cities"][split]
    city: str = cities[index % len(cities)]
    name = f"{city}_{index:06d}_000019"

    def path(package: str, ending: str) -> Path:
        return root / package / split / city / f"{name}_{ending}"

    ids = made.label_ids
    write_png(path("leftImg8bit", "leftImg8bit.png"), made.image)
    write_png(path("gtFine", "gtFine_labelIds.png"), ids)
    write_png(path("gtFine", "gtFine_labelTrainIds.png"), semseg_labels(19).of_id[ids])
    things = np.where(ids >= LABELS["person"], ids.astype(np.uint16) * 1000 + made.objects, ids)
    write_png(path("gtFine", "gtFine_instanceIds.png"), things.astype(np.uint16))
    write_png(path("disparity", "disparity.png"), made.disparity)
    write_json(path("camera", "camera.json"), _camera(made))
    return name


def _camera(made: Street) -> dict[str, Any]:
    """Return the calibration of an image, with the keys and, but for the size, the values of a real one."""
    height, width = made.depth.shape
    return {
        "extrinsic": {
            "baseline": made.baseline,
            "pitch": 0.038,
            "roll": 0.0,
            "x": 1.7,
            "y": 0.1,
            "yaw": -0.0195,
            "z": 1.22,
        },
        "intrinsic": {"fx": made.focal, "fy": made.focal, "u0": (width - 1) / 2, "v0": (height - 1) / 2},
    }


def _write_arrays(root: Path, split: str, index: int, made: Street) -> str:
    folder = root / split
    write_npy(folder / "image" / f"{index}.npy", (made.image / 255).astype(np.float32))
    write_npy(folder / "depth" / f"{index}.npy", (made.disparity / 65535).astype(np.float32)[..., None])
    counts: tuple[SemsegClasses, ...] = (2, 7, 19)
    for count in counts:
        labels = semseg_labels(count).of_id[made.label_ids].astype(np.float32)
        write_npy(folder / f"label_{count}" / f"{index}.npy", np.where(labels == 255, np.float32(-1), labels))
    return f"{split}/image/{index}"


def _index(splits: Mapping[str, list[str]]) -> dict[str, list[list[str]]]:
    """Return AdaShare's index: files per image and split, with two halves of ``train`` too; it tests on ``val``."""
    folders = ("image", "depth", "label_2", "label_7", "label_19")
    rows = {
        split: [[f"{name.replace('image', folder)}.npy" for folder in folders] for name in names]
        for split, names in splits.items()
    }
    half = len(rows["train"]) // 2
    return {
        "train": rows["train"],
        "train1": rows["train"][:half],
        "train2": rows["train"][half:],
        "test": rows["val"],
    }


def _numbered(root: Path, split: str) -> list[Path]:
    return sorted((root / split / "image").glob("*.npy"), key=lambda path: int(path.stem))
