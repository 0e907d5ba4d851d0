"""Which values of a metric are better, and in what unit people read them."""

import pytest
import torch

from taskformer.metrics.units import SHARE, factor, shown


def test_better_outputs_have_better_metrics(task, batch):
    output, target = batch
    if task.name == "edges":  # lines instead of noise
        target = torch.zeros_like(target)
        target[..., 2] = 1
    worse, right = (scores(task, outputs, target) for outputs in (output, right_output(task, target)))
    assert task.better(task.headline)
    assert right[task.headline] != worse[task.headline]
    for metric in right:
        sense = task.better(metric)
        assert sense or "threshold" in metric
        assert right[metric] >= worse[metric] or sense != "higher", metric
        assert right[metric] <= worse[metric] or sense != "lower", metric


def scores(task, output, target):
    metrics = task.metrics()
    metrics.update(output, task.check(target, output))
    return {metric: float(value) for metric, value in metrics.compute().items()}


def right_output(task, target):
    """A raw output whose prediction is the target."""
    if task.geometry == "label":
        return torch.nn.functional.one_hot(target, task.channels).movedim(-1, 1) * 20.0
    if task.geometry == "image":
        return target.log()
    return torch.logit(target) if task.name == "edges" else target


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0.12345, SHARE, "12.35"), (1, SHARE, "100.00"), (0.12345, "m", "0.1235"), (30, "°", "30")],
)
def test_shares_are_read_in_percent(value, unit, text):
    assert shown(value, unit) == text
    assert float(text) == pytest.approx(value * factor(unit), rel=1e-3)
