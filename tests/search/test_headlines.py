"""The lean headline metrics are the metrics."""

import math

import pytest
import torch
from torch.nn import functional as F

from taskformer.search.headlines import ConfusionHeadline, MetricHeadline, headline
from taskformer.tasks import build_tasks

SPECS = {
    "semseg": {"type": "semseg", "classes": ["wall", "floor", "lamp", "never"]},
    "human_parts": {"type": "human_parts"},
    "saliency": {"type": "saliency"},
    "depth": {"type": "depth"},
    "inverse_depth": {"type": "inverse_depth"},
    "normals": {"type": "normals"},
    "edges": {"type": "edges"},
    "keypoints": {"type": "regression"},
    "scene": {"type": "classification", "classes": ["kitchen", "bath", "office"]},
}
TASKS = build_tasks(SPECS)


def example(task, seed):
    """Raw output and target of two images, a quarter of the pixels invalid."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, task.channels) if task.geometry == "image" else (2, task.channels, 20, 28)
    output = torch.randn(shape, generator=generator)
    if task.geometry == "image":
        return output, torch.randn(shape, generator=generator).softmax(1)
    invalid = torch.rand(2, 20, 28, generator=generator) < 0.25
    if task.geometry == "label":
        labels = torch.randint(min(task.channels, 3), (2, 20, 28), generator=generator)
        return output, torch.where(invalid, 255, labels)
    values = torch.rand(shape, generator=generator)
    values = F.normalize(values - 0.5, dim=1) if task.geometry == "vector" else values
    values = (values > 0.95).float() if task.name == "edges" else values
    return output, torch.where(invalid[:, None], torch.nan, values)


@pytest.mark.parametrize("name", SPECS)
def test_sums_of_batches_give_what_the_tasks_metrics_give(name):
    task = TASKS[name]
    examples = [example(task, seed) for seed in range(3)]
    metrics = task.metrics()
    for output, target in examples:
        metrics.update(output, task.check(target, output))
    scores = headline(task)
    sums = sum(scores.sums(output, scores.prepare(task.check(target, output))) for output, target in examples)
    expected = float(metrics.compute()[task.headline])
    assert 0 < expected < math.inf
    assert float(scores.value(sums)) == pytest.approx(expected, rel=1e-6)
    other = example(task, seed=9)  # what was computed before leaves no trace
    more = scores.sums(other[0], scores.prepare(task.check(other[1], other[0])))
    assert float(scores.value(sums + more)) != pytest.approx(expected, rel=1e-6)
    assert float(scores.value(sums)) == pytest.approx(expected, rel=1e-6)


def test_the_common_tasks_have_the_lean_way_and_all_others_the_general_one():
    assert type(headline(TASKS["semseg"])) is ConfusionHeadline
    general = {name for name, task in TASKS.items() if isinstance(headline(task), MetricHeadline)}
    assert general == {"saliency", "inverse_depth", "keypoints", "scene"}


@pytest.mark.parametrize("name", ["semseg", "depth", "normals", "edges"])
def test_nothing_valid_is_not_a_number(name):
    task = TASKS[name]
    output, _ = example(task, 0)
    target = task.invalid(20, 28).expand(2, *task.invalid(20, 28).shape)
    scores = headline(task)
    assert math.isnan(scores.value(scores.sums(output, scores.prepare(task.check(target, output)))))
