"""MQTransformer against the textbook form of its equations: one product after the other, nothing absorbed, no tiles."""

import pytest
import torch
from torch.nn import functional as F

import taskformer.models.mqtransformer.stages as module
from taskformer.models import MQTransformerHead

TASKS = {"semseg": 5, "depth": 1, "normals": 3}
CHANNELS, STRIDES = [8, 12, 16, 20], [4, 8, 16, 32]
SIZE = (58, 90)
#: Queries of all heads are fewer than the channels, or more: projections are absorbed, or not.
FEW, MANY = {"num_queries": 4}, {"num_queries": 9}
KINDS = {
    "absorbed": {**FEW},
    "projected": {**MANY},
    "scales": {**FEW, "scales": STRIDES},
    "concatenated": {**FEW, "scales": [4, 16], "merge": "concat"},
    "joint": {**MANY, "scales": [4, 8], "cross_attention": "joint"},
    "alone": {**FEW, "scales": [8, 16], "cross_attention": "none"},
    "coarse": {**FEW, "token_stride": 8},
    "own stages": {**FEW, "share_encoder": False, "share_decoder": False, "num_blocks": 2},
    "own decoders": {**MANY, "share_decoder": False, "scales": [4, 32], "num_blocks": 2},
}


def build(seed=0, **options):
    torch.manual_seed(seed)
    settings = {"embed_dim": 16, "num_heads": 4, "head_dim": 6, "drop_path": 0.0, "cross_drop_path": 0.0}
    head = MQTransformerHead(TASKS, CHANNELS, STRIDES, **settings | options)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return head


def features(batch=2):
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(batch, channels, -(-58 // stride), -(-90 // stride), generator=generator, requires_grad=True)
        for channels, stride in zip(CHANNELS, STRIDES, strict=True)
    ]


def upsample(x, size):
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def squares(x, side):
    """Average over squares, one by one; those at the border are smaller."""
    rows = [[part.mean((-2, -1)) for part in row.split(side, dim=-1)] for row in x.split(side, dim=-2)]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def attend(a, query, memory):
    """Multi-head attention, head by head."""
    q = F.linear(a.norm_q(query), a.to_q.weight)
    k = F.linear(a.norm_k(memory[0]), a.to_k.weight)
    v = F.linear(a.norm_v(memory[1]), a.to_v.weight)
    heads = []
    for one in zip(*(x.chunk(a.num_heads, dim=-1) for x in (q, k, v)), strict=True):
        scores = one[0] @ one[1].transpose(1, 2) / one[0].shape[-1] ** 0.5
        heads.append(torch.softmax(scores, dim=-1) @ one[2])
    return F.linear(torch.cat(heads, dim=-1), a.out.weight, a.out.bias)


def mlp(layers, x):
    norm, expand, _, project = layers
    return F.linear(F.gelu(F.linear(norm(x), expand.weight, expand.bias)), project.weight, project.bias)


def exchange(layer, x):
    x = x + attend(layer.attention, x, (x, x))
    return x + mlp(layer.mlp, x)


def plain(head, maps, size):
    """Return the outputs of a head with the clean wiring, from its parameters."""
    batch, tasks, scales = len(maps[0]), list(TASKS), range(len(head.levels))
    tokens, sizes, queries, fine, coarse = {}, {}, {}, {}, {}
    for s, (level, project) in enumerate(zip(head.levels, head.project, strict=True)):
        sizes[s] = maps[level[0]].shape[-2:]
        fused = torch.cat([upsample(maps[i], sizes[s]) for i in level], dim=1)
        weight = torch.cat([layer.weight for layer in project.levels], dim=1)
        each = F.conv2d(fused, weight, project.levels[0].bias).chunk(len(tasks), dim=1)
        for t in range(len(tasks)):
            fine[t, s] = each[t]
            coarse[t, s] = squares(each[t], head.pooling)
            tokens[t, s] = coarse[t, s].flatten(2).transpose(1, 2)
            queries[t, s] = head.queries[s, t].expand(batch, -1, -1)
    for b in range(len(head.encoders)):
        for t, s in queries:
            encoder = head.encoders[b][t] if isinstance(head.encoders[b], torch.nn.ModuleList) else head.encoders[b]
            q = queries[t, s]
            pos = head.query_pos[b, s, t].repeat(1, 4)
            q = q + attend(encoder.attention, q + pos, (tokens[t, s], tokens[t, s]))
            q = q + F.linear(encoder.norm(q), encoder.mix.weight)
            queries[t, s] = q + mlp(encoder.mlp, q)
        stage = head.exchanges[b]
        count = queries[0, 0].shape[1]
        groups = [] if stage.between_tasks is None else [[(t, s) for t in range(len(tasks))] for s in scales]
        if stage.joint:
            groups = [[(t, s) for s in scales for t in range(len(tasks))]]
        rounds = [(stage.between_tasks, groups)]
        if stage.between_scales is not None:
            rounds.append((stage.between_scales, [[(t, s) for s in scales] for t in range(len(tasks))]))
        for layer, sets in rounds:
            for members in sets:
                mixed = exchange(layer, torch.cat([queries[member] for member in members], dim=1))
                queries.update(zip(members, mixed.split(count, dim=1), strict=True))
        for t, s in tokens:
            decoder = head.decoders[b][t] if isinstance(head.decoders[b], torch.nn.ModuleList) else head.decoders[b]
            pos = head.key_pos[b, s, t].repeat(1, 4)
            x = tokens[t, s]
            x = x + attend(decoder.attention, x, (queries[t, s] + pos, queries[t, s]))
            tokens[t, s] = x + mlp(decoder.mlp, x)
    hidden = []
    for t in range(len(tasks)):
        learnt = {s: tokens[t, s].transpose(1, 2).reshape_as(coarse[t, s]) - coarse[t, s] for s in scales}
        planes = [upsample(fine[t, s] + upsample(learnt[s], sizes[s]), sizes[0]) for s in scales]
        if head.merge is None:
            hidden.append(sum(planes))
        else:
            together = torch.cat(planes, dim=1).movedim(1, -1)
            hidden.append(F.linear(together, head.merge.weight, head.merge.bias).movedim(-1, 1))
    narrow = head.predict.bottleneck(F.gelu(torch.cat(hidden, dim=1))).chunk(len(tasks), dim=1)
    return {task: upsample(head.predict.logits[task](x), size) for task, x in zip(tasks, narrow, strict=True)}


def gradients(head, outputs, maps):
    generator = torch.Generator().manual_seed(2)
    loss = sum((x * torch.randn(x.shape, generator=generator)).sum() for x in outputs.values())
    inputs = [*maps, *head.parameters()]
    names = [*(f"map {i}" for i in range(len(maps))), *(name for name, _ in head.named_parameters())]
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    return dict(zip(names, found, strict=True))


def assert_equal(found, expected, tolerance=1e-5):
    """Compare by name, each relative to its own largest value."""
    for name, value in expected.items():
        if value is None:  # a map that no scale reads
            assert found[name] is None
            continue
        assert value.abs().max() > 0, name
        torch.testing.assert_close(found[name] / value.abs().max(), value / value.abs().max(), atol=tolerance, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients_are_those_of_the_textbook(kind):
    head, maps = build(**KINDS[kind]).eval(), features()
    expected = plain(head, maps, SIZE)
    assert_equal(outputs := head(maps, SIZE), expected)
    assert_equal(gradients(head, outputs, maps), gradients(head, expected, maps), 2e-5)


@pytest.mark.parametrize("kind", ["absorbed", "projected", "scales"])
def test_tiles_are_seamless(kind, monkeypatch):
    head, maps = build(**KINDS[kind]).eval(), features()
    with torch.no_grad():
        whole = head(maps, SIZE)
        monkeypatch.setattr(module, "CPU_TILE", 14)  # 7 tokens of each of two images; 384 are no multiple
        assert_equal(head(maps, SIZE), whole, 1e-6)


@pytest.mark.parametrize("wiring", ["clean", "released"])
def test_checkpointing_changes_neither_outputs_nor_gradients_nor_draws(wiring, monkeypatch):
    monkeypatch.setattr(module, "CPU_TILE", 400)
    maps, results = features(batch=8), []
    for checkpointing in (False, True):
        head = build(**FEW, wiring=wiring, drop_path=0.5, checkpointing=checkpointing).train()
        torch.manual_seed(3)
        outputs = head(maps, SIZE)
        results.append((outputs, gradients(head, outputs, maps)))
    for plain_one, checkpointed in zip(*results, strict=True):
        assert_equal(checkpointed, plain_one)


def saved_numbers(head, maps):
    """Count the numbers that a training step keeps for the backward pass, each tensor once."""
    kept = {}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes() // 4
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        outputs = head(maps, SIZE)
    assert outputs
    return sum(kept.values())


def test_checkpointing_keeps_neither_attention_nor_hidden_layer_of_the_decoder():
    maps, wide = features(batch=4), {"embed_dim": 128, "num_queries": 32}
    kept = [saved_numbers(build(**wide, checkpointing=checkpointing), maps) for checkpointing in (False, True)]
    tokens = 4 * len(TASKS) * 16 * 24 * 128
    # Attention weights (as many as channels), what they give, and a hidden layer of three times the width.
    assert (kept[0] - kept[1]) / tokens > 5


@pytest.mark.parametrize("wiring", ["clean", "released"])
def test_a_dropped_branch_is_dropped_for_a_whole_image_and_no_other(wiring):
    torch.manual_seed(0)
    decoder = build(**FEW, wiring=wiring, drop_path=0.5).decoders[0].train()
    tokens, queries, pos = torch.randn(64, 5, 16), torch.randn(64, 4, 16), torch.randn(4, 16)
    unchanged = torch.isclose(decoder(tokens, None, queries, pos), tokens).all(dim=2)  # (B, L)
    assert (unchanged.all(dim=1) == unchanged.any(dim=1)).all()
    # Clean: both branches are dropped; released: the last two, whose residual starts anew.
    assert 0.1 < unchanged.all(dim=1).float().mean() < 0.4


def test_the_mean_over_stochastic_depth_is_the_branch():
    torch.manual_seed(0)
    decoder = build(**FEW, drop_path=0.5).decoders[0]
    tokens, queries, pos = torch.randn(1, 5, 16), torch.randn(1, 4, 16), torch.randn(4, 16)
    decoder.mlp[3].weight.data.zero_()  # only the attention's branch is left
    decoder.mlp[3].bias.data.zero_()
    expected = decoder.eval()(tokens, None, queries, pos)
    many = decoder.train()(tokens.expand(4000, -1, -1), None, queries.expand(4000, -1, -1), pos)
    torch.testing.assert_close(many.mean(0), expected[0], atol=0.1, rtol=0)


@pytest.mark.parametrize("options", [{}, {"scales": STRIDES, "num_blocks": 2}, {"token_stride": 16}], ids=str)
def test_a_head_that_starts_plain_is_plain_heads_and_learns_all_its_parts(options):
    """Where there are several scales, plain heads of their sum."""
    torch.manual_seed(0)
    small = {"embed_dim": 16, "head_dim": 6, "drop_path": 0.0, "cross_drop_path": 0.0}
    head = MQTransformerHead(TASKS, CHANNELS, STRIDES, start="plain", **small, **options)
    maps = features()
    each = [[x.permute(0, 3, 1, 2) for x in scale] for scale in head.task_maps(maps)]
    sums = [sum(upsample(x, of_task[0].shape[-2:]) for x in of_task) for of_task in zip(*each, strict=True)]
    expected = head.predict([x.permute(0, 2, 3, 1) for x in sums], SIZE)
    found = head(maps, SIZE)
    assert_equal(found, expected)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.5)
    for _ in range(4):  # a branch's last layer learns first, then what is before it
        optimizer.zero_grad()
        sum((x**2).mean() for x in head(maps, SIZE).values()).backward()
        optimizer.step()
    assert not [name for name, parameter in head.named_parameters() if not parameter.grad.abs().max() > 0]
