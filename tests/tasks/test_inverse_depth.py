"""Inverse depth: what differs from depth. What it shares with all tasks is tested with them."""

import numpy as np
import pytest
import torch

from taskformer.data.geometry import map_kind, zoom_values
from taskformer.errors import ConfigError
from taskformer.tasks import build_task
from taskformer.tasks.colors import INVALID_COLOR

NAN = float("nan")


def row(*values):
    return torch.tensor(values).view(1, 1, 1, -1)


@pytest.fixture
def task():
    return build_task("inverse_depth", {})


def test_infinitely_far_is_learned_and_negative_is_invalid(task):
    loss = task.loss(row(0.5, 0.3, 7.0, 7.0), row(0.2, 0.0, -1.0, NAN))
    assert loss.item() == pytest.approx((0.3 + 0.3) / 2)


def test_it_is_decoded_at_least_zero(task):
    assert task.decode(row(-0.5, 0.25)).flatten().tolist() == [0, 0.25]


def test_results_with_their_units(task):
    metrics = task.metrics()
    metrics.update(row(0.1, 0.3, 0.0), row(0.2, 0.2, 0.0))
    result = {name: value.item() for name, value in metrics.compute().items()}
    assert result["mae"] == pytest.approx(0.2 / 3)
    assert result["abs_rel"] == pytest.approx(0.5)  # of the two pixels at a distance
    assert result["delta2"] == pytest.approx(0.5)  # 0.3 / 0.2 is below 1.25 squared
    assert task.units["mae"] == "1/m"
    assert build_task("inverse_depth", {"type": "relative_inverse_depth"}).units["mae"] == ""


def test_the_constant_is_the_median(task):
    assert task.constant([row(0.0, 0.1, NAN), row(0.5, -1.0)]).tolist() == pytest.approx([0.1])


def test_near_is_drawn_as_for_depth(task):
    depth = build_task("depth", {})
    image = task.colorize(np.array([[0.0, 0.2, 5.0, NAN]]))
    near, far = depth.colorize(np.array([[0.0, 10.0]]))[0]
    assert (image[0, 0] == far).all()
    assert (image[0, 1] == near).all()
    assert (image[0, 2] == near).all()
    assert (image[0, 3] == INVALID_COLOR).all()


def test_zooming_multiplies_what_depth_is_divided_by(task):
    depth = np.array([[2.0, 8.0, np.nan]], dtype=np.float32)
    zoomed = zoom_values(1 / depth, map_kind(task), 1.6)
    np.testing.assert_allclose(zoomed, 1 / zoom_values(depth, map_kind(build_task("depth", {})), 1.6), rtol=1e-6)
    assert zoomed[0, 0] == pytest.approx(0.8)


def test_a_range_without_colours_is_refused():
    with pytest.raises(ConfigError, match="max_inverse_depth above 0, got 0"):
        build_task("inverse_depth", {"max_inverse_depth": 0})
