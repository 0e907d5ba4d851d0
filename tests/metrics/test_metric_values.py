"""Every metric against plain numpy or numbers worked out by hand, whole and in shuffled chunks."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import jaccard_score
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassJaccardIndex

from taskformer.metrics import (
    AngularError,
    DepthErrors,
    MaskedMeanAbsoluteError,
    MeanIoU,
    SaliencyScores,
    SegmentationScores,
    SoftLabelScores,
    TolerantFMeasure,
)

NAN = float("nan")


def floats(result):
    return {name: float(value) for name, value in result.items()}


def score(metric, output, target):
    metric.update(output, target)
    return floats(metric.compute())


def holes(target, share=0.3):
    """Invalidate pixels (all channels of a pixel)."""
    mask = torch.rand(target.shape[0], 1, *target.shape[2:]) < share
    return torch.where(mask, torch.tensor(NAN), target)


def label_holes(target):
    return torch.where(torch.rand(target.shape) < 0.3, 255, target)


def cases():
    """Metric, outputs and targets of 14 images with invalid pixels."""
    torch.manual_seed(3)
    n, h, w = 14, 9, 11
    normals = torch.nn.functional.normalize(torch.randn(n, 3, h, w), dim=1)
    labels = torch.rand(n, 6).softmax(1)
    labels[::3] = NAN
    return {
        "segmentation": (SegmentationScores(5), torch.randn(n, 5, h, w), label_holes(torch.randint(0, 5, (n, h, w)))),
        "depth": (DepthErrors(), torch.randn(n, 1, h, w) * 3 + 2, holes(torch.rand(n, 1, h, w) * 8 + 0.1)),
        "inverse_depth": (
            DepthErrors(inverse=True),
            torch.randn(n, 1, h, w) * 0.1 + 0.1,
            holes((torch.rand(n, 1, h, w) - 0.2).clamp(min=0)),
        ),
        "normals": (AngularError(), normals + 0.4 * torch.randn(n, 3, h, w), holes(normals)),
        "saliency": (SaliencyScores(), torch.randn(n, 2, h, w), label_holes(torch.randint(0, 2, (n, h, w)))),
        "edges": (TolerantFMeasure(), torch.randn(n, 1, h, w), holes((torch.rand(n, 1, h, w) > 0.9).float())),
        "regression": (MaskedMeanAbsoluteError(), torch.randn(n, 2, h, w), holes(torch.randn(n, 2, h, w))),
        "classification": (SoftLabelScores(), torch.randn(n, 6), labels),
    }


CASES = cases()
every_case = pytest.mark.parametrize("case", CASES)


@every_case
def test_chunks_in_any_order_give_the_same_result(case):
    metric, outputs, targets = CASES[case]
    whole = score(metric.clone(), outputs, targets)
    order = torch.randperm(len(outputs))
    for chunks in (2, 7):
        split = metric.clone()
        for index in order.chunk(chunks):
            split.update(outputs[index], targets[index])
        # The angle itself is float32, whose vectorised square may round otherwise where an image lies elsewhere.
        assert floats(split.compute()) == pytest.approx(whole, rel=1e-7), chunks
    assert all(math.isfinite(value) for value in whole.values())
    assert tuple(whole) == metric.names


@every_case
def test_values_at_invalid_places_do_not_matter(case):
    metric, outputs, targets = CASES[case]
    whole = score(metric.clone(), outputs, targets)
    invalid = torch.isnan(targets) if targets.is_floating_point() else targets == 255
    if invalid.ndim < outputs.ndim:
        invalid = invalid.unsqueeze(1)
    for rubbish in (NAN, math.inf, -1e30):
        broken = torch.where(invalid, torch.tensor(rubbish), outputs)
        assert score(metric.clone(), broken, targets) == whole


@every_case
def test_nothing_valid_is_nan_with_one_warning(case):
    metric, outputs, targets = CASES[case]
    metric = metric.clone()
    metric.update(outputs, torch.full_like(targets, NAN if targets.is_floating_point() else 255))
    with pytest.warns(UserWarning, match="no valid pixel or label") as caught:
        result = metric.compute()
    assert len(caught) == 1
    assert set(result) == set(metric.names)
    assert all(math.isnan(value) for value in floats(result).values())


@every_case
def test_compute_before_update_is_nan_with_one_warning(case):
    metric = CASES[case][0].clone()
    with pytest.warns(UserWarning, match="before the ``update``") as caught:
        result = metric.compute()
    assert len(caught) == 1
    assert all(math.isnan(value) for value in floats(result).values())


@every_case
def test_an_empty_batch_changes_nothing(case):
    metric, outputs, targets = CASES[case]
    metric = metric.clone()
    whole = score(metric, outputs, targets)
    again = score(metric, outputs, torch.full_like(targets, NAN if targets.is_floating_point() else 255))
    assert again == whole


@every_case
def test_half_precision_outputs_do_not_overflow(case):
    metric, outputs, targets = CASES[case]
    metric = metric.clone()
    for _ in range(50):  # 50 * 14 * 99 pixels: beyond the largest half
        metric.update(outputs.half(), targets)
    assert all(math.isfinite(value) for value in floats(metric.compute()).values())


@every_case
def test_states_keep_their_precision_in_a_half_precision_module(case):
    metric, outputs, targets = CASES[case]
    whole = score(metric.clone(), outputs, targets)
    module = torch.nn.ModuleDict({"inner": metric.clone()}).half().to(torch.bfloat16)
    assert score(module["inner"], outputs, targets) == whole


@every_case
def test_states_are_sums_in_64_bits(case):
    metric = CASES[case][0]
    assert {getattr(metric, name).dtype for name in metric._defaults} <= {torch.float64, torch.int64}
    assert all(reduce is torch.sum or reduce.__name__ == "dim_zero_sum" for reduce in metric._reductions.values())


@every_case
def test_shapes_that_would_broadcast_are_refused(case):
    metric, outputs, targets = CASES[case]
    with pytest.raises(ValueError, match=type(metric).__name__):
        metric.clone().update(outputs, targets[:1])


@every_case
def test_reset_forgets(case):
    metric, outputs, targets = CASES[case]
    metric = metric.clone()
    half = score(metric, outputs[:5], targets[:5])
    metric.reset()
    metric.update(outputs[5:], targets[5:])
    metric.compute()
    metric.reset()
    assert score(metric, outputs[:5], targets[:5]) == half


@every_case
def test_names_survive_collections_prefixes_and_clones(case):
    metric, outputs, targets = CASES[case]
    collection = MetricCollection({"inner": metric.clone()}).clone(prefix="val/depth/")
    collection.update(outputs, targets)
    assert set(collection.compute()) == {f"val/depth/{name}" for name in metric.names}


def test_segmentation_agrees_with_scikit_learn_and_torchmetrics():
    metric, logits, target = CASES["segmentation"]
    result = score(metric.clone(), logits, target)
    valid = (target != 255).numpy()
    guess, truth = logits.numpy().argmax(1)[valid], target.numpy()[valid]
    assert result["mIoU"] == pytest.approx(jaccard_score(truth, guess, average="macro"))
    assert result["pixel_accuracy"] == pytest.approx((guess == truth).mean())
    theirs = MulticlassJaccardIndex(5, ignore_index=255)
    assert result["mIoU"] == pytest.approx(float(theirs(logits, target)), rel=1e-6)


def test_classes_that_never_occur_are_left_out_of_the_mean():
    # Class 0: 1 of 2 pixels of the union; class 1: 2 of 3; class 2 nowhere.
    logits = torch.nn.functional.one_hot(torch.tensor([[[0, 1, 1, 1]]]), 3).movedim(-1, 1).float()
    target = torch.tensor([[[0, 0, 1, 1]]])
    assert score(MeanIoU(3), logits, target) == {"mIoU": pytest.approx((1 / 2 + 2 / 3) / 2)}


def test_narrow_label_types_do_not_overflow():
    logits = torch.randn(1, 40, 8, 8)
    target = torch.randint(0, 40, (1, 8, 8))
    assert score(MeanIoU(40), logits, target.to(torch.uint8)) == score(MeanIoU(40), logits, target)


def test_depth_by_hand():
    output = torch.tensor([2.0, -1.0, 5.0, 3.0, 9.0]).view(1, 1, 1, 5)
    target = torch.tensor([1.0, 1.0, 4.1, NAN, 0.0]).view(1, 1, 1, 5)
    # Errors 1, 1 (clamped at 0), 0.9; only 5 / 4.1 is below 1.25.
    expected = {
        "rmse": math.sqrt((1 + 1 + 0.81) / 3),
        "rmse_per_image": math.sqrt((1 + 1 + 0.81) / 3),
        "rmse_log": math.sqrt((math.log(2) ** 2 + math.log(1e-3) ** 2 + math.log(5 / 4.1) ** 2) / 3),
        "mae": 2.9 / 3,
        "abs_rel": (1 + 1 + 0.9 / 4.1) / 3,
        **{"delta1": 1 / 3, "delta2": 1 / 3, "delta3": 1 / 3},
    }
    assert score(DepthErrors(), output, target) == pytest.approx(expected, rel=1e-6)


def test_depth_ratios_are_compared_strictly_and_both_ways():
    # Ratios 1.25, 1.5 (too near), 1.9 (too far) and 2; the first is not below 1.25.
    output = torch.tensor([1.25, 2.0, 1.9, 2.0]).view(1, 1, 1, 4)
    target = torch.tensor([1.0, 3.0, 1.0, 1.0]).view(1, 1, 1, 4)
    result = score(DepthErrors(), output, target)
    assert [result[f"delta{level}"] for level in (1, 2, 3)] == [0, 0.5, 0.75]


def test_inverse_depth_by_hand():
    output = torch.tensor([0.1, 0.3, -1.0, 9.0, 9.0]).view(1, 1, 1, 5)
    target = torch.tensor([0.2, 0.0, 0.0, NAN, -1.0]).view(1, 1, 1, 5)
    # 0 is infinitely far: it counts for the errors, 0.1, 0.3 and 0 (clamped), and has no ratio.
    expected = {
        "rmse": math.sqrt((0.01 + 0.09) / 3),
        "rmse_per_image": math.sqrt((0.01 + 0.09) / 3),
        "rmse_log": math.log(2),
        "mae": 0.4 / 3,
        "abs_rel": 0.5,
        **{"delta1": 0, "delta2": 0, "delta3": 0},
    }
    assert score(DepthErrors(inverse=True), output, target) == pytest.approx(expected, rel=1e-6)


def test_depth_errors_of_300_metres_in_half_precision():
    result = score(DepthErrors(), torch.full((1, 1, 1, 3), 301.0).half(), torch.ones(1, 1, 1, 3).half())
    assert result["rmse"] == pytest.approx(300)


def turned(degrees):
    """Unit vectors at angles from the z axis, ``(1, 3, 1, N)`` float64."""
    angle = np.deg2rad(np.asarray(degrees, dtype=np.float64))
    return torch.from_numpy(np.stack([np.sin(angle), np.zeros_like(angle), np.cos(angle)])[None, :, None])


def test_known_angles():
    degrees = [0.0, 1e-2, 11.2, 11.3, 22.4, 29.9, 30.1, 180.0]
    target = turned(np.zeros(len(degrees)))
    result = score(AngularError(), 7 * turned(degrees), target)
    assert result["mean_angle"] == pytest.approx(np.mean(degrees), abs=1e-4)
    shares = {"within_11.25": 3 / 8, "within_22.5": 5 / 8, "within_30": 6 / 8}
    assert {name: result[name] for name in shares} == pytest.approx(shares)


def test_tiny_angles_are_exact():
    degrees = np.full(50, 1e-3)
    assert score(AngularError(), turned(degrees), turned(0 * degrees))["mean_angle"] == pytest.approx(1e-3, rel=1e-2)


def test_a_zero_prediction_is_not_perfect():
    target = turned([0.0, 40.0])
    assert score(AngularError(), torch.zeros_like(target), target)["mean_angle"] == pytest.approx(90)


def test_a_zero_target_is_invalid():
    target = turned([0.0, 40.0])
    target[..., 1] = 0
    assert score(AngularError(), turned([10.0, 170.0]), target)["mean_angle"] == pytest.approx(10, abs=1e-4)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 180, allow_subnormal=False), min_size=1, max_size=30))
def test_median_is_within_half_a_bin(degrees):
    result = score(AngularError(), turned(degrees), turned(np.zeros(len(degrees))))
    # float32 moves an angle by less than 0.001 degrees, maybe into the next bin.
    assert result["median_angle"] == pytest.approx(np.median(degrees), abs=0.051)


def two_logits(probability):
    probability = torch.tensor(probability, dtype=torch.float64).view(1, 1, -1)
    return torch.stack([torch.zeros_like(probability), torch.logit(probability)], dim=1)


def test_max_f_by_hand():
    # Best threshold: between .35 and .6, where 2 of 3 predictions are right and 2 of 2 objects found.
    output, target = two_logits([0.9, 0.7, 0.62, 0.2]), torch.tensor([[[1, 0, 1, 0]]])
    expected = 1.3 * (2 / 3) * 1 / (0.3 * 2 / 3 + 1)
    # At a threshold above .7 precision is 1 and recall 1/2: the rival, which beta^2 = 0.3 lets win.
    rival = 1.3 * 1 * 0.5 / (0.3 * 1 + 0.5)
    assert rival > expected
    result = score(SaliencyScores(), output, target)
    assert result["maxF"] == pytest.approx(rival)
    assert score(SaliencyScores(beta_squared=1.0), output, target)["maxF"] == pytest.approx(0.8)
    assert result["mIoU"] == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_max_f_by_brute_force():
    metric, logits, target = CASES["saliency"]
    valid = (target != 255).numpy()
    probability, truth = logits.softmax(1)[:, 1].numpy()[valid], target.numpy()[valid]
    best = 0.0
    for threshold in np.arange(1, 20) / 20:
        guess = probability >= threshold
        hits = (guess & (truth == 1)).sum()
        precision, recall = hits / max(guess.sum(), 1), hits / (truth == 1).sum()
        best = max(best, 1.3 * precision * recall / max(0.3 * precision + recall, 1e-12))
    assert score(metric.clone(), logits, target)["maxF"] == pytest.approx(best, rel=1e-6)


def test_a_probability_equal_to_the_threshold_reaches_it():
    assert score(SaliencyScores(thresholds=[0.5]), torch.zeros(1, 2, 1, 3), torch.ones(1, 1, 3).long())[
        "maxF"
    ] == pytest.approx(1)


def test_max_f_without_a_salient_pixel_is_zero():
    assert score(SaliencyScores(), two_logits([0.1, 0.2]), torch.zeros(1, 1, 2).long())["maxF"] == 0


def line(column, size=40, value=1.0):
    image = torch.zeros(1, 1, size, size)
    image[..., column] = value
    return image


def edge_logits(probability):
    return torch.logit(probability.double(), eps=1e-4)


@pytest.mark.parametrize(("shift", "f_measure"), [(0, 1.0), (1, 1.0), (3, 1.0), (4, 0.0)])
def test_a_shifted_line_matches_only_inside_the_tolerance(shift, f_measure):
    tolerance = 3.2 / math.hypot(40, 40)
    result = score(TolerantFMeasure(tolerance), edge_logits(line(10 + shift, value=0.9)), line(10))
    assert result["f_tolerant"] == f_measure


def test_the_tolerance_is_at_least_a_pixel():
    assert score(TolerantFMeasure(0.0), edge_logits(line(11, value=0.9)), line(10))["f_tolerant"] == 1
    assert score(TolerantFMeasure(0.0), edge_logits(line(12, value=0.9)), line(10))["f_tolerant"] == 0


def brute_force_edges(probability, target, radius):
    """Best F over 99 thresholds with explicit distances between all pixels of each image."""
    counts = np.zeros((99, 4))
    for image, edges in zip(probability, target, strict=True):
        places = np.argwhere(edges >= 0.5)
        for index in range(99):
            guess = np.argwhere((image >= np.float32((index + 1) / 100)) & ~np.isnan(edges))
            near = np.linalg.norm(guess[:, None] - places[None], axis=-1) <= radius
            counts[index] += [near.any(1).sum(), len(guess), near.any(0).sum(), len(places)]
    precision, recall = counts[:, 0] / np.maximum(counts[:, 1], 1), counts[:, 2] / np.maximum(counts[:, 3], 1)
    f_measure = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return f_measure.max(), (f_measure.argmax() + 1) / 100


@pytest.mark.parametrize("radius", [1.0, 2.3, 3.0])
def test_edges_by_brute_force(radius):
    torch.manual_seed(5)
    logits, target = torch.randn(3, 1, 12, 16) * 2, holes((torch.rand(3, 1, 12, 16) > 0.93).float())
    logits[torch.nan_to_num(target) > 0.5] += 2
    result = score(TolerantFMeasure(radius / 20 + 1e-9), logits, target)
    best, threshold = brute_force_edges(logits.sigmoid()[:, 0].numpy(), target[:, 0].numpy(), radius)
    assert result == pytest.approx({"f_tolerant": best, "threshold": threshold})


def test_no_edges_in_the_labels_is_zero():
    assert score(TolerantFMeasure(), torch.randn(1, 1, 9, 9), torch.zeros(1, 1, 9, 9))["f_tolerant"] == 0


def test_regression_by_hand():
    output, target = torch.tensor([1.0, 2.0, 5.0]).view(1, 1, 1, 3), torch.tensor([0.0, 4.0, NAN]).view(1, 1, 1, 3)
    assert score(MaskedMeanAbsoluteError(), output, target) == {"mae": 1.5}


def test_classification_by_hand():
    target = torch.eye(7)[[0, 3, 6]] * 0.4 + 0.6 / 7
    logits = torch.tensor([[9.0, 1, 2, 3, 4, 5, 6], [9.0, 8, 7, 6, 5, 4, 3], [9.0, 8, 7, 6, 5, 4, 3]])
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    expected = {"top1": 1 / 3, "top5": 2 / 3, "cross_entropy": -(target.numpy() * np.log(p)).sum(1).mean()}
    assert score(SoftLabelScores(), logits, target) == pytest.approx(expected, rel=1e-5)


def test_fewer_than_five_classes():
    assert score(SoftLabelScores(), torch.randn(2, 3), torch.eye(3)[:2])["top5"] == 1
