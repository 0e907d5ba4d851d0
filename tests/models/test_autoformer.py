"""AutoFormer's weights give AutoFormer's outputs, and its ways of counting give its numbers."""

import pytest
import torch
from torch import nn

from taskformer.errors import WeightsError
from taskformer.models.autotaskformer import Architecture, SearchSpace, Supernet, import_autoformer
from taskformer.models.autotaskformer.autoformer import (
    PUBLISHED,
    export_autoformer,
    get_complexity,
    original_macs,
    original_parameters,
    warm_start,
)

TINY = PUBLISHED["tiny"]
# Printed by the original code (microsoft/Cream, commit 4a13c40) for its weights filled as `waves` does, on two images.
GOLDEN = {
    224: ([0.07058689, 0.17262984, 0.2338207, 0.24199887], [0.10154108, 0.17655512], 0.876772, 19.60772896),
    64: ([0.08013097, 0.18174311, 0.24050846, 0.2447973], [0.1120032, 0.18612989], 0.916893, 19.59243781),
}
# The original's classifier on the class token instead of the mean over patches, 224 pixels.
GOLDEN_CLASS_TOKEN = ([0.15120293, 0.24297568, 0.27849911, 0.25123068], [0.1820747, 0.24549164], 1.188102, 19.63610537)


def shapes(width, depth, heads, hidden, patches, classes=1000, head_dim=64, patch=16, rows=30):
    """List the original's parameters."""
    inner = heads * head_dim
    layers = {"patch_embed_super.proj": (width, 3, patch, patch), "head": (classes, width), "norm": (width,)}
    result = {"pos_embed": (1, patches + 1, width), "cls_token": (1, 1, width)}
    for block in (f"blocks.{i}." for i in range(depth)):
        layers |= {f"{block}attn.qkv": (3 * inner, width), f"{block}attn.proj": (width, inner)}
        layers |= {f"{block}attn_layer_norm": (width,), f"{block}ffn_layer_norm": (width,)}
        layers |= {f"{block}fc1": (hidden, width), f"{block}fc2": (width, hidden)}
        for table in ("k.embeddings_table_v", "k.embeddings_table_h", "v.embeddings_table_v", "v.embeddings_table_h"):
            result[f"{block}attn.rel_pos_embed_{table}"] = (rows, head_dim)
    for name, shape in layers.items():
        result |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return result


def waves(parameters):
    """Fill the original's parameters with values that can be written down."""
    state = {}
    for number, (name, shape) in enumerate(sorted(parameters.items())):
        count = torch.Size(shape).numel()
        value = 0.05 * torch.sin(0.37 * torch.arange(count, dtype=torch.float64) + number)
        scale = name.endswith("layer_norm.weight") or name == "norm.weight"
        state[name] = (value + scale).view(shape)
    return state


def tiny(pixels):
    return import_autoformer(waves(shapes(256, 14, 4, 1024, (pixels // 16) ** 2)), 4).eval()


def image(pixels):
    return torch.sin(0.01 * torch.arange(2 * 3 * pixels**2, dtype=torch.float64)).view(2, 3, pixels, pixels)


def toy(num_tasks=1, sharing="none", tasks=None, **options):
    space = SearchSpace((12, 16), (2,), (2.0,), (1, 2), head_dim=8, num_tasks=num_tasks, sharing=sharing)
    torch.manual_seed(0)
    return Supernet(space, tasks or {"semseg": 3}, **({"image_size": (32, 32), "patch_size": 8} | options)).eval()


def toy_state():
    torch.manual_seed(1)
    parameters = shapes(16, 2, 2, 32, 16, classes=5, head_dim=8, patch=8)
    return {name: nn.init.normal_(torch.empty(shape), std=0.3) for name, shape in parameters.items()}


@pytest.mark.parametrize("pixels", [224, 64])
@torch.no_grad()
def test_outputs_are_the_originals(pixels):
    first, last, total, norm = GOLDEN[pixels]
    supernet = tiny(pixels)
    for network, given in ((supernet, (TINY,)), (supernet.extract(TINY), ())):
        logits = network(image(pixels), *given)["imagenet"]
        assert logits.shape == (2, 1000)
        assert logits[0, :4].tolist() == pytest.approx(first, abs=1e-6)
        assert logits[1, -2:].tolist() == pytest.approx(last, abs=1e-6)
        assert logits.sum().item() == pytest.approx(total, abs=2e-6)
        pooled = network.features(image(pixels), *given)["imagenet"][-1].mean((2, 3))
        assert pooled.norm().item() == pytest.approx(norm, abs=1e-6)


@torch.no_grad()
def test_the_class_token_is_the_originals():
    supernet, seen = tiny(224), []
    supernet.norm.register_forward_hook(lambda module, inputs, output: seen.append(output[:, 0]))
    supernet(image(224), TINY)
    logits = supernet.heads.image["imagenet"](seen[0])
    first, last, total, norm = GOLDEN_CLASS_TOKEN
    assert logits[0, :4].tolist() == pytest.approx(first, abs=1e-6)
    assert logits[1, -2:].tolist() == pytest.approx(last, abs=1e-6)
    assert logits.sum().item() == pytest.approx(total, abs=2e-6)
    assert seen[0].norm().item() == pytest.approx(norm, abs=1e-6)


def test_outputs_are_the_originals_in_single_precision():
    logits = tiny(64).float()(image(64).float(), TINY)["imagenet"]
    assert logits[0, :4].tolist() == pytest.approx(GOLDEN[64][0], abs=1e-4)


@pytest.mark.parametrize(
    ("name", "parameters", "complexity", "macs"),
    [
        ("tiny", 5_867_944, 1_344_034_362, 1_481_938_432),
        ("small", 22_891_432, 4_892_144_730, 5_161_400_832),
        ("base", 53_691_688, 11_236_929_660, 11_691_179_008),
    ],
)
def test_counts_are_the_originals(name, parameters, complexity, macs):
    assert original_parameters(PUBLISHED[name]) == parameters
    assert get_complexity(PUBLISHED[name]) == complexity
    assert original_macs(PUBLISHED[name]) == macs


def test_counts_for_another_image_size():
    assert original_parameters(TINY, 16) == 5_833_384
    assert get_complexity(TINY, 16) == 103_953_162
    assert tiny(64).count_parameters(TINY) == 5_833_384


@pytest.mark.parametrize(
    ("name", "width", "depth", "heads", "weights"),
    [("tiny", 256, 14, 4, 11_669_224), ("small", 448, 14, 7, 34_790_440), ("base", 640, 16, 10, 80_160_360)],
)
def test_every_size_is_recognised_and_holds_the_published_network(name, width, depth, heads, weights):
    parameters = shapes(width, depth, heads, 4 * width, 196)
    supernet = import_autoformer({key: torch.zeros(shape) for key, shape in parameters.items()}, heads)
    assert supernet.space == SearchSpace.preset(name)
    assert sum(parameter.numel() for parameter in supernet.parameters()) == weights
    assert supernet.count_parameters(PUBLISHED[name]) == original_parameters(PUBLISHED[name])


def test_relative_positions_need_fewer_operations_than_the_originals():
    assert tiny(224).count_macs(TINY, (224, 224)) < original_macs(TINY)


def test_export_is_the_inverse_of_import():
    state = toy_state()
    exported = export_autoformer(import_autoformer(state, 2))
    assert exported.keys() == state.keys()
    assert all(torch.equal(exported[name], state[name]) for name in state)


def test_warm_start_fills_every_copy_and_leaves_the_heads():
    state = toy_state()
    reference = import_autoformer(state, 2).eval()
    supernet = toy(2, "binary", {"semseg": 3, "scene": 5}, image_tasks=["scene"])
    heads = {name: value.clone() for name, value in supernet.heads.state_dict().items()}
    warm_start(supernet, state)
    assert all(torch.equal(value, heads[name]) for name, value in supernet.heads.state_dict().items())
    picture = torch.randn(2, 3, 32, 32)
    for rows in ((), ((1, 2),) * 4):
        features = supernet.features(picture, Architecture(12, 2, (2, 2), (1, 2), rows))
        expected = reference.features(picture, Architecture(12, 2, (2, 2), (1, 2)))["imagenet"][-1]
        for taps in features.values():
            torch.testing.assert_close(taps[-1], expected)
    exported = export_autoformer(supernet)
    assert exported.keys() == {name for name in state if not name.startswith("head.")}


def test_positions_of_no_square_are_refused():
    state = toy_state()
    state["pos_embed"] = state["pos_embed"][:, :-1]
    with pytest.raises(WeightsError, match="square of patches"):
        warm_start(toy(1, "none", {"semseg": 3}), state)


def test_warm_start_resamples_positions_to_another_grid():
    state = toy_state()
    columns = torch.randn(4, 1, 16).repeat(1, 4, 1)  # the positions differ from row to row only
    state["pos_embed"][:, 1:] = columns.flatten(0, 1)
    supernet = toy(image_size=(32, 64))
    warm_start(supernet, state)
    positions = supernet.stem.pos_embed
    assert positions.shape == (1, 33, 16)
    assert torch.equal(positions[:, 0], state["pos_embed"][:, 0])
    torch.testing.assert_close(positions[0, 1:].detach(), columns.repeat(1, 2, 1).flatten(0, 1))


def test_weights_that_do_not_fit_are_explained():
    state = toy_state()
    extra = state | {"blocks.0.extra": torch.zeros(1)}
    with pytest.raises(WeightsError, match=r"unexpected: blocks\.0\.extra$"):
        import_autoformer(extra, 2)
    gap = {name: value for name, value in state.items() if name != "blocks.1.fc2.bias"}
    with pytest.raises(WeightsError, match=r"missing: blocks\.1\.fc2\.bias$"):
        warm_start(toy(), gap)
    with pytest.raises(
        WeightsError, match=r"of another shape or type: blocks\.1\.fc2\.bias \(3,\) .*for \(16,\) torch\.float32$"
    ):
        import_autoformer(state | {"blocks.1.fc2.bias": torch.zeros(3)}, 2)
    with pytest.raises(WeightsError, match=r"blocks\.1\.fc2\.bias \(16,\) torch\.int8 for"):
        import_autoformer(state | {"blocks.1.fc2.bias": torch.zeros(16, dtype=torch.int8)}, 2)
    with pytest.raises(WeightsError, match="not the weights of an AutoFormer supernet"):
        import_autoformer({"pos_embed": torch.zeros(1, 17, 16)}, 2)
    with pytest.raises(WeightsError, match="of another shape or type: cls_token"):
        warm_start(toy(), waves(shapes(24, 2, 2, 32, 16, head_dim=8, patch=8)))
