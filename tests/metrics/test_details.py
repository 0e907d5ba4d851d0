"""What plots need beyond the scores, against brute force in plain numpy."""

import json

import numpy as np
import pytest
import torch

from taskformer.metrics import AngularError, DepthErrors, EdgeScores, MaskedMeanAbsoluteError, MeanIoU, SaliencyScores
from taskformer.tasks import build_tasks

NAN = float("nan")


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():  # other tests draw what they drew before
        torch.manual_seed(5)
        yield


def details(metric, output, target):
    """Feed a metric in two chunks; what it returns must survive JSON unchanged."""
    for part in (slice(0, 1), slice(1, None)):
        metric.update(output[part], target[part])
    found = metric.details()
    assert json.loads(json.dumps(found)) == found
    return found


def holes(target):
    return torch.where(torch.rand(target.shape[0], 1, *target.shape[2:]) < 0.3, NAN, target)


def labels(classes, *shape):
    target = torch.randint(0, classes, shape)
    return torch.where(torch.rand(shape) < 0.3, 255, target)


def test_the_confusion_matrix_counts_pixels_of_true_and_predicted_classes():
    output, target = torch.randn(3, 4, 6, 7), labels(4, 3, 6, 7)
    expected = np.zeros((4, 4), int)
    for guess, truth in zip(output.argmax(1).flatten().tolist(), target.flatten().tolist(), strict=True):
        if truth != 255:
            expected[truth, guess] += 1
    assert details(MeanIoU(4), output, target) == {"confusion": expected.tolist()}


@pytest.mark.parametrize("inverse", [False, True])
def test_depth_errors_are_added_up_in_ranges_of_the_true_value(inverse):
    output = torch.randn(3, 1, 6, 7) * 3 + 3
    target = holes(torch.rand(3, 1, 6, 7) * 8)
    output[0, 0, 0, :3], target[0, 0, 0, :3] = 2.0, torch.tensor([0.0, 2.0, 4.0])  # the ends of ranges, and 0
    ranges = [0.0, 2.0, 4.0, 6.0]
    found = details(DepthErrors(inverse, ranges=ranges), output, target)
    guess, truth = output.clamp(min=0).double().numpy(), target.double().numpy()
    valid = truth >= 0 if inverse else truth > 0
    assert found["ranges"] == ranges
    for place, (low, high) in enumerate(zip(ranges, [*ranges[1:], np.inf], strict=True)):
        inside = valid & (truth >= low) & (truth < high)
        errors = (guess - truth)[inside]
        assert found["pixels"][place] == inside.sum() > 0
        assert found["squared"][place] == pytest.approx((errors**2).sum(), rel=1e-6)
        assert found["absolute"][place] == pytest.approx(np.abs(errors).sum(), rel=1e-6)


def test_ranges_do_not_change_the_scores_and_add_up_to_them():
    output, target = torch.randn(2, 1, 6, 7) + 3, holes(torch.rand(2, 1, 6, 7) * 8)
    plain, ranged = DepthErrors(), DepthErrors(ranges=[1.0, 5.0])
    assert details(plain, output, target) == {}
    found = details(ranged, output, target)
    assert {name: float(value) for name, value in plain.compute().items()} == {
        name: float(value) for name, value in ranged.compute().items()
    }
    rmse = (sum(found["squared"]) / sum(found["pixels"])) ** 0.5
    assert rmse == pytest.approx(float(plain.compute()["rmse"]), rel=1e-9)


def test_angles_are_counted_by_the_degree():
    target = torch.nn.functional.normalize(torch.randn(2, 3, 6, 7), dim=1)
    output = target + 0.5 * torch.randn(2, 3, 6, 7)
    target = holes(target)
    a, b = (values.double().numpy().transpose(0, 2, 3, 1).reshape(-1, 3) for values in (output, target))
    known = np.isfinite(b).all(1)
    cosines = (a * b).sum(1)[known] / np.linalg.norm(a[known], axis=1) / np.linalg.norm(b[known], axis=1)
    counts, _ = np.histogram(np.degrees(np.arccos(cosines)), bins=180, range=(0, 180))
    assert details(AngularError(), output, target) == {"angles": counts.tolist()}


def test_saliency_has_its_curve_and_the_point_of_its_score():
    output, target = torch.randn(3, 2, 6, 7) * 2, labels(2, 3, 6, 7)
    metric = SaliencyScores()
    found = details(metric, output, target)
    probability, truth = output.softmax(1)[:, 1].numpy(), target.numpy()
    valid = truth != 255
    for place, threshold in enumerate(found["thresholds"]):
        said = (probability >= threshold) & valid
        hits = (said & (truth == 1)).sum()
        assert found["recall"][place] == pytest.approx(hits / ((truth == 1) & valid).sum())
        assert found["precision"][place] == pytest.approx(hits / max(said.sum(), 1))
    recall, precision = found["best"]
    weight = found["beta_squared"]
    best = (1 + weight) * recall * precision / (weight * precision + recall)
    assert best == pytest.approx(float(metric.compute()["maxF"]), rel=1e-6)
    assert np.sum(found["confusion"]) == valid.sum()


def test_edges_have_their_curve_and_the_point_of_the_ods():
    target = torch.zeros(2, 1, 12, 12)
    target[:, :, :, 6] = 1
    output = torch.full((2, 1, 12, 12), -9.0)
    output[0, :, :, 6], output[1, :, 3:9, 6], output[1, :, :, 1] = 2.0, 1.0, 0.0  # found, half of it, and a wrong line
    metric = EdgeScores(max_dist=0.01, thresholds=[0.4, 0.6, 0.8], nms=False)
    found = details(metric, output, target)
    # Probabilities 0.88, 0.73 and 0.5: of 24 pixels, at 0.4 all lines are there, at 0.6 the right ones, at 0.8 one.
    assert found["recall"] == pytest.approx([18 / 24, 18 / 24, 12 / 24])
    assert found["precision"] == pytest.approx([18 / 30, 1, 1])
    recall, precision = found["best"]
    assert 2 * recall * precision / (recall + precision) == pytest.approx(float(metric.compute()["odsF"]))


def test_a_metric_without_details_has_none():
    assert MaskedMeanAbsoluteError().details() == {}


def test_tasks_gather_the_details_of_their_metrics_in_the_test_only():
    tasks = build_tasks({"semseg": {"classes": ["wall", "floor"]}, "depth": {"max_depth": 5.0}, "curvature": {}})
    outputs = {name: torch.rand(1, task.channels, 4, 5) + 0.1 for name, task in tasks.items()}
    targets = {"semseg": torch.zeros(1, 4, 5, dtype=torch.long)}
    targets |= {name: outputs[name].clone() for name in ("depth", "curvature")}
    found = {}
    for name, task in tasks.items():
        metrics = task.metrics(stage="test")
        metrics.update(outputs[name], targets[name])
        found[name] = task.details(metrics)
    assert found["semseg"]["classes"] == ["wall", "floor"]
    assert np.sum(found["semseg"]["confusion"]) == 20
    assert found["depth"]["ranges"] == pytest.approx(np.linspace(0, 5, 21))
    assert sum(found["depth"]["pixels"]) == 20
    assert found["curvature"] == {"headline": "mae", "unit": ""}
    assert tasks["depth"].details(tasks["depth"].metrics(stage="val")) == {"headline": "rmse", "unit": "m"}
