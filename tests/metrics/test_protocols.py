"""Each deviation of each protocol with numbers worked out by hand; every task in every protocol fed in pieces."""

import math

import pytest
import torch
from torch.nn import functional as F

from taskformer.metrics import DepthErrors
from taskformer.metrics.protocols import PROTOCOLS as TABLE
from taskformer.tasks import PROTOCOLS, build_task

NAN = math.nan
SPECS = {
    "semseg": {"classes": ["a", "b", "c", "d"]},
    "streets": {"type": "semseg", "classes": [str(number) for number in range(19)]},
    "human_parts": {},
    "saliency": {},
    "depth": {},
    "inverse_depth": {},
    "normals": {},
    "edges": {"max_dist": 0.1},
    "curvature": {},
    "segment_unsup2d": {"channels": 3},
    "class_scene": {"classes": ["kitchen", "bath", "hall", "attic", "stairs", "shed"]},
    "room_layout": {},
}
every_protocol = pytest.mark.parametrize("protocol", PROTOCOLS)


def scores(name, protocol, *batches, stage="val"):
    """Score batches of outputs and targets; ``name`` is a task."""
    task = build_task(name, SPECS[name])
    metrics = task.metrics(protocol, stage)
    for output, target in batches:
        metrics.update(output, task.check(target, output))
    return {key: float(value) for key, value in metrics.compute().items()}


def values(*numbers):
    """A map ``(1, 1, 1, N)``."""
    return torch.tensor(numbers, dtype=torch.float32).view(1, 1, 1, -1)


def labels(*numbers):
    return torch.tensor(numbers).view(1, 1, -1)


def logits(classes, *numbers):
    """Logits ``(1, classes, 1, N)`` of predicted class ids."""
    return F.one_hot(labels(*numbers), classes).movedim(-1, 1).float()


def salient(*probabilities):
    odds = torch.logit(torch.tensor(probabilities, dtype=torch.float64)).view(1, 1, -1)
    return torch.stack([torch.zeros_like(odds), odds], dim=1).float()


# Names


def test_the_names_are_those_of_the_table():
    assert PROTOCOLS == tuple(TABLE) == ("standard", "atrc", "invpt", "adashare")


@pytest.mark.parametrize("name", SPECS)
def test_protocols_have_the_same_metrics_all_with_units(name):
    task = build_task(name, SPECS[name])
    keys = {
        tuple(key for metric in task.metrics(protocol, "test").values() for key in metric.names)
        for protocol in PROTOCOLS
    }
    assert len(keys) == 1
    assert set(keys.pop()) == set(task.units)


# Classes


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        # a: 2 of a union of 3; b: none of 1 + 0; c: 1 of 2 + 0; d never occurs.
        ("standard", (2 / 3 + 0 + 1 / 2) / 3),
        ("atrc", (2 / 3 + 0 + 1 / 2 + 0) / 4),
        ("invpt", (2 / 3 + 0 + 1 / 2 + 0) / 4),
        # Only a and c have a pixel that is right.
        ("adashare", (2 / 3 + 1 / 2) / 2),
    ],
)
def test_classes_that_are_absent_or_never_hit(protocol, expected):
    output, target = logits(4, 0, 0, 0, 2, 2), labels(0, 0, 1, 2, 255)
    # The void pixel counts for nothing; make c miss one: a fifth labelled pixel of c predicted as c would be 2 of 2.
    output, target = torch.cat([output, logits(4, 2)], -1), torch.cat([target, labels(0)], -1)
    # a: labels 0, 1, 5, predicted 0, 1, 2: 2 hits, union 4. c: label 3, predicted 3, 5: 1 hit, union 2.
    expected = expected - (2 / 3 - 2 / 4) / {"standard": 3, "adashare": 2}.get(protocol, 4)
    assert scores("semseg", protocol, (output, target))["mIoU"] == pytest.approx(expected)


def test_no_class_hit_is_zero():
    assert scores("semseg", "adashare", (logits(4, 0, 1), labels(1, 0)))["mIoU"] == 0


@every_protocol
def test_the_iou_of_each_class(protocol):
    metric = build_task("semseg", SPECS["semseg"]).metrics(protocol)["segmentation"]
    metric.update(logits(4, 0, 0, 2), labels(0, 1, 2))
    assert metric.per_class().tolist() == pytest.approx([1 / 2, 0, 1, NAN], nan_ok=True)


@pytest.mark.parametrize(
    ("protocol", "expected"), [("standard", 3 / 4), ("atrc", 3 / 4), ("adashare", (1 + 1 / 2) / 2)]
)
def test_pixel_accuracy_over_pixels_or_images(protocol, expected):
    # The first image: 2 of 2 labelled pixels; the second, in another batch: 1 of 2.
    first, second = (logits(4, 1, 1, 3), labels(1, 1, 255)), (logits(4, 2, 2, 3), labels(2, 0, 255))
    assert scores("semseg", protocol, first, second)["pixel_accuracy"] == pytest.approx(expected)


def test_void_is_wrong_on_cityscapes_in_adashare():
    output, target = logits(19, 5, 5, 7, 7), labels(5, 5, 255, 255)
    # All labelled pixels are right; AdaShare divides them by all four. With the 40 classes of NYUD-v2 it does not.
    assert scores("streets", "standard", (output, target))["pixel_accuracy"] == 1
    assert scores("streets", "adashare", (output, target))["pixel_accuracy"] == 0.5
    assert scores("semseg", "adashare", (logits(4, 1, 1, 2, 2), labels(1, 1, 255, 255)))["pixel_accuracy"] == 1


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        # Background: 1 hit, a union of 2 + 1 false ones of the bare image; head: 1 of 3.
        ("standard", (2 / 4 + 1 / 3) / 2),
        # Without the bare image, over all seven parts: background 1 of 2, head 1 of 2.
        ("atrc", (1 / 2 + 1 / 2) / 7),
        ("invpt", (1 / 2 + 1 / 2) / 7),
    ],
)
def test_images_without_a_person(protocol, expected):
    person = (logits(7, 0, 1, 1), labels(0, 1, 0))
    bare = (logits(7, 0, 1, 1), labels(0, 0, 255))
    assert scores("human_parts", protocol, person, bare)["mIoU"] == pytest.approx(expected)
    both = tuple(torch.cat(pair) for pair in zip(person, bare, strict=True))
    assert scores("human_parts", protocol, both)["mIoU"] == pytest.approx(expected)


# Depth


def test_depths_below_zero():
    output, target = values(-1.0, 2.0), values(1.0, 2.0)
    for protocol, floor, log_floor in (("standard", 0, 1e-3), ("atrc", 0, 1e-3), ("invpt", 1e-9, 1e-9)):
        result = scores("depth", protocol, (output, target))
        # -1 is raised to the floor: an error of 1, and far from 1 in ratio.
        assert result["rmse"] == pytest.approx(math.sqrt((1 - floor) ** 2 / 2))
        assert result["abs_rel"] == pytest.approx(1 / 2)
        assert result["delta3"] == 1 / 2
        assert result["rmse_log"] == pytest.approx(math.sqrt(math.log(log_floor) ** 2 / 2), rel=1e-6)
    # AdaShare keeps it: an error of 2; both ratios are -1, which is below 1.25.
    result = scores("depth", "adashare", (output, target))
    assert result["rmse"] == pytest.approx(math.sqrt(4 / 2))
    assert result["mae"] == result["abs_rel"] == 1
    assert result["delta1"] == 1


def test_errors_of_depth_over_pixels_or_images():
    # Errors 1, 1, 1 of depth 2 in the first image, 4 of depth 8 in the second.
    first, second = (values(1, 1, 3), values(2, 2, 2)), (values(12, 5, 5), values(8, NAN, NAN))
    result = scores("depth", "standard", first, second)
    assert result["mae"] == pytest.approx((1 + 1 + 1 + 4) / 4)
    assert result["rmse"] == pytest.approx(math.sqrt((1 + 1 + 1 + 16) / 4))
    assert result["rmse_per_image"] == pytest.approx((1 + 4) / 2)
    assert result["abs_rel"] == pytest.approx(1 / 2)
    result = scores("depth", "adashare", first, second)
    assert result["mae"] == pytest.approx((1 + 4) / 2)
    assert result["abs_rel"] == pytest.approx(1 / 2)
    # The shares are of all pixels: 3 / 2 and 12 / 8 are within 1.25^2, 1 / 2 is not.
    assert result["delta2"] == pytest.approx(2 / 4)


def test_an_image_without_a_ratio_is_not_averaged_in_ratios():
    # The second image is infinitely far everywhere: an error of 0.3 and no ratio.
    metric = DepthErrors(inverse=True, image_means=True)
    metric.update(values(0.1), values(0.2))
    metric.update(values(0.3), values(0.0))
    result = metric.compute()
    assert float(result["mae"]) == pytest.approx((0.1 + 0.3) / 2)
    assert float(result["abs_rel"]) == pytest.approx(0.5)


def test_an_image_without_depth_is_not_averaged():
    result = scores("depth", "adashare", (values(1.0), values(2.0)), (values(1.0), values(NAN)))
    assert result["mae"] == 1


def test_a_ratio_of_exactly_the_limit():
    pair = (values(1.25), values(1.0))
    assert scores("depth", "standard", pair)["delta1"] == 0
    assert scores("depth", "adashare", pair)["delta1"] == 1


def test_adashare_ignores_what_is_very_near_or_infinitely_far():
    pair = (values(1.0, 1.0), values(2e-5, 2.0))
    assert scores("depth", "adashare", pair)["mae"] == pytest.approx(1)
    assert scores("depth", "standard", pair)["mae"] == pytest.approx((1 - 2e-5 + 1) / 2)
    assert scores("depth", "standard", pair)["abs_rel"] == pytest.approx((1 / 2e-5 - 1 + 0.5) / 2, rel=1e-4)
    assert scores("depth", "adashare", pair)["abs_rel"] == pytest.approx(0.5)
    sky = (values(0.3, 0.3), values(0.0, 0.2))
    assert scores("inverse_depth", "standard", sky)["mae"] == pytest.approx((0.3 + 0.1) / 2)
    assert scores("inverse_depth", "adashare", sky)["mae"] == pytest.approx(0.1)


# Normals


def test_normals_by_hand():
    # 90 degrees and 0 degrees.
    output = torch.tensor([[1.0, 0, 0], [0, 0, -1]]).T.view(1, 3, 1, 2)
    target = torch.tensor([[0.0, 0, -1], [0, 0, -1]]).T.view(1, 3, 1, 2)
    for protocol in ("standard", "atrc", "invpt"):
        result = scores("normals", protocol, (output, target))
        assert result["mean_angle"] == pytest.approx(45)
        assert result["rmse_angle"] == pytest.approx(90 / math.sqrt(2))
    # AdaShare compares (1, .5, .5) with (.5, .5, 0), as stored: cosine (.5 + .25) / (sqrt(1.5) sqrt(.5)), 30 degrees,
    # and (.5, .5, 0) with itself.
    assert scores("normals", "adashare", (output, target))["mean_angle"] == pytest.approx(30 / 2, abs=1e-4)


def test_the_vertical_axis_of_stored_normals_points_up():
    # A floor, y -1, and a wall facing the camera, z -1: stored (.5, 1, .5) and (.5, .5, 0) have a cosine of
    # .75 / (sqrt(1.5) sqrt(.5)), 30 degrees. With y down the floor would be (.5, 0, .5): 60 degrees.
    output, target = torch.tensor([0.0, -1, 0]).view(1, 3, 1, 1), torch.tensor([0.0, 0, -1]).view(1, 3, 1, 1)
    assert scores("normals", "adashare", (output, target))["mean_angle"] == pytest.approx(30, abs=1e-4)


def test_an_angle_of_exactly_the_limit(monkeypatch):
    pair = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1), torch.tensor([0.0, 1, 0]).view(1, 3, 1, 1)
    from taskformer.metrics import AngularError, normals

    # 90 degrees is the angle that floats measure exactly.
    monkeypatch.setattr(normals, "LIMITS", (90.0, 90.0, 90.0))
    for inclusive in (False, True):
        metric = AngularError(inclusive)
        metric.update(*pair)
        assert float(metric.compute()["within_30"]) == inclusive
    assert TABLE["adashare"].inclusive
    assert not TABLE["invpt"].inclusive


# Saliency


def test_max_f_of_a_probability_that_was_squashed_twice():
    output, target = salient(0.9, 0.83, 0.5, 0.1), labels(1, 0, 0, 0)
    # From .85 on only the right pixel is left: precision and recall 1.
    for protocol in ("standard", "atrc", "adashare"):
        assert scores("saliency", protocol, (output, target))["maxF"] == pytest.approx(1)
    # Sigmoids .711, .697, .622, .525: .70 (a probability of .8473) still parts the first two.
    assert scores("saliency", "invpt", (output, target))["maxF"] == pytest.approx(1)
    # With .86 instead of .83 nothing between .8473 and 1 does: precision 1/2, F = 1.3 * .5 * 1 / (.3 * .5 + 1).
    output = salient(0.9, 0.86, 0.5, 0.1)
    assert scores("saliency", "standard", (output, target))["maxF"] == pytest.approx(1)
    assert scores("saliency", "invpt", (output, target))["maxF"] == pytest.approx(1.3 * 0.5 / (0.3 * 0.5 + 1))


def test_squashed_thresholds_are_those_of_the_sigmoid_of_the_probability():
    torch.manual_seed(0)
    probability, target = torch.rand(1, 30, 30), torch.rand(1, 30, 30)
    target = (target < probability).long()
    best = 0.0
    for step in range(1, 20):
        guess = probability.double().sigmoid() >= step / 20
        hits = (guess & (target == 1)).sum()
        precision, recall = hits / max(guess.sum(), 1), hits / target.sum()
        best = max(best, float(1.3 * precision * recall / (0.3 * precision + recall + 1e-9)))
    odds = torch.logit(probability)
    result = scores("saliency", "invpt", (torch.stack([torch.zeros_like(odds), odds], 1), target))
    assert result["maxF"] == pytest.approx(best, rel=1e-6)


def test_max_iou_is_the_best_mean_of_the_images():
    first = (salient(0.95, 0.5, 0.3, 0.1), labels(1, 1, 0, 255))
    second = (salient(0.45, 0.34, 0.1, 0.95), labels(1, 0, 0, 255))
    # First: up to .3 2 of 3, to .5 2 of 2, then 1 of 2. Second: up to .3 (not .35) 1 of 2, to .45 1 of 1, then 0 of 1.
    # Means: .58 up to .3, 1 from .35 to .45.
    assert scores("saliency", "standard", first, second)["max_mIoU"] == pytest.approx(1)
    # The third image shows nothing salient: 1 while nothing is predicted (from .65 on), else 0; best is still to .45.
    third = (salient(0.6, 0.1, 0.1, 0.1), labels(0, 0, 0, 0))
    assert scores("saliency", "standard", first, second, third)["max_mIoU"] == pytest.approx(2 / 3)
    # Alone, from .65 on, it is perfect; an image without any label is no image.
    nothing = (salient(0.9, 0.9, 0.9, 0.9), labels(255, 255, 255, 255))
    assert scores("saliency", "standard", third, nothing)["max_mIoU"] == 1


def test_max_iou_looks_at_thresholds_from_a_fifth_to_nine_tenths():
    # .15 would part the pixels of the first image, .95 those of the second; at .9 both of the second are predicted.
    assert scores("saliency", "standard", (salient(0.17, 0.12), labels(1, 0)))["max_mIoU"] == 0
    assert scores("saliency", "standard", (salient(0.96, 0.93), labels(1, 0)))["max_mIoU"] == 0.5


# Pieces


def batch(name, images=14):
    """Outputs and targets with invalid pixels; one image without any label."""
    task = build_task(name, SPECS[name])
    torch.manual_seed(7)
    h, w = 9, 11
    if task.geometry == "image":
        output, target = torch.randn(images, task.channels), torch.randn(images, task.channels).softmax(1)
        target[::5] = NAN
        return task, output, target
    output = torch.randn(images, task.channels, h, w)
    hole = torch.rand(images, 1, h, w) < 0.2
    hole[3:4] = True
    if task.geometry == "label":
        return task, output, torch.where(hole[:, 0], 255, torch.randint(0, min(task.channels, 9), (images, h, w)))
    target = torch.randn(images, 3, h, w) if task.geometry == "vector" else torch.rand(images, task.channels, h, w)
    if name == "edges":
        target = (target > 0.9).float()
    target = F.normalize(target, dim=1) if task.geometry == "vector" else target
    return task, output, torch.where(hole, NAN, target)


def states(metrics):
    return {
        (key, name): getattr(metric, name).clone()
        for key, metric in metrics.items(copy_state=False)
        for name in metric._defaults
    }


@every_protocol
@pytest.mark.parametrize("name", SPECS)
def test_pieces_in_any_order_give_the_same_result(name, protocol):
    task, output, target = batch(name)
    whole = task.metrics(protocol, "test")
    whole.update(output, target)
    expected = {key: float(value) for key, value in whole.compute().items()}
    assert all(math.isfinite(value) for value in expected.values())
    for pieces in (1, 2, 7):
        split = task.metrics(protocol, "test")
        for index in torch.randperm(len(output)).chunk(pieces):
            split.update(output[index], target[index])
        for key, state in states(split).items():
            if not state.is_floating_point():
                assert torch.equal(state, states(whole)[key]), key
        assert {key: float(value) for key, value in split.compute().items()} == pytest.approx(expected, rel=1e-9)


@every_protocol
@pytest.mark.parametrize("name", SPECS)
def test_nothing_valid_is_nan_with_one_warning_a_metric(name, protocol):
    task, output, target = batch(name, images=2)
    blank = torch.full_like(target, NAN if target.is_floating_point() else 255)
    metrics = task.metrics(protocol, "test")
    metrics.update(output, blank)
    with pytest.warns(UserWarning, match="no valid pixel or label") as caught:
        result = metrics.compute()
    assert len(caught) == len(metrics)
    assert all(math.isnan(value) for value in result.values())
    metrics = task.metrics(protocol, "test")
    metrics.update(output, blank)
    metrics.update(output, target)
    if not (name == "streets" and protocol == "adashare"):  # where void is wrong
        alone = task.metrics(protocol, "test")
        alone.update(output, target)
        assert all(torch.equal(value, states(alone)[key]) for key, value in states(metrics).items())


@every_protocol
@pytest.mark.parametrize("name", SPECS)
def test_updates_do_not_wait_for_the_device(name, protocol):
    # The meta device has no values: whoever asks for one, as `if tensor` or boolean indexing do, fails.
    task, output, target = batch(name)
    metrics = task.metrics(protocol, "val").to("meta")
    metrics.update(output.to("meta"), target.to("meta"))
    assert all(state.is_meta for state in states(metrics).values())


@pytest.mark.parametrize("name", SPECS)
def test_states_do_not_grow_with_the_number_of_images(name):
    def size(images):
        metrics = task.metrics("standard", "val" if name == "edges" else "test")
        for _ in range(images):
            metrics.update(output, target)
        return sum(state.numel() * state.element_size() for state in states(metrics).values())

    task, output, target = batch(name, images=1)
    assert size(10) == size(1000) < 100_000
