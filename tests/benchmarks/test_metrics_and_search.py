"""The benchmarks of metrics and searches run, on sizes that say nothing about speed."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

from taskformer.tasks import PROTOCOLS

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture
def module(request, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module(request.param)
    sys.modules.pop(request.param)


@pytest.mark.parametrize("module", ["metrics"], indirect=True)
def test_every_protocol_of_every_task_is_timed(module):
    rows = module.run(64, 96, rounds=1)["rows"]
    timed = {(row["what"], row["protocol"]) for row in rows}
    assert {(name, protocol) for name in module.SPECS for protocol in PROTOCOLS} < timed
    assert {("forward pass", ""), ("edges, test", "standard")} < timed
    assert all(row["best_ms"] > 0 for row in rows)


@pytest.mark.parametrize("module", ["search"], indirect=True)
def test_both_ways_to_score_sub_networks_agree(module):
    from taskformer.data import RoomsDataModule

    data = RoomsDataModule("data/rooms", tasks=module.TASKS, batch_size=2, holdout=0.01)
    data.setup("validate")
    torch.manual_seed(0)
    model = module._untrained(data)
    # A random network may find no class at all; then nothing is relative to that.
    torch.nn.init.normal_(model.network.heads.dense.decoders["semseg"].predict.weight)
    rates = module._rates(model.network.eval(), dict(model.tasks), data, population=10, naive=2)
    assert rates["largest relative difference of a score"] < 1e-4
    assert rates["bred generation: networks per minute, plain way"] > 0
