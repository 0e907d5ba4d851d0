"""delta_m: signs, mean, and what it refuses."""

import math

import pytest

from taskformer.metrics import delta_m, improvement

SENSE = {"semseg": True, "depth": False}


def test_better_is_positive_whatever_the_sense():
    assert improvement(0.55, 0.5, higher_is_better=True) == pytest.approx(10)
    assert improvement(0.45, 0.5, higher_is_better=False) == pytest.approx(10)
    assert improvement(0.45, 0.5, higher_is_better=True) == pytest.approx(-10)


def test_mean_over_tasks_in_percent():
    # +10 % in semseg, depth worse by 25 %.
    value = delta_m({"semseg": 0.44, "depth": 0.75}, {"semseg": 0.4, "depth": 0.6, "edges": 0.7}, SENSE)
    assert value == pytest.approx((10 - 25) / 2)


def test_weighted_tasks():
    value = delta_m({"semseg": 0.44, "depth": 0.75}, {"semseg": 0.4, "depth": 0.6}, SENSE, {"semseg": 3.0})
    assert value == pytest.approx((3 * 10 - 25) / 4)


def test_an_unmeasured_task_is_not_hidden():
    assert math.isnan(delta_m({"semseg": 0.44, "depth": math.nan}, {"semseg": 0.4, "depth": 0.6}, SENSE))


def test_a_missing_reference_is_named():
    with pytest.raises(ValueError, match="no single-task reference for depth; given: semseg"):
        delta_m({"semseg": 0.4, "depth": 0.6}, {"semseg": 0.4}, SENSE)


def test_missing_sense_is_named():
    with pytest.raises(ValueError, match="no higher_is_better for edges"):
        delta_m({"edges": 0.4}, {"edges": 0.4}, SENSE)


@pytest.mark.parametrize("reference", [0.0, -1.0, math.nan])
def test_a_useless_reference_is_refused(reference):
    with pytest.raises(ValueError, match="task 'depth': a relative improvement needs a reference above 0"):
        delta_m({"depth": 0.4}, {"depth": reference}, SENSE)


def test_nothing_to_average():
    with pytest.raises(ValueError, match="at least one task"):
        delta_m({}, {}, {})
