"""The heads: what the paper's design promises, checked on networks with random weights."""

import itertools
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from taskformer.errors import ConfigError
from taskformer.models import Backbone, BaselineHead, DenseNetwork, MQTransformerHead
from taskformer.models.layers import TaskProjection

TASKS = {"semseg": 5, "depth": 1, "normals": 3}
CHANNELS, STRIDES = [8, 12, 16, 20], [4, 8, 16, 32]
HEADS = {
    "fused": partial(MQTransformerHead, embed_dim=16, num_queries=3, num_heads=2, head_dim=8),
    "scales": partial(MQTransformerHead, embed_dim=16, num_queries=3, num_heads=2, head_dim=8, scales=[4, 8, 32]),
    "joint": partial(
        MQTransformerHead, embed_dim=16, num_queries=3, num_heads=2, head_dim=8, scales=STRIDES, cross_attention="joint"
    ),
    "blocks": partial(MQTransformerHead, embed_dim=16, num_queries=3, num_heads=2, head_dim=8, num_blocks=2),
    "baseline": partial(BaselineHead, embed_dim=16, head_dim=8),
}


def features(batch=2, height=32, width=64):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, channels, height // stride, width // stride, generator=generator)
        for channels, stride in zip(CHANNELS, STRIDES, strict=True)
    ]


@pytest.fixture(params=HEADS)
def head(request):
    torch.manual_seed(0)
    return HEADS[request.param](TASKS, CHANNELS, STRIDES)


def test_output_has_every_tasks_channels_at_the_asked_size(head):
    outputs = head(features(), (33, 65))
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        name: (2, channels, 33, 65) for name, channels in TASKS.items()
    }


def test_every_parameter_gets_a_gradient_that_is_not_zero(head):
    head.eval()  # no stochastic depth
    maps = features()
    sum((value * torch.randn_like(value)).sum() for value in head(maps, (32, 64)).values()).backward()
    assert [name for name, p in head.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_an_image_does_not_see_its_batch(head):
    head.eval()
    maps = features(batch=5)
    together = head(maps, (32, 64))
    for image in range(5):
        alone = head([feature[image : image + 1] for feature in maps], (32, 64))
        for name in TASKS:
            torch.testing.assert_close(alone[name], together[name][image : image + 1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["fused", "scales", "joint", "blocks"])
def test_tasks_permuted_with_their_parameters_permute_the_outputs(kind):
    torch.manual_seed(0)
    tasks = {"a": 2, "b": 2, "c": 2}
    head = HEADS[kind](tasks, CHANNELS, STRIDES).eval()
    permuted = HEADS[kind](tasks, CHANNELS, STRIDES).eval()
    order = [2, 0, 1]
    names = list(tasks)
    source = head.state_dict()
    state = {}
    for key, value in source.items():
        if key == "queries":
            state[key] = value[:, order]
        elif key in ("query_pos", "key_pos"):
            state[key] = value[:, :, order]
        elif key.startswith(("project.", "predict.bottleneck.")) and value.ndim:
            state[key] = value.unflatten(0, (3, -1))[order].flatten(0, 1)
        elif key.startswith("predict.logits."):
            _, _, task, parameter = key.split(".")
            state[key] = source[f"predict.logits.{names[order[names.index(task)]]}.{parameter}"]
        else:  # shared by all tasks
            state[key] = value
    permuted.load_state_dict(state)
    before, after = head(features(), (32, 64)), permuted(features(), (32, 64))
    for place, name in enumerate(names):
        torch.testing.assert_close(after[name], before[names[order[place]]])
    assert not torch.allclose(before["a"], before["b"])


def test_other_tasks_reach_a_tasks_output_through_the_exchange_only():
    torch.manual_seed(0)
    head = HEADS["fused"](TASKS, CHANNELS, STRIDES).eval()

    def change_of_depth():
        before = head(features(), (32, 64))["depth"]
        with torch.no_grad():
            head.queries[:, 0] += torch.randn(3, 16)  # the queries of semseg
        return (head(features(), (32, 64))["depth"] - before).abs().max()

    assert change_of_depth() > 0
    head.exchanges[0] = torch.nn.Identity()
    assert change_of_depth() == 0


def test_queries_exchange_between_tasks_of_a_scale_then_between_scales_of_a_task():
    torch.manual_seed(0)
    exchange = HEADS["scales"](TASKS, CHANNELS, STRIDES).eval().exchanges[0]
    gathered = torch.randn(1, 3, 3, 3, 16)  # (B, S, T, N, C)
    changed = gathered.clone()
    changed[:, 2, 1] += torch.randn(3, 16)  # one task at the coarsest scale

    def reached():
        return (exchange(changed) - exchange(gathered)).abs().amax((0, 3, 4)) > 1e-6  # (S, T)

    assert reached().all()
    exchange.between_scales = None
    assert reached().tolist() == [[False] * 3, [False] * 3, [True] * 3]


def test_projecting_before_upsampling_is_concatenation_upsampling_and_a_convolution():
    torch.manual_seed(0)
    project = TaskProjection(CHANNELS, num_tasks=3, channels=7)
    maps = features()
    fused = torch.cat([F.interpolate(m, maps[0].shape[-2:], mode="bilinear", align_corners=False) for m in maps], 1)
    weight = torch.cat([level.weight for level in project.levels], 1)
    expected = F.conv2d(fused, weight, project.levels[0].bias).unflatten(1, (3, 7))
    projected = torch.stack([task.permute(0, 3, 1, 2) for task in project(maps)], dim=1)
    torch.testing.assert_close(projected, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("tasks", "scales", "queries"), list(itertools.product([1, 2, 5], ["fused", [8], STRIDES], [1, 4]))
)
def test_any_number_of_tasks_scales_and_queries(tasks, scales, queries):
    head = MQTransformerHead(
        {f"t{i}": i + 1 for i in range(tasks)}, CHANNELS, STRIDES, 16, queries, 2, scales=scales, head_dim=4
    )
    outputs = head(features(), (32, 64))
    assert [value.shape[1] for value in outputs.values()] == list(range(1, tasks + 1))


def test_default_head_has_the_released_projection_and_attention_sizes():
    """Swin-L, four tasks: four linears 2880 -> 256, and the released cross-task attention's 0.263 M parameters."""
    head = MQTransformerHead({"semseg": 40, "depth": 1, "normals": 3, "edge": 1}, [192, 384, 768, 1536], STRIDES)
    projection = sum(p.numel() for p in head.project.parameters())
    exchange = sum(p.numel() for p in head.exchanges[0].between_tasks.attention.parameters())
    assert projection == pytest.approx(2950e3, rel=0.001)  # four linears 2880 -> 256
    assert exchange == pytest.approx(0.263e6, rel=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": [3]}, r"scales must be 'fused' or some of the backbone's strides \[4, 8, 16, 32\], got \[3\]"),
        (
            {"token_stride": 6},
            r"one of the backbone's strides \[4, 8, 16, 32\] and .*, got token_stride=6",
        ),
        ({"token_stride": 8, "scales": [4, 8]}, "goes with scales='fused', got token_stride=8 and scales=\\[4, 8\\]"),
        ({"start": "plain", "wiring": "released"}, "start='plain' is for the clean wiring"),
        ({"embed_dim": 30, "num_heads": 4}, "multiple of num_heads, got embed_dim=30 and num_heads=4"),
        ({"num_heads": 0}, r"num_heads must be in \[1, inf\), got 0"),
        ({"num_queries": 0}, "num_queries must be in"),
        ({"num_blocks": -1}, "num_blocks must be in"),
        ({"drop_path": 1.0}, r"drop_path must be in \[0, 1\), got 1.0"),
        ({"encoder_mlp_ratio": 0.001}, "encoder_mlp_ratio must be in"),
    ],
)
def test_settings_that_cannot_be_are_explained(options, message):
    with pytest.raises(ConfigError, match=message):
        MQTransformerHead(TASKS, CHANNELS, STRIDES, **options)


@pytest.mark.parametrize("size", [(32, 32), (37, 51), (1, 90)])
def test_a_network_takes_any_image_size(size):
    network = DenseNetwork(Backbone("resnet18"), partial(HEADS["fused"], TASKS)).eval()
    outputs = network(torch.randn(1, 3, *size))
    assert {tuple(value.shape[-2:]) for value in outputs.values()} == {size}


def test_bfloat16_autocast_is_close_to_float32():
    network = DenseNetwork(Backbone("resnet18"), partial(HEADS["scales"], TASKS)).eval()
    image = torch.randn(1, 3, 64, 64)
    exact = network(image)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(image)
    for name in TASKS:
        torch.testing.assert_close(rounded[name].float(), exact[name], atol=5e-3, rtol=0.1)


def test_a_network_learns_one_image():
    torch.manual_seed(0)
    network = DenseNetwork(Backbone("resnet18"), partial(HEADS["fused"], {"depth": 1}))
    image, target = torch.randn(1, 3, 64, 64), torch.rand(1, 1, 64, 64)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = (network(image)["depth"] - target).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
