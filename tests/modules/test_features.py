"""Maps of one encoder brought to the cells of another's, and the distance of the two."""

import pytest
import torch
from torch.nn import functional as F

from taskformer.errors import ConfigError
from taskformer.models import Backbone, BaselineHead, DenseNetwork
from taskformer.modules.features import FeatureTeacher, Guide, at_cells


def ramp(height, width, stride):
    """The position in pixels of the centre of each cell, as two channels."""
    rows, columns = ((torch.arange(length) + 0.5) * stride for length in (height, width))
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None]


@pytest.mark.parametrize(("stride", "cell"), [(16, 4), (16, 16), (8, 16), (4, 32), (14, 16), (7, 32)])
def test_positions_stay_where_they_are_whatever_the_padding(stride, cell):
    size = (100, 136)
    padded = [-(-side // 64) * 64 // stride + 2 for side in size]  # more than the image
    found = at_cells(ramp(*padded, stride), stride, size, cell)
    expected = ramp(-(-size[0] // cell), -(-size[1] // cell), cell)
    assert found.shape == expected.shape
    inside = (expected >= stride / 2).all(dim=1, keepdim=True).expand_as(expected)  # beyond the first centre
    torch.testing.assert_close(found[inside], expected[inside], atol=1e-3, rtol=0)


def test_an_enlarged_map_is_the_bilinear_one():
    coarse = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(coarse, scale_factor=4, mode="bilinear", align_corners=False)
    torch.testing.assert_close(at_cells(coarse, 16, (64, 96), 4), expected, atol=1e-5, rtol=0)


def test_a_finer_map_is_averaged():
    fine = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(at_cells(fine, 4, (32, 48), 16), F.avg_pool2d(fine, 4), atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(0)
    return DenseNetwork(Backbone("test_resnet"), lambda *sizes: BaselineHead({"depth": 1}, *sizes, embed_dim=8))


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(1)
    backbone = Backbone("test_vit")
    return Guide(backbone, backbone.encode)


def test_a_plain_vits_maps_teach_as_timm_makes_them(vit):
    assert len(set(vit.strides)) == 1
    assert vit.nearest(vit.strides[0]) == vit.nearest(4) == 3  # the last block
    image = torch.randn(1, 3, 64, 96)
    normalised = image * vit.backbone.scale + vit.backbone.shift
    expected = vit.backbone.encoder.forward_intermediates(normalised, norm=True, intermediates_only=True)
    torch.testing.assert_close(vit.map(image, 3), expected[-1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_the_distance_is_that_of_the_projected_map(student, vit, distance):
    teacher = FeatureTeacher(student, vit, own=1, distance=distance)
    image = torch.randn(2, 3, 50, 70, generator=torch.Generator().manual_seed(0))
    guiding = teacher.look(image)
    with teacher.watching():
        student(image)
    found = teacher.distance_from(guiding)
    padded = F.pad(image, (0, 96 - 70, 0, 64 - 50))
    rows, columns = -(-50 // 8), -(-70 // 8)
    own = teacher.projection(student.backbone(padded)[1])[..., :rows, :columns]
    if distance == "l2":
        expected = (own - guiding).square().mean()
    else:
        lengths = own.square().sum(1).sqrt() * guiding.square().sum(1).sqrt()
        expected = (1 - (own * guiding).sum(1) / lengths).mean()
    torch.testing.assert_close(found, expected)
    assert guiding.shape == (2, vit.channels[3], rows, columns)
    assert not student.backbone._forward_hooks  # nothing stays behind


def test_levels_that_do_not_exist_are_refused(student, vit):
    with pytest.raises(ConfigError, match=r"feature_level 4: there are 4 maps, of the strides \[4, 8, 16, 32\]"):
        FeatureTeacher(student, vit, own=4)
    with pytest.raises(ConfigError, match=r"encoder_level -5: there are 4 maps"):
        FeatureTeacher(student, vit, its=-5)
    with pytest.raises(ConfigError, match=r"no encoder with feature maps but is a Linear"):
        FeatureTeacher(torch.nn.Linear(2, 2), vit)
