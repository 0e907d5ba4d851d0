"""Pixels of a segment come together, and the score sees it."""

import math

import numpy as np
import pytest
import torch

from taskformer.errors import ConfigError, InvalidTargetError
from taskformer.metrics.grouping import sample_pixels
from taskformer.tasks import Embedding, build_task
from taskformer.tasks.colors import INVALID_COLOR

NAN = math.nan


def task(**options):
    return build_task("segment_unsup2d", {"channels": 4, **options})


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randn(2, 4, 6, 8), torch.randint(0, 5, (2, 6, 8))


def by_hand(points, segments, pull=0.5, push=1.5):
    """Equations 1 to 4 of the paper for one image, over Python lists."""
    groups = {int(s): points[segments == s] for s in segments.unique() if s != 255}
    means = {s: group.mean(0) for s, group in groups.items()}
    variance = [max(0, float((p - means[s]).norm()) - pull) ** 2 for s, group in groups.items() for p in group]
    sizes = [len(group) for group in groups.values() for _ in group]
    pulled = sum(v / n for v, n in zip(variance, sizes, strict=True)) / len(groups)
    pairs = [(a, b) for a in means for b in means if a < b]
    pushed = sum(max(0, 2 * push - float((means[a] - means[b]).norm())) ** 2 for a, b in pairs) / max(1, len(pairs))
    return pulled + pushed + 1e-3 * sum(float(mean.norm()) for mean in means.values()) / len(groups)


def test_the_loss_is_the_papers(batch):
    output, target = batch
    target[1, :2] = 255
    rows = [(o.flatten(1).T, t.flatten()) for o, t in zip(output, target, strict=True)]
    assert task().loss(output, target).item() == pytest.approx(np.mean([by_hand(*row) for row in rows]), rel=1e-5)


def test_the_loss_trains(batch):
    _, target = batch
    free = torch.zeros(2, 4, 6, 8).normal_(std=0.01).requires_grad_()
    for step in range(100):  # signed descent: importing torch's optimizers takes longer than all of this
        (gradient,) = torch.autograd.grad(task().loss(free, target), free)
        free.data -= 0.1 * (1 - step / 100) * gradient.sign()
    metrics = task().metrics()
    metrics.update(free.detach(), target)
    assert metrics.compute()["pair_f"] > 0.99


@pytest.mark.parametrize("filling", [0.0, 0.7, math.inf, NAN])
def test_nothing_valid_is_exactly_zero_with_a_gradient_path(batch, filling):
    output = torch.full_like(batch[0], filling).requires_grad_()
    loss = task().loss(output, torch.full_like(batch[1], 255))
    loss.backward()
    assert loss.item() == 0
    assert (output.grad == 0).all()


def test_equal_points_have_a_finite_gradient(batch):
    output = torch.zeros_like(batch[0]).requires_grad_()
    loss = task().loss(output, batch[1])
    loss.backward()
    assert loss.item() == pytest.approx(9)  # every pair of means is 2 * 1.5 too close
    assert output.grad.isfinite().all()


def test_invalid_pixels_are_as_if_absent(batch):
    output, target = batch
    target[..., 4:] = 255
    rubbish = output.clone()
    rubbish[..., 4:] = math.inf
    rubbish.requires_grad_()
    loss = task().loss(rubbish, target)
    loss.backward()
    assert loss.item() == pytest.approx(task().loss(output[..., :4], target[..., :4]).item(), rel=1e-5)
    assert (rubbish.grad[..., 4:] == 0).all()
    assert rubbish.grad.isfinite().all()


def test_the_images_of_a_batch_do_not_matter_to_each_other(batch):
    output, target = batch
    alone = [task().loss(output[k : k + 1], target[k : k + 1]).item() for k in range(2)]
    assert task().loss(output, target).item() == pytest.approx(np.mean(alone), rel=1e-6)


def test_the_loss_is_float32_under_autocast(batch):
    output, target = batch
    output = output.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = task().loss(output, target)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(task().loss(output.float(), target.to(torch.uint8)).item(), rel=1e-6)


def test_samples_are_spread_and_follow_from_the_target():
    rows, columns = torch.meshgrid(torch.arange(60), torch.arange(80), indexing="ij")
    output = torch.stack([rows, columns]).float()[None].expand(2, -1, -1, -1)
    target = torch.stack([torch.zeros(60, 80), torch.arange(4800).view(60, 80) % 7]).long()
    points, segments = sample_pixels(output, target, 300)
    again, _ = sample_pixels(output[1:], target[1:], 300)
    torch.testing.assert_close(points[1], again[0])
    assert not torch.equal(points[0], points[1])
    y, x = points[1].long().unbind(dim=1)
    assert torch.equal(segments[1], target[1][y, x])
    counts = torch.histogramdd(points[1], [3, 4], range=[0.0, 60.0, 0.0, 80.0]).hist
    assert counts.min() >= 20  # 25 in each twelfth of the image
    assert counts.max() <= 30
    every, _ = sample_pixels(output[..., :10, :10], target[..., :10, :10], 300)
    assert every.shape == (2, 100, 2)


def test_pairs_are_scored_by_hand():
    target = torch.tensor([[[0, 0, 1, 255]]])
    output = torch.tensor([0.0, 1.0, 2.0, 0.0]).view(1, 1, 1, 4)
    metrics = build_task("embedding", {"channels": 1}).metrics()
    metrics.update(output, target)
    # Said to be together: 0-1 (right), 1-2 (wrong); truly together: 0-1.
    result = {name: value.item() for name, value in metrics.compute().items()}
    assert result == pytest.approx({"pair_precision": 0.5, "pair_recall": 1.0, "pair_f": 2 / 3})


def test_batches_add_up(batch):
    output, target = batch
    whole, parts = task().metrics(), task().metrics()
    whole.update(output, target)
    for k in range(2):
        parts.update(output[k : k + 1], target[k : k + 1])
    assert whole.compute() == parts.compute()


def test_nothing_to_score_is_nan(batch):
    metrics = task().metrics()
    metrics.update(batch[0], torch.full_like(batch[1], 255))
    with pytest.warns(UserWarning, match="PairScores saw no valid pixel"):
        assert math.isnan(metrics.compute()["pair_f"])


def test_a_constant_says_one_segment(batch):
    constant = task().constant([batch[1]])
    metrics = task().metrics()
    metrics.update(constant.view(1, 4, 1, 1).expand(2, 4, 6, 8), batch[1])
    assert metrics.compute()["pair_recall"] == 1


def test_what_it_takes_and_gives(batch):
    output, target = batch
    assert isinstance(task(), Embedding)
    assert task().decode(output.bfloat16()).dtype == torch.float32
    assert task().invalid(6, 8).shape == target.shape[1:]
    assert (task().invalid(6, 8) == 255).all()
    assert build_task("segment_unsup25d", {}).channels == 64
    with pytest.raises(InvalidTargetError, match=r"integer segment ids, got torch.float32"):
        task().loss(output, target.float())
    with pytest.raises(InvalidTargetError, match="must have shape"):
        task().loss(output, target[..., :-1])
    with pytest.raises(ConfigError, match="0 < pull < push"):
        task(pull=2.0)


def test_segments_and_embeddings_are_drawn(batch):
    output, target = batch
    target[0, 0, 0] = 255
    image = task().colorize(target[0].numpy())
    assert image[0, 0].tolist() == list(INVALID_COLOR)
    for value in target[0].unique():
        assert len(np.unique(image[target[0].numpy() == int(value)], axis=0)) == 1
    two = torch.zeros(4, 6, 8)
    two[2, :, 4:] = 3.0
    image = task().colorize(two.numpy())
    assert image.shape == (6, 8, 3)
    assert len(np.unique(image.reshape(-1, 3), axis=0)) == 2
    assert build_task("embedding", {"channels": 2}).colorize(output[0, :2].numpy()).shape == (6, 8, 3)
    output[0, :, 0, 0] = NAN
    assert task().colorize(output[0].numpy())[0, 0].tolist() == list(INVALID_COLOR)
    with pytest.raises(InvalidTargetError, match="draws segments"):
        task().colorize(np.zeros((5, 4, 4)))
