"""Numbers about the whole image."""

import math

import numpy as np
import pytest
import torch

from taskformer.errors import ConfigError, InvalidTargetError
from taskformer.tasks import ImageVector, build_task
from taskformer.tasks.colors import INVALID_COLOR

NAN = math.nan


def task(**options):
    return build_task("vanishing_point", {"channels": 3, **options})


def test_errors_are_absolute_and_images_without_numbers_do_not_count():
    output = torch.tensor([[1.0, 2.0, 3.0], [9.0, 9.0, math.inf]], requires_grad=True)
    target = torch.tensor([[0.0, 2.0, 1.0], [NAN, NAN, NAN]])
    loss = task().loss(output, target)
    loss.backward()
    assert loss.item() == 1
    assert (output.grad[1] == 0).all()
    metrics = task().metrics()
    metrics.update(output.detach(), target)
    assert metrics.compute()["mae"] == 1


def test_without_a_number_the_loss_is_zero_with_a_gradient_path():
    output = torch.ones(2, 3, requires_grad=True)
    loss = task().loss(output, task().invalid(5, 5).expand(2, -1))
    loss.backward()
    assert loss.item() == 0
    assert (output.grad == 0).all()


def test_the_best_constant_is_the_median():
    targets = [torch.tensor([[0.0, 1.0, NAN], [2.0, 1.0, NAN]]), torch.tensor([1.0, 5.0, NAN])]
    assert task().constant(targets).tolist() == [1, 1, 0]


def test_what_it_takes_and_gives():
    assert isinstance(task(), ImageVector)
    assert build_task("room_layout", {}).channels == 9
    assert task().geometry == "image"
    assert task().decode(torch.ones(1, 3).bfloat16()).dtype == torch.float32
    with pytest.raises(InvalidTargetError, match="float values"):
        task().loss(torch.ones(1, 3), torch.ones(1, 3, dtype=torch.int64))
    with pytest.raises(InvalidTargetError, match="must have shape"):
        task().loss(torch.ones(1, 3), torch.ones(1, 2))
    with pytest.raises(ConfigError, match="value_range"):
        task(value_range=[1, 0])


def test_numbers_are_drawn_as_bars():
    image = task().colorize(np.array([-1.0, 0.0, 1.0]))
    assert image.shape == (64, 3, 3)
    filled = (image != INVALID_COLOR).any(axis=-1).sum(axis=0)
    assert filled.tolist() == [0, 32, 64]
    with pytest.raises(InvalidTargetError, match="draws 3 numbers"):
        task().colorize(np.zeros(4))
    assert (task().colorize(task().invalid(1, 1).numpy())[:32] == INVALID_COLOR).all()
