"""Every loss against numbers worked out by hand or plain numpy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taskformer.tasks import losses

NAN = float("nan")


def row(*values):
    """One channel, one row of pixels."""
    return torch.tensor(values).view(1, 1, 1, -1)


def logits_of(*probabilities):
    """Two logits per pixel ``(1, 2, 1, N)`` with these probabilities of class 1."""
    p = torch.tensor(probabilities)
    return torch.stack([(1 - p).log(), p.log()])[None, :, None] + 3.0


def labels(*values):
    return torch.tensor(values).view(1, 1, -1)


def test_cross_entropy_by_hand():
    loss = losses.cross_entropy(logits_of(0.5, 0.75, 0.1, 0.9), labels(1, 0, 1, 255))
    assert loss.item() == pytest.approx((math.log(2) + math.log(4) + math.log(10)) / 3, rel=1e-6)


def test_class_weighted_cross_entropy_by_hand():
    # Of weight 3 (class 1) and 1 (class 0): a weighted mean, unlike the balanced one below.
    logits, target = logits_of(0.5, 0.75, 0.1, 0.9), labels(1, 0, 1, 255)
    loss = losses.class_weighted_cross_entropy(logits, target, torch.tensor([1.0, 3.0]))
    assert loss.item() == pytest.approx((3 * math.log(2) + math.log(4) + 3 * math.log(10)) / 7, rel=1e-6)


def test_balanced_cross_entropy_by_hand():
    # 1 of 4 valid pixels is salient: it weighs 3/4, each background pixel 1/4; the sum is divided by 4.
    loss = losses.balanced_cross_entropy(logits_of(0.5, 0.5, 0.75, 0.2, 0.9), labels(1, 0, 0, 0, 255))
    expected = (0.75 * math.log(2) + 0.25 * (math.log(2) + math.log(4) + math.log(1.25))) / 4
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_balance_is_over_the_batch_not_the_image():
    logits, target = logits_of(0.5, 0.3, 0.6, 0.8), labels(1, 1, 0, 0)
    as_two_images = losses.balanced_cross_entropy(
        torch.cat([logits[..., :2], logits[..., 2:]]), torch.cat([target[..., :2], target[..., 2:]])
    )
    assert as_two_images.item() == pytest.approx(losses.balanced_cross_entropy(logits, target).item())
    assert as_two_images.item() > 0.1


def test_balanced_cross_entropy_of_one_class_is_zero():
    assert losses.balanced_cross_entropy(logits_of(0.5, 0.3), labels(0, 0)).item() == 0


def test_l1_by_hand():
    assert losses.l1(row(1.0, 5.0, 7.0), row(2.0, 2.0, NAN)).item() == pytest.approx((1 + 3) / 2)


def test_l1_counts_values_not_pixels():
    output, target = torch.zeros(1, 2, 1, 2), torch.tensor([[1.0, NAN], [2.0, 6.0]]).view(1, 2, 1, 2)
    assert losses.l1(output, target).item() == pytest.approx((1 + 2 + 6) / 3)


def test_normals_l1_by_hand():
    # (0, 3, 4) is normalised to (0, .6, .8); against (0, 0, 1) the channels give 0 + .6 + .2.
    output = torch.tensor([[0.0, 3, 4], [0, 0, 5], [1, 0, 0]]).T.reshape(1, 3, 1, 3)
    target = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, NAN, 0]]).T.reshape(1, 3, 1, 3)
    assert losses.normals_l1(output, target).item() == pytest.approx((0.8 + 2.0) / 2)


def test_normals_cosine_by_hand():
    # (0, 3, 4) and (0, 0, 1) have the cosine .8, opposite vectors -1.
    output = torch.tensor([[0.0, 3, 4], [0, 0, 5], [1, 0, 0]]).T.reshape(1, 3, 1, 3)
    target = torch.tensor([[0.0, 0, 1], [0, 0, -1], [0, NAN, 0]]).T.reshape(1, 3, 1, 3)
    assert losses.normals_cosine(output, target).item() == pytest.approx((0.2 + 2.0) / 2)


def test_zero_normals_have_a_finite_gradient():
    output = torch.zeros(1, 3, 1, 2, requires_grad=True)
    target = torch.tensor([0.0, 0, 1]).view(1, 3, 1, 1).expand(1, 3, 1, 2)
    (losses.normals_l1(output, target) + losses.normals_cosine(output, target)).backward()
    assert output.grad.isfinite().all()
    assert output.grad.abs().max() <= 1e3


def test_edge_cross_entropy_by_hand():
    # Probabilities .5, .8, .5 of edge, no edge, half an edge; .8 on edges, .2 on the rest.
    logits = row(0.0, math.log(4), 0.0, 9.0)
    loss = losses.edge_cross_entropy(logits, row(1.0, 0.0, 0.5, NAN), positive_weight=0.8)
    assert loss.item() == pytest.approx((0.8 * math.log(2) + 0.2 * math.log(5) + 0.5 * math.log(2)) / 3, rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(-15, 15), st.floats(0, 1)), min_size=1, max_size=9), st.floats(0.05, 0.95))
def test_edge_cross_entropy_against_numpy(pixels, weight):
    logits, target = np.array(pixels).T
    p = 1 / (1 + np.exp(-logits))
    expected = -(weight * target * np.log(p) + (1 - weight) * (1 - target) * np.log1p(-p)).mean()
    loss = losses.edge_cross_entropy(row(*logits), row(*target), weight)
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_edge_cross_entropy_of_huge_logits():
    assert losses.edge_cross_entropy(row(-500.0, 500.0), row(1.0, 1.0), 0.8).item() == pytest.approx(200)


def test_soft_cross_entropy_by_hand():
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.2, 0.2, 0.6]]).log()
    target = torch.tensor([[0.5, 0.5, 0.0], [NAN, NAN, NAN], [0.0, 0.0, 1.0]])
    expected = (0.5 * math.log(2) + 0.5 * math.log(4) - math.log(0.6)) / 2
    assert losses.soft_cross_entropy(logits, target).item() == pytest.approx(expected, rel=1e-6)
