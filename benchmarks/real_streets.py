"""How well a model trained on rendered rooms finds the edges of real streets (IDD Lite), which it has never seen.

Usage: python benchmarks/real_streets.py [RUN] [--streets STREETS] [--json FILE]

STREETS is the data set's folder, as ``configs/data/idd_lite.yaml`` reads it; it is not part of the repository. Rooms
and streets have no class in common, so only edges are scored: the boundaries of the streets' classes, on the validation
images, by the fast score of a training. Of a model without edges nothing is.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from real_photos import ROOT
from torch import Tensor

import taskformer
from taskformer.data.configured import data_module
from taskformer.files import write_json
from taskformer.metrics import TolerantFMeasure

CONFIG = ROOT / "configs" / "data" / "idd_lite.yaml"
STREETS = ROOT.parent / "shared" / "data" / "idd_lite"


def record(model: Any, streets: Path) -> dict[str, Any]:
    """Score edges, written as ``metrics.json`` has the scores of a test.

    Args:
        model: What :func:`taskformer.load` returns.
        streets: Folder of the data set.
    """
    seen = look(model, streets) if "edges" in model.tasks else {}
    return {
        "protocol": "boundaries of classes",
        "tasks": {"edges": {"f_tolerant": score(list(seen.values()))}} if seen else {},
        "better": {"edges": {"f_tolerant": "higher"}},
        "headline": {"edges": "f_tolerant"},
        "units": {"edges": {"f_tolerant": "%"}},
        "facts": {"split": "streets", "images": len(seen)},
        "images": {"ids": list(seen), "edges": [float(f"{score([each]):.6g}") for each in seen.values()]},
    }


def look(model: Any, streets: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Predict every street: id to logits and true edges ``(1, 1, H, W)``."""
    data = data_module(CONFIG, root=str(streets), tasks=["edges"])
    images = data.evaluation_dataset("val")
    found = {}
    model.eval()
    with torch.inference_mode():
        for number in range(len(images)):
            sample = images[number]
            logits = model(sample["image"].unsqueeze(0))["edges"]
            found[sample["meta"]["id"]] = logits, sample["targets"]["edges"].unsqueeze(0)
    return found


def score(found: list[tuple[Tensor, Tensor]]) -> float:
    """Score logits against true edges, at their common best threshold."""
    measure = TolerantFMeasure(max_dist=0.0075)  # of the data set's configuration
    for logits, edges in found:
        measure.update(logits, edges)
    return float(measure.compute()["f_tolerant"])


def main() -> None:
    """Score a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", default=ROOT / "runs" / "demo", help="folder of a trained run")
    parser.add_argument("--streets", type=Path, default=STREETS, help="folder of IDD Lite")
    parser.add_argument("--json", type=Path, help="also write the scores to this file")
    options = parser.parse_args()
    found = record(taskformer.load(options.run), options.streets)
    print(found["tasks"] or "the model has no edges")
    if options.json:
        write_json(options.json, found)


if __name__ == "__main__":
    main()
