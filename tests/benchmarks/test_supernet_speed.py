"""The speed comparison compares networks that are equal, and says so if they are not."""

import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import supernet

    yield supernet
    sys.modules.pop("supernet")


@pytest.fixture
def contenders(benchmark):
    made = {name: benchmark.Contender(name, "tiny", batch=1) for name in benchmark.NETWORKS}
    benchmark.give_weights(made, num_heads=4)
    return made


def test_the_networks_are_equal_and_all_train(benchmark, contenders):
    assert benchmark.largest_difference(contenders) < 1e-5
    for contender in contenders.values():
        before = contender.forward()
        contender.step()
        assert not torch.equal(contender.forward(), before)


def test_unequal_networks_are_not_compared(benchmark, contenders):
    for parameter in contenders["extracted"].network.parameters():
        torch.nn.init.ones_(parameter)
    with pytest.raises(SystemExit, match="not equal: they differ by"):
        benchmark.largest_difference(contenders)
