"""The supernet: every sub-network lies in it, costs what the formulas say and comes out as a plain model."""

import itertools
from collections import Counter
from random import Random

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from taskformer.errors import ConfigError, UnknownNameError
from taskformer.models.autotaskformer import Architecture, SearchSpace, Supernet
from taskformer.models.autotaskformer.layers import (
    MLP,
    Grid,
    RelativeAttention,
    SlicedQKV,
    attend_by_products,
    attend_fused,
    resample_positions,
)
from taskformer.models.autotaskformer.subnet import schedule

TASKS = {"semseg": 4, "depth": 1, "scene": 5}
SIZE = (24, 40)
#: Two tasks of three with their own first attention, then everything shared again.
REUNITED = Architecture(16, 2, (2.0, 2.0), (2, 1), ((0, 1, 1), (0, 0, 0), (0, 0, 0), (0, 0, 0)))


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Toys are too small to share; on a busy machine two threads wait for each other far longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def toy_space(sharing="grouped", num_tasks=3, copies=3):
    return SearchSpace(
        (12, 16), (2, 3), (2.0, 2.5), (1, 2, 3), 20, head_dim=8, num_tasks=num_tasks, sharing=sharing, copies=copies
    )


def build(sharing="grouped", tasks=TASKS, image_size=SIZE, **options):
    torch.manual_seed(0)
    supernet = Supernet(
        toy_space(sharing, len(tasks)), tasks, image_tasks=("scene",), image_size=image_size, patch_size=8, **options
    )
    for parameter in supernet.parameters():  # far from the start, where most terms are nearly nothing
        nn.init.normal_(parameter, std=0.3)
    return supernet.double().eval()


def picture(batch=2, size=SIZE):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def measured_macs(network, size):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(picture(1, size))
    return counter.get_total_flops() / 2


def backbone_macs(supernet, architecture):
    grid = (SIZE[0] // 8, SIZE[1] // 8)
    return supernet.count_macs(architecture, SIZE) - supernet.heads.count_macs(architecture.embed_dim, grid)


def backbone_parameters(supernet, architecture):
    return supernet.count_parameters(architecture) - supernet.heads.count_parameters(architecture.embed_dim)


def check(supernet, architecture, size, rtol=1e-10):
    """Compare formulas with counts, and the supernet's outputs with those of the extracted network."""
    subnet = supernet.extract(architecture)
    assert supernet.count_parameters(architecture) == sum(parameter.numel() for parameter in subnet.parameters())
    assert supernet.count_macs(architecture, size) == measured_macs(subnet, size)
    image = picture(size=size)
    with torch.no_grad():
        expected, outputs = supernet(image, architecture), subnet(image)
    assert list(expected) == list(outputs) == list(supernet.tasks)
    for task, output in outputs.items():
        torch.testing.assert_close(output, expected[task], rtol=rtol, atol=rtol)


@pytest.mark.parametrize("seed", range(4))
def test_switching_without_extraction_equals_extraction(seed):
    supernet = build()
    image, before, names = picture(), supernet(picture()), list(supernet.state_dict())
    architecture = supernet.space.random(Random(seed))
    subnet = supernet.extract(architecture)
    supernet.set(architecture)
    assert supernet.active == architecture
    for task, expected in subnet(image).items():
        torch.testing.assert_close(supernet(image)[task], expected)
    for task, taps in subnet.features(image).items():
        torch.testing.assert_close(supernet.features(image)[task], taps)
    with pytest.raises(ConfigError, match="supernet holds"):
        supernet.set(Architecture(999, 1, (2.0,), (1,)))
    assert supernet.active == architecture
    assert list(supernet.state_dict()) == names
    supernet.set(None)
    assert supernet.active == supernet.space.largest()
    torch.testing.assert_close(supernet(image), before)


@pytest.mark.parametrize("sharing", ["none", "binary", "grouped", "tree"])
def test_formulas_and_extraction_hold_for_random_architectures(sharing):
    supernet = build(sharing)
    rng = Random(0)
    for number in range(50):
        check(supernet, supernet.space.random(rng), SIZE if number % 2 else (17, 30))


def test_formulas_and_extraction_hold_for_16_tasks():
    supernet = build("grouped", {f"task{i}": 1 + i % 3 for i in range(15)} | {"scene": 2})
    rng = Random(0)
    for _ in range(8):
        check(supernet, supernet.space.random(rng), SIZE)


@pytest.mark.parametrize("head", ["aspp", "pup", "dpt"])
def test_formulas_and_extraction_hold_for_other_heads(head):
    supernet = build(head=head, head_options={"width": 8})
    rng = Random(0)
    for _ in range(5):
        check(supernet, supernet.space.random(rng), SIZE)


def test_extraction_holds_in_single_precision():
    supernet = build("tree").float()
    rng = Random(0)
    for _ in range(5):
        architecture = supernet.space.random(rng)
        image = picture().float()
        outputs, expected = supernet.extract(architecture)(image), supernet(image, architecture)
        for task, output in outputs.items():
            assert output.dtype == torch.float32
            torch.testing.assert_close(output, expected[task], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sharing", ["binary", "grouped", "tree"])
def test_a_task_sees_its_own_copies_and_nothing_else(sharing):
    supernet = build(sharing)
    rng = Random(1)
    for _ in range(8):
        architecture = supernet.space.random(rng)
        rows = architecture.sharing or ((0, 0, 0),) * (2 * architecture.depth)
        outputs = supernet(picture(), architecture)
        for index, task in enumerate(TASKS):
            # The same network with one stream: everybody uses this task's copies.
            alone = Architecture(
                architecture.embed_dim,
                architecture.depth,
                architecture.mlp_ratio,
                architecture.num_heads,
                tuple((row[index],) * 3 for row in rows),
            )
            torch.testing.assert_close(outputs[task], supernet(picture(), alone)[task])


def uniform(*rows):
    return Architecture(16, 2, (2.0, 2.5), (2, 3), rows)


def test_all_shared_costs_one_backbone_and_all_specific_as_many_as_tasks():
    supernet = build("binary")
    shared, specific = uniform(), uniform(*[(1, 2, 3)] * 4)
    stem = 15 * 3 * 64 * 16  # patches, numbers in a patch, width
    assert backbone_macs(supernet, specific) - stem == 3 * (backbone_macs(supernet, shared) - stem)
    outside = (3 * 64 + 1) * 16 + 17 * 16 + 2 * 16  # patches; positions and class token; last norm
    units = backbone_parameters(supernet, shared) - outside
    assert backbone_parameters(supernet, specific) - outside == 3 * units


def test_parted_tasks_run_on_their_own_through_what_they_share():
    supernet = build("grouped")
    shared = Architecture(16, 2, (2.0, 2.0), (2, 1))
    stem = 15 * 3 * 64 * 16
    assert backbone_macs(supernet, REUNITED) - stem == 2 * (backbone_macs(supernet, shared) - stem)
    attention = 2 * 16 + 48 * 17 + 16 * 17 + 4 * 30 * 8  # norm, qkv and projection of two heads of 8, four tables
    assert backbone_parameters(supernet, REUNITED) - backbone_parameters(supernet, shared) == attention


def test_each_copy_runs_once_on_all_of_its_streams():
    supernet = build("grouped")
    batches = Counter()
    for name, unit in supernet.named_modules():
        if name.count(".") == 2 and name.startswith("units."):
            unit.register_forward_hook(lambda module, inputs, output, name=name: batches.update({name: len(inputs[0])}))
    supernet(picture(), REUNITED)
    assert batches == {"units.0.0": 2, "units.0.1": 2, "units.1.0": 4, "units.2.0": 4, "units.3.0": 4}


def test_schedule_of_streams():
    rows = ((0, 0, 1), (0, 1, 0), (0, 0, 0), (1, 0, 0))
    steps = schedule(Architecture(16, 2, (2, 2), (1, 1), rows), 3)
    assert steps[0] == (((0, (0,)), (1, (0,))), (0, 0, 1))  # the stem's stream branches
    assert steps[1] == (((0, (0, 1)), (1, (0,))), (0, 2, 1))  # copy 0 runs on both, copy 1 on the first again
    assert steps[2] == (((0, (0, 1, 2)),), (0, 2, 1))  # equal weights do not reunite
    assert steps[3] == (((0, (1, 2)), (1, (0,))), (2, 1, 0))


def test_smaller_networks_are_the_first_channels_of_the_weights():
    supernet = build("binary")
    small = Architecture(12, 2, (2.0, 2.0), (1, 1))
    sum(output.sum() for output in supernet(picture(), small).values()).backward()
    attention, mlp = supernet.units[0][0], supernet.units[1][0]
    used = torch.zeros_like(attention.qkv.weight)
    used[:24, :12] = 1
    assert torch.equal(attention.qkv.weight.grad.ne(0).double(), used)
    used = torch.zeros_like(mlp.fc1.weight)
    used[:24, :12] = 1
    assert torch.equal(mlp.fc1.weight.grad.ne(0).double(), used)
    assert not supernet.stem.project.weight.grad[12:].any()
    assert supernet.units[0][1].qkv.weight.grad is None
    assert supernet.units[4][0].qkv.weight.grad is None


def test_qkv_has_autoformers_interleaved_rows_and_contiguous_bias():
    layer = SlicedQKV(1, 12)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(12.0)[:, None])
        layer.bias.copy_(torch.arange(12.0))
    weight, bias = layer.sliced(1, 6)
    assert weight.flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert bias.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(("height", "width", "max_relative"), [(3, 3, 14), (2, 7, 3), (5, 1, 2)])
def test_relative_attention_equals_a_vector_for_every_pair_of_tokens(height, width, max_relative):
    torch.manual_seed(0)
    heads, d, tokens = 2, 4, 1 + height * width
    attention = RelativeAttention(d, max_relative).double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    qkv = torch.randn(3, tokens, 3 * heads * d, dtype=torch.float64)
    q, k, v = qkv.view(3, tokens, 3, heads, d).permute(2, 0, 3, 1, 4)

    def pairs(positions):
        vectors = torch.zeros(tokens, tokens, d, dtype=torch.float64)
        for i, j in itertools.product(range(tokens), repeat=2):
            rows = columns = 0
            if i and j:
                down, right = (j - 1) // width - (i - 1) // width, (j - 1) % width - (i - 1) % width
                rows, columns = (
                    min(max(offset, -max_relative), max_relative) + max_relative + 1 for offset in (down, right)
                )
            vectors[i, j] = positions.vertical[rows] + positions.horizontal[columns]
        return vectors

    logits = q @ k.transpose(-1, -2) + torch.einsum("bhid,ijd->bhij", q, pairs(attention.keys))
    probabilities = (logits / d**0.5).softmax(-1)
    expected = probabilities @ v + torch.einsum("bhij,ijd->bhid", probabilities, pairs(attention.values))
    grid = Grid.of(height, width, max_relative, like=qkv)
    torch.testing.assert_close(attention(qkv, grid), expected.transpose(1, 2).flatten(2), rtol=1e-12, atol=1e-12)


def test_the_fused_attention_equals_the_one_by_products():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 7, 4, dtype=torch.float64)
    places = Grid.of(2, 3, 14, like=q).places
    biases = torch.randn(2, 2, 7, 6, dtype=torch.float64)
    for fused, products in zip(
        attend_fused(q, k, v, biases, places), attend_by_products(q, k, v, biases, places), strict=True
    ):
        torch.testing.assert_close(fused, products, rtol=1e-12, atol=1e-12)


def test_training_keeps_no_gelu_for_the_backward_pass_and_has_the_same_gradients(monkeypatch):
    torch.manual_seed(0)
    mlp = MLP(6, 40, drop_path=0.0).double()
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    grid = Grid.of(2, 3, 14, like=x)

    def learn():
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved) or saved, lambda saved: saved):
            output = mlp(x, grid)
        gradients = torch.autograd.grad(output.square().sum(), tuple(mlp.parameters()))
        return [output, *gradients], [saved for saved in kept if 40 in saved.shape and 6 not in saved.shape]

    results, kept = learn()
    assert len(kept) == 1  # what goes into the GELU
    monkeypatch.setattr("taskformer.models.autotaskformer.layers.after", lambda gelu, layer, x: layer(gelu(x)))
    expected, usual = learn()
    assert len(usual) >= 2  # and the GELU itself, for the layer after it
    for found, plain in zip(results, expected, strict=True):
        torch.testing.assert_close(found, plain, rtol=0, atol=0)


def test_any_image_size_even_one_that_is_not_whole_patches():
    supernet = build()
    for height, width in [(8, 8), (30, 17), (64, 128), (1, 50)]:
        outputs = supernet(picture(size=(height, width)), REUNITED)
        assert {task: tuple(x.shape) for task, x in outputs.items()} == {
            "semseg": (2, 4, height, width),
            "depth": (2, 1, height, width),
            "scene": (2, 5),
        }


def test_padding_is_with_zeros_right_and_below():
    supernet = build()
    image = picture(size=(20, 33))
    outputs, padded = supernet(image), supernet(F.pad(image, (0, 7, 0, 4)))
    torch.testing.assert_close(outputs["semseg"], padded["semseg"][..., :20, :33])


def test_an_image_does_not_see_its_batch():
    supernet = build()
    images = picture(4)
    together = supernet(images, REUNITED)
    for index in range(4):
        alone = supernet(images[index : index + 1], REUNITED)
        for task, output in alone.items():
            torch.testing.assert_close(output[0], together[task][index])


def test_positions_are_resampled_but_not_the_class_tokens():
    ramp = torch.arange(6.0).view(1, 6, 1).expand(1, 6, 4).reshape(1, 6, 4).repeat_interleave(4, 1)
    positions = torch.cat([torch.full((1, 1, 4), 99.0), ramp], dim=1)  # 6 rows of 4 equal values
    other = resample_positions(positions, (6, 4), (6, 8))
    assert other.shape == (1, 49, 4)
    assert (other[:, 0] == 99).all()
    torch.testing.assert_close(other[:, 1:], ramp.repeat_interleave(2, 1))
    assert resample_positions(positions, (6, 4), (6, 4)) is positions


def test_without_an_architecture_the_largest_runs():
    supernet = build()
    for ours, largest in zip(
        supernet(picture()).values(), supernet(picture(), supernet.space.largest()).values(), strict=True
    ):
        assert torch.equal(ours, largest)


def test_taps_are_at_fractions_of_the_sampled_depth():
    supernet = build(head="dpt", head_options={"width": 8})
    deep = Architecture(16, 3, (2, 2, 2), (1, 2, 3), ((0, 0, 0),) * 4 + ((0, 0, 1),) * 2)
    taps = supernet.features(picture(), deep)
    assert [tuple(tap.shape) for tap in taps["depth"]] == [(2, 16, 3, 5)] * 4
    # ceil(3/4, 6/4, 9/4, 3) layers: what shallower networks end with.
    for index, depth in enumerate([1, 2, 3, 3]):
        rows = deep.sharing[: 2 * depth]
        shallow = Architecture(16, depth, (2,) * depth, (1, 2, 3)[:depth], rows)
        for task in TASKS:
            torch.testing.assert_close(taps[task][index], supernet.features(picture(), shallow)[task][-1])
    assert torch.equal(taps["depth"][3], taps["semseg"][3])
    assert not torch.equal(taps["depth"][3], taps["scene"][3])


def test_warm_started_copies_equal_the_shared_one():
    supernet = build("binary")
    split = uniform(*[(1, 2, 3)] * 4)
    before = supernet(picture(), uniform())
    assert not torch.allclose(supernet(picture(), split)["depth"], before["depth"])
    supernet.warm_start_copies()
    for task, output in supernet(picture(), split).items():
        torch.testing.assert_close(output, before[task])


def test_an_extracted_network_is_plain_and_its_own():
    supernet = build()
    subnet = supernet.extract(REUNITED)
    kinds = {type(module).__name__ for module in subnet.modules()}
    assert not {kind for kind in kinds if kind.startswith(("Sliced", "Super"))}
    before = supernet(picture(), REUNITED)["depth"]
    with torch.no_grad():
        for parameter in subnet.parameters():
            parameter.zero_()
    assert torch.equal(supernet(picture(), REUNITED)["depth"], before)
    assert not subnet.training
    assert supernet.train().extract(REUNITED).training


def test_an_extracted_network_trains():
    torch.manual_seed(0)
    subnet = build(drop_path=0.1).extract(REUNITED).train()
    optimizer = torch.optim.AdamW(subnet.parameters(), lr=3e-3)
    image, losses = picture(), []
    for _ in range(30):
        loss = sum(output.square().mean() for output in subnet(image).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert [name for name, parameter in subnet.named_parameters() if parameter.grad is None] == []


def test_drop_path_rises_over_the_weights_depth_and_is_kept():
    supernet = build(drop_path=0.2)
    rates = [unit[0].drop_path.drop_prob for unit in supernet.units]
    assert rates == pytest.approx([0.0, 0.0, 0.1, 0.1, 0.2, 0.2])
    kept = [unit["0"].drop_path.drop_prob for unit in supernet.extract(REUNITED).units]
    assert kept == pytest.approx(rates[:4])


def test_an_extracted_network_compiles_as_one_graph():
    subnet = build().extract(REUNITED)
    compiled = torch.compile(subnet, backend="eager", fullgraph=True)
    for task, output in compiled(picture()).items():
        torch.testing.assert_close(output, subnet(picture())[task])


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (Architecture(24, 2, (2, 2), (1, 1)), "needs 24 embed_dim, the supernet holds 20"),
        (Architecture(16, 4, (2,) * 4, (1,) * 4), "needs 4 depth, the supernet holds 3"),
        (Architecture(16, 2, (2, 2), (1, 4)), "needs 4 heads, the supernet holds 3"),
        (Architecture(16, 2, (2, 4), (1, 1)), "needs 64 hidden channels of an MLP, the supernet holds 50"),
        (Architecture(16, 2, (2, 2), (1, 1), ((0, 1, 3),) * 4), "needs 4 copies of a unit, the supernet holds 3"),
        (Architecture(16, 2, (2, 2), (1, 1), ((0, 1),) * 4), "shares among 2 tasks, the supernet has 3"),
    ],
)
def test_architectures_that_do_not_fit_are_explained(architecture, message):
    supernet = build()
    for use in (
        lambda: supernet(picture(), architecture),
        lambda: supernet.extract(architecture),
        lambda: supernet.count_parameters(architecture),
        lambda: supernet.count_macs(architecture, SIZE),
    ):
        with pytest.raises(ConfigError, match=message):
            use()


def test_other_mistakes_are_explained():
    with pytest.raises(ConfigError, match="shares among 2 tasks, got 3: semseg, depth, scene"):
        Supernet(toy_space("binary", 2), TASKS)
    with pytest.raises(UnknownNameError, match="unknown head 'linar'"):
        Supernet(toy_space(), TASKS, head="linar")


def test_positions_and_tokens_are_free_of_weight_decay():
    supernet = build()
    tables = {
        f"units.{unit}.{copy}.relative.{kind}.{axis}"
        for unit in (0, 2, 4)
        for copy in range(3)
        for kind in ("keys", "values")
        for axis in ("vertical", "horizontal")
    }
    assert supernet.no_weight_decay() == {"stem.cls_token", "stem.pos_embed"} | tables
    subnet = supernet.extract(REUNITED)
    names = {name for name, _ in subnet.named_parameters()}
    assert subnet.no_weight_decay() < names
    # Attention 0 has the copies 0 and 1, attention 1 the copy 0.
    assert len(subnet.no_weight_decay()) == 2 + 3 * 4
