"""Encoders in the form that published dense predictors have, against plain re-statements."""

import pytest
import torch
from plain_encoders import PlainSwin
from torch.nn import functional as F

from taskformer.errors import ConfigError
from taskformer.models import Backbone
from taskformer.models.segmentation import named_as_timm

SWIN = "swin_tiny_patch4_window7_224"


@pytest.fixture(scope="module")
def swin():
    """A plain Swin-T with random weights that hide nothing."""
    torch.manual_seed(0)
    plain = PlainSwin(96, (2, 2, 6, 2), (3, 6, 12, 24), 7).eval()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return plain


def original_names(state):
    """Name and order the tensors of mmsegmentation's Swin as the original does."""
    names = {
        "projection": "proj",
        "stages": "layers",
        ".w_msa": "",
        "ffn.layers.0.0": "mlp.fc1",
        "ffn.layers.1": "mlp.fc2",
    }
    renamed = {}
    for name, values in state.items():
        if (
            "downsample" in name
        ):  # (channel, y, x) to four pixels (0, 0), (1, 0), (0, 1), (1, 1), each with all channels
            corners = values.unflatten(-1, (-1, 4))
            values = torch.cat([corners[..., i] for i in (0, 2, 1, 3)], dim=-1)
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        renamed[name] = values
    return renamed


@pytest.mark.parametrize("naming", [dict, original_names])
def test_swin_is_the_published_one(swin, naming):
    backbone = Backbone(SWIN, form="segmentation").eval()
    backbone.load_state_dict(named_as_timm(naming(swin.state_dict())))
    image = torch.randn(2, 3, 96, 160)  # no multiple of the windows in any stage
    with torch.no_grad():
        maps = zip(backbone(image), swin(image), strict=True)
    for ours, plain in maps:
        assert ours.shape == plain.shape
        assert (ours - plain).abs().max() < 1e-4 * plain.abs().max()


def test_timms_swin_is_another_at_such_sizes(swin):
    backbone = Backbone(SWIN, form="segmentation").eval()
    backbone.load_state_dict(named_as_timm(swin.state_dict()))
    classifier = Backbone(SWIN).eval()
    classifier.encoder.load_state_dict(backbone.encoder.state_dict())
    image = torch.randn(1, 3, 96, 160)
    with torch.no_grad():
        last = swin.norm3(classifier(image)[-1].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        assert (last - backbone(image)[-1]).abs().max() > 1e-2


def test_hrnet_fuses_bilinearly():
    torch.manual_seed(0)
    backbone = Backbone("hrnet_w18_small_v2", form="segmentation").eval()
    stage = backbone.encoder.stage2[0]
    fine, coarse = torch.randn(1, 18, 8, 12), torch.randn(1, 36, 4, 6)
    convolution, norm, _ = stage.fuse_layers[0][1]
    up = F.interpolate(norm(convolution(stage.branches[1](coarse))), size=(8, 12), mode="bilinear", align_corners=False)
    expected = F.relu(stage.branches[0](fine) + up)
    torch.testing.assert_close(stage([fine, coarse])[0], expected)
    assert named_as_timm(backbone.encoder.state_dict()).keys() == {
        name for name in backbone.state_dict() if "num_batches_tracked" not in name
    }


def test_every_parameter_of_a_published_swin_gets_a_gradient():
    backbone = Backbone(SWIN, form="segmentation")
    sum((feature * torch.randn_like(feature)).sum() for feature in backbone(torch.randn(1, 3, 64, 64))).backward()
    assert [key for key, parameter in backbone.named_parameters() if parameter.grad is None] == []


def test_other_encoders_have_no_such_form():
    with pytest.raises(
        ConfigError, match="only Swin and HRNet have a form for segmentation, got the encoder 'resnet18'"
    ):
        Backbone("resnet18", form="segmentation")
