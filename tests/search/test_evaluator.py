"""Scores of sub-networks: those of the plain way, alone or together, and no more computed than needed."""

from dataclasses import replace
from random import Random

import pytest
import torch
from torch import nn

from taskformer.errors import ConfigError
from taskformer.metrics import delta_m
from taskformer.models.autotaskformer import Architecture, SearchSpace, Supernet
from taskformer.search.evaluator import Evaluator
from taskformer.tasks import build_tasks

TASKS = build_tasks(
    {
        "semseg": {"type": "semseg", "classes": ["wall", "floor", "lamp"]},
        "depth": {"type": "depth"},
        "scene": {"type": "classification", "classes": ["kitchen", "bath", "office"]},
    }
)
SENSES = {name: task.higher_is_better for name, task in TASKS.items()}
REFERENCE = {"semseg": 0.5, "depth": 1.0, "scene": 0.5}
SIZE = (20, 35)  # no whole patches


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(sharing="binary", head="linear"):
    torch.manual_seed(0)
    space = SearchSpace((12, 16), (2, 3), (2.0, 2.5), (1, 2), head_dim=8, num_tasks=3, sharing=sharing, copies=3)
    if head == "query":
        space = replace(space, num_queries=(2, 4), num_scales=(1, 3), decoder_widths=(8, 16))
    options = {"dpt": {"width": 8}, "query": {"num_heads": 2}}.get(head, {})
    channels = {name: task.channels for name, task in TASKS.items()}
    supernet = Supernet(
        space, channels, head, image_tasks=("scene",), image_size=(24, 40), patch_size=8, head_options=options
    )
    for parameter in supernet.parameters():
        nn.init.normal_(parameter, std=0.3)
    return supernet.eval()


def batches(count=5):
    """Batches of two images, the last one of one, with some invalid pixels."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for index in range(count):
        images = 1 if index == count - 1 else 2
        depth = torch.rand(images, 1, *SIZE, generator=generator) * 3
        depth[:, :, :4] = torch.nan
        labels = torch.randint(3, (images, *SIZE), generator=generator)
        labels[:, :, :3] = 255
        scene = torch.randn(images, 3, generator=generator).softmax(1)
        made.append(
            {
                "image": torch.randn(images, 3, *SIZE, generator=generator),
                "targets": {"semseg": labels, "depth": depth, "scene": scene},
            }
        )
    return made


def draw(space, count, seed=0):
    rng = Random(seed)
    return [space.random(rng) for _ in range(count)]


@torch.inference_mode()
def plainly(supernet, architecture, data):
    """Headline metrics the long way: the extracted network and the tasks' own metrics."""
    network = supernet.extract(architecture)
    metrics = {name: task.metrics() for name, task in TASKS.items()}
    for batch in data:
        outputs = network(batch["image"])
        for name, task in TASKS.items():
            metrics[name].update(outputs[name], task.check(batch["targets"][name], outputs[name]))
    return {name: float(metrics[name].compute()[task.headline]) for name, task in TASKS.items()}


@pytest.mark.parametrize(
    ("sharing", "head"),
    [("none", "linear"), ("binary", "dpt"), ("grouped", "linear"), ("tree", "dpt"), ("binary", "query")],
)
def test_values_are_those_of_the_extracted_networks_and_the_tasks_metrics(sharing, head):
    supernet, data = build(sharing, head), batches()
    supernet.layer_order = (2, 0, 1)  # networks of two and of three layers differ from the second layer on
    evaluator = Evaluator(supernet, TASKS, data)
    architectures = draw(supernet.space, 8)
    for architecture, result in zip(architectures, evaluator.evaluate(architectures), strict=True):
        assert result.tasks == pytest.approx(plainly(supernet, architecture, data), rel=1e-4)
        assert result.delta_m == pytest.approx(delta_m(result.tasks, evaluator.reference, SENSES))
        course = [
            delta_m(plainly(supernet, architecture, data[:n]), evaluator.reference, SENSES)
            for n in range(1, 1 + len(data))
        ]
        assert result.course == pytest.approx(course, rel=1e-3)
        assert result.complete


def test_results_are_the_same_to_the_bit_in_any_company():
    supernet, data = build("grouped"), batches()
    evaluator = Evaluator(supernet, TASKS, data)
    architectures = draw(supernet.space, 12)
    together = evaluator.evaluate(architectures)
    assert evaluator.evaluate(architectures[::-1]) == together[::-1]
    assert [evaluator.evaluate([architecture])[0] for architecture in architectures] == together


def test_what_sub_networks_have_in_common_is_computed_once():
    supernet = build("binary")
    evaluator = Evaluator(supernet, TASKS, batches(1), REFERENCE)
    split, shared = (1, 2, 3), (0, 0, 0)
    rows = (shared, shared, split, split)
    first = Architecture(16, 2, (2.0, 2.0), (2, 2), rows)
    last_ratio = Architecture(16, 2, (2.0, 2.5), (2, 2), rows)
    deeper = Architecture(16, 3, (2.0, 2.0, 2.0), (2, 2, 2), (*rows, shared, shared))
    other_width = Architecture(12, 2, (2.0, 2.0), (2, 2), rows)
    calls = []
    for module in (supernet.stem, *(copy for unit in supernet.units for copy in unit)):
        module.register_forward_hook(lambda *_: calls.append(1))

    def count(*architectures):
        calls.clear()
        evaluator.evaluate(architectures)
        return len(calls)

    alone = 1 + 2 + 2 * 3  # the stem, two units for all tasks at once, two for each alone
    assert count(first) == alone
    assert count(first, last_ratio) == alone + 3
    # A shared unit after the tasks have parted still runs for each.
    assert count(deeper, other_width, last_ratio, first) == alone + 3 + 2 * 3 + alone


def test_delta_m_is_measured_against_the_largest_network_or_what_is_given():
    supernet, data = build(), batches()
    largest = supernet.space.largest()
    assert Evaluator(supernet, TASKS, data).evaluate([largest])[0].delta_m == 0
    reference = {"semseg": 0.1, "depth": 4.0, "scene": 0.9}
    evaluator = Evaluator(supernet, TASKS, data, reference)
    result = evaluator.evaluate([largest])[0]
    values = plainly(supernet, largest, data)
    gains = (
        values["semseg"] / 0.1 - 1,
        1 - values["depth"] / 4.0,
        (values["scene"] / 0.9 - 1) * (1 if SENSES["scene"] else -1),
    )
    assert result.delta_m == pytest.approx(100 * sum(gains) / 3, rel=1e-4)


def test_those_who_are_told_to_stop_after_a_batch_stop_there():
    supernet, data = build(), batches()
    small, large = supernet.space.smallest(), supernet.space.largest()
    evaluator = Evaluator(supernet, TASKS, data)
    whole = evaluator.evaluate([small, large])
    assert all(result.complete for result in whole)
    asked = []

    def stop(architecture, course):
        asked.append((architecture, tuple(course)))
        return architecture == large and len(course) == 2

    first, second = evaluator.evaluate([small, large], stop)
    assert first == whole[0]
    assert not second.complete
    assert second.course == whole[1].course[:2]
    assert second.tasks == pytest.approx(plainly(supernet, large, data[:2]), rel=1e-4)
    # Each is asked after every batch that it was run on, but not after the last: then all is known.
    expected = [(small, whole[0].course[:done]) for done in range(1, len(data))]
    expected += [(large, whole[1].course[:done]) for done in (1, 2)]
    assert sorted(asked, key=str) == sorted(expected, key=str)


def test_tasks_may_have_weights():
    supernet, data = build(), batches(2)
    small = [supernet.space.smallest()]
    gains = [Evaluator(supernet, TASKS, data, REFERENCE, weights=w).evaluate(small)[0] for w in (None, {"depth": 5.0})]
    depth = 100 * (1 - gains[0].tasks["depth"] / REFERENCE["depth"])
    assert gains[1].delta_m == pytest.approx((3 * gains[0].delta_m + 4 * depth) / 7)


def test_all_may_stop():
    supernet, data = build(), batches(2)
    results = Evaluator(supernet, TASKS, data, REFERENCE).evaluate([supernet.space.smallest()], lambda *_: True)
    assert [(result.complete, len(result.course)) for result in results] == [(False, 1)]


def test_a_single_batch_stops_nobody():
    supernet = build()
    result = Evaluator(supernet, TASKS, batches(1), REFERENCE).evaluate([supernet.space.smallest()], lambda *_: True)[0]
    assert result.complete
    assert len(result.course) == 1


def test_the_supernet_is_put_into_evaluation_mode():
    supernet, data = build(), batches(2)
    expected = Evaluator(supernet, TASKS, data).evaluate(draw(supernet.space, 2))
    assert Evaluator(supernet.train(), TASKS, data).evaluate(draw(supernet.space, 2)) == expected


def test_nothing_to_score_on_and_useless_references_are_refused():
    supernet = build()
    with pytest.raises(ConfigError, match="no validation images"):
        Evaluator(supernet, TASKS, [])
    with pytest.raises(ConfigError, match="no single-task reference for scene"):
        Evaluator(supernet, TASKS, batches(1), {"semseg": 0.5, "depth": 1.0}).evaluate([supernet.space.smallest()])
    with pytest.raises(ConfigError, match=r"'depth'.*above 0, got 0"):
        Evaluator(supernet, TASKS, batches(1), {"semseg": 0.5, "depth": 0.0, "scene": 1.0})
    with pytest.raises(ConfigError, match="embed_dim"):
        Evaluator(supernet, TASKS, batches(1), REFERENCE).evaluate([Architecture(32, 1, (2.0,), (1,))])
