"""Every head in a toy supernet: sub-networks come out equal, counted exactly, trainable, and they run in ONNX."""

import random

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from taskformer.models.autotaskformer import SearchSpace, Supernet
from taskformer.models.autotaskformer.heads import HEADS

TASKS = {"semseg": 4, "depth": 1, "scene": 6}  # scene has one answer per image
OPTIONS = {
    "linear": {},
    "aspp": {"width": 8, "rates": (1, 3)},
    "pup": {"width": 8},
    "dpt": {"width": 8},
    "query": {"width": 16, "num_queries": 3, "num_heads": 2, "head_dim": 8},
}
SIZE = (21, 40)  # not whole patches


def space_of(sharing="binary"):
    return SearchSpace(
        embed_dims=(8, 16, 24),
        depths=(1, 2, 5),
        mlp_ratios=(1.5, 2.0),
        num_heads=(1, 2),
        head_dim=8,
        num_tasks=len(TASKS),
        sharing=sharing,
        **({} if sharing in ("none", "binary") else {"copies": 2}),
    )


def supernet_of(kind, space):
    torch.manual_seed(0)
    supernet = Supernet(space, TASKS, kind, ["scene"], (24, 40), 8, 2, head_options=OPTIONS[kind]).eval()
    with torch.no_grad():  # away from the zeros, which hide mistakes
        for parameter in supernet.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return supernet


def architectures(space, count=4):
    rng = random.Random(0)
    return [space.smallest(), space.largest()] + [space.random(rng) for _ in range(count)]


@pytest.fixture(params=HEADS)
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
