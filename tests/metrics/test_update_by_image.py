"""Scoring image by image on the way to the whole: the same sums, each image as if it were alone, everything once."""

import warnings

import pytest
import torch

from taskformer.metrics import boundaries, edges
from taskformer.metrics.images import update_by_image
from taskformer.tasks import PROTOCOLS, build_tasks

SPECS = {
    "semseg": {"classes": ["wall", "floor", "chair"]},
    "human_parts": {},
    "depth": {},
    "normals": {},
    "saliency": {},
    "edges": {},
    "class_scene": {"classes": ["kitchen", "bath"]},
}
TASKS = build_tasks(SPECS)


def batch(task, images=5):
    """Random outputs and targets; the third image has no label."""
    generator = torch.Generator().manual_seed(7)
    outputs, targets = [], []
    for index in range(images):
        target = task.invalid(20, 28)
        values = torch.rand(target.shape, generator=generator)
        if target.dtype == torch.int64:
            values = (values * task.channels).long()
        elif task.name == "normals":
            values = torch.nn.functional.normalize(values - 0.5, dim=0)
        elif task.name == "edges":
            values = (values > 0.95).float()
        outputs.append(torch.randn(task.channels, *(target.shape[-2:] if target.ndim > 1 else ()), generator=generator))
        targets.append(target if index == 2 else values)
    output = torch.stack(outputs)
    return output, task.check(torch.stack(targets), output)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", SPECS)
def test_the_sums_are_those_of_the_batch_and_each_image_is_scored_alone(name, protocol):
    task = TASKS[name]
    output, target = batch(task)
    together, apart = task.metrics(protocol, "test"), task.metrics(protocol, "test")
    together.update(output, target)
    images = update_by_image(apart, output[:2], target[:2]) + update_by_image(apart, output[2:], target[2:])
    for one, other in zip(together.values(), apart.values(), strict=True):
        for state in one.metric_state:
            expected, found = getattr(one, state), getattr(other, state)
            exact = {} if expected.is_floating_point() else {"rtol": 0, "atol": 0}
            torch.testing.assert_close(found, expected, **exact)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the third image has no label
        for index, scores in enumerate(images):
            alone = task.metrics(protocol, "test")
            alone.update(output[index : index + 1], target[index : index + 1])
            expected = {metric: float(value) for metric, value in alone.compute().items()}
            assert scores == pytest.approx(expected, nan_ok=True)


def test_the_edges_of_an_image_are_matched_once(monkeypatch):
    matched = []

    def count(*arguments):
        matched.append(arguments)
        return boundaries.count_matches(*arguments)

    monkeypatch.setattr(edges, "count_matches", count)
    task = TASKS["edges"]
    output, target = batch(task)
    metrics = task.metrics(stage="test")
    update_by_image(metrics, output, target)
    metrics.compute()
    assert len(matched) == 4
