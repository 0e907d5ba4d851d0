"""Weights of a hub repository, with a folder in the place of the network: what is asked for, and what is read."""

import json
import shutil

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import save_file

from taskformer.errors import WeightsError
from taskformer.models import Backbone

NAME = "test_resnet"
#: Images normalised otherwise than timm says of the model, with 0.5.
OTHER = {"mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3]}


@pytest.fixture
def source():
    """A model with weights of its own."""
    torch.manual_seed(3)
    return timm.create_model(NAME, num_classes=0)


class Hub:
    """Repositories as folders; remembers what was asked for."""

    def __init__(self, folder):
        self.folder = folder
        self.asked = []
        self.online = True

    def add(self, name, content, repository="ORG/REPO"):
        path = self.folder / repository / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".json"):
            path.write_text(json.dumps(content))
        elif name.endswith(".safetensors"):
            save_file(content, path)
        else:
            torch.save(content, path)

    def download(self, repo_id, filename, *, revision=None):
        self.asked.append((repo_id, filename, revision))
        path = self.folder / repo_id / filename
        if not self.online:
            message = "Cannot find the requested files in the disk cache and outgoing traffic has been disabled."
            raise LocalEntryNotFoundError(message)
        if not path.exists():
            message = f"Entry Not Found: {filename}"
            raise EntryNotFoundError(message)
        return str(path)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = Hub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.download)
    return hub


def test_a_repository_gives_tensors_and_what_images_they_want(hub, source):
    hub.add("model.safetensors", source.state_dict())
    hub.add("config.json", {"architecture": NAME, "pretrained_cfg": OTHER})
    backbone = Backbone(NAME, "hub:ORG/REPO@v2").eval()
    assert set(hub.asked) == {("ORG/REPO", "model.safetensors", "v2"), ("ORG/REPO", "config.json", "v2")}
    assert backbone.normalisation == [OTHER["mean"], OTHER["std"]]

    # The same picture as the weights were trained on reaches timm's model, whatever our own normalisation.
    pixels = torch.rand(1, 3, 64, 96)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    wanted = (pixels - torch.tensor(OTHER["mean"]).view(3, 1, 1)) / torch.tensor(OTHER["std"]).view(3, 1, 1)
    with torch.no_grad():
        theirs = source.eval().forward_intermediates(wanted, intermediates_only=True)
        ours = backbone((pixels - mean) / std)
    torch.testing.assert_close(ours, theirs[-4:], rtol=1e-4, atol=1e-5)


def test_files_of_torch_are_taken_where_there_are_no_others(hub, source):
    hub.add("pytorch_model.bin", source.state_dict())
    backbone = Backbone(NAME, "hub:ORG/REPO")
    torch.testing.assert_close(backbone.encoder.state_dict(), source.state_dict())
    assert backbone.normalisation == [[0.5] * 3, [0.5] * 3]


def test_one_file_of_a_repository_is_taken(hub, source):
    hub.add("model.safetensors", {"other": torch.zeros(1)})
    hub.add("students/s.pth", source.state_dict())
    hub.add("preprocessor_config.json", {"image_mean": OTHER["mean"], "image_std": OTHER["std"]})  # of transformers
    backbone = Backbone(NAME, "hub:ORG/REPO/students/s.pth")
    torch.testing.assert_close(backbone.encoder.state_dict(), source.state_dict())
    assert backbone.normalisation == [OTHER["mean"], OTHER["std"]]
    assert ("ORG/REPO", "model.safetensors", None) not in hub.asked


def test_settings_that_cannot_be_read_are_not_passed_over(hub, source, monkeypatch):
    hub.add("model.safetensors", source.state_dict())

    def only_tensors(repo_id, filename, *, revision=None):
        hub.online = filename == "model.safetensors"
        return hub.download(repo_id, filename, revision=revision)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", only_tensors)
    with pytest.warns(UserWarning, match=r"config\.json cannot be downloaded .*as timm says of 'test_resnet'"):
        Backbone(NAME, "hub:ORG/REPO")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hub.download)
    hub.online = True
    hub.add("config.json", ["no", "settings"])
    with pytest.warns(UserWarning, match=r"config\.json of 'ORG/REPO' holds no settings of timm or transformers"):
        Backbone(NAME, "hub:ORG/REPO")


def test_weights_of_another_model_are_refused(hub, source):
    hub.add("model.safetensors", source.state_dict())
    hub.add("config.json", {"architecture": NAME, "pretrained_cfg": OTHER})
    with pytest.raises(WeightsError, match=r"weights 'hub:ORG/REPO' fill \d+ of the .* is this file of another model"):
        Backbone("resnet18", "hub:ORG/REPO")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("hub:REPO", "'hub:REPO' name no repository; expected hub:ORG/REPO"),
        ("hub:ORG/EMPTY", "has no model.safetensors or pytorch_model.bin; name one of its files"),
        ("hub:ORG/EMPTY/w.pth", "has no w.pth"),
    ],
)
def test_mistakes_are_explained(weights, message, hub):
    with pytest.raises(WeightsError, match=message):
        Backbone(NAME, weights)


def test_no_network_is_explained(hub):
    hub.online = False
    with pytest.raises(WeightsError, match=r"cannot be downloaded \(LocalEntryNotFoundError: .*go online, or give"):
        Backbone(NAME, "hub:ORG/REPO")


def test_the_cache_serves_without_a_network(tmp_path, source, monkeypatch):
    """The real huggingface_hub, offline as in all tests, with what an earlier download would have left."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--ORG--REPO" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (tmp_path / "models--ORG--REPO" / "refs").mkdir()
    (tmp_path / "models--ORG--REPO" / "refs" / "main").write_text("0" * 40)
    save_file(source.state_dict(), snapshot / "model.safetensors")
    (snapshot / "config.json").write_text(json.dumps({"pretrained_cfg": OTHER}))
    backbone = Backbone(NAME, "hub:ORG/REPO")
    torch.testing.assert_close(backbone.encoder.state_dict(), source.state_dict())
    assert backbone.normalisation == [OTHER["mean"], OTHER["std"]]
    shutil.rmtree(tmp_path / "models--ORG--REPO")
    with pytest.raises(WeightsError, match="cannot be downloaded"):
        Backbone(NAME, "hub:ORG/REPO")


def test_a_repository_that_does_not_exist_is_explained(monkeypatch):
    def missing(*args, **kwargs):
        error = RepositoryNotFoundError.__new__(RepositoryNotFoundError)  # its constructor wants the server's answer
        OSError.__init__(error, "Repository Not Found")
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", missing)
    with pytest.raises(WeightsError, match=r"cannot be downloaded \(RepositoryNotFoundError.*check the name"):
        Backbone(NAME, "hub:ORG/NONE")
