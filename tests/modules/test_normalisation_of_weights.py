"""A trained model normalises images as its encoder's first weights wanted it, wherever it is loaded."""

import json

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

import taskformer
from taskformer.models import Backbone
from taskformer.modules import Baseline
from taskformer.modules.recipe import initialisation

SETTINGS = {"backbone": "test_resnet", "embed_dim": 8, "head_dim": 8}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A repository whose weights want images of another mean and deviation than timm's."""
    save_file(Backbone("test_resnet").encoder.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4] * 3}}))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repository, file, revision: str(tmp_path / file))


def save(model, path):
    """Write what a Trainer writes of a model."""
    checkpoint = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams), "global_step": 1}
    model.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)


def test_weights_of_the_hub_are_not_asked_for_again(hub, tmp_path, monkeypatch):
    model = Baseline({"depth": {}}, weights="hub:ORG/REPO", **SETTINGS).eval()
    assert initialisation(model.hparams) == "hub:ORG/REPO"
    save(model, tmp_path / "m.ckpt")
    monkeypatch.undo()  # no network from here
    loaded = taskformer.load(tmp_path / "m.ckpt")
    image = torch.randn(1, 3, 40, 50)
    with torch.no_grad():
        torch.testing.assert_close(loaded(image), model(image), rtol=0, atol=0)
    assert loaded.hparams["normalisation"] == [[0.1, 0.2, 0.3], [0.4] * 3]
    assert loaded.hparams["weights"] == "hub:ORG/REPO"


def test_a_checkpoint_brings_its_normalisation_into_a_model_of_other_weights(hub, tmp_path):
    trained = Baseline({"depth": {}}, weights="hub:ORG/REPO", **SETTINGS)
    save(trained, tmp_path / "m.ckpt")
    other = Baseline({"depth": {}}, **SETTINGS)
    assert not torch.equal(other.network.backbone.scale, trained.network.backbone.scale)
    other.on_load_checkpoint(torch.load(tmp_path / "m.ckpt", weights_only=True))
    torch.testing.assert_close(other.network.backbone.scale, trained.network.backbone.scale)
    torch.testing.assert_close(other.network.backbone.shift, trained.network.backbone.shift)


def test_checkpoints_without_one_go_by_the_name(tmp_path):
    model = Baseline({"depth": {}}, **SETTINGS)
    del model.hparams["normalisation"]
    save(model, tmp_path / "m.ckpt")
    loaded = taskformer.load(tmp_path / "m.ckpt")
    assert loaded.network.backbone.normalisation == [[0.5] * 3, [0.5] * 3]
