"""Recorded attention must be the attention: times the values it gives what the network itself computes."""

from collections import defaultdict

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from taskformer.errors import ConfigError
from taskformer.insight import affinity, recorded
from taskformer.insight.exchange import Affinity
from taskformer.models import Backbone, BaselineHead, DenseNetwork, MQTransformerHead, SearchSpace, Supernet
from taskformer.models.mqtransformer.attention import Attention, Gathering, Reading, normalise
from taskformer.models.mqtransformer.stages import Decoder, ReleasedSelfAttention, SelfAttention
from taskformer.modules import Baseline, MQTransformer

TASKS = {"semseg": 5, "depth": 1, "normals": 3}
STRIDES = [4, 8, 16, 32]
#: Queries of all heads are fewer than the channels, or more: the network absorbs projections, or does not.
FEW, MANY = {"num_queries": 3}, {"num_queries": 9}
KINDS = {
    "absorbed": {**FEW},
    "projected": {**MANY},
    "scales": {**FEW, "scales": STRIDES, "num_blocks": 2},
    "coarse": {**FEW, "token_stride": 16},
    "joint": {**MANY, "scales": [4, 8], "cross_attention": "joint"},
    "joint, one scale": {**FEW, "cross_attention": "joint"},
    "alone": {**FEW, "scales": [8, 16], "cross_attention": "none"},
    "own stages": {**FEW, "scales": [4, 32], "share_encoder": False, "share_decoder": False, "num_blocks": 2},
    "released": {**MANY, "wiring": "released"},
}


def shaken(module):
    """Give all parameters values that matter."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module.eval()


def build(**options):
    settings = {"embed_dim": 16, "num_heads": 4, "head_dim": 6, "drop_path": 0.0, "cross_drop_path": 0.0}
    backbone = Backbone("test_resnet")
    return shaken(DenseNetwork(backbone, lambda *maps: MQTransformerHead(TASKS, *maps, **settings | options)))


def images(batch=2):
    return torch.randn(batch, 3, 50, 70, generator=torch.Generator().manual_seed(1))


def heads_of(x, count):
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def times_values(attention, weights, values):
    """Finish an attention from its weights ``(B, h, N, L)``."""
    read = weights @ heads_of(attention.to_v(values), attention.num_heads)
    return attention.out(read.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("count", [3, 9])
def test_weights_times_values_is_what_each_attention_gives(count):
    generator = torch.Generator().manual_seed(2)
    queries, tokens = (torch.randn(2, n, 16, generator=generator) for n in (count, 20))
    positions = torch.randn(count, 16, generator=generator)
    plain, gathering, reading = (shaken(kind(16, 4)) for kind in (Attention, Gathering, Reading))
    found = times_values(plain, plain.weights(queries, tokens), plain.norm_v(tokens))
    torch.testing.assert_close(found, plain(queries, tokens))
    normal = normalise(tokens)
    found = times_values(gathering, gathering.weights(queries, normal), gathering.norm_v(tokens))
    torch.testing.assert_close(found, gathering(queries, normal))
    found = times_values(reading, reading.weights(normal, queries, positions), reading.norm_v(queries))
    memory = reading.remember(queries, positions, None)
    torch.testing.assert_close(found, reading(torch.zeros_like(tokens), normal, memory, None))


def test_weights_times_values_is_what_the_layers_among_queries_give():
    queries = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(2))
    for kind, values in ((SelfAttention, lambda layer: layer.attention.norm_v(queries)),
                         (ReleasedSelfAttention, lambda _: queries)):  # fmt: skip
        layer = shaken(kind(16, 4, 1.0, 0.0))
        layer.mlp[3].weight.data.zero_()  # only the attention's branch is left
        layer.mlp[3].bias.data.zero_()
        found = times_values(getattr(layer, "attention", layer), layer.weights(queries), values(layer))
        torch.testing.assert_close(queries + found, layer(queries))


def watched(network, image):
    """Run a network; returns its outputs and inputs and outputs of each of its parts, call by call."""
    calls = defaultdict(list)
    handles = [
        part.register_forward_hook(lambda part, args, result: calls[type(part)].append((part, args, result)))
        for part in network.modules()
    ]
    with torch.no_grad():
        outputs = network(image)
    for handle in handles:
        handle.remove()
    return outputs, calls


@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_is_recorded_as_it_was_and_not_changed(kind):
    network = build(**KINDS[kind])
    outputs, calls = watched(network, images())
    with recorded(network) as passes, torch.no_grad():
        again = network(images())
    assert all(torch.equal(outputs[task], again[task]) for task in TASKS)
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in network.modules())
    (attention,) = passes
    assert (attention.tasks, attention.size, attention.padded) == (list(TASKS), (50, 70), (64, 96))
    scales = KINDS[kind].get("scales", [KINDS[kind].get("token_stride", STRIDES[0])])
    gathered, read = iter(calls[Gathering]), zip(calls[Reading], decoders(calls), strict=True)
    for found in attention.rounds:
        for task in TASKS:
            assert [x.shape[-2:] for x in found.gathering[task]] == [(64 // s, 96 // s) for s in scales]
            for maps, looks in zip(found.gathering[task], found.reading[task], strict=True):
                part, (_, tokens), result = next(gathered)
                weights = torch.from_numpy(maps).flatten(-2)  # row by row, as maps become tokens
                values = tokens * part.norm_v.weight + part.norm_v.bias
                torch.testing.assert_close(times_values(part, weights, values), result, rtol=1e-4, atol=1e-4)
                (part, (residual, *_), result), (_, (_, _, queries, *_), _) = next(read)
                weights = torch.from_numpy(looks).flatten(-2).transpose(-2, -1)
                step = times_values(part, weights, part.norm_v(queries))
                torch.testing.assert_close(residual + step, result, rtol=1e-4, atol=1e-4)
    assert not [*gathered, *read]


def decoders(calls):
    return [call for part in calls if issubclass(part, Decoder) for call in calls[part]]


@pytest.mark.parametrize("kind", ["scales", "joint", "joint, one scale", "released"])
def test_the_exchange_is_summed_query_by_query(kind):
    network = build(**KINDS[kind])
    count, scales = KINDS[kind]["num_queries"], range(len(KINDS[kind].get("scales", "1")))
    _, calls = watched(network, images())
    layers = iter([call for part in (SelfAttention, ReleasedSelfAttention) for call in calls[part]])
    with recorded(network, maps=False) as passes, torch.no_grad():
        network(images())
    for found in passes[0].rounds:
        assert (found.gathering, found.reading) == ({}, {})
        layer, (queries,), _ = next(layers)
        weights = layer.weights(queries).detach().numpy()
        joint = network.head.exchanges[0].joint
        for b, s, t, h, n in np.ndindex(*found.between_tasks.shape[:-1]):
            row = weights[b, h, (s * len(TASKS) + t) * count + n] if joint else (
                weights[b * len(scales) + s, h, t * count + n])  # fmt: skip
            apart = row.reshape(-1, len(TASKS), count)  # scales, tasks, queries
            np.testing.assert_allclose(found.between_tasks[b, s, t, h, n], apart.sum((0, 2)), rtol=1e-5)
            if joint and len(scales) > 1:
                np.testing.assert_allclose(found.between_scales[b, s, t, h, n], apart.sum((1, 2)), rtol=1e-5)
        if not joint and len(scales) > 1:
            layer, (queries,), _ = next(layers)
            weights = layer.weights(queries).detach().numpy()
            for b, s, t, h, n in np.ndindex(*found.between_scales.shape[:-1]):
                row = weights[b * len(TASKS) + t, h, s * count + n].reshape(len(scales), count)
                np.testing.assert_allclose(found.between_scales[b, s, t, h, n], row.sum(1), rtol=1e-5)
    assert not list(layers)


def supernet(head="query"):
    space = SearchSpace((16, 32), (1, 2), (2.0,), (1, 2), head_dim=16, num_tasks=2, sharing="binary")
    options = {"num_queries": 5} if head == "query" else {}
    return shaken(Supernet(space, {"depth": 1, "normals": 3}, head, image_size=(64, 96), head_options=options))


def test_a_subnetwork_with_the_query_head_is_recorded():
    net = supernet()
    subnet = net.extract(net.space.smallest())
    _, calls = watched(subnet, images())
    with recorded(subnet) as passes, torch.no_grad():
        subnet(images())
    (attention,) = passes
    assert (attention.tasks, attention.size, attention.padded) == (["depth", "normals"], (50, 70), (64, 80))
    for task, (part, (_, tokens), result) in zip(attention.tasks, calls[Gathering], strict=True):
        (maps,) = attention.rounds[0].gathering[task]
        assert maps.shape == (2, 4, 5, 4, 5)
        values = tokens * part.norm_v.weight + part.norm_v.bias
        found = times_values(part, torch.from_numpy(maps).flatten(-2), values)
        torch.testing.assert_close(found, result, rtol=1e-4, atol=1e-3)


def test_networks_without_queries_are_refused():
    plain = DenseNetwork(Backbone("test_resnet"), lambda *maps: BaselineHead({"depth": 1}, *maps, embed_dim=8))
    for network, reason in ((plain, "DenseNetwork has none"), (supernet(), "take one of them")):
        with pytest.raises(ConfigError, match=reason), recorded(network):
            pass


def model(**options):
    settings = {"embed_dim": 16, "num_queries": 3, "head_dim": 8, "scales": [8, 16]}
    return MQTransformer({"depth": {}, "normals": {}, "edges": {}}, backbone="test_resnet", **settings | options)


def test_affinity_is_the_mean_over_heads_scales_and_queries_of_each_image():
    module = model(num_blocks=2).train()
    shaken(module.network).train()
    batches = [images(2), images(1)]
    found = affinity(module, batches)
    assert module.training
    assert module.network.training
    assert found.tasks == ["depth", "normals", "edges"]
    assert found.per_image.shape == (3, 3, 3)
    np.testing.assert_allclose(found.per_image.sum(-1), 1, rtol=1e-5)
    with recorded(module.network.eval()) as passes, torch.no_grad():
        module.network(batches[0])
    expected = np.zeros((3, 3))
    for one in passes[0].rounds:
        shares = one.between_tasks[1]  # of the second image
        for s, t, h, n, u in np.ndindex(shares.shape):
            expected[t, u] += shares[s, t, h, n, u] / (2 * 2 * 4 * 3)
    np.testing.assert_allclose(found.per_image[1], expected, rtol=1e-5)
    alone = affinity(module, [images(2)[1:]])
    np.testing.assert_allclose(found.per_image[1], alone.per_image[0], atol=1e-6)


def test_affinity_tells_who_is_read():
    module = model(scales="fused", num_heads=1)
    layer = module.network.head.exchanges[0].between_tasks.attention
    with torch.no_grad():
        layer.to_k.weight.zero_()
        np.testing.assert_allclose(affinity(module, [images()]).mean, 1 / 3, rtol=1e-6)  # no query is told apart
        # All queries ask for what only those of the second task have.
        layer.norm_q.weight.zero_()
        layer.norm_q.bias.copy_(F.one_hot(torch.tensor(0), 16) * 1000.0)
        layer.to_q.weight.copy_(torch.eye(16))
        layer.to_k.weight.copy_(torch.eye(16))
        module.network.head.queries[:, 1, :, 0] += 100.0
    np.testing.assert_allclose(affinity(module, [images()]).mean, [[0, 1, 0]] * 3, atol=1e-6)


def test_without_exchange_there_is_no_affinity():
    with pytest.raises(ConfigError, match="cross_attention='none'"):
        affinity(model(cross_attention="none"), [images()])
    with pytest.raises(ConfigError, match="saw no image"):
        affinity(model(), [])
    with pytest.raises(ConfigError, match="DenseNetwork has none"):
        affinity(Baseline({"depth": {}}, backbone="test_resnet", embed_dim=8), [images()])


def test_the_spread_is_over_images():
    shares = np.array([[[0.8, 0.2], [0.5, 0.5]], [[0.6, 0.4], [0.5, 0.5]]])
    np.testing.assert_allclose(Affinity(["a", "b"], shares).spread, [[0.1, 0.1], [0, 0]], atol=1e-12)
