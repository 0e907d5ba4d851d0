"""Plain ViTs with patches of another size than their weights': timm's resampling, and what it means."""

from functools import partial

import pytest
import timm
import torch
from torch.nn import functional as F

from taskformer.errors import ConfigError
from taskformer.models import Backbone
from taskformer.models.baseline import BaselineHead
from taskformer.models.network import DenseNetwork


def named_as_dinov2(state):
    """Rename a DINOv2 of timm's to what its authors saved: a mask token, and positions of the class token."""
    original = {"mask_token": torch.zeros(1, state["cls_token"].shape[-1]), **state}
    if "reg_token" in state:
        original["register_tokens"] = original.pop("reg_token")
        of_class = torch.randn_like(state["cls_token"])
        original["cls_token"] = state["cls_token"] - of_class
        original["pos_embed"] = torch.cat([of_class, state["pos_embed"]], dim=1)
    return original


def lively(name):
    """A timm model whose tensors hide nothing."""
    torch.manual_seed(7)
    model = timm.create_model(name, num_classes=0)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize(
    ("name", "naming"),
    [
        ("vit_small_patch14_reg4_dinov2", named_as_dinov2),
        pytest.param("vit_small_patch14_reg4_dinov2", dict, marks=pytest.mark.slow),
        pytest.param("vit_small_patch14_dinov2", named_as_dinov2, marks=pytest.mark.slow),
        pytest.param("vit_small_patch14_dinov2", dict, marks=pytest.mark.slow),
    ],
)
def test_weights_of_patches_of_14_serve_patches_of_16(name, naming, tmp_path):
    source = lively(name)
    torch.save(naming(source.state_dict()), tmp_path / "w.pth")
    backbone = Backbone(name, str(tmp_path / "w.pth"), patch_size=16)  # a warning would say what does not fit
    assert (backbone.strides, backbone.step) == ([4, 8, 16, 32], 32)

    reference = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "w.pth")}, num_classes=0, patch_size=16
    )
    ours, theirs = backbone.encoder.state_dict(), reference.state_dict()
    assert ours.keys() == theirs.keys()
    for key, values in theirs.items():
        torch.testing.assert_close(ours[key], values)

    # A kernel sees in a patch of 16 what it saw in the patch of 14 that was enlarged to it.
    patches = torch.randn(5, 3, 14, 14)
    enlarged = F.interpolate(patches, (16, 16), mode="bicubic", antialias=True)
    before, after = (F.conv2d(*pair) for pair in (
        (patches, source.patch_embed.proj.weight), (enlarged, ours["patch_embed.proj.weight"])))  # fmt: skip
    torch.testing.assert_close(before, after, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("patch_size", [8, 14])
def test_any_plain_vit_takes_another_patch_size(patch_size):
    backbone = Backbone("test_vit", patch_size=patch_size)
    assert backbone.strides == {8: [4, 8, 16, 32], 14: [7, 14, 28, 56]}[patch_size]
    network = DenseNetwork(backbone, partial(BaselineHead, {"depth": 1}, embed_dim=8, head_dim=8))
    assert network(torch.randn(2, 3, 50, 75))["depth"].shape == (2, 1, 50, 75)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "strides"),
    [("vit_small_patch14_dinov2", [7, 14, 28, 56]), ("vit_small_patch16_dinov3", [4, 8, 16, 32])],
)
def test_the_small_dino_encoders_give_four_maps(name, strides):
    backbone = Backbone(name).eval()
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 2 * backbone.step, 3 * backbone.step))
    assert backbone.strides == strides
    assert [tuple(x.shape) for x in maps] == [(1, 384, 2 * backbone.step // s, 3 * backbone.step // s) for s in strides]


@pytest.mark.slow
def test_dinov3_is_loaded_as_its_authors_saved_it(tmp_path):
    name = "vit_small_patch16_dinov3_qkvb"
    source = lively(name)
    original = {"mask_token": torch.zeros(1, 384), "rope_embed.periods": torch.ones(16)}
    for key, values in source.state_dict().items():
        if key.endswith("v_bias"):
            continue
        if key.endswith("q_bias"):
            other = source.state_dict()[key.replace("q_bias", "v_bias")]
            original[key.replace("q_bias", "qkv.bias")] = torch.cat([values, torch.zeros_like(values), other])
            original[key.replace("q_bias", "qkv.bias_mask")] = torch.ones(3 * 384)
            continue
        renamed = key.replace("reg_token", "storage_tokens").replace("gamma_1", "ls1.gamma")
        original[renamed.replace("gamma_2", "ls2.gamma")] = values
    torch.save(original, tmp_path / "w.pth")
    backbone = Backbone(name, str(tmp_path / "w.pth"))  # a warning would say what does not fit
    for key, values in backbone.encoder.state_dict().items():
        torch.testing.assert_close(values, source.state_dict()[key])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("test_resnet", "the encoder 'test_resnet' has no patches of another size; leave out patch_size"),
        ("swin_tiny_patch4_window7_224", "patch_size is for plain ViTs, .*; leave it out for 'swin_tiny"),
    ],
)
def test_other_encoders_have_no_such_patches(name, message):
    with pytest.raises(ConfigError, match=message):
        Backbone(name, patch_size=8)
