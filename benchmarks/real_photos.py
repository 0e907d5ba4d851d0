"""How a model trained on rendered rooms does on ten real photographs (NYU-v2) it has never seen the like of.

Usage: python benchmarks/real_photos.py [RUN] [--photos PHOTOS] [--json FILE]

PHOTOS holds ``rgb/*.png``, ``depth_mm/*.png`` (16-bit millimetres) and ``semseg13/*.png`` (0 = unlabelled); it is not
part of the repository. The thirteen NYU classes are compared through what both vocabularies share: room classes without
a counterpart (door, person) count as wrong, pixels of NYU classes without one (books, picture) are left out. Of a model
that has one of the two tasks, that one is scored.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import taskformer
from taskformer.files import write_json

ROOT = Path(__file__).parent.parent
PHOTOS = ROOT.parent / "shared" / "data" / "nyu10"
BORDER = 10  # the photographs have a white frame
NYU13 = ["", "bed", "books", "ceiling", "chair", "floor", "furniture", "objects", "picture", "sofa", "table", "tv"]
NYU13 += ["wall", "window"]
#: NYU class to the room classes that mean the same.
SAME = {
    "bed": ["bed"],
    "ceiling": ["ceiling"],
    "chair": ["chair"],
    "floor": ["floor"],
    "furniture": ["cabinet", "shelf"],
    "objects": ["lamp", "plant", "prop"],
    "sofa": ["sofa"],
    "table": ["table"],
    "tv": ["appliance"],
    "wall": ["wall"],
    "window": ["window"],
}
NAMES = list(SAME)
#: Task and metric of what is kept of a run, as ``taskformer test`` names them.
METRICS = {
    "semseg mIoU": ("semseg", "mIoU"),
    "semseg pixel accuracy": ("semseg", "pixel_accuracy"),
    "depth RMSE": ("depth", "rmse"),
    "depth RMSE, scaled to the median": ("depth", "rmse_scaled"),
}
HEADLINE = {"semseg": "mIoU", "depth": "rmse"}
BETTER = {"semseg": dict.fromkeys(("mIoU", "pixel_accuracy"), "higher"),
          "depth": dict.fromkeys(("rmse", "rmse_scaled"), "lower")}  # fmt: skip
UNITS = {"semseg": dict.fromkeys(("mIoU", "pixel_accuracy"), "%"), "depth": dict.fromkeys(("rmse", "rmse_scaled"), "m")}


@dataclass(frozen=True)
class Photo:
    """What a model makes of one photograph; None for a task that it does not have.

    Attributes:
        name: Name of the file.
        confusion: Pixels ``(classes, classes + 1)`` of each true and predicted class; the last are of no counterpart.
        depth: Depth in metres ``(2, H, W)``, as predicted and as measured.
    """

    name: str
    confusion: NDArray[np.int64] | None
    depth: NDArray[np.float64] | None


def look(model: Any, photos: Path) -> list[Photo]:
    """Predict every photograph.

    Args:
        model: What :func:`taskformer.load` returns.
        photos: Folder of the photographs and their labels.
    """
    tasks = model.hparams["tasks"]
    lookup = class_lookup(tasks["semseg"]["classes"]) if "semseg" in tasks else None
    shared = np.array([NAMES.index(name) if name in SAME else -1 for name in NYU13])
    found = []
    for file in sorted((photos / "rgb").glob("*.png")):
        maps = model.predict_image(file)
        confusion, depth = None, None
        if lookup is not None:
            truth = shared[read(photos / "semseg13" / file.name)]
            known = truth >= 0
            confusion = np.zeros((len(NAMES), len(NAMES) + 1), dtype=np.int64)
            np.add.at(confusion, (truth[known], lookup[inside(maps["semseg"])][known]), 1)
        if "depth" in maps:
            depth = np.stack([inside(maps["depth"][0]), read(photos / "depth_mm" / file.name) / 1000.0])
        found.append(Photo(file.stem, confusion, depth))
    return found


def score(found: Sequence[Photo]) -> dict[str, float]:
    """Score semseg and depth, as far as the model has them.

    Returns:
        Scores by name; shares as fractions, depth errors in metres.
    """
    confusions = [photo.confusion for photo in found if photo.confusion is not None]
    depths = [photo.depth for photo in found if photo.depth is not None]
    return {
        **(score_classes(np.sum(confusions, axis=0)) if confusions else {}),
        **(score_depth(np.stack(depths, axis=1)) if depths else {}),
    }


def score_classes(confusion: NDArray[np.int64]) -> dict[str, float]:
    """Score a confusion matrix; classes without a pixel do not count."""
    hits = np.diag(confusion[:, :-1])
    union = confusion.sum(1) + confusion[:, :-1].sum(0) - hits
    present = confusion.sum(1) > 0
    iou = hits[present] / union[present]
    return {
        "semseg mIoU": float(iou.mean()),
        "semseg pixel accuracy": float(hits.sum() / confusion.sum()),
        "pixel accuracy of 'all wall'": float(confusion[NAMES.index("wall")].sum() / confusion.sum()),
        **{f"IoU {name}": float(v) for name, v in zip(np.array(NAMES)[present], iou, strict=True)},
    }


def score_depth(depths: NDArray[np.float64]) -> dict[str, float]:
    """Score predicted and measured depth ``(2, photographs, H, W)``."""
    depth, truth = depths
    scale = np.median(truth, axis=(1, 2), keepdims=True) / np.median(depth, axis=(1, 2), keepdims=True)
    return {
        "depth RMSE": rmse(depth - truth),
        "depth RMSE, scaled to the median": rmse(depth * scale - truth),
        "depth RMSE of the best constant": rmse(truth.mean() - truth),
    }


def record(found: Sequence[Photo]) -> dict[str, Any]:
    """Write the scores as ``metrics.json`` has those of a test, with the headline metrics of each photograph alone."""
    whole, alone = score(found), [score([photo]) for photo in found]
    tasks: dict[str, dict[str, float]] = {}
    for name, (task, metric) in METRICS.items():
        if name in whole:
            tasks.setdefault(task, {})[metric] = whole[name]
    columns = {
        task: [float(f"{each[name]:.6g}") for each in alone]
        for name, (task, metric) in METRICS.items()
        if task in tasks and metric == HEADLINE[task]
    }
    return {
        "protocol": "eleven classes that both vocabularies share",
        "tasks": tasks,
        "better": {task: BETTER[task] for task in tasks},
        "headline": {task: HEADLINE[task] for task in tasks},
        "units": {task: UNITS[task] for task in tasks},
        "facts": {"split": "photographs", "images": len(found)},
        "images": {"ids": [photo.name for photo in found], **columns},
    }


def class_lookup(classes: Sequence[str]) -> NDArray[np.int64]:
    """Position in NAMES of each room class; one past the end where there is none."""
    return np.array([next((i for i, n in enumerate(NAMES) if c in SAME[n]), len(NAMES)) for c in classes])


def read(path: Path) -> NDArray[Any]:
    """Read a label map without the frame."""
    with Image.open(path) as image:
        return inside(np.asarray(image))


def inside(pixels: NDArray[Any]) -> NDArray[Any]:
    """Cut the frame off ``(H, W)``."""
    return pixels[BORDER:-BORDER, BORDER:-BORDER]


def rmse(errors: NDArray[np.float64]) -> float:
    """Root of the mean square over all pixels."""
    return float(np.sqrt(np.mean(errors**2)))


def main() -> None:
    """Score a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", default=ROOT / "runs" / "demo", help="folder of a trained run")
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="folder of the photographs")
    parser.add_argument("--json", type=Path, help="also write the scores to this file")
    options = parser.parse_args()
    model = taskformer.load(options.run)
    found = look(model, options.photos) if {"semseg", "depth"} & set(model.tasks) else []
    for title, value in score(found).items():
        print(f"{title:<36} {value:.3f}")
    if options.json:
        write_json(options.json, record(found))


if __name__ == "__main__":
    main()
