"""The latency table: its sums, its file, and that it can be measured."""

import json
from dataclasses import replace
from random import Random

import pytest
import torch

from taskformer.errors import ConfigError
from taskformer.models.autotaskformer import Architecture, SearchSpace, Supernet
from taskformer.models.autotaskformer.layers import MLP, Attention
from taskformer.models.autotaskformer.query import QueryHead
from taskformer.modules import timing
from taskformer.search.latency import LatencyTable

CPU = torch.device("cpu")
SIZE = (20, 40)


def build(sharing="grouped", head="linear"):
    torch.manual_seed(0)
    space = SearchSpace((12, 16), (2, 3), (2.0, 2.5), (1, 2), head_dim=8, num_tasks=3, sharing=sharing, copies=3)
    options = {}
    if head == "query":
        space = replace(space, num_queries=(2, 4), decoder_widths=(8, 16))
        options = {"num_heads": 2}
    tasks = {"semseg": 4, "depth": 1, "edges": 1}
    return Supernet(space, tasks, head, image_size=(24, 40), patch_size=8, head_options=options).eval()


def table(supernet, seconds=None):
    return LatencyTable(supernet, supernet.space, 2, SIZE, CPU, seconds or {})


def cost(module, batch):
    """A made-up time of a call of a unit, another one for each width, size and batch."""
    inner = module.proj.in_features // 8 if isinstance(module, Attention) else 100 * module.fc1.out_features
    return module.norm.normalized_shape[0] * 1e4 + inner + batch / 100


@pytest.fixture
def made_up(monkeypatch):
    """Instead of measuring, run once and add up the made-up times of what runs; anything else takes 7."""

    def times(self, calls):
        seconds = {}
        running = []

        def note(module, inputs, _):
            if isinstance(module, Attention | MLP):
                running.append(cost(module, len(inputs[0])))
            if isinstance(module, QueryHead):
                running.append(1e6 * module.queries.numel())

        hook = torch.nn.modules.module.register_module_forward_hook(note)
        for name, call in calls.items():
            running.clear()
            call()
            whole = name.startswith("network") or name.isdigit()
            seconds[name] = sum(running) + 7 * whole
        hook.remove()
        return seconds

    monkeypatch.setattr(LatencyTable, "_times", torch.inference_mode()(times))


@pytest.mark.parametrize(
    ("sharing", "head"),
    [("none", "linear"), ("binary", "linear"), ("grouped", "linear"), ("tree", "linear"), ("binary", "query")],
)
def test_a_prediction_is_the_sum_of_the_calls_that_the_extracted_network_makes(made_up, sharing, head):
    supernet = build(sharing, head)
    measured = LatencyTable.measure(supernet, supernet.space, 2, SIZE, "cpu")
    assert measured.check(20) == pytest.approx(0, abs=1e-9)
    assert measured.predict(supernet.space.largest()) > measured.predict(supernet.space.smallest()) > 7


def test_whole_networks_that_are_slower_than_their_parts_scale_the_sums(made_up, monkeypatch):
    supernet = build()
    plain = LatencyTable.measure(supernet, supernet.space, 2, SIZE, "cpu")
    times = LatencyTable._times

    def slower(self, calls):
        return {name: seconds * (1.5 if name.isdigit() else 1) for name, seconds in times(self, calls).items()}

    monkeypatch.setattr(LatencyTable, "_times", slower)
    scaled = LatencyTable.measure(supernet, supernet.space, 2, SIZE, "cpu")
    architecture = supernet.space.median()
    assert scaled.predict(architecture) == pytest.approx(1.5 * plain.predict(architecture))
    assert scaled.check(5) == pytest.approx(0, abs=1e-9)
    assert plain.check(5) == pytest.approx(0, abs=1e-9)  # the machine has become slower since, that is no error


def test_wrong_times_of_some_parts_are_an_error(made_up):
    supernet = build()
    right = LatencyTable.measure(supernet, supernet.space, 2, SIZE, "cpu")
    seconds = {name: value * (3 if "heads 2" in name else 1) for name, value in right.seconds.items()}
    assert replace(right, seconds=seconds).check(20) > 5


def test_all_of_a_space_can_be_predicted_from_real_measurements(monkeypatch):
    monkeypatch.setattr(timing, "BLOCK", 0.001)
    monkeypatch.setattr(timing, "PATIENCE", 1)
    supernet = build("binary")
    space = replace(supernet.space, embed_dims=(12,), num_heads=(1, 2), mlp_ratios=(2.0,))
    measured = LatencyTable.measure(supernet, space, 1, SIZE, "cpu")
    assert all(seconds > 0 for seconds in measured.seconds.values())
    rng = Random(0)
    assert all(measured.predict(space.random(rng)) > 0 for _ in range(50))
    assert measured.check(2) >= 0


def test_calls_take_turns_until_the_best_time_of_each_has_come_again(monkeypatch):
    now = 0.0
    calls = dict.fromkeys(("short", "long"), 0)

    def work(name, seconds):  # another program takes three quarters of the processor four times of five
        nonlocal now
        calls[name] += 1
        now += seconds * (4 if calls[name] % 5 else 1)

    monkeypatch.setattr(timing.time, "thread_time", lambda: now)
    monkeypatch.setattr(timing.torch, "get_num_threads", lambda: 1)
    seconds = table(build())._times({"short": lambda: work("short", 0.1), "long": lambda: work("long", 0.7)})
    assert seconds == pytest.approx({"short": 0.1, "long": 0.7})
    assert calls == {"short": 15, "long": 15}  # until the best time came three times


def test_other_sizes_are_refused(made_up):
    supernet = build()
    measured = LatencyTable.measure(supernet, supernet.space, 2, SIZE, "cpu")
    with pytest.raises(ConfigError, match="only sub-networks of the search space"):
        measured.predict(Architecture(16, 2, (1.0, 2.0), (1, 1)))


def test_the_file_gives_the_table_again_and_names_other_conditions(made_up, tmp_path):
    supernet = build()
    measured = LatencyTable.measure(supernet, supernet.space, 2, SIZE, "cpu")
    measured.save(tmp_path / "table.json")
    assert table(supernet).load(tmp_path / "table.json") == measured
    conditions = json.loads((tmp_path / "table.json").read_text())["conditions"]
    assert conditions["torch"] == str(torch.__version__)
    assert (conditions["batch"], conditions["dtype"]) == (2, "torch.float32")
    with pytest.raises(ConfigError, match="of another batch;"):
        replace(table(supernet), batch=1).load(tmp_path / "table.json")
    with pytest.raises(ConfigError, match="of another dtype;"):
        table(build().double()).load(tmp_path / "table.json")
    with pytest.raises(ConfigError, match="of another space, network;"):
        table(build("binary")).load(tmp_path / "table.json")


def test_a_folder_keeps_one_table_for_each_condition(made_up, tmp_path, monkeypatch):
    supernet = build()
    first = LatencyTable.cached(tmp_path, supernet, supernet.space, 2, SIZE, "cpu")
    LatencyTable.cached(tmp_path, supernet, supernet.space, 1, SIZE, "cpu")
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(LatencyTable, "_times", None)  # measuring again would fail
    assert LatencyTable.cached(tmp_path, supernet, supernet.space, 2, SIZE, "cpu") == first
