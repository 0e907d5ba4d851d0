"""Every head in a toy supernet: sub-networks come out equal, counted exactly, trainable, and they run in ONNX."""

import copy
import random
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from taskformer.errors import ConfigError
from taskformer.models.autotaskformer import Architecture, SearchSpace, Supernet

TASKS = {"semseg": 4, "depth": 1, "scene": 6}  # scene has one answer per image
OPTIONS = {
    "linear": {},
    "aspp": {"width": 8, "rates": (1, 3)},
    "pup": {"width": 8},
    "dpt": {"width": 8},
    "query": {"width": 16, "num_queries": 3, "num_heads": 2, "head_dim": 8},
}
SIZE = (21, 40)  # not whole patches
DECODERS = {"num_queries": (1, 3, 4), "num_scales": (1, 2, 4), "decoder_widths": (4, 12, 16)}


def space_of(sharing="binary", **decoders):
    return SearchSpace(
        embed_dims=(8, 16, 24),
        depths=(1, 2, 5),
        mlp_ratios=(1.5, 2.0),
        num_heads=(1, 2),
        head_dim=8,
        num_tasks=len(TASKS),
        sharing=sharing,
        **decoders,
        **({} if sharing in ("none", "binary") else {"copies": 2}),
    )


def supernet_of(kind, space, options=None):
    torch.manual_seed(0)
    options = OPTIONS[kind] if options is None else options
    supernet = Supernet(space, TASKS, kind, ["scene"], (24, 40), 8, 2, head_options=options).eval()
    with torch.no_grad():  # away from the zeros, which hide mistakes
        for parameter in supernet.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return supernet


def architectures(space, count=4):
    rng = random.Random(0)
    return [space.smallest(), space.largest()] + [space.random(rng) for _ in range(count)]


@pytest.fixture(params=OPTIONS)
def kind(request):
    return request.param


@pytest.mark.parametrize("sharing", ["none", "binary", "tree"])
def test_extracted_subnetworks_equal_the_supernet_and_count_exactly(kind, sharing):
    space = space_of(sharing)
    supernet = supernet_of(kind, space)
    image = torch.randn(2, 3, *SIZE)
    for architecture in architectures(space):
        subnet = supernet.extract(architecture)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            outputs = subnet(image[:1])
        assert 2 * supernet.count_macs(architecture, SIZE) == counter.get_total_flops()
        assert supernet.count_parameters(architecture) == sum(parameter.numel() for parameter in subnet.parameters())
        shapes = {"semseg": (1, 4, *SIZE), "depth": (1, 1, *SIZE), "scene": (1, 6)}
        assert {task: tuple(value.shape) for task, value in outputs.items()} == shapes
        with torch.no_grad():
            whole = supernet(image, architecture)
        for task, value in outputs.items():
            torch.testing.assert_close(value, whole[task][:1], atol=1e-5, rtol=1e-5)


def test_an_extracted_subnetwork_trains_all_of_itself(kind):
    space = space_of()
    supernet = supernet_of(kind, space)
    before = {name: parameter.clone() for name, parameter in supernet.named_parameters()}
    subnet = supernet.extract(space.random(random.Random(3)))
    optimizer = torch.optim.SGD(subnet.parameters(), lr=0.01)
    outputs = subnet(torch.randn(2, 3, *SIZE))
    sum((value * torch.randn_like(value)).sum() for value in outputs.values()).backward()
    assert [name for name, p in subnet.named_parameters() if p.grad is None or not p.grad.any()] == []
    optimizer.step()
    assert all(torch.equal(parameter, before[name]) for name, parameter in supernet.named_parameters())


def test_taps_come_from_the_sampled_depth(kind):
    """A layer behind the sampled depth gets no gradient, and the heads' taps are as many as they ask for."""
    space = space_of("none")
    supernet = supernet_of(kind, space)
    architecture = space.smallest()
    image = torch.randn(1, 3, *SIZE)
    features = supernet.features(image, architecture)
    assert {task: len(taps) for task, taps in features.items()} == dict.fromkeys(TASKS, len(supernet.heads.fractions))
    assert {tuple(tap.shape) for taps in features.values() for tap in taps} == {(1, 8, 3, 5)}
    sum(value.sum() for value in supernet(image, architecture).values()).backward()
    used = [any(p.grad is not None for p in unit.parameters()) for unit in supernet.units]
    assert used == [True] * 2 + [False] * (len(used) - 2)


def query_supernet(**options):
    """A supernet whose space also chooses the decoder; attention heads of 4 channels."""
    return supernet_of("query", space_of(**DECODERS), {"head_dim": 8, "num_blocks": 2} | options)


def test_any_decoder_is_extracted_equal_and_counts_exactly():
    supernet = query_supernet(num_blocks=1)
    space = replace(supernet.space, depths=(1, 2))
    rng, image = random.Random(1), torch.randn(1, 3, *SIZE)
    sizes = [size for size in space.decoders() for _ in range(2)]
    for count, scales, width in sizes:
        chosen = {"num_queries": count, "num_scales": scales, "decoder_width": width}
        architecture = replace(space.random(rng), **chosen)
        subnet = supernet.extract(architecture)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            outputs = subnet(image)
        assert 2 * supernet.count_macs(architecture, SIZE) == counter.get_total_flops()
        assert supernet.count_parameters(architecture) == sum(parameter.numel() for parameter in subnet.parameters())
        with torch.no_grad():
            expected = supernet(image, architecture)
        for task, value in outputs.items():
            torch.testing.assert_close(value, expected[task], atol=1e-5, rtol=1e-5)
    assert len(sizes) > 30


def test_an_extracted_decoder_is_plain_and_of_its_sizes():
    supernet = query_supernet()
    chosen = replace(supernet.space.largest(), num_queries=3, num_scales=2, decoder_width=12)
    subnet = supernet.extract(chosen)
    assert subnet.heads.fractions == (0.75, 1.0)
    assert [len(taps) for taps in subnet.features(torch.randn(1, 3, *SIZE)).values()] == [2, 2, 2]
    decoder = subnet.heads.dense
    assert decoder.queries.shape == (2, 3, 12)
    assert {stage.attention.num_heads for stage in [*decoder.encoders, *decoder.decoders]} == {3}
    assert [tuple(layer.weight.shape) for layer in decoder.project["depth"]["3"]] == [(12, 24, 1, 1), (12,)]
    assert not {type(module).__name__ for module in subnet.modules()} & {"SlicedConv2d", "SlicedLinear"}
    own = {parameter.data_ptr() for parameter in supernet.parameters()}
    assert not own & {parameter.data_ptr() for parameter in subnet.parameters()}
    # It can be cut again, as any heads can.
    again = subnet.heads.narrowed(16, chosen.decoder._replace(num_queries=1))
    assert again.dense.queries.shape == (2, 1, 12)


def test_a_smaller_decoder_is_the_first_queries_channels_and_hidden_units_and_the_last_taps():
    supernet = query_supernet()
    chosen = replace(supernet.space.largest(), num_queries=3, num_scales=2, decoder_width=12)
    outputs = supernet(torch.randn(2, 3, *SIZE), chosen)
    sum((value * torch.randn_like(value)).sum() for value in outputs.values()).backward()
    head = supernet.heads.dense

    def used(parameter):
        """The part of a parameter that matters, as a box from its first entry."""
        places = parameter.grad.nonzero()
        box = tuple(int(side) for side in 1 + places.amax(0))
        assert len(places) == torch.Size(box).numel()  # all of the box
        return box

    assert used(head.queries) == (2, 3, 12)
    assert used(head.query_pos) == used(head.key_pos) == (2, 2, 3, 4)
    for stage in (head.encoders[1], head.decoders[0]):
        assert used(stage.attention.to_v.weight) == used(stage.attention.out.weight) == (12, 12)
        assert used(stage.attention.norm_k.weight) == (12,)
    assert used(head.encoders[0].mix.weight) == used(head.exchanges[0].between_tasks.mlp[1].weight) == (12, 12)
    assert used(head.decoders[1].mlp[1].weight) == (36, 12)
    assert used(head.decoders[1].mlp[3].weight) == (12, 36)
    assert used(head.bottleneck[0].weight) == (16, 12, 3, 3)
    assert used(head.predict["semseg"].weight) == (4, 8, 1, 1)
    assert used(head.project["depth"]["2"][0].weight) == used(head.project["depth"]["3"][0].weight) == (12, 24, 1, 1)
    assert {p.grad for tap in ("0", "1") for p in head.project["depth"][tap].parameters()} == {None}


def test_a_decoder_of_the_full_sizes_is_the_head_itself():
    supernet = query_supernet()
    largest = supernet.space.largest()
    assert largest.decoder == (4, 4, 16)
    plain = replace(largest, num_queries=0, num_scales=0, decoder_width=0)
    image = torch.randn(2, 3, *SIZE)
    for task, value in supernet(image, largest).items():
        assert torch.equal(value, supernet(image, plain)[task])
    assert supernet.count_macs(largest, SIZE) == supernet.count_macs(plain, SIZE)
    assert supernet.count_parameters(largest) == supernet.count_parameters(plain)


def test_choices_of_the_decoder_change_neither_its_weights_nor_their_names():
    chosen = query_supernet().state_dict()
    plain = supernet_of("query", space_of(), {"head_dim": 8, "num_blocks": 2, "num_queries": 4, "width": 16})
    assert chosen.keys() == plain.state_dict().keys()
    assert all(torch.equal(value, chosen[name]) for name, value in plain.state_dict().items())
    assert {f"heads.dense.project.depth.{tap}.0.weight" for tap in range(4)} <= chosen.keys()


def test_smaller_decoders_follow_the_mode_and_survive_inference_and_copies():
    supernet = query_supernet(cross_drop_path=0.9)
    smallest, image = supernet.space.smallest(), torch.randn(1, 3, *SIZE)
    with torch.inference_mode():
        expected = supernet(image, smallest)["depth"]
    twin = copy.deepcopy(supernet)
    torch.manual_seed(0)
    outputs = torch.stack([supernet.train()(image, smallest)["depth"] for _ in range(8)])
    assert not torch.allclose(outputs[0], outputs[1:])
    outputs.sum().backward()
    assert supernet.heads.dense.queries.grad.any()
    with torch.no_grad():
        assert torch.equal(supernet.eval()(image, smallest)["depth"], expected)
        twin.heads.dense.queries[..., 0].add_(1)  # of all channels norms would take it away
        assert not torch.allclose(twin(image, smallest)["depth"], expected)
        assert torch.equal(supernet(image, smallest)["depth"], expected)


@pytest.mark.parametrize("name", DECODERS)
def test_only_the_query_head_has_a_decoder_to_choose(name):
    for kind in set(OPTIONS) - {"query"}:
        with pytest.raises(ConfigError, match="sizes of the head 'query', which this network does not have"):
            supernet_of(kind, space_of(**{name: (1,)}))
    with pytest.raises(ConfigError, match="sizes of the head 'query', which this network does not have"):
        Supernet(space_of("none", **{name: (1,)}), {"scene": 6}, "query", ["scene"])


def test_decoders_that_do_not_fit_are_explained():
    with pytest.raises(ConfigError, match="the query decoder's weights hold width=8, an architecture needs 12"):
        query_supernet(width=8)
    with pytest.raises(ConfigError, match="a multiple of its attention heads' 8 channels, got 4"):
        query_supernet(num_heads=2)
    with pytest.raises(ConfigError, match="reads 1 to 4 taps, got num_scales=5"):
        supernet_of("query", space_of(num_scales=(5,)))
    supernet, dpt = query_supernet(), supernet_of("dpt", space_of())
    for use in (
        lambda network, architecture: network(torch.randn(1, 3, *SIZE), architecture),
        lambda network, architecture: network.extract(architecture),
        lambda network, architecture: network.count_parameters(architecture),
        lambda network, architecture: network.count_macs(architecture, SIZE),
    ):
        with pytest.raises(ConfigError, match="weights hold num_queries=4, an architecture needs 5"):
            use(supernet, Architecture(8, 1, (2.0,), (1,), num_queries=5))
        with pytest.raises(ConfigError, match="does not have"):
            use(dpt, Architecture(8, 1, (2.0,), (1,), num_queries=1))


@pytest.mark.slow
def test_an_extracted_subnetwork_runs_in_onnx_with_any_batch(kind, tmp_path):
    pytest.importorskip("onnxscript", reason="torch's exporter needs the extra 'export'")
    runtime = pytest.importorskip("onnxruntime", reason="running needs the extra 'export'")
    space = space_of()
    subnet = supernet_of(kind, space).extract(space.random(random.Random(1)))
    path = tmp_path / "subnet.onnx"
    example = torch.randn(2, 3, *SIZE)  # not one image: the exporter takes a size of one for fixed
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    torch.onnx.export(subnet, (example,), path, dynamic_shapes=shapes, dynamo=True, verbose=False)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        image = torch.randn(batch, 3, *SIZE)
        outputs = session.run(None, {session.get_inputs()[0].name: image.numpy()})
        with torch.no_grad():
            expected = subnet(image)
        for value, wanted in zip(outputs, expected.values(), strict=True):
            torch.testing.assert_close(torch.from_numpy(value), wanted, atol=1e-4, rtol=1e-4)
