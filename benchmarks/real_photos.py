"""How a model trained on rendered rooms does on ten real photographs (NYU-v2) it has never seen the like of.

Usage: python benchmarks/real_photos.py [RUN] [PHOTOS]

PHOTOS holds ``rgb/*.png``, ``depth_mm/*.png`` (16-bit millimetres) and ``semseg13/*.png`` (0 = unlabelled); it is not
part of the repository. The thirteen NYU classes are compared through what both vocabularies share: room classes without
a counterpart (door, person) count as wrong, pixels of NYU classes without one (books, picture) are left out.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

import taskformer

ROOT = Path(__file__).parent.parent
BORDER = 10  # the photographs have a white frame
NYU13 = ["", "bed", "books", "ceiling", "chair", "floor", "furniture", "objects", "picture", "sofa", "table", "tv"]
NYU13 += ["wall", "window"]
#: NYU class to the room classes that mean the same.
SAME = {
    "bed": ["bed"], "ceiling": ["ceiling"], "chair": ["chair"], "floor": ["floor"], "furniture": ["cabinet", "shelf"],
    "objects": ["lamp", "plant", "prop"], "sofa": ["sofa"], "table": ["table"], "tv": ["appliance"], "wall": ["wall"],
    "window": ["window"],
}  # fmt: skip


def main(run: Path, photos: Path) -> None:
    """Predict, score and print."""
    model = taskformer.load(run)
    classes: list[str] = list(model.hparams["tasks"]["semseg"]["classes"])
    names = list(SAME)
    truth_lut = np.array([names.index(name) if name in SAME else -1 for name in NYU13])
    guess_lut = np.array([next((i for i, n in enumerate(names) if c in SAME[n]), len(names)) for c in classes])
    confusion = np.zeros((len(names), len(names) + 1), dtype=np.int64)
    depth_errors = {"as predicted": [], "scaled to the median": [], "constant 2.7 m": []}
    inside = (slice(BORDER, -BORDER), slice(BORDER, -BORDER))
    for file in sorted((photos / "rgb").glob("*.png")):
        maps = model.predict_image(file)
        truth = truth_lut[np.asarray(Image.open(photos / "semseg13" / file.name))[inside]]
        guess = guess_lut[maps["semseg"][inside]]
        np.add.at(confusion, (truth[truth >= 0], guess[truth >= 0]), 1)
        depth = np.asarray(Image.open(photos / "depth_mm" / file.name))[inside] / 1000.0
        predicted = maps["depth"][0][inside]
        valid = depth > 0
        scaled = predicted * np.median(depth[valid]) / np.median(predicted[valid])
        for name, values in zip(depth_errors, (predicted, scaled, np.full_like(depth, 2.7)), strict=True):
            depth_errors[name].append((values - depth)[valid])
    hits = np.diag(confusion[:, : len(names)])
    union = confusion.sum(1) + confusion[:, : len(names)].sum(0) - hits
    present = confusion.sum(1) > 0
    iou = hits / np.maximum(union, 1)
    print(f"semseg: mIoU {iou[present].mean():.3f} over {present.sum()} classes, "
          f"pixel accuracy {hits.sum() / confusion.sum():.3f}")  # fmt: skip
    print("  " + ", ".join(f"{name} {value:.2f}" for name, value in zip(names, iou, strict=True)))
    print(f"  always wall: pixel accuracy {confusion[names.index('wall')].sum() / confusion.sum():.3f}")
    for name, errors in depth_errors.items():
        print(f"depth, {name}: RMSE {np.sqrt(np.mean(np.concatenate(errors) ** 2)):.3f} m")


if __name__ == "__main__":
    arguments = [Path(argument) for argument in sys.argv[1:]]
    defaults = [ROOT / "runs" / "demo", ROOT.parent / "shared" / "data" / "nyu10"]
    main(*(arguments + defaults[len(arguments) :]))
