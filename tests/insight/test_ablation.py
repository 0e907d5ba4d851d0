"""Scores without the queries: the exchange or the reading is switched off, and nothing else."""

import copy

import pytest
import torch
from torch import nn

from taskformer.errors import ConfigError
from taskformer.insight import influence
from taskformer.modules import Baseline, MQTransformer


def batches():
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        image, depth = (torch.rand(2, channels, 64, 64, generator=generator) for channels in (3, 1))
        yield {"image": image, "targets": {"depth": 1 + depth, "edges": (depth > 0.8).float()}}


def rmse(network, task):
    with torch.no_grad():
        errors = [task.decode(network(batch["image"])["depth"]) - batch["targets"]["depth"] for batch in batches()]
    return torch.cat(errors).square().mean().sqrt().item()


@pytest.mark.parametrize("options", [{}, {"wiring": "released", "scales": [8, 16], "num_blocks": 2}])
def test_without_a_stage_the_scores_are_those_of_a_network_whose_stage_adds_nothing(options):
    torch.manual_seed(0)
    module = MQTransformer({"depth": {}, "edges": {}}, backbone="test_resnet", embed_dim=16, num_queries=3, **options)
    for parameter in module.network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    module.network.head.predict.logits["depth"].bias.data.fill_(5.0)  # far from 0, at which depth is cut off
    found = influence(module.train(), batches())
    assert module.network.training
    assert not any(part._forward_hooks for part in module.network.modules())
    module.eval()
    task = module.tasks["depth"]
    assert found.scores["whole"]["depth"] == pytest.approx(rmse(module.network, task), rel=1e-5)
    unread, alone = copy.deepcopy(module.network), copy.deepcopy(module.network)
    for decoder in unread.head.decoders:
        nn.init.zeros_(decoder.attention.out.weight)
        nn.init.zeros_(decoder.attention.out.bias)
    for exchange in alone.head.exchanges:
        exchange.between_tasks = exchange.between_scales = None
    assert found.scores["without queries"]["depth"] == pytest.approx(rmse(unread, task), rel=1e-5)
    assert found.scores["without exchange"]["depth"] == pytest.approx(rmse(alone, task), rel=1e-5)
    assert len({round(scores["depth"], 6) for scores in found.scores.values()}) == 3
    assert [column.header for column in found.table().columns] == ["", "depth rmse, m", "edges f_tolerant, %"]


def test_a_model_without_queries_has_nothing_to_switch_off():
    with pytest.raises(ConfigError, match="DenseNetwork has none"):
        influence(Baseline({"depth": {}}, backbone="test_resnet", embed_dim=8), batches())
