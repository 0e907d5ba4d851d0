"""Decoders: any encoder's maps in, a map per task out, in a dense network and in the supernet alike."""

import sys
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from taskformer.errors import ConfigError, UnknownNameError
from taskformer.models import Backbone, BaselineHead, DenseNetwork, MQTransformerHead, SearchSpace, Supernet
from taskformer.models.autotaskformer.heads import STRIDE, build_heads
from taskformer.models.decoders import (
    DECODERS,
    ASPPDecoder,
    DPTDecoder,
    LinearDecoder,
    PUPDecoder,
    build_head,
    find_decoder,
    register_decoder,
)
from taskformer.modules import Baseline

TASKS = {"semseg": 5, "depth": 1}
CHANNELS, STRIDES = [8, 12, 16, 20], [4, 8, 16, 32]
SEPARATE = {"linear": LinearDecoder, "aspp": ASPPDecoder, "pup": PUPDecoder, "dpt": DPTDecoder}
ALL = ("plain", "linear", "aspp", "pup", "dpt", "query")
ENCODERS = ("test_resnet", "test_convnext", "test_vit")


def network_of(encoder, decoder):
    torch.manual_seed(0)
    backbone = Backbone(encoder, last_only=getattr(find_decoder(decoder), "last_only", False))
    width = None if decoder == "linear" else 8
    return DenseNetwork(backbone, partial(build_head, decoder, TASKS, embed_dim=width))


def features(channels=CHANNELS, strides=STRIDES, batch=2, height=64, width=96):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, count, height // stride, width // stride, generator=generator)
        for count, stride in zip(channels, strides, strict=True)
    ]


def gradient_free(module, outputs):
    """Name the parameters that train and get no gradient from the outputs; an encoder's may start at zero."""
    sum((value * torch.randn_like(value)).sum() for value in outputs.values()).backward()
    return [
        name
        for name, p in module.named_parameters()
        if p.requires_grad and (p.grad is None or not (name.startswith("backbone.") or p.grad.any()))
    ]


def test_these_are_all():
    assert set(ALL) == set(DECODERS)
    assert {name: DECODERS[name] for name in SEPARATE} == SEPARATE
    assert (DECODERS["plain"], DECODERS["query"]) == (BaselineHead, MQTransformerHead)


@pytest.mark.parametrize("decoder", ALL)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_decoder_takes_every_encoder_at_any_size_and_trains_all_of_both(encoder, decoder):
    network = network_of(encoder, decoder).eval()  # no dropout
    outputs = network(torch.randn(2, 3, 50, 71))
    assert {task: tuple(x.shape) for task, x in outputs.items()} == {"semseg": (2, 5, 50, 71), "depth": (2, 1, 50, 71)}
    assert gradient_free(network, outputs) == []


@pytest.mark.parametrize("decoder", ["pup", "dpt"])
def test_decoders_take_swins_maps(decoder):
    network = network_of("swin_tiny_patch4_window7_224", decoder)
    outputs = network(torch.randn(1, 3, 64, 80))
    assert {tuple(x.shape[-2:]) for x in outputs.values()} == {(64, 80)}
    assert gradient_free(network, outputs) == []


@pytest.mark.parametrize("decoder", ALL)
@pytest.mark.parametrize("strides", [[16, 32, 64], [7, 14, 28, 56], [8]], ids=str)
def test_any_number_of_maps_and_any_strides(decoder, strides):
    maps = features([6] * len(strides), strides, height=448, width=448)
    head = build_head(decoder, TASKS, [6] * len(strides), strides).eval()
    assert {tuple(x.shape[-2:]) for x in head(maps, (448, 448)).values()} == {(448, 448)}


@pytest.mark.parametrize("decoder", ALL)
def test_an_image_does_not_see_its_batch(decoder):
    torch.manual_seed(0)
    head = build_head(decoder, TASKS, CHANNELS, STRIDES).eval()
    maps = features(batch=3)
    together = head(maps, (64, 96))
    for image in range(3):
        alone = head([x[image : image + 1] for x in maps], (64, 96))
        for task in TASKS:
            torch.testing.assert_close(alone[task], together[task][image : image + 1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", SEPARATE)
def test_the_supernets_decoder_at_its_full_width_is_the_same_decoder(kind):
    torch.manual_seed(0)
    heads = build_heads(kind, {"depth": 3}, (), 24).eval()
    elastic = heads.dense.decoders["depth"]
    count = len(heads.fractions)
    plain = SEPARATE[kind]([24] * count, [STRIDE] * count, 3).eval()
    plain.load_state_dict(elastic.state_dict())
    taps = features([24] * count, [STRIDE] * count)
    torch.testing.assert_close(plain(taps), elastic(taps))
    assert not any(type(layer).__name__.startswith("Sliced") for layer in plain.modules())


def residual_unit(x, unit):
    hidden = F.conv2d(x.relu(), unit.first.weight, unit.first.bias, padding=1)
    return x + F.conv2d(hidden.relu(), unit.second.weight, unit.second.bias, padding=1)


def up(x, like):
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)


@pytest.mark.parametrize("strides", [STRIDES, [16] * 4], ids=["pyramid", "one stride"])
def test_dpt_fuses_from_coarse_to_fine(strides):
    """A restatement after the paper's figure: project, reassemble, then add and refine step by step."""
    torch.manual_seed(0)
    decoder = DPTDecoder(CHANNELS, strides, outputs=3, width=4).eval()
    maps = features(CHANNELS, strides)
    x = []
    for i, feature in enumerate(maps):
        conv, norm = decoder.project[i]
        x.append(F.group_norm(F.conv2d(feature, conv.weight, conv.bias), 1, norm.weight, norm.bias))
    if strides != STRIDES:
        first, second, _, last = decoder.resample
        x[0] = F.conv_transpose2d(x[0], first.weight, first.bias, stride=4)
        x[1] = F.conv_transpose2d(x[1], second.weight, second.bias, stride=2)
        x[3] = F.conv2d(x[3], last.weight, last.bias, stride=2, padding=1)
    assert [tuple(each.shape[-2:]) for each in x] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    fused = None
    for i in (3, 2, 1, 0):
        fused = x[3] if fused is None else residual_unit(x[i], decoder.adapt[i]) + up(fused, x[i])
        unit, mix = decoder.fuse[i]
        fused = F.conv2d(residual_unit(fused, unit), mix.weight, mix.bias)
    conv, norm, _, last = decoder.predict
    hidden = F.group_norm(F.conv2d(fused, conv.weight, padding=1), 1, norm.weight, norm.bias).relu()
    torch.testing.assert_close(decoder(maps), F.conv2d(hidden, last.weight, last.bias))


def test_aspp_samples_nine_places_of_the_last_map_around_each():
    """One branch by hand, place by place: a dilated kernel reads neighbours ``rate`` apart, and zeros outside."""
    torch.manual_seed(0)
    rate = 2
    decoder = ASPPDecoder(CHANNELS, STRIDES, outputs=1, width=3, rates=(rate,)).eval()
    (_, _, _, x) = maps = features(height=160, width=192)  # the last map has 5 x 6 places
    first, _, _, second, _, _, third = decoder.branches[0]
    expected = torch.zeros(2, 1, 5, 6)
    for row in range(5):
        for column in range(6):
            total = first.bias.expand(2, -1).clone()
            for i in (-1, 0, 1):
                for j in (-1, 0, 1):
                    y, z = row + i * rate, column + j * rate
                    if 0 <= y < 5 and 0 <= z < 6:
                        total += x[:, :, y, z] @ first.weight[:, :, i + 1, j + 1].T
            hidden = (total.relu() @ second.weight[:, :, 0, 0].T + second.bias).relu()
            expected[:, :, row, column] = hidden @ third.weight[:, :, 0, 0].T + third.bias
    torch.testing.assert_close(decoder(maps), expected)


@pytest.mark.parametrize(("stride", "stages"), [(4, 0), (8, 1), (14, 2), (16, 2), (32, 3), (64, 4)])
def test_pup_doubles_up_to_a_quarter_of_the_images_resolution(stride, stages):
    decoder = PUPDecoder([6], [stride], outputs=2, width=4)
    assert len(decoder.stages) == stages
    assert decoder([torch.randn(1, 6, 3, 5)]).shape == (1, 2, 3 * 2**stages, 5 * 2**stages)


def test_the_last_map_of_a_plain_transformer_is_its_patches():
    image = torch.randn(1, 3, 64, 96)
    backbone = Backbone("vit_tiny_patch16_224", last_only=True).eval()
    assert (backbone.channels, backbone.strides, backbone.step) == ([192], [16], 16)
    (tokens,) = backbone(image)
    expected = backbone.encoder.forward_features(image * backbone.scale + backbone.shift)[:, 1:]  # without the class
    torch.testing.assert_close(tokens.flatten(2).transpose(1, 2), expected)
    resnet = Backbone("test_resnet", last_only=True)
    assert resnet.strides == [32]


PLUGIN = """
from torch import nn
from taskformer.models import TaskDecoder, register_decoder

@register_decoder("shallow")
class Shallow(TaskDecoder):
    def __init__(self, channels, strides, outputs, width=6):
        super().__init__()
        self.hidden = nn.Conv2d(channels[0], width, 1)
        self.predict = nn.Conv2d(width, outputs, 1)

    def forward(self, maps):
        return self.predict(self.hidden(maps[0]).relu())

not_a_decoder = 3
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    (tmp_path / "my_decoders.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "my_decoders.Shallow"
    sys.modules.pop("my_decoders", None)
    DECODERS.pop("shallow", None)


def test_a_decoder_of_ones_own_is_found_by_its_place_and_then_by_its_name(plugin):
    specs = {"depth": {}}
    by_place = Baseline(specs, backbone="test_resnet", decoder=plugin, embed_dim=4)
    assert by_place.network.head.decoders["depth"].hidden.out_channels == 4
    assert by_place.hparams["decoder"] == plugin
    by_name = Baseline(specs, backbone="test_resnet", decoder="shallow")
    assert by_name.network.head.decoders["depth"].hidden.out_channels == 6
    assert by_name(torch.randn(2, 3, 40, 50))["depth"].shape == (2, 1, 40, 50)
    with pytest.raises(ConfigError, match="'shallow' takes no 'conv'"):
        build_heads("shallow", TASKS, (), 24)


def test_a_decoder_of_ones_own_that_takes_conv_works_in_the_supernet():
    @register_decoder("own")
    class Own(LinearDecoder):
        pass

    try:
        space = SearchSpace((8, 16), (1, 2), (2.0,), (1,), head_dim=8, num_tasks=2, sharing="none")
        supernet = Supernet(space, TASKS, "own", image_size=(32, 32)).eval()
        smallest, image = space.smallest(), torch.randn(1, 3, 32, 32)
        for task, value in supernet.extract(smallest)(image).items():
            torch.testing.assert_close(value, supernet(image, smallest)[task], atol=1e-5, rtol=1e-5)
        assert supernet.count_macs(smallest, (32, 32)) > 0
    finally:
        del DECODERS["own"]


@pytest.mark.parametrize(
    ("decoder", "options", "error", "message"),
    [
        (
            "dtp",
            {},
            UnknownNameError,
            "unknown decoder 'dtp' .did you mean 'dpt'.*aspp, dpt, linear, plain, pup, query",
        ),
        ("my_decoders.Deep", {}, ConfigError, "cannot import the decoder 'my_decoders.Deep'.* give one of aspp"),
        ("nowhere.Deep", {}, ConfigError, "No module named 'nowhere'"),
        ("my_decoders.not_a_decoder", {}, ConfigError, "subclass of torch.nn.Module, 'my_decoders.not_a_decoder' is 3"),
        ("linear", {"embed_dim": 8}, ConfigError, "the decoder 'linear' has no embed_dim, got 8; leave it out"),
        ("dpt", {"head_dim": 8}, ConfigError, "the decoder 'dpt' has no head_dim, got 8"),
        ("pup", {"embed_dim": 0}, ConfigError, r"width must be in \[1, inf\), got 0"),
        ("plain", {"embed_dim": 0}, ConfigError, r"embed_dim must be in \[1, inf\), got 0"),
    ],
)
def test_what_cannot_be_is_explained(decoder, options, error, message, plugin):
    with pytest.raises(error, match=message):
        build_head(decoder, TASKS, CHANNELS, STRIDES, **options)


def test_queries_and_positions_of_heads_do_not_decay():
    """What the module's names used to tell, the networks now declare."""
    dense = network_of("test_vit", "query")
    space = SearchSpace((16,), (1,), (2.0,), (2,), head_dim=8, num_tasks=2, sharing="none")
    for network in (dense, Supernet(space, TASKS, "query", image_size=(32, 32))):
        named = {
            name
            for name, _ in network.named_parameters()
            if name.endswith(("queries", "_pos", "_embed", "_token", "horizontal", "vertical"))
        }
        assert network.no_weight_decay() & set(dict(network.named_parameters())) == named
        assert any(name.endswith("queries") for name in named)
    assert network_of("test_resnet", "dpt").no_weight_decay() == set()


def test_a_decoder_may_declare_parameters_of_its_own():
    class Scaled(LinearDecoder):
        def __init__(self, channels, strides, outputs):
            super().__init__(channels, strides, outputs)
            self.scales = nn.Parameter(torch.ones(2, outputs))

        def no_weight_decay(self):
            return {"scales"}

    register_decoder("scaled")(Scaled)
    try:
        assert build_head("scaled", TASKS, [8], [4]).no_weight_decay() == {
            "decoders.semseg.scales",
            "decoders.depth.scales",
        }
    finally:
        del DECODERS["scaled"]
