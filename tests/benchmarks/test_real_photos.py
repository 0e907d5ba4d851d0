"""The benchmark on photographs, checked with a model that knows the answers."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
PHOTOS = ROOT.parent / "shared" / "data" / "nyu10"

sys.path.insert(0, str(ROOT / "benchmarks"))
from real_photos import NYU13, look, record, score  # noqa: E402 - benchmarks are scripts, not a package

CLASSES = [
    "wall",
    "floor",
    "ceiling",
    "window",
    "bed",
    "sofa",
    "chair",
    "table",
    "cabinet",
    "appliance",
    "prop",
    "door",
]
ROOM_CLASS = {"furniture": "cabinet", "objects": "prop", "tv": "appliance"}


def oracle(depth_factor=1.0):
    def predict(file):
        labels = np.asarray(Image.open(PHOTOS / "semseg13" / file.name))
        depth = np.asarray(Image.open(PHOTOS / "depth_mm" / file.name)) / 1000
        names = [ROOM_CLASS.get(name, name) for name in NYU13]
        lookup = np.array([CLASSES.index(name) if name in CLASSES else 0 for name in names])
        return {"semseg": lookup[labels], "depth": depth[None] * depth_factor}

    return SimpleNamespace(hparams={"tasks": {"semseg": {"classes": CLASSES}, "depth": {}}}, predict_image=predict)


@pytest.mark.skipif(not PHOTOS.exists(), reason=f"the photographs of {PHOTOS.name} are not here")
def test_the_truth_scores_perfectly_and_a_wrong_scale_only_fails_unscaled():
    perfect, doubled = score(look(oracle(), PHOTOS)), score(look(oracle(2.0), PHOTOS))
    assert perfect["semseg mIoU"] == perfect["semseg pixel accuracy"] == 1
    assert perfect["depth RMSE"] == 0
    assert doubled["depth RMSE"] > 2
    assert doubled["depth RMSE, scaled to the median"] == pytest.approx(0, abs=1e-9)
    assert 0.1 < perfect["pixel accuracy of 'all wall'"] < 0.6


@pytest.mark.skipif(not PHOTOS.exists(), reason=f"the photographs of {PHOTOS.name} are not here")
def test_what_is_kept_has_each_photograph_and_the_tasks_of_the_model_alone():
    found = look(oracle(2.0), PHOTOS)
    kept = record(found)
    assert kept["tasks"]["depth"]["rmse"] == score(found)["depth RMSE"]
    assert len(kept["images"]["ids"]) == kept["facts"]["images"] == len(list((PHOTOS / "rgb").glob("*.png")))
    truth = [np.asarray(Image.open(PHOTOS / "depth_mm" / f"{name}.png"))[10:-10, 10:-10] / 1000
             for name in kept["images"]["ids"]]  # fmt: skip
    assert kept["images"]["depth"] == pytest.approx([np.sqrt(np.mean(each**2)) for each in truth], rel=1e-5)
    assert kept["images"]["semseg"] == [1.0] * len(truth)
    alone = oracle()
    alone.hparams["tasks"] = {"normals": {}, "depth": {}}
    assert set(record(look(alone, PHOTOS))["tasks"]) == {"depth"}
