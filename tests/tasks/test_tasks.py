"""What holds for every task, and what each does on its own."""

import math

import numpy as np
import pytest
import torch

from taskformer.errors import InvalidTargetError, UnknownNameError
from taskformer.tasks import build_task
from taskformer.tasks.colors import INVALID_COLOR

NAN = float("nan")


def blank(target):
    return torch.full_like(target, NAN if target.is_floating_point() else 255)


def loss_and_gradient(task, output, target):
    output = output.clone().requires_grad_()
    loss = task.loss(output, target)
    loss.backward()
    return loss, output.grad


# Every task


def test_loss_is_a_finite_scalar_with_a_gradient(task, batch):
    loss, gradient = loss_and_gradient(task, *batch)
    assert loss.shape == ()
    assert 0 < loss.item() < math.inf
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("filling", [0.7, math.inf, NAN])
def test_nothing_valid_is_exactly_zero_with_a_gradient_path(task, batch, filling):
    output, target = batch
    loss, gradient = loss_and_gradient(task, torch.full_like(output, filling), blank(target))
    assert loss.item() == 0
    assert (gradient == 0).all()


def test_invalid_pixels_are_as_if_absent(task, batch):
    output, target = batch
    target = target.clone()
    half = slice(1, None) if task.geometry == "image" else (..., slice(4, None))
    rest = slice(None, 1) if task.geometry == "image" else (..., slice(None, 4))
    target[half] = blank(target)[half]
    rubbish = output.clone()
    rubbish[half] = math.inf
    loss, gradient = loss_and_gradient(task, rubbish, target)
    expected, expected_gradient = loss_and_gradient(task, output[rest], target[rest])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert (gradient[half] == 0).all()
    torch.testing.assert_close(gradient[rest], expected_gradient)


def test_loss_is_float32_under_autocast(task, batch):
    output, target = batch
    output = output.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = task.loss(output, target)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(task.loss(output.float(), target).item(), rel=1e-6)


def test_other_precisions_of_the_target_are_accepted(task, batch):
    output, target = batch
    other = target.double() if target.is_floating_point() else target.to(torch.uint8)
    assert task.loss(output, other).item() == pytest.approx(task.loss(output, target).item(), rel=1e-6)


def test_wrong_shapes_are_refused(task, batch):
    output, target = batch
    with pytest.raises(InvalidTargetError, match=f"task '{task.name}'.*must have shape"):
        task.loss(output, target[..., :-1])
    with pytest.raises(InvalidTargetError, match=f"{task.channels} channels, got an output"):
        task.loss(torch.cat([output, output], dim=1), target)


@pytest.mark.parametrize(
    "task", ["semseg", "human_parts", "saliency", "depth", "normals", "reshading", "class_scene"], indirect=True
)
def test_wrong_kind_of_number_is_refused(task, batch):
    output, target = batch
    with pytest.raises(InvalidTargetError, match=r"float32|int64"):
        task.loss(output, target.long() if target.is_floating_point() else target.float())


def test_invalid_target_fits_and_counts_for_nothing(task, batch):
    output, target = batch
    empty = task.invalid(*target.shape[-2:] if task.geometry != "image" else (6, 8))
    assert empty.shape == target.shape[1:]
    assert empty.dtype == target.dtype
    mixed = torch.stack([target[0], empty])
    assert task.loss(output, mixed).item() == pytest.approx(task.loss(output[:1], target[:1]).item(), rel=1e-5)


def test_metrics_hold_the_headline_and_have_units(task, batch):
    metrics = task.metrics(stage="test")
    metrics.update(*batch)
    result = metrics.compute()
    assert set(result) == set(task.units)
    assert task.headline in result
    assert all(value.isfinite() for value in result.values())


def test_unknown_protocol_is_named(task):
    with pytest.raises(UnknownNameError, match="unknown protocol 'standart' \\(did you mean 'standard'"):
        task.metrics("standart")


def test_decoded_maps_look_like_targets(task, batch):
    output, target = batch
    decoded = task.decode(output.bfloat16())
    assert decoded.shape == target.shape
    assert decoded.dtype == target.dtype


def test_decoded_maps_and_targets_are_drawn(task, batch):
    output, target = batch
    height, width = target.shape[-2:] if task.geometry != "image" else (64, task.channels)
    for values in (task.decode(output)[0], target[0], task.invalid(*target.shape[-2:])):
        image = task.colorize(values.numpy())
        assert image.shape == (height, width, 3)
        assert image.dtype == np.uint8
    assert (image == INVALID_COLOR).all()


def test_constant_output_beats_random_ones(task, batch):
    target = batch[1]
    shape = (2, task.channels, *target.shape[-2:]) if task.geometry != "image" else (2, task.channels)

    def headline(values):
        metrics = task.metrics()
        metrics.update(values.view(1, -1, *[1] * (len(shape) - 2)).expand(shape).contiguous(), target)
        return metrics.compute()[task.headline].item() * (1 if task.higher_is_better else -1)

    constant = task.constant([target[:1], target[1]])
    assert constant.shape == (task.channels,)
    assert constant.dtype == torch.float32
    floor = headline(constant)
    for seed in range(10):
        assert headline(3 * torch.randn(task.channels, generator=torch.Generator().manual_seed(seed))) <= floor + 1e-6


def test_constant_ignores_invalid_pixels_and_survives_their_absence(task, batch):
    target = batch[1]
    torch.testing.assert_close(task.constant([blank(target), target]), task.constant([target]))
    assert task.constant([blank(target)]).isfinite().all()
    assert task.constant([]).isfinite().all()


# Single tasks


def semseg(**options):
    return build_task("semseg", {"classes": ["wall", "floor", "chair"], **options})


def test_default_weights():
    weights = {
        "human_parts": 2,
        "saliency": 5,
        "normals": 10,
        "depth": 1,
        "inverse_depth": 20,
        "edges": 50,
        "regression": 1,
    }
    assert {name: build_task(name, {}).loss_weight for name in weights} == weights
    assert semseg().loss_weight == 1


@pytest.mark.parametrize("wrong", [3, 254, -1])
def test_unknown_class_ids_are_named(wrong):
    target = torch.zeros(1, 4, 4, dtype=torch.int64)
    target[0, 1, 2] = wrong
    with pytest.raises(InvalidTargetError, match=rf"3 classes \(ids 0\.\.2.*got labels \[{wrong}\]"):
        semseg().loss(torch.zeros(1, 3, 4, 4), target)


def test_channel_axis_of_one_is_accepted():
    output, target = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    assert semseg().loss(output, target.unsqueeze(1)) == semseg().loss(output, target)
    depth, output, target = build_task("depth", {}), torch.rand(2, 1, 4, 4), torch.rand(2, 1, 4, 4)
    assert depth.loss(output, target[:, 0]) == depth.loss(output, target)


def test_integer_edges_are_accepted():
    edges, output = build_task("edges", {}), torch.randn(1, 1, 1, 3)
    integers = torch.tensor([0, 1, 255], dtype=torch.uint8).view(1, 1, 3)
    assert edges.loss(output, integers) == edges.loss(output, torch.tensor([0.0, 1.0, NAN]).view(1, 1, 1, 3))


def test_labels_are_drawn_in_the_given_colors():
    image = semseg(colors=[[1, 2, 3], [4, 5, 6], [0, 0, 0]]).colorize(np.array([[0, 1], [2, 255]], dtype=np.uint8))
    assert image.tolist() == [[[1, 2, 3], [4, 5, 6]], [[0, 0, 0], list(INVALID_COLOR)]]


def test_depth_of_zero_is_invalid():
    depth = build_task("depth", {})
    output, target = torch.tensor([3.0, 9.0]).view(1, 1, 1, 2), torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    assert depth.loss(output, target).item() == 2
    assert depth.constant([target]).item() == 1


def test_depth_loss_in_half_precision_does_not_overflow():
    output = torch.full((1, 1, 300, 300), 80.0).half()
    assert build_task("depth", {}).loss(output, torch.ones(1, 1, 300, 300)).item() == pytest.approx(79)


def test_depth_is_decoded_at_least_zero():
    assert build_task("depth", {}).decode(torch.tensor([-1.0, 2.0]).view(1, 1, 1, 2)).flatten().tolist() == [0, 2]


def test_depth_colors_do_not_depend_on_the_map():
    depth = build_task("depth", {"max_depth": 8.0})
    near, far = depth.colorize(np.array([[2.0, 1.0]])), depth.colorize(np.array([[[2.0, 50.0]]]))
    assert (near[0, 0] == far[0, 0]).all()
    assert (far[0, 1] == depth.colorize(np.array([[8.0]]))[0, 0]).all()
    assert near[0, 1].sum() > far[0, 1].sum()
    assert (far[0, 1] != INVALID_COLOR).any()


def test_normals_are_drawn_as_rgb():
    vectors = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]).T.reshape(3, 1, 3)
    expected = [[[255, 128, 128], [128, 128, 255], [128, 0, 128]]]
    assert build_task("normals", {}).colorize(vectors).tolist() == expected


def test_normals_are_decoded_to_unit_length():
    decoded = build_task("normals", {}).decode(torch.randn(2, 3, 4, 4) * 1e-3)
    torch.testing.assert_close(decoded.norm(dim=1), torch.ones(2, 4, 4))


def test_edges_are_drawn_white_on_black():
    image = build_task("edges", {}).colorize(np.array([[0.0, 1.0, NAN]]))
    assert image.tolist() == [[[0] * 3, [255] * 3, list(INVALID_COLOR)]]


def test_regression_range_sets_the_colors():
    curvature = build_task("curvature", {"value_range": [-1, 1]})
    image = curvature.colorize(np.array([[[-1.0, 1.0, NAN]], [[1.0, 1.0, 0.0]]]))
    assert image.tolist() == [[[0, 255, 128], [255, 255, 128], list(INVALID_COLOR)]]


def test_maps_that_cannot_be_drawn_are_refused(task):
    with pytest.raises(InvalidTargetError, match=f"task '{task.name}' draws"):
        task.colorize(np.zeros((5, 4, 4)))


def test_constants_by_hand():
    labels = torch.tensor([[2, 2, 1, 255, 255, 255]])
    assert semseg().constant([labels]).argmax() == 2
    depths = torch.tensor([[[1.0, 4.0, NAN]]])
    assert build_task("depth", {}).constant([depths, depths + 1]).item() == pytest.approx(3)
    normals = torch.tensor([[0.0, 0, 1], [1, 0, 0], [NAN, NAN, NAN]]).T.reshape(3, 1, 3)
    expected = torch.tensor([1, 0, 1]) / math.sqrt(2)
    torch.testing.assert_close(build_task("normals", {}).constant([normals]), expected)
    edges = torch.tensor([[[0.0, 0, 0, 1, NAN]]])
    assert build_task("edges", {}).constant([edges]).sigmoid().item() == pytest.approx(0.25)
    saliency = build_task("saliency", {}).constant([torch.tensor([[1, 0, 0, 0, 255]])])
    assert saliency.softmax(0)[1].item() == pytest.approx(0.25)
    values = torch.tensor([[[1.0, 2.0, 9.0, NAN]], [[5.0, 5.0, NAN, NAN]]])
    assert build_task("curvature", {}).constant([values]).tolist() == [2, 5]
    scene = build_task("class_scene", {"classes": ["a", "b"]})
    torch.testing.assert_close(
        scene.constant([torch.tensor([0.2, 0.8]), torch.tensor([0.4, 0.6])]).softmax(0), torch.tensor([0.3, 0.7])
    )
