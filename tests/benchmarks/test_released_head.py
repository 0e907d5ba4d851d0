"""The plain re-statement of MQTransformer's released head: names, sizes and what only the original does."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import released_head as plain

#: Millions of parameters of the original head, NYUD-v2 and PASCAL-Context.
PUBLISHED = {
    "hrnet_w18": (4.46, 4.70),
    "hrnet_w48": (4.92, 5.27),
    "swin_t": (5.66, 6.20),
    "swin_b": (6.15, 6.81),
    "swin_l": (7.13, 8.04),
}
BLOCK = "parts_query_encoder_decoder_blocks.0"
#: One tensor of each kind.
NAMES = {
    "bottleneck.edge.conv.weight": (64, 256, 3, 3),
    "bottleneck.edge.bn.running_var": (64,),
    "bottleneck.edge.bn.num_batches_tracked": (),
    "final_logits.semseg.weight": (40, 64, 1, 1),
    "final_logits.depth.bias": (1,),
    f"{BLOCK}.rpn_tokens.3": (1, 64, 256),
    f"{BLOCK}.rpn_qpos.0": (1, 64, 1, 64),
    f"{BLOCK}.rpn_kpos.0": (1, 64, 1, 64),
    f"{BLOCK}.encoder1.enc_attn.norm_q.weight": (256,),
    f"{BLOCK}.encoder1.enc_attn.to_k.weight": (256, 256),
    f"{BLOCK}.encoder1.enc_attn.proj.bias": (256,),
    f"{BLOCK}.encoder1.reason.norm.bias": (256,),
    f"{BLOCK}.encoder1.reason.linear.weight": (256, 256, 1),
    f"{BLOCK}.encoder1.enc_ffn.fc1.weight": (256, 256),
    f"{BLOCK}.decoder1.attn1.norm_v.weight": (256,),
    f"{BLOCK}.decoder1.attn2.norm_v.weight": (256,),
    f"{BLOCK}.decoder1.rel_pos.rel_emb_h": (7, 32),
    f"{BLOCK}.decoder1.ffn1.fc1.weight": (768, 256),
    f"{BLOCK}.decoder1.ffn2.fc2.weight": (256, 768),
    f"{BLOCK}.decoder1.mhsa.in_proj_weight": (768, 256),
    f"{BLOCK}.mhsa_1.out_proj.weight": (256, 256),
    f"{BLOCK}.norm_layer.weight": (256,),
    f"{BLOCK}.ffn_mlp.norm.weight": (256,),
    "patch_embed.projection.weight": (256, 256, 4, 4),
    "patch_embed.norm.weight": (256,),
    "linears.3.weight": (256, 270),
    "linears.3.bias": (256,),
}


@pytest.fixture
def head():
    head = plain.ReleasedHead(plain.TASKS["nyud"], plain.CHANNELS["hrnet_w18"]).eval()
    plain.randomise(head)
    return head


def features(batch, channels, height=16, width=24):
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(batch, c, -(-height // 2**i), -(-width // 2**i), generator=generator)
        for i, c in enumerate(channels)
    ]


@pytest.mark.parametrize("encoder", PUBLISHED)
def test_the_sizes_are_the_published_ones(encoder):
    with torch.device("meta"):
        heads = [plain.ReleasedHead(tasks, plain.CHANNELS[encoder]) for tasks in plain.TASKS.values()]
    counts = [sum(p.numel() for p in head.parameters()) / 1e6 for head in heads]
    assert counts == pytest.approx(PUBLISHED[encoder], abs=0.005)


def test_names_and_shapes_are_the_originals(head):
    shapes = {name: tuple(values.shape) for name, values in head.state_dict().items()}
    assert {name: shapes[name] for name in NAMES} == NAMES
    first = list(dict.fromkeys(name.split(".")[0] for name in shapes))
    assert first == ["bottleneck", "final_logits", "parts_query_encoder_decoder_blocks", "patch_embed", "linears"]
    assert len(shapes) == 4 * (6 + 2 + 3 + 2) + 3 * 11 + 3 + 6 + 2 + 6 + 6 + 4 + 4 + 2 + 6 + 4


def test_1313728_numbers_learn_nothing(head):
    outputs = head.train()(features(2, plain.CHANNELS["hrnet_w18"]), size=(64, 96))
    sum(output.square().sum() for output in outputs.values()).backward()
    dead = {name: p.numel() for name, p in head.named_parameters() if p.grad is None}
    assert sum(dead.values()) == 1_313_728
    assert all(
        name.startswith(("patch_embed.", f"{BLOCK}.decoder1.attn2.", f"{BLOCK}.decoder1.rel_pos.")) for name in dead
    )


@torch.no_grad()
def test_an_image_depends_on_its_batch(head):
    maps = features(2, plain.CHANNELS["hrnet_w18"])
    together = head(maps, size=(64, 96))
    alone = head([x[:1] for x in maps], size=(64, 96))
    assert all((together[task][:1] - alone[task]).abs().max() > 0.01 for task in together)


@pytest.fixture(scope="module")
def contenders():
    problem = plain.Problem("hrnet_w18", "nyud", (64, 96), batch=1)
    return {name: plain.Contender(name, problem) for name in ("restated", "released", "checkpointed")}


def test_equal_networks_are_compared_and_unequal_ones_are_not(contenders):
    assert plain.largest_difference(contenders) < 1e-5
    other = plain.Contender("released", plain.Problem("hrnet_w18", "nyud", (64, 96), batch=1))
    torch.nn.init.ones_(other.head.queries)
    with pytest.raises(SystemExit, match="not equal: they differ by"):
        plain.largest_difference({"restated": contenders["restated"], "released": other})


def test_the_floor_has_the_products_that_torch_counts(contenders):
    for contender in contenders.values():
        assert plain.Floor(contender).gmac == pytest.approx(plain.gigamacs(contender), rel=0.01)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is metered on Linux only")
def test_the_meter_finds_an_allocation_that_is_known():
    assert plain.metered() == pytest.approx(plain.METER_MB, rel=0.05)
