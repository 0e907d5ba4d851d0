"""Backbones: one contract for every timm encoder, or one sentence that refuses it."""

from functools import partial

import pytest
import timm
import torch
from timm.optim import param_groups_weight_decay

from taskformer.errors import ConfigError, UnknownNameError, WeightsError
from taskformer.models import Backbone
from taskformer.models.backbones import FeaturePyramid
from taskformer.models.baseline import BaselineHead
from taskformer.models.network import DenseNetwork

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


def test_images_reach_the_network_in_its_own_normalisation():
    backbone = Backbone("tf_efficientnet_lite0")  # trained with mean and deviation 0.5
    white = (torch.ones(3, 1, 1) - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    torch.testing.assert_close(white * backbone.scale + backbone.shift, torch.ones(3, 1, 1))


OTHER_STRIDES = {
    "vit_small_patch14_reg4_dinov2": ([7, 14, 28, 56], 56),
    "xcit_nano_12_p8_224": ([4, 8, 16, 32], 32),
    "efficientvit_m0": ([16, 32, 64], 64),
    "mobilevitv2_050": ([4, 8, 16, 32], 64),  # its patches cover two of the coarsest map's places
}


@pytest.mark.parametrize(("name", "strides", "step"), [(name, *rest) for name, rest in OTHER_STRIDES.items()])
def test_other_strides_and_patches_serve_any_image_size(name, strides, step):
    backbone = Backbone(name)
    assert (backbone.strides, backbone.step) == (strides, step)
    check(backbone, (100, 76))


def check(backbone, *sizes):
    """Train one step with a small head at each size: all finite, of the image's size, nothing without a gradient."""
    network = DenseNetwork(backbone, partial(BaselineHead, {"depth": 1}, embed_dim=8, head_dim=8))
    for size in sizes:
        network.zero_grad()
        output = network(torch.randn(2, 3, *size))["depth"]
        assert output.shape == (2, 1, *size)
        output.square().mean().backward()
        faults = [
            name
            for name, parameter in network.named_parameters()
            if parameter.requires_grad and (parameter.grad is None or not parameter.grad.isfinite().all())
        ]
        assert faults == []


@pytest.mark.parametrize(
    ("patch", "strides"),
    [
        (4, [4, 8, 16, 32]),
        (7, [7, 14, 28, 56]),
        (8, [4, 8, 16, 32]),
        (14, [7, 14, 28, 56]),
        (16, [4, 8, 16, 32]),
        (32, [8, 16, 32, 64]),
    ],
)
def test_any_patch_is_spread_over_four_whole_strides(patch, strides):
    pyramid = FeaturePyramid(6, patch)
    assert pyramid.strides == strides
    image = 8 * patch * 7
    maps = pyramid([torch.randn(1, 6, image // patch, image // patch)] * 4)
    assert [image // x.shape[-1] for x in maps] == strides


def test_blocks_of_a_vit_with_patches_of_14_are_those_of_timm():
    name = "vit_small_patch14_reg4_dinov2"
    backbone = Backbone(name).eval()
    reference = timm.create_model(name, num_classes=0, dynamic_img_size=True).eval()
    reference.load_state_dict(backbone.encoder.state_dict())
    image = torch.randn(1, 3, 56, 112)
    with torch.no_grad():
        theirs = reference.forward_intermediates(image, indices=[5], norm=True, intermediates_only=True)
        # The second level has the patches' own stride.
        torch.testing.assert_close(backbone(image)[1], theirs[0])


REFUSED = {
    "levit_128s": "one of 64x128 pixels ends in RuntimeError",
    "convit_tiny": "one of 32x64 pixels ends in AssertionError: Input height",
    "crossvit_tiny_240": r"one of 17x34 pixels gives maps \[\(96, 20, 20\)",
}


@pytest.mark.parametrize(("name", "reason"), REFUSED.items())
def test_an_encoder_of_one_image_size_is_refused_when_it_is_built(name, reason):
    with pytest.raises(ConfigError, match=f"the encoder '{name}' does not take images of any size, as {reason}"):
        Backbone(name)


@pytest.mark.parametrize(
    "name", ["swin_tiny_patch4_window7_224", "vit_tiny_patch16_224", "xcit_nano_12_p16_224", "resnet18"]
)
def test_parameters_free_of_weight_decay_are_those_of_timms_optimizers(name):
    network = DenseNetwork(Backbone(name), partial(BaselineHead, {"depth": 1}))
    encoder = network.backbone.encoder
    declared = getattr(encoder, "no_weight_decay", set)()
    groups = param_groups_weight_decay(encoder, 0.1, weight_decay_exclude_1d=False, no_weight_decay_list=declared)
    free = {id(x) for group in groups if group["weight_decay"] == 0 for x in group["params"]}
    ours = network.no_weight_decay()
    assert {id(x) for name, x in network.named_parameters() if name in ours} == free
    assert len(ours) == len(free)


def test_one_value_per_channel_is_explained():
    network = DenseNetwork(Backbone("resnet18"), partial(BaselineHead, {"depth": 1}))
    with pytest.raises(ConfigError, match=r"a batch of 1 of 20x32 pixels leaves a norm with one value .*at least 2"):
        network(torch.randn(1, 3, 20, 32))
    network(torch.randn(2, 3, 20, 32))
    network.eval()(torch.randn(1, 3, 20, 32))


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("resnet19", {}, UnknownNameError, "did you mean 'resnet18'"),
        ("resnet18.foo", {}, ConfigError, r"timm cannot build the encoder 'resnet18\.foo' .*Invalid pretrained tag"),
        ("dla46_c", {"drop_path_rate": 0.1}, ConfigError, "the encoder 'dla46_c' has no stochastic depth"),
        ("hrnet_w18_small", {"drop_path_rate": 0.1}, ConfigError, "'hrnet_w18_small' has no stochastic depth"),
    ],
)
def test_mistakes_are_explained(name, options, error, message):
    with pytest.raises(error, match=message):
        Backbone(name, **options)


def test_weights_that_cannot_be_downloaded_are_explained(monkeypatch):
    def refuse(*args, **kwargs):
        if kwargs.get("pretrained"):
            message = "no network"
            raise OSError(message)

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(WeightsError, match=r"'resnet18' could not be downloaded .*no network.*weights='bundled'"):
        Backbone("resnet18", "timm")
