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


#: One small member of every family that works, beside those above.
WORKING = [
    "caformer_s18",
    "convmixer_768_32",
    "convnextv2_atto",
    "cpubone_nano",
    "cs3darknet_s",
    "csatv2",
    "cspnext_tiny",
    "darknet17",
    "davit_tiny",
    "deit3_small_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "densenet121",
    "dla46_c",
    "dpn48b",
    "edgenext_xx_small",
    "efficientnet_b0",
    "efficientvim_m1",
    "efficientvit_b0",
    "efficientvit_l1",
    "ese_vovnet19b_slim_dw",
    "eva02_tiny_patch14_224",
    "fasternet_t0",
    "fastvit_t8",
    "flexivit_small",
    "focalnet_tiny_srf",
    "ghostnet_050",
    "ghostnetv3_050",
    "halonet26t",
    "hardcorenas_a",
    "hgnetv2_b0",
    "hieradet_small",
    "hrnet_w18",
    "iformer_t",
    "inception_next_atto",
    "lambda_resnet26t",
    "lcnetv2_small",
    "legacy_seresnet18",
    "lowformer_b0",
    "mambaout_femto",
    "maxvit_pico_rw_256",
    "maxvit_tiny_tf_224",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small_035",
    "mobilenetv4_hybrid_medium",
    "mobileone_s0",
    "mobilevit_xxs",
    "mvitv2_tiny",
    "nextvit_small",
    "nf_regnet_b0",
    "nfnet_l0",
    "poolformer_s12",
    "pvt_v2_b0",
    "rdnet_tiny",
    "regnetx_002",
    "regnety_002",
    "regnetz_b16",
    "repghostnet_050",
    "repvgg_a0",
    "repvit_m0_9",
    "res2net50_14w_8s",
    "resnest14d",
    "resnetv2_50x1_bit",
    "rexnetr_100",
    "sam2_hiera_tiny",
    "selecsls42",
    "sequencer2d_s",
    "shvit_s1",
    "skresnet18",
    "starnet_s050",
    "swiftformer_xs",
    "swin_s3_tiny_224",
    "swinv2_cr_tiny_224",
    "swinv2_tiny_window8_256",
    "tf_efficientnetv2_b0",
    "tiny_vit_5m_224",
    "tresnet_m",
    "twins_pcpvt_small",
    "twins_svt_small",
    "vgg11_bn",
    "vit_base_mci_224",
    "vit_small_patch14_dinov2",
    "vit_small_patch16_dinov3",
    "vit_small_patch8_224",
    "vit_tiny_r_s16_p8_224",
    "vitamin_small_224",
    "xception41",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKING)
def test_every_family_trains_at_any_size(name):
    check(Backbone(name), (64, 64), (100, 76), (224, 224))


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
    "hiera_tiny_224": "one of 32x64 pixels ends in RuntimeError: The size of tensor a",
    "levit_128s": "one of 64x128 pixels ends in RuntimeError",
    "convit_tiny": "one of 32x64 pixels ends in AssertionError: Input height",
    "crossvit_tiny_240": r"one of 17x34 pixels gives maps \[\(96, 20, 20\)",
}


#: Further families of one image size, or whose maps are no whole fraction of it.
ALSO_REFUSED = [
    "botnet26t_256",
    "cait_xxs24_224",
    "coat_lite_tiny",
    "coatnet_nano_rw_224",
    "efficientformer_l1",
    "efficientformerv2_s0",
    "gcvit_xxtiny",
    "gmlp_ti16_224",
    "inception_v4",
    "legacy_xception",
    "mixer_s16_224",
    "nest_tiny",
    "pit_ti_224",
    "resmlp_12_224",
    "tnt_s_patch16_224",
    "visformer_tiny",
    "vit_relpos_small_patch16_224",
    "volo_d1_224",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", ALSO_REFUSED)
def test_every_other_family_is_refused(name):
    with pytest.raises(ConfigError, match=f"the encoder '{name}' does not take images of any size, as one of"):
        Backbone(name)


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
