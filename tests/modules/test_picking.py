"""A sub-network for a budget: the best of a search's front, or else the nearest of random ones, by brute force."""

import json
from random import Random

import pytest
import torch

from taskformer.errors import ConfigError, CorruptFileError
from taskformer.models.autotaskformer import Architecture
from taskformer.modules import AutoTaskFormer, Baseline, MultiTaskModule, picking, timing
from taskformer.modules.autotaskformer_args import Space
from taskformer.modules.exporting import plain_network
from taskformer.modules.picking import choose
from taskformer.modules.timing import latencies

SPACE = Space("custom", [8, 16], [1, 2], [2.0, 3.0], [1, 2], head_dim=8)
SIZE = (32, 48)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return AutoTaskFormer({"depth": {}, "normals": {}}, SPACE, image_size=SIZE, drop_path=0.0).eval()


def searched(folder, model, objectives=None, count=6):
    """Write a front in no particular order; returns its networks with delta_m, parameters and multiply-accumulates."""
    rng, rows, networks = Random(1), [], {}
    for index in range(count):
        architecture, delta_m = model.space.random(rng), float(5 * index % 7)
        name = f"evolution-00-{index:02d}"
        file = folder / "search" / "architectures" / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(architecture.to_json())
        values = {"delta_m": delta_m, "params": -1, "depth": 10 - delta_m}  # its costs are counted anew
        rows.append({"name": name, "file": f"architectures/{name}.json", "values": values})
        network = model.network
        networks[name] = delta_m, network.count_parameters(architecture), network.count_macs(architecture, SIZE)
    content = {"objectives": objectives or {"delta_m": "maximize", "params": "minimize"}, "front": rows}
    (folder / "search" / "pareto.json").write_text(json.dumps(content))
    return networks


@pytest.mark.parametrize(
    "objectives",
    [
        None,
        {"params": "minimize", "delta_m": "maximize"},
        {"macs": "minimize"},
        {"params": "minimize", "depth": "minimize"},
    ],
)
def test_the_best_of_a_front_that_keeps_the_limits_is_chosen(model, tmp_path, objectives):
    networks = searched(tmp_path, model, objectives)
    for _, params, macs in networks.values():
        for limits in ({"params": params}, {"macs": macs}, {"params": params, "macs": macs}):
            fits = {
                name: each
                for name, each in networks.items()
                if each[1] <= limits.get("params", 1e9) and each[2] <= limits.get("macs", 1e12)
            }
            chosen = choose(model, tmp_path, **limits)
            assert chosen.name == max(fits, key=lambda name: fits[name][0])
            assert model.network.active == chosen.architecture
            assert chosen.costs == {"params": fits[chosen.name][1], "macs": fits[chosen.name][2]}


def test_where_nothing_was_searched_the_nearest_of_random_ones_is_chosen(model, tmp_path, monkeypatch):
    monkeypatch.setattr(picking, "DRAWN", 60)
    network, space = model.network, model.space
    rng = Random(0)
    drawn = [space.random(rng, rng.random()) for _ in range(60)] + [space.smallest(), space.largest()]
    params = sorted(network.count_parameters(each) for each in drawn)
    for budget in (params[0], params[20] + 1, params[40] + 0.5, 1e9):
        assert model.pick(params=budget, run=tmp_path).costs["params"] == max(n for n in params if n <= budget)
    both = {"params": params[30], "macs": network.count_macs(space.median(), SIZE)}

    def nearness(each):
        return max(network.count_parameters(each) / both["params"], network.count_macs(each, SIZE) / both["macs"])

    chosen = choose(model, **both)
    assert nearness(chosen.architecture) == max(near for near in map(nearness, drawn) if near <= 1)
    assert choose(model, **both) == chosen  # always the same one


@pytest.mark.parametrize("search", [True, False])
def test_latency_is_measured_only_where_the_other_limits_are_kept(model, tmp_path, monkeypatch, search):
    most = model.network.count_parameters(model.space.median())
    if search:
        most = sorted(params for _, params, _ in searched(tmp_path, model, count=9).values())[-2]
    monkeypatch.setattr(picking, "DRAWN", 30)
    monkeypatch.setattr(picking, "MEASURED", 3)
    measured = []

    def made_up(supernet, architectures, size):
        assert size == SIZE
        measured.extend(architectures)
        return [0.02, 0.01, 0.01]

    monkeypatch.setattr(picking, "latencies", made_up)
    chosen = choose(model, tmp_path, params=most, latency=0.015)
    assert len(measured) == 3
    assert all(model.network.count_parameters(each) <= most for each in measured)
    assert chosen.architecture in measured[1 : 2 if search else 3]  # of a front the best that is fast enough
    assert chosen.costs["latency"] == 0.01
    with pytest.raises(ConfigError, match=r"no sub-network has at most 5 ms; the least of 3 are 10 ms"):
        choose(model, tmp_path, latency=0.005)


def test_latencies_are_of_the_sub_networks_and_leave_the_supernet_as_it_was(model, monkeypatch):
    monkeypatch.setattr(timing, "BLOCK", 0.002)
    monkeypatch.setattr(timing, "QUICKLY", 0.5)
    model.network.train()
    space = model.space
    thin, thick = latencies(model.network, [space.smallest(), space.largest()], (256, 384))
    assert 0 < thin < thick
    assert model.network.training
    assert model.network.active == space.largest()


def test_what_is_chosen_predicts_and_is_exported_and_a_training_returns_to_the_largest(model, monkeypatch):
    image = torch.randn(1, 3, *SIZE)
    chosen = model.pick(params=model.network.count_parameters(model.space.smallest()))
    subnet = model.network.extract(chosen.architecture)
    with torch.no_grad():
        for name, expected in subnet(image).items():
            torch.testing.assert_close(model(image)[name], expected)
            torch.testing.assert_close(plain_network(model)(image)[name], expected)
    monkeypatch.setattr(MultiTaskModule, "on_fit_start", lambda self: None)
    monkeypatch.setattr(model, "_training_steps", lambda: 1)
    model.on_fit_start()
    assert model.network.active == model.space.largest()


def test_what_cannot_be_chosen_is_refused_in_a_sentence(model, tmp_path):
    with pytest.raises(ConfigError, match=r"no sub-network has at most 1e-06 M params; the least of \d+ are"):
        model.pick(params=1)
    with pytest.raises(ConfigError, match="params must be in"):
        model.pick(params=-1)
    with pytest.raises(ConfigError, match="this is a Baseline of one size"):
        choose(Baseline({"depth": {}}, embed_dim=8, head_dim=4), params=1e6)
    single = AutoTaskFormer({"depth": {}}, SPACE, image_size=SIZE, architecture=model.space.smallest().to_json())
    with pytest.raises(ConfigError, match="one sub-network alone"):
        single.set(None)
    with pytest.raises(ConfigError, match="supernet holds 16"):
        model.set(Architecture(32, 1, (2.0,), (1,)))
    searched(tmp_path, model)
    (tmp_path / "search" / "pareto.json").write_text('{"objectives": {"delta_m": "maximize"}, "front": [{}]}')
    with pytest.raises(CorruptFileError, match=r"pareto.json is not the front that `taskformer search` writes"):
        model.pick(params=1e6, run=tmp_path)
