"""Files in configs/encoder name encoders that timm has weights of, and say what those were trained on."""

from pathlib import Path

import pytest
import timm
import torch
import yaml

from taskformer.modules import Baseline

FILES = sorted((Path(__file__).parent.parent / "configs" / "encoder").glob("*.yaml"))
#: What the labels of initialisation are called in timm's tags; fine-tuning on less does not change them.
TAGS = {
    "imagenet1k": ("in1k", "mae"),
    "imagenet22k": ("in22k", "in21k"),
    "lvd142m": ("lvd142m",),
    "lvd1689m": ("lvd1689m",),
    "webli": ("webli",),
}


def settings(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["init_args"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_weights_exist_and_are_labelled(path):
    given = settings(path)
    assert given["weights"] == "timm"
    assert given["backbone"] in timm.list_pretrained(given["backbone"])
    tag = given["backbone"].partition(".")[2]
    assert any(name in tag for name in TAGS[given["initialisation"]])
    others = {name for label, names in TAGS.items() for name in names if label.startswith("imagenet22k")}
    assert given["initialisation"] != "imagenet1k" or not any(name in tag for name in others)


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_builds_without_its_weights(path):
    with torch.device("meta"):
        model = Baseline({"depth": {}}, **settings(path) | {"weights": "random"})
    assert len(model.network.backbone.strides) == 4
