"""The plain AutoFormer against the numbers of the original code, and this library's supernet against the plain one."""

import random
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from taskformer.models.autotaskformer import Architecture, import_autoformer
from taskformer.models.autotaskformer.autoformer import export_autoformer

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import autoformer_plain as plain

# Printed by the original code (microsoft/Cream, commit 4a13c40) for the published sub-networks:
# (size, pixels, global pool) -> first image's first logits, second image's last ones, their sum, norm of the features.
ORIGINAL = {
    ("tiny", 224, True): (
        [0.07058689, 0.17262984, 0.2338207, 0.24199887],
        [0.10154108, 0.17655512],
        0.876772,
        19.60772896,
    ),
    ("tiny", 224, False): (
        [0.15120293, 0.24297568, 0.27849911, 0.25123068],
        [0.1820747, 0.24549164],
        1.188102,
        19.63610537,
    ),
    ("tiny", 64, True): (
        [0.08013097, 0.18174311, 0.24050846, 0.2447973],
        [0.1120032, 0.18612989],
        0.916893,
        19.59243781,
    ),
}
# Printed by the plain re-statement, after it had reproduced the original's numbers above.
RESTATED = {
    ("small", 224, True): (
        [0.27271699, 0.05367727, -0.47414662, 0.57053552],
        [-0.48215946, 0.53574731],
        1.245657,
        27.67007753,
    ),
    ("small", 64, True): (
        [0.27360325, 0.05306109, -0.4741265, 0.5711221],
        [-0.48209669, 0.53638191],
        1.247512,
        27.61624496,
    ),
    ("base", 224, True): (
        [0.35580252, -0.72221261, 0.16239854, 0.61559466],
        [-0.48341077, 0.64611432],
        0.717208,
        28.27724881,
    ),
    ("base", 64, True): (
        [0.35187551, -0.72698522, 0.1699567, 0.6146168],
        [-0.48161142, 0.6514866],
        0.718312,
        28.41612985,
    ),
}
SLOW = [("tiny", 224, False), ("small", 224, True), ("base", 224, True)]
CASES = [pytest.param(*case, marks=[pytest.mark.slow] * (case in SLOW)) for case in [*ORIGINAL, *RESTATED]]


@pytest.mark.parametrize(("size", "pixels", "global_pool"), CASES)
@torch.no_grad()
def test_logits(size, pixels, global_pool):
    first, last, total, norm = {**ORIGINAL, **RESTATED}[size, pixels, global_pool]
    model = filled(size, pixels, global_pool)
    features = model.forward_features(plain.wave_images(pixels), plain.PUBLISHED[size])
    logits = model.forward_head(features)
    assert logits.shape == (2, 1000)
    assert logits[0, :4].tolist() == pytest.approx(first, abs=1e-6)
    assert logits[1, -2:].tolist() == pytest.approx(last, abs=1e-6)
    assert logits.sum().item() == pytest.approx(total, abs=2e-6)
    assert features.norm().item() == pytest.approx(norm, abs=1e-6)


def filled(size, pixels, global_pool=True):
    """The super-network of a size in double precision, with the weights of the golden numbers."""
    with torch.device("meta"):
        model = plain.PlainAutoFormer(**plain.SUPERNETS[size], image_size=pixels, global_pool=global_pool)
    model = model.to_empty(device="cpu").double().eval()
    plain.fill(model)
    return model


# Printed by the original code, except for the multiplications at 64 pixels, which follow from the formula.
@pytest.mark.parametrize(
    ("size", "pixels", "parameters", "whole", "complexity", "macs"),
    [
        ("tiny", 224, 5_867_944, 11_669_224, 1_344_034_362, 1_481_938_432),
        ("tiny", 64, 5_833_384, 11_623_144, 103_953_162, 96_589_312),
        ("small", 224, 22_891_432, 34_790_440, 4_892_144_730, 5_161_400_832),
        ("base", 224, 53_691_688, 80_160_360, 11_236_929_660, 11_691_179_008),
    ],
)
def test_counts(size, pixels, parameters, whole, complexity, macs):
    sub, patches = plain.PUBLISHED[size], (pixels // 16) ** 2
    with torch.device("meta"):
        model = plain.PlainAutoFormer(**plain.SUPERNETS[size], image_size=pixels)
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 3, pixels, pixels), sub)
    assert plain.count_parameters(sub, patches=patches) == parameters
    assert sum(parameter.numel() for parameter in model.parameters()) == whole
    assert plain.get_complexity(sub, patches=patches) == complexity
    assert plain.count_macs(sub, patches=patches) == macs
    assert counter.get_total_flops() == 2 * macs


@pytest.mark.parametrize(
    ("size", "fewest", "most"),
    [
        ("tiny", 5_366_056, 10_517_272),
        ("small", 13_057_320, 34_790_440),
        ("base", 41_687_896, 76_882_264),
    ],
)
def test_counts_of_the_smallest_and_the_largest(size, fewest, most):
    counts = []
    for choose in (min, max):
        embed_dim, depth, ratio, heads = (choose(choices) for choices in plain.CHOICES[size].values())
        counts.append(plain.count_parameters(plain.SubNetwork(embed_dim, depth, (ratio,) * depth, (heads,) * depth)))
    assert counts == [fewest, most]


def test_state_dict_names():
    with torch.device("meta"):
        state = plain.PlainAutoFormer(**plain.SUPERNETS["tiny"]).state_dict()
    block = {name.removeprefix("blocks.3."): tuple(value.shape) for name, value in state.items() if "blocks.3." in name}
    assert block == {
        "attn.qkv.weight": (768, 256),
        "attn.qkv.bias": (768,),
        "attn.proj.weight": (256, 256),
        "attn.proj.bias": (256,),
        **{f"attn.rel_pos_embed_{part}.embeddings_table_{axis}": (30, 64) for part in "kv" for axis in "vh"},
        **{f"{unit}_layer_norm.{kind}": (256,) for unit in ("attn", "ffn") for kind in ("weight", "bias")},
        "fc1.weight": (1024, 256),
        "fc1.bias": (1024,),
        "fc2.weight": (256, 1024),
        "fc2.bias": (256,),
    }
    rest = {name: tuple(value.shape) for name, value in state.items() if "blocks." not in name}
    assert rest == {
        "pos_embed": (1, 197, 256),
        "cls_token": (1, 1, 256),
        "patch_embed_super.proj.weight": (256, 3, 16, 16),
        "patch_embed_super.proj.bias": (256,),
        "norm.weight": (256,),
        "norm.bias": (256,),
        "head.weight": (1000, 256),
        "head.bias": (1000,),
    }
    assert len(state) == 14 * len(block) + len(rest)


def random_networks(size):
    """The plain super-network with strong random weights, and the library's with the same ones."""
    torch.manual_seed(0)
    model = plain.PlainAutoFormer(**plain.SUPERNETS[size], image_size=64, num_classes=10).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model, import_autoformer(model.state_dict(), plain.SUPERNETS[size]["num_heads"]).eval()


def random_sub(size, rng):
    embed_dim, depth, ratios, heads = plain.CHOICES[size].values()
    depth = rng.choice(depth)
    return plain.SubNetwork(
        rng.choice(embed_dim), depth, tuple(rng.choices(ratios, k=depth)), tuple(rng.choices(heads, k=depth))
    )


def assert_equal(ours, theirs, tolerance):
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
@torch.no_grad()
def test_the_supernet_equals_the_plain_one(size, monkeypatch):
    model, supernet = random_networks(size)
    rng = random.Random(0)
    subs = [random_sub(size, rng) for _ in range(3)]
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for sub in subs:
        assert_equal(supernet(images, Architecture(**vars(sub)))["imagenet"], model(images, sub), 1e-5)
    monkeypatch.setattr(torch.Tensor, "float", lambda values: values)  # GELU in double, too
    for sub in subs:
        architecture = Architecture(**vars(sub))
        logits = model(images, sub)
        assert_equal(supernet(images, architecture)["imagenet"], logits, 1e-10)
        assert_equal(supernet.extract(architecture)(images)["imagenet"], logits, 1e-10)


def test_the_supernet_learns_what_the_plain_one_learns(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", lambda values: values)
    model, supernet = random_networks("tiny")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sub = plain.PUBLISHED["tiny"]
    images, weights = torch.randn(2, 3, 64, 64, dtype=torch.float64), torch.randn(2, 10, dtype=torch.float64)
    for logits in (model(images, sub), supernet(images, Architecture(**vars(sub)))["imagenet"]):
        (logits * weights).sum().backward()
    for network in (model, supernet):
        torch.optim.SGD(network.parameters(), lr=1.0).step()
    theirs, ours = model.state_dict(), export_autoformer(supernet)
    assert ours.keys() == theirs.keys()
    largest = max((theirs[name] - before[name]).abs().max() for name in theirs)
    for name, value in theirs.items():
        assert (ours[name] - value).abs().max() <= 1e-10 * largest, name
    assert torch.equal(theirs["blocks.13.fc1.weight"], before["blocks.13.fc1.weight"])  # deeper than the sub-network
    assert not torch.equal(theirs["blocks.12.fc1.weight"], before["blocks.12.fc1.weight"])
