"""The boundary benchmark as a metric: numbers by hand, any chunking, any device state, nothing valid."""

import math

import numpy as np
import pytest
import torch

from taskformer.metrics import EdgeScores
from taskformer.metrics.boundaries import best_point, count_matches
from taskformer.metrics.protocols import SEISM_THRESHOLDS
from taskformer.tasks import Edges

NAN = float("nan")
#: A tolerance of exactly one pixel on maps of 24 x 32, whose diagonal is 40.
ONE_PIXEL = 1 / 40
STATES = ("counts", "counts_at_best", "valid")


def logits_of(probability):
    return torch.logit(torch.as_tensor(probability, dtype=torch.float32))[None, None]


def line(column, value=1.0):
    image = torch.zeros(24, 32)
    image[:, column] = value
    return image


def floats(metric):
    return {name: float(value) for name, value in metric.compute().items()}


def batch(count, seed=0):
    """Outputs and targets of noisy lines, some pixels invalid."""
    torch.manual_seed(seed)
    target = (torch.rand(count, 1, 24, 32) < 0.08).float()
    output = 3 * target + torch.randn(count, 1, 24, 32)
    return output, torch.where(torch.rand(target.shape) < 0.1, torch.tensor(NAN), target)


def test_two_images_by_hand():
    metric = EdgeScores(ONE_PIXEL, [0.25, 0.5, 0.75], nms=False)
    # The first image: the line of .9 is one pixel beside the true one, that of .6 is wrong.
    metric.update(logits_of(0.9 * line(10) + 0.6 * line(20)), line(11)[None, None])
    # The second: the true line has .3, and a wrong one .2, which is below all thresholds.
    metric.update(logits_of(0.3 * line(5) + 0.2 * line(15)), line(5)[None, None])
    # Recall 48, 24, 24 of 48; precision 48/72, 24/48, 24/24. F: .8, .5, .667.
    # OIS: at .75 and .25 the images' best recall is 1 and precision 1.
    # AP: recall 1 with 2/3, and .5 first with precision 1/2: on the grid 51 points with a mean of 7/12.
    expected = {"odsF": 0.8, "oisF": 1.0, "ap": 0.51 * 7 / 12, "ods_threshold": 0.25}
    assert floats(metric) == pytest.approx(expected)
    assert metric.counts.tolist() == [[48, 24, 24], [48, 48, 48], [48, 24, 24], [72, 48, 24]]


@pytest.mark.parametrize(("shift", "expected"), [(1, 1.0), (2, 0.0)])
def test_a_line_out_of_tolerance_is_wrong(shift, expected):
    metric = EdgeScores(ONE_PIXEL, nms=False)
    metric.update(logits_of(0.9 * line(10)), line(10 + shift)[None, None])
    assert floats(metric)["odsF"] == expected


def test_a_thick_prediction_is_thinned_and_so_is_the_truth():
    thick = line(10) + line(11) + line(12)
    for thin_truth, true in ((True, 24), (False, 72)):
        metric = EdgeScores(ONE_PIXEL, [0.5], nms=False, thin_truth=thin_truth)
        metric.update(logits_of(0.9 * thick), thick[None, None])
        # Thinning shortens the ends of a thick line by a pixel at most.
        assert metric.counts[1].item() == pytest.approx(true, abs=2)
        assert metric.counts[3].item() == pytest.approx(24, abs=2)


def test_suppression_keeps_ridges_only():
    slope = torch.exp(-((torch.arange(32) - 16.0) ** 2) / 18).expand(24, 32) * 0.9
    right = EdgeScores(ONE_PIXEL, [0.05], nms=True)
    right.update(logits_of(slope), line(16)[None, None])
    # The frame fades, to below the threshold in its outermost row.
    assert right.counts[:, 0].tolist() == [22, 24, 22, 22]


def test_pixels_without_label_count_for_nothing():
    output = logits_of(0.9 * line(10) + 0.9 * line(20))
    target = line(10)[None, None]
    target[..., 20] = NAN
    for rubbish in (NAN, math.inf, -math.inf, 0.3):
        metric = EdgeScores(ONE_PIXEL)
        output[..., 20] = rubbish
        metric.update(output, target)
        assert metric.counts[2].tolist() == metric.counts[3].tolist()
        assert floats(metric)["odsF"] == pytest.approx(1, abs=0.05)


def test_edges_start_at_one_half():
    metric = EdgeScores(ONE_PIXEL, [0.5], nms=False)
    metric.update(logits_of(0.9 * line(5)), (0.5 * line(5) + 0.49 * line(15))[None, None])
    assert metric.counts[1].item() == 24


def test_bytes_are_truncated():
    values = torch.tensor([[0.5, 0, 0.503]])  # 127.5 and 128.265 of 255
    for as_bytes, expected in ((False, [2, 1]), (True, [1, 1])):
        metric = EdgeScores(1, [0.499, 0.501], nms=False, as_bytes=as_bytes)
        metric.update(logits_of(values), torch.zeros(1, 1, 1, 3))
        assert metric.counts[3].tolist() == expected


def test_chunks_in_any_order_are_bit_identical():
    output, target = batch(14)
    whole = EdgeScores(0.05)
    whole.update(output, target)
    for chunks in (2, 7, 14):
        split = EdgeScores(0.05)
        for index in torch.randperm(14).chunk(chunks):
            split.update(output[index], target[index])
        assert all(torch.equal(getattr(whole, name), getattr(split, name)) for name in STATES)
        assert floats(split) == floats(whole)
    assert all(getattr(whole, name).dtype == torch.int64 for name in STATES)
    assert 0 < floats(whole)["odsF"] < 1


def test_two_metrics_add_up():
    output, target = batch(6)
    whole, parts = EdgeScores(0.05), [EdgeScores(0.05), EdgeScores(0.05)]
    whole.update(output, target)
    parts[0].update(output[:4], target[:4])
    parts[1].update(output[4:], target[4:])
    for name in STATES:
        assert torch.equal(getattr(parts[0], name) + getattr(parts[1], name), getattr(whole, name))


def test_the_states_do_not_grow():
    metric = EdgeScores(0.05, [0.3, 0.6])
    output, target = batch(10)

    def size():
        return sum(getattr(metric, name).nbytes for name in STATES)

    metric.update(output, target)
    before = size()
    for _ in range(5):
        metric.update(output, target)
    assert size() == before == 8 * (4 * 2 + 4 + 1)


def test_nothing_valid_is_nan_with_one_warning():
    metric = EdgeScores()
    metric.update(torch.zeros(2, 1, 8, 8), torch.full((2, 1, 8, 8), NAN))
    with pytest.warns(UserWarning, match="no valid pixel or label") as caught:
        result = floats(metric)
    assert len(caught) == 1
    assert tuple(result) == EdgeScores.names
    assert all(math.isnan(value) for value in result.values())


@pytest.mark.parametrize(("predicted", "true"), [(0, 0), (0, 1), (1, 0)])
def test_no_edge_at_all_is_0(predicted, true):
    metric = EdgeScores()
    metric.update(logits_of(predicted * line(7)), true * line(7)[None, None])
    result = floats(metric)
    assert (result["odsF"], result["oisF"], result["ap"]) == (0, 0, 0)


def test_an_image_without_edges_still_punishes_what_is_predicted():
    metric = EdgeScores(ONE_PIXEL, [0.5], nms=False)
    metric.update(logits_of(0.9 * line(5)), line(5)[None, None])
    metric.update(logits_of(0.9 * line(5)), torch.zeros(1, 1, 24, 32))
    assert floats(metric)["odsF"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("thresholds", [[], [0.5, 0.5], [0.6, 0.4], [0, 0.5], [0.5, 1.1], [NAN]])
def test_impossible_thresholds_are_refused(thresholds):
    with pytest.raises(ValueError, match="must increase within"):
        EdgeScores(thresholds=thresholds)


def test_maps_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match="must match"):
        EdgeScores().update(torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 4))


def test_the_task_measures_the_benchmark_when_it_is_tested():
    task = Edges("edges", max_dist=0.05)
    output, target = batch(2)
    quick, full = (task.metrics(stage=stage) for stage in ("val", "test"))
    for metrics in (quick, full):
        metrics.update(output, target)
    values = {name: float(value) for name, value in full.compute().items()}
    assert tuple(quick.compute()) == ("f_tolerant", "threshold")
    assert set(values) == {"f_tolerant", "threshold", *EdgeScores.names} == set(task.units)
    assert values["f_tolerant"] == float(quick.compute()["f_tolerant"])
    assert task.headline in quick.compute()
    alone = EdgeScores(0.05)
    alone.update(output, target)
    assert values["odsF"] == floats(alone)["odsF"]


@pytest.mark.parametrize("protocol", ["atrc", "invpt"])
def test_published_numbers_take_seism_thresholds_and_bytes(protocol):
    metric = Edges("edges").metrics(protocol, stage="test")["benchmark"]
    assert metric.thresholds.tolist() == list(SEISM_THRESHOLDS)
    assert (len(SEISM_THRESHOLDS), metric.nms, metric.as_bytes, metric.thin_truth) == (101, True, True, True)


def test_the_metric_says_what_the_functions_say():
    output, target = batch(1)
    target = target.nan_to_num(0)
    thresholds = np.linspace(0.1, 0.9, 9)
    metric = EdgeScores(0.04, thresholds.tolist(), nms=False, thin_truth=False)
    metric.update(output, target)
    probability = output.sigmoid().double()[0, 0].numpy()
    counts = count_matches(probability, [target[0, 0].numpy() >= 0.5], thresholds, 1.6)
    assert np.array_equal(metric.counts.numpy(), counts)
    assert floats(metric)["odsF"] == best_point(counts, thresholds).f


@pytest.mark.parametrize("nms", [True, False])
def test_padding_changes_nothing(nms):
    output, target = batch(2)
    alone, padded = EdgeScores(ONE_PIXEL, nms=nms), EdgeScores(ONE_PIXEL, nms=nms)
    alone.update(output, target)
    place = (slice(None), slice(None), slice(7, 31), slice(3, 35))
    maps = torch.randn(2, 1, 50, 70), torch.full((2, 1, 50, 70), NAN)
    for map_, values in zip(maps, (output, target), strict=True):
        map_[place] = values
    padded.update(*maps)
    assert torch.equal(alone.counts, padded.counts)
    assert alone.counts.any()
