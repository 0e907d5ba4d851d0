"""Encoders of one image size that take any here, against timm's own models built for that other size."""

from copy import deepcopy

import pytest
import timm
import torch
from timm.models.beit import Beit
from timm.models.hiera import Hiera
from torch import nn
from torch.nn import functional as F

from taskformer.models.any_size import let_any_size, relative_bias

#: torch's, about how timm resamples in the models that these are compared with.
QUIET = pytest.mark.filterwarnings("ignore:.*(searchsorted|multidimensional indexing)")


def tiny_beit():
    """A BEiT of two blocks for images of 64 x 64, as timm builds it."""
    return Beit(64, 16, num_classes=0, embed_dim=24, depth=2, num_heads=2, use_abs_pos_emb=False, use_rel_pos_bias=True)


def tiny_hiera(img_size, **options):
    """A Hiera of one block a stage, as timm builds it."""
    return Hiera(img_size, num_classes=0, embed_dim=8, stages=(1, 1, 1, 1), num_heads=1, **options)


def build_vit_relpos(kind):
    """One of timm's ViTs with relative positions, without the weights' blandness."""
    return timm.create_model("test_vit_relpos", num_classes=0, img_size=64, rel_pos_type=kind, class_token=True)


def coatnet():
    """A small CoAtNet, as timm builds it."""
    return timm.create_model("test_coatnet", num_classes=0)


def maps(encoder, image):
    """The maps of an encoder, without a norm behind them."""
    with torch.no_grad():
        return encoder.forward_intermediates(image, intermediates_only=True, output_fmt="NCHW")


def lively(encoder):
    """Give every parameter values that hide nothing, tables and tokens too."""
    torch.manual_seed(0)
    for parameter in encoder.parameters():
        parameter.data = torch.randn_like(parameter) * 0.2
    return encoder.eval()


def set_tables(encoder, source, window, grid):
    """Fill the tables of a model for maps of ``grid`` with resampled ones of a model for maps of ``window``."""
    (h, w), (height, width) = window, grid
    for (name, table), other in zip(encoder.named_parameters(), source.parameters(), strict=True):
        if not name.endswith("relative_position_bias_table"):
            assert torch.equal(table, other)
            continue
        count = (2 * h - 1) * (2 * w - 1)
        for head in range(table.shape[1]):
            image = other[:count, head].view(1, 1, 2 * h - 1, 2 * w - 1)
            size = (2 * height - 1, 2 * width - 1)
            resampled = F.interpolate(image, size, mode="bilinear", align_corners=False).flatten()
            table.data[:, head] = torch.cat([resampled, other[count:, head]])


@QUIET
@pytest.mark.parametrize("build", [tiny_beit, lambda: build_vit_relpos("bias"), lambda: build_vit_relpos("mlp")])
def test_relative_positions_are_those_of_timms_model_of_that_size(build):
    built = lively(build())
    encoder = deepcopy(built)
    let_any_size(encoder)
    own = torch.randn(2, 3, 64, 64)
    for ours, theirs in zip(maps(encoder, own), maps(built, own), strict=True):
        assert torch.equal(ours, theirs)

    other = deepcopy(built)
    other.set_input_size((96, 160))
    set_tables(other, built, (4, 4), (6, 10))
    image = torch.randn(2, 3, 96, 160)
    for _ in range(2):  # the size of the last image is not remembered
        for ours, theirs in zip(maps(encoder, image), maps(other, image), strict=True):
            torch.testing.assert_close(ours, theirs)
        maps(encoder, own)


@QUIET
def test_the_hybrid_coatnet_is_timms_model_of_that_size():
    built = lively(coatnet())
    encoder = deepcopy(built)
    let_any_size(encoder)
    other = deepcopy(built)
    other.set_input_size((96, 160))
    for name, module in built.named_modules():
        if hasattr(module, "relative_position_bias_table"):
            resized = other.get_submodule(name)
            set_tables(resized, module, module.window_size, resized.window_size)
    image = torch.randn(2, 3, 96, 160)
    for ours, theirs in zip(maps(encoder, image), maps(other, image), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("apart", [True, False])
def test_hiera_is_timms_model_of_that_size(apart):
    encoder = lively(tiny_hiera((64, 64), abs_win_pos_embed=apart))
    state = encoder.state_dict()
    let_any_size(encoder)
    other = tiny_hiera((96, 160), abs_win_pos_embed=apart).eval()
    if not apart:
        square = state["pos_embed"].view(1, 16, 16, 8).permute(0, 3, 1, 2)
        resampled = F.interpolate(square, (24, 40), mode="bicubic", antialias=True)
        state["pos_embed"] = resampled.permute(0, 2, 3, 1).reshape(1, 24 * 40, 8)
    other.load_state_dict(state)
    image = torch.randn(2, 3, 96, 160)
    for ours, theirs in zip(maps(encoder, image), maps(other, image), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_bias_belongs_to_the_place_that_looks_and_the_place_that_is_looked_at():
    table = torch.arange(3 * 5 * 2, dtype=torch.float32).view(15, 2)  # of maps of 2 x 3
    bias = relative_bias(table, (2, 3), (2, 3))
    for i in range(6):
        for j in range(6):
            down, right = i // 3 - j // 3, i % 3 - j % 3
            assert torch.equal(bias[0, :, i, j], table[(down + 1) * 5 + right + 2])


def test_resampled_tables_learn():
    encoder = lively(tiny_beit())
    let_any_size(encoder)
    sum(
        x.square().mean() for x in encoder.forward_intermediates(torch.randn(1, 3, 96, 160), intermediates_only=True)
    ).backward()
    gradients = [block.attn.relative_position_bias_table.grad for block in encoder.blocks]
    assert all(gradient[:-3].ne(0).all() for gradient in gradients)  # the last three are the class token's


class Maps(nn.Module):
    """The maps of an encoder as a program's outputs."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, image):
        return self.encoder.forward_intermediates(image, intermediates_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("build", [tiny_beit, lambda: build_vit_relpos("mlp"), lambda: tiny_hiera((64, 64)), coatnet])
def test_such_an_encoder_is_exported_and_compiled(build):
    network = Maps(lively(build()))
    let_any_size(network.encoder)
    image = torch.randn(1, 3, 96, 160)
    with torch.no_grad():
        expected = network(image)
        program = torch.export.export(network, (image,)).module()
        for run in (program, torch.compile(network, backend="eager")):
            for ours, theirs in zip(run(image), expected, strict=True):
                torch.testing.assert_close(ours, theirs)


def test_windows_of_a_maxvit_stay_as_they_are():
    built = lively(timm.create_model("test_maxvit", num_classes=0))
    encoder = deepcopy(built)
    let_any_size(encoder)
    image = torch.randn(1, 3, 160, 320)
    for ours, theirs in zip(maps(encoder, image), maps(built, image), strict=True):
        assert torch.equal(ours, theirs)
