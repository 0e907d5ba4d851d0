"""The released head's weights in our head: the same outputs and gradients as the plain re-statement, or a sentence."""

import sys
from pathlib import Path

import pytest
import torch

from taskformer.errors import ConfigError, WeightsError
from taskformer.models.mqtransformer import import_released
from taskformer.models.mqtransformer.released import dropped_tensors

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import released_head as plain

BLOCK = "parts_query_encoder_decoder_blocks.0"
CASES = {"hrnet-nyud": ("hrnet_w18", "nyud", (23, 31)), "swin-pascal": ("swin_t", "pascal", (19, 33))}
#: Relative to the largest value.
TOLERANCE = 1e-5
OURS = {"edge": "edges", "sal": "saliency"}


def restated(encoder="hrnet_w18", data="nyud", seed=0):
    head = plain.ReleasedHead(plain.TASKS[data], plain.CHANNELS[encoder]).eval()
    plain.randomise(head, seed)
    return head


def maps(encoder, size, batch=1):
    generator = torch.Generator().manual_seed(1)
    height, width = size
    return [
        torch.randn(batch, c, -(-height // 2**i), -(-width // 2**i), generator=generator)
        for i, c in enumerate(plain.CHANNELS[encoder])
    ]


@torch.no_grad()
def apart(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.fixture(scope="module")
def state():
    return restated().state_dict()


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request):
    """The re-statement, our head with its weights, and maps of an odd size."""
    encoder, data, size = request.param
    head = restated(encoder, data)
    return head, import_released(head.state_dict(), plain.CHANNELS[encoder]).eval(), maps(encoder, size)


@pytest.mark.parametrize(
    ("dtype", "tolerance", "gradients_within"),
    # In float32 the sums of the gradients are rounded; imported ones are float32 in any case.
    [(torch.float32, TOLERANCE, 3 * TOLERANCE), (torch.float64, 1e-10, 1e-6)],
)
def test_outputs_and_gradients_are_those_of_the_original(case, dtype, tolerance, gradients_within):
    head, ours, features = case
    head, ours = head.to(dtype), ours.to(dtype)
    grown = [[x.to(dtype, copy=True).requires_grad_() for x in features] for _ in range(2)]
    expected, found = head(grown[0], size=(91, 125)), ours(grown[1], size=(91, 125))
    assert list(found) == [OURS.get(task, task) for task in expected]
    pairs = list(zip(found.values(), expected.values(), strict=True))
    assert max(apart(x, y) for x, y in pairs) < tolerance
    torch.manual_seed(0)
    weights = [torch.randn_like(y) for _, y in pairs]
    for side in (0, 1):
        sum((pair[side] * w).sum() for pair, w in zip(pairs, weights, strict=True)).backward()
    # The original's gradients, imported as weights are, lie where ours are.
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in head.named_parameters()}
    there = dict(import_released(head.state_dict() | gradients, [x.shape[1] for x in features]).named_parameters())
    differences = {name: apart(p.grad, there[name]) for name, p in ours.named_parameters()}
    assert {name: value for name, value in differences.items() if value > gradients_within} == {}
    for original, own in zip(*grown, strict=True):
        assert apart(own.grad, original.grad) < gradients_within


@torch.no_grad()
def test_a_batch_gives_what_each_image_gives_alone(state):
    ours = import_released(state, plain.CHANNELS["hrnet_w18"]).eval()
    features = maps("hrnet_w18", (16, 24), batch=2)
    together = ours(features, size=(64, 96))
    for image in range(2):
        alone = ours([x[image : image + 1] for x in features], size=(64, 96))
        assert max(apart(together[task][image : image + 1], alone[task]) for task in alone) < TOLERANCE


def test_all_numbers_with_an_effect_are_kept(state):
    ours = import_released(state, plain.CHANNELS["hrnet_w18"])
    total = sum(x.numel() for name, x in state.items() if "running" not in name and "num_batches" not in name)
    rows = 2 * (256 * 256 + 256) + 256  # of the attention over the batch; of the queries' keys
    assert sum(p.numel() for p in ours.parameters()) == total - 1_313_728 - rows - 2 * 256


@torch.no_grad()
def test_what_is_dropped_has_no_effect(state):
    dropped = dropped_tensors(state)
    assert sum(why == "never read" for why in dropped.values()) == 11 + 2 + 4
    changed = {name: x.clone() for name, x in state.items()}
    for place in dropped:
        name, _, rows = place.partition("[")
        first, _, last = rows.rstrip("]").partition(":")
        part = changed[name][int(first) : int(last)] if rows else changed[name]
        part += 1.0
    assert sum(not torch.equal(changed[name], state[name]) for name in state) == len(dropped)
    head, features = restated(), maps("hrnet_w18", (16, 24))
    before = head(features, size=(64, 96))
    head.load_state_dict(changed)
    after = head(features, size=(64, 96))
    assert max(apart(after[task], before[task]) for task in before) < TOLERANCE


def exchange(name, first, second):
    """Exchange two thirds of the rows of a tensor."""

    def planted(state):
        rows = list(state[f"{BLOCK}.{name}"].chunk(3))
        rows[first], rows[second] = rows[second], rows[first]
        return state | {f"{BLOCK}.{name}": torch.cat(rows)}

    return planted


def another_order(state):
    """Name the layers of the first two tasks in another order than the tensors that are numbered."""
    order = ["depth", "semseg", "normals", "edge"]
    named = [name for name in state if name.startswith(("bottleneck", "final_logits"))]
    named.sort(key=lambda name: (name.split(".")[0], order.index(name.split(".")[1])))
    return {name: state[name] for name in named} | state


@pytest.mark.parametrize(
    "plant",
    [
        exchange("mhsa_1.in_proj_weight", 0, 1),
        exchange("mhsa_1.in_proj_weight", 1, 2),
        exchange("mhsa_1.in_proj_bias", 0, 2),
        exchange("decoder1.mhsa.in_proj_weight", 1, 2),
        exchange("decoder1.mhsa.in_proj_bias", 0, 2),
        another_order,
    ],
)
@torch.no_grad()
def test_a_planted_permutation_changes_the_outputs(state, plant):
    features = maps("hrnet_w18", (16, 24))
    right, wrong = (
        import_released(s, plain.CHANNELS["hrnet_w18"]).eval()(features, size=(64, 96)) for s in (state, plant(state))
    )
    assert max(apart(wrong[task], right[task]) for task in right) > 100 * TOLERANCE


@pytest.mark.parametrize("prefix", ["head.", "module.", "model.head."])
def test_a_prefix_is_taken_off(state, prefix):
    beside = {"backbone.conv1.weight": torch.zeros(64, 3, 3, 3), "criterion.weight": torch.zeros(1)}
    wrapped = {f"{prefix}{name}": x for name, x in state.items()} | beside
    plainly, found = (import_released(s, plain.CHANNELS["hrnet_w18"]).state_dict() for s in (state, wrapped))
    assert all(torch.equal(found[name], plainly[name]) for name in plainly)


def test_a_sorted_file_needs_the_order_of_the_tasks(state):
    by_name = dict(sorted(state.items()))
    with pytest.raises(ConfigError, match=r"\['depth', 'edge', 'normals', 'semseg'\] is lost"):
        import_released(by_name, plain.CHANNELS["hrnet_w18"])
    for tasks in (["semseg", "depth", "normals", "edges"], ["semseg", "depth", "normals", "edge"]):
        found = import_released(by_name, plain.CHANNELS["hrnet_w18"], tasks).state_dict()
        plainly = import_released(state, plain.CHANNELS["hrnet_w18"]).state_dict()
        assert all(torch.equal(found[name], plainly[name]) for name in plainly)
    with pytest.raises(ConfigError, match="name each of these once"):
        import_released(by_name, plain.CHANNELS["hrnet_w18"], ["semseg", "depth", "normals", "saliency"])


def without(name):
    return lambda state: {key: x for key, x in state.items() if key != name}


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (without("final_logits.depth.bias"), "missing: final_logits.depth.bias"),
        (without(f"{BLOCK}.decoder1.ffn2.fc1.weight"), rf"missing: {BLOCK}.decoder1.ffn2.fc1.weight"),
        (without("linears.3.bias"), "missing: linears.3.bias"),
        (lambda state: state | {"linears.4.weight": torch.zeros(256, 270)}, "unknown: linears.4.weight"),
        (lambda state: state | {"extra": torch.zeros(1)}, "unknown: extra"),
        (
            lambda state: state | {f"{BLOCK}.rpn_tokens.1": torch.zeros(1, 32, 256)},
            r"rpn_tokens.1 \(1, 32, 256\) torch.float32 for \(1, 64, 256\)",
        ),
        (
            lambda state: state | {"linears.0.weight": torch.zeros(256, 271)},
            r"\(256, 271\) torch.float32 for \(256, 270\)",
        ),
        (
            lambda state: state | {f"{BLOCK}.norm_layer.bias": torch.zeros(256, dtype=torch.int64)},
            r"norm_layer.bias \(256,\) torch.int64",
        ),
        (
            lambda state: state | {f"{BLOCK.replace('0', '1')}.rpn_tokens.0": torch.zeros(1, 64, 256)},
            "has one block",
        ),
        (lambda state: state | {"linears.0.bias": torch.full((256,), torch.nan)}, "not finite: linears.0.bias"),
        (lambda state: {"conv1.weight": torch.zeros(3)}, "found no 'linears.0.weight'"),
        (lambda state: state | {"ema.linears.0.weight": torch.zeros(256, 270)}, "found heads at '', 'ema.'"),
        (lambda state: {name: x for name, x in state.items() if "bottleneck" not in name}, "has no task"),
    ],
)
def test_what_does_not_fit_is_refused(state, plant, message):
    with pytest.raises(WeightsError, match=message):
        import_released(plant(state), plain.CHANNELS["hrnet_w18"])


@pytest.mark.parametrize("channels", [(18, 36, 72), (18, 36, 72, 145)])
def test_channels_that_do_not_fit_are_refused(state, channels):
    with pytest.raises(WeightsError, match="270"):
        import_released(state, channels)
