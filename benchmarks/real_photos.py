"""How a model trained on rendered rooms does on ten real photographs (NYU-v2) it has never seen the like of.

Usage: python benchmarks/real_photos.py [RUN] [PHOTOS]

PHOTOS holds ``rgb/*.png``, ``depth_mm/*.png`` (16-bit millimetres) and ``semseg13/*.png`` (0 = unlabelled); it is not
part of the repository. The thirteen NYU classes are compared through what both vocabularies share: room classes without
a counterpart (door, person) count as wrong, pixels of NYU classes without one (books, picture) are left out.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import taskformer

ROOT = Path(__file__).parent.parent
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


def score(model: Any, photos: Path) -> dict[str, float]:
    """Predict and score semseg and depth.

    Args:
        model: What :func:`taskformer.load` returns.
        photos: Folder of the photographs and their labels.

    Returns:
        Scores by name; shares as fractions, depth errors in metres.
    """
    lookup = class_lookup(model.hparams["tasks"]["semseg"]["classes"])
    confusion = np.zeros((len(NAMES), len(NAMES) + 1), dtype=np.int64)
    predicted, measured = [], []
    for file in sorted((photos / "rgb").glob("*.png")):
        maps = model.predict_image(file)
        truth = np.array([NAMES.index(n) if n in SAME else -1 for n in NYU13])[read(photos / "semseg13" / file.name)]
        known = truth >= 0
        np.add.at(confusion, (truth[known], lookup[inside(maps["semseg"])][known]), 1)
        predicted.append(inside(maps["depth"][0]))
        measured.append(read(photos / "depth_mm" / file.name) / 1000.0)
    depth, truth_depth = np.stack(predicted), np.stack(measured)
    scale = np.median(truth_depth, axis=(1, 2), keepdims=True) / np.median(depth, axis=(1, 2), keepdims=True)
    hits = np.diag(confusion[:, :-1])
    union = confusion.sum(1) + confusion[:, :-1].sum(0) - hits
    present = confusion.sum(1) > 0
    iou = hits[present] / union[present]
    return {
        "semseg mIoU": float(iou.mean()),
        "semseg pixel accuracy": hits.sum() / confusion.sum(),
        "pixel accuracy of 'all wall'": confusion[NAMES.index("wall")].sum() / confusion.sum(),
        "depth RMSE": rmse(depth - truth_depth),
        "depth RMSE, scaled to the median": rmse(depth * scale - truth_depth),
        "depth RMSE of the best constant": rmse(truth_depth.mean() - truth_depth),
        **{f"IoU {name}": float(v) for name, v in zip(np.array(NAMES)[present], iou, strict=True)},
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


if __name__ == "__main__":
    given = [Path(argument) for argument in sys.argv[1:]]
    run, folder = (given + [ROOT / "runs" / "demo", ROOT.parent / "shared" / "data" / "nyu10"][len(given) :])[:2]
    for title, value in score(taskformer.load(run), folder).items():
        print(f"{title:<36} {value:.3f}")
