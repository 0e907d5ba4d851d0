"""Heads of the supernet: every kind follows the width, counts itself exactly and never looks at the batch."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from taskformer.errors import ConfigError, UnknownNameError
from taskformer.models.autotaskformer.heads import build_heads, head_kinds
from taskformer.models.autotaskformer.layers import SlicedConv2d
from taskformer.models.mqtransformer import MQTransformerHead

SUPER = 24
WIDTHS = (5, SUPER)
GRIDS = ((1, 1), (3, 7), (4, 4))
TASKS = {"semseg": 5, "scene": 7, "depth": 1, "normals": 3}  # scene has one answer per image
IMAGE_TASKS = ("scene",)
OPTIONS = {
    "linear": {},
    "aspp": {"width": 12, "rates": (1, 2, 6)},
    "pup": {"width": 8, "stages": 3},
    "dpt": {"width": 8},
    "query": {"width": 16, "num_queries": 3, "num_heads": 2, "num_blocks": 2, "upsample": 3, "head_dim": 6},
}
UPSAMPLED = {"linear": 1, "aspp": 1, "pup": 8, "dpt": 4, "query": 3}


def build(kind, tasks=TASKS, image_tasks=IMAGE_TASKS, embed_dim=SUPER, **options):
    torch.manual_seed(0)
    return build_heads(kind, tasks, image_tasks, embed_dim, **(OPTIONS[kind] | options))


def taps_of(heads, tasks=TASKS, batch=2, width=SUPER, grid=(3, 7), seed=1):
    """Taps of each task, different for each, at very different scales."""
    generator = torch.Generator().manual_seed(seed)
    count = len(heads.fractions)
    return {
        task: [torch.randn(batch, width, *grid, generator=generator) * 2**i for i in range(count)] for task in tasks
    }


@pytest.fixture(params=OPTIONS)
def kind(request):
    return request.param


def assert_same(ours, others, **tolerance):
    assert ours.keys() == others.keys()
    for task in ours:
        torch.testing.assert_close(ours[task], others[task], **tolerance)


def test_every_kind_is_tested():
    assert set(OPTIONS) == set(head_kinds())


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("width", WIDTHS)
def test_outputs_have_their_shapes_in_the_order_of_the_tasks(kind, width, grid):
    heads = build(kind)
    size = (grid[0] * 3, grid[1] * 3)
    outputs = heads(taps_of(heads, width=width, grid=grid), size)
    expected = {
        name: (2, channels) if name in IMAGE_TASKS else (2, channels, *size) for name, channels in TASKS.items()
    }
    assert {name: tuple(value.shape) for name, value in outputs.items()} == expected
    assert list(outputs) == list(TASKS)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_narrowed_copy_is_plain_and_computes_the_same(kind, width):
    heads = build(kind).eval()
    plain = heads.narrowed(width)
    assert {type(module).__module__.split(".")[0] for module in plain.modules() if not list(module.children())} <= {
        "torch",
        "timm",
    }
    features = taps_of(heads, width=width)
    assert_same(plain(features, (9, 21)), heads(features, (9, 21)))


def test_a_narrowed_copy_shares_nothing_and_keeps_type_and_mode(kind):
    heads = build(kind).double().eval()
    plain = heads.narrowed(16)
    own = {parameter.data_ptr() for parameter in heads.parameters()}
    assert not own & {parameter.data_ptr() for parameter in plain.parameters()}
    assert {parameter.dtype for parameter in plain.parameters()} == {torch.float64}
    assert not any(module.training for module in plain.modules())
    assert heads.count_parameters(SUPER) == sum(p.numel() for p in heads.parameters())  # the original is as it was


def test_a_narrowed_copy_can_be_narrowed_and_counted_again(kind):
    heads = build(kind).eval()
    plain = heads.narrowed(16)
    assert plain.count_parameters(16) == heads.count_parameters(16)
    assert plain.count_macs(16, (3, 7)) == heads.count_macs(16, (3, 7))
    features = taps_of(heads, width=16)
    assert_same(plain.narrowed(16)(features, (9, 21)), plain(features, (9, 21)))


@pytest.mark.parametrize("tasks", [TASKS, {"depth": 1}, {"scene": 7}, {f"t{i}": i + 1 for i in range(5)}], ids=len)
@pytest.mark.parametrize("width", WIDTHS)
def test_counts_equal_numel_and_the_flop_counter(kind, width, tasks):
    image_tasks = [task for task in IMAGE_TASKS if task in tasks]
    with torch.device("meta"):  # shapes are all that counts
        heads = build(kind, tasks, image_tasks)
        plain = heads.narrowed(width).eval()
    assert heads.count_parameters(width) == sum(parameter.numel() for parameter in plain.parameters())
    for grid in GRIDS:
        features = {task: [torch.empty(1, width, *grid, device="meta") for _ in heads.fractions] for task in tasks}
        with FlopCounterMode(display=False) as counter:
            plain(features, (grid[0] * 16, grid[1] * 16))
        assert 2 * heads.count_macs(width, grid) == counter.get_total_flops()


def test_the_counter_sees_the_processors_fused_attention():
    heads = build("query").eval()
    features = taps_of(heads, batch=1)
    with FlopCounterMode(display=False) as counter:
        heads(features, (9, 21))
    assert 2 * heads.count_macs(SUPER, (3, 7)) == counter.get_total_flops()
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    assert counter.get_flop_counts()["Global"][fused] > 0


@pytest.mark.parametrize(
    ("kind", "parameters", "macs"),
    [
        # One output channel at width 192 on 14 x 14 patches, the default sizes, by hand.
        ("linear", 192 + 1, 196 * 192),
        (
            "aspp",
            4 * (192 * 9 * 1024 + 1024 + 1024 * 1024 + 1024 + 1024 + 1),
            196 * 4 * (192 * 9 * 1024 + 1024 * 1024 + 1024),
        ),
        (
            "pup",
            192 * 256 + 256 + 512 + 2 * (256 * 256 * 9 + 512) + 256 + 1,
            196 * (192 * 256 + (1 + 4) * 256 * 256 * 9 + 16 * 256),
        ),
        (
            "dpt",  # project, resample, adapt, fuse, predict
            4 * (192 + 3) * 128
            + (16 + 4 + 9) * 128**2
            + 3 * 128
            + 3 * 2 * (9 * 128**2 + 128)
            + 4 * (19 * 128**2 + 3 * 128)
            + 9 * 128 * 64
            + 2 * 64
            + 64
            + 1,
            196 * (4 * 192 * 128 + (16 + 4) * 128**2)
            + 49 * 9 * 128**2
            + 196 * (16 + 4 + 1) * 18 * 128**2
            + (196 * (16 + 4 + 1) + 49) * 19 * 128**2
            + 196 * 16 * (9 * 128 * 64 + 64),
        ),
        (
            "query",  # project; queries and positions; encoder, exchange, decoder; bottleneck and predict
            4 * (192 + 3) * 256
            + 64 * (256 + 2 * 64)
            + 3 * (4 * 256**2 + 6 * 256)
            + (2 + 256) * 256
            + 2 * (2 * 256**2 + 4 * 256)
            + 6 * 256**2
            + 6 * 256
            + 9 * 256 * 64
            + 2 * 64
            + 64
            + 1,
            196 * 4 * 192 * 256
            + 2 * (4 * 256**2 * 64 + 2 * 256 * 196 * 256)  # projections multiplied into 64 queries of 4 heads
            + 64 * 256
            + 4 * 256**2 * 64
            + 2 * 64 * 64 * 256
            + 64 * (256**2 + 4 * 256**2)
            + 196 * 6 * 256**2
            + 4 * 196 * (9 * 256 * 64 + 64),
        ),
    ],
)
def test_default_sizes_by_hand(kind, parameters, macs):
    heads = build_heads(kind, {"depth": 1}, (), 256)
    assert heads.count_parameters(192) == parameters
    assert heads.count_macs(192, (14, 14)) == macs


def test_gradients_reach_every_used_weight_and_no_other(kind):
    heads = build(kind).eval()  # no dropped paths
    outputs = heads(taps_of(heads, width=16), (9, 21))
    sum((value * torch.randn_like(value)).sum() for value in outputs.values()).backward()
    assert [name for name, p in heads.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    cut = {}
    for name, module in heads.named_modules():
        if type(module).__name__ in ("SlicedConv2d", "SlicedLinear"):
            cut[name] = module.weight.grad.flatten(2).sum(-1) if module.weight.ndim > 2 else module.weight.grad
    assert cut
    for gradient in cut.values():
        assert gradient[:, :16].abs().sum(0).gt(0).all()
        assert not gradient[:, 16:].any()


def test_there_is_no_batch_norm_and_an_image_does_not_see_its_batch(kind):
    heads = build(kind).eval()
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in heads.modules())
    assert not list(heads.buffers())
    features = taps_of(heads, batch=4)
    together = heads(features, (9, 21))
    for image in range(4):
        alone = heads({task: [tap[image : image + 1] for tap in taps] for task, taps in features.items()}, (9, 21))
        assert_same(alone, {task: value[image : image + 1] for task, value in together.items()}, atol=1e-5, rtol=0)


def test_tasks_that_share_a_stream_get_what_they_get_from_equal_streams_of_their_own(kind):
    heads = build(kind).eval()
    stream = taps_of(heads, ["any"])["any"]
    shared = heads(dict.fromkeys(TASKS, stream), (9, 21))
    own = heads({task: [tap.clone() for tap in stream] for task in TASKS}, (9, 21))
    assert_same(shared, own)
    assert (heads(taps_of(heads), (9, 21))["depth"] - shared["depth"]).abs().max() > 1e-3  # streams do matter


def test_only_the_query_head_lets_tasks_exchange(kind):
    heads = build(kind).eval()
    features = taps_of(heads)
    before = heads(features, (9, 21))
    features["semseg"] = [tap + torch.randn_like(tap) for tap in features["semseg"]]
    changes = {task: (value - before[task]).abs().max() > 0 for task, value in heads(features, (9, 21)).items()}
    exchange = kind == "query"
    assert changes == {"semseg": True, "scene": False, "depth": exchange, "normals": exchange}


def test_permuted_tasks_with_permuted_weights_permute_the_outputs(kind):
    tasks = {"a": 2, "b": 2, "c": 2}
    names, order = list(tasks), [2, 0, 1]  # the new a is the old c
    heads, permuted = build(kind, tasks, ()).eval(), build(kind, tasks, ()).eval()
    source = heads.state_dict()
    state = {}
    for key, value in source.items():
        parts = key.split(".")
        named = [i for i, part in enumerate(parts) if part in names]
        if named:
            parts[named[0]] = names[order[names.index(parts[named[0]])]]
            state[key] = source[".".join(parts)]
        elif key == "dense.queries":
            state[key] = value[order]
        elif key in ("dense.query_pos", "dense.key_pos"):
            state[key] = value[:, order]
        elif key.startswith("dense.bottleneck."):
            state[key] = value.unflatten(0, (3, -1))[order].flatten(0, 1)
        else:  # shared by all tasks
            state[key] = value
    permuted.load_state_dict(state)
    features = taps_of(heads, tasks)
    moved = {name: features[names[order[place]]] for place, name in enumerate(names)}
    before, after = heads(features, (9, 21)), permuted(moved, (9, 21))
    for place, name in enumerate(names):
        torch.testing.assert_close(after[name], before[names[order[place]]])
    assert not torch.allclose(before["a"], before["b"])


def test_maps_are_upsampled_bilinearly_from_the_resolution_where_the_head_ends(kind):
    heads = build(kind).eval()
    factor = UPSAMPLED[kind]
    features = taps_of(heads)
    small = heads(features, (3 * factor, 7 * factor))["depth"]
    expected = F.interpolate(small, size=(26, 61), mode="bilinear", align_corners=False)
    torch.testing.assert_close(heads(features, (26, 61))["depth"], expected)


def test_an_image_task_is_a_linear_layer_on_the_mean_token(kind):
    heads = build(kind)
    features = taps_of(heads, width=16)
    layer = heads.image["scene"]
    tokens = features["scene"][-1].flatten(2).mean(-1)  # (B, E)
    expected = tokens @ layer.weight[:, :16].T + layer.bias
    torch.testing.assert_close(heads(features, (9, 21))["scene"], expected)


@pytest.mark.parametrize("kind", ["pup", "dpt", "query"])
def test_the_scale_of_the_tokens_does_not_matter_where_heads_normalise(kind):
    heads = build(kind).double().eval()
    for layer in heads.modules():
        if isinstance(layer, SlicedConv2d):
            nn.init.zeros_(layer.bias)
    features = {task: [tap.double() for tap in taps] for task, taps in taps_of(heads).items()}
    larger = {task: [10 * tap for tap in taps] for task, taps in features.items()}
    before, after = heads(features, (9, 21)), heads(larger, (9, 21))
    torch.testing.assert_close(after["depth"], before["depth"], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["dpt", "query"])
def test_every_tap_counts(kind):
    heads = build(kind).eval()
    assert heads.fractions == (0.25, 0.5, 0.75, 1.0)
    features = taps_of(heads)
    before = heads(features, (9, 21))["depth"]
    for tap in range(4):
        changed = dict(features)
        changed["depth"] = [x + torch.randn_like(x) if i == tap else x for i, x in enumerate(features["depth"])]
        assert (heads(changed, (9, 21))["depth"] - before).abs().max() > 1e-4


def test_heads_without_a_map_read_the_last_layer_only():
    assert build("dpt", {"scene": 7}).fractions == (1.0,)
    assert build("pup").fractions == (1.0,)


def test_aspp_is_adashares_sum_of_branches():
    heads = build("aspp", {"depth": 1}, (), width=12, rates=(6, 12, 18, 24)).eval()
    (tap,) = taps_of(heads, ["depth"])["depth"]
    expected = 0
    for branch, rate in zip(heads.dense.decoders["depth"].branches, (6, 12, 18, 24), strict=True):
        convolutions = [layer for layer in branch if isinstance(layer, nn.Conv2d)]
        x = F.conv2d(tap, convolutions[0].weight, convolutions[0].bias, padding=rate, dilation=rate).relu()
        x = F.conv2d(x, convolutions[1].weight, convolutions[1].bias).relu()
        expected = expected + F.conv2d(x, convolutions[2].weight, convolutions[2].bias)
    torch.testing.assert_close(heads({"depth": [tap]}, (3, 7))["depth"], expected)


def test_the_query_head_is_mqtransformers():
    """The rounds between projection and prediction equal the original head's, given its weights and tokens."""
    tasks = {"a": 2, "b": 3}
    ours = build("query", tasks, ()).eval().dense
    theirs = MQTransformerHead(tasks, [SUPER], [16], 16, 3, 2, num_blocks=2, head_dim=6).eval()
    theirs.queries.data = ours.queries.data[None]
    theirs.query_pos.data, theirs.key_pos.data = ours.query_pos.data[:, None], ours.key_pos.data[:, None]
    for stages in ("encoders", "exchanges", "decoders"):
        getattr(theirs, stages).load_state_dict(getattr(ours, stages).state_dict())
    features = taps_of(build("query", tasks, ()), tasks, grid=(4, 5))
    maps = [ours._fuse(task, features[task]) for task in tasks]  # T x (B, h, w, C)
    seen = {}

    class Keep(nn.Module):
        def forward(self, maps, size):
            seen["theirs"] = torch.cat([x.permute(0, 3, 1, 2) for x in maps], dim=1)
            return {}

    class Tokens(nn.Module):
        def forward(self, _):
            return maps

    theirs.project, theirs.predict = nn.ModuleList([Tokens()]), Keep()
    theirs([None], (4, 5))
    ours.upsample = 1
    ours.bottleneck.register_forward_pre_hook(lambda module, inputs: seen.update(ours=inputs[0]))
    ours(features, (4, 5))
    torch.testing.assert_close(seen["ours"], F.gelu(seen["theirs"]))


def test_wrong_names_and_widths_are_named():
    with pytest.raises(UnknownNameError, match=r"unknown head 'dtp' .did you mean 'dpt'"):
        build_heads("dtp", TASKS, (), SUPER)
    with pytest.raises(UnknownNameError, match=r"unknown option of the head 'pup' 'widht' .did you mean 'width'"):
        build_heads("pup", TASKS, (), SUPER, widht=3)
    with pytest.raises(UnknownNameError, match="unknown image task 'scenes'"):
        build_heads("linear", TASKS, ["scenes"], SUPER)
    with pytest.raises(ConfigError, match="width=16 and num_heads=3"):
        build("query", num_heads=3)
    heads = build("linear")
    for wrong in (0, SUPER + 1):
        with pytest.raises(ConfigError, match=f"between 1 and {SUPER}.* got {wrong}"):
            heads.count_parameters(wrong)
        with pytest.raises(ConfigError, match=f"between 1 and {SUPER}.* got {wrong}"):
            heads.narrowed(wrong)
