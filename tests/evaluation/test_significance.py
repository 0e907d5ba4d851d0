"""Intervals of differences: over images and over seeds."""

import numpy as np
import pytest
from scipy import stats

from taskformer.evaluation.significance import BATCH_DRAWS, Interval, paired_interval, seeds_interval


def test_the_interval_is_that_of_the_mean_of_normal_differences():
    differences = np.random.default_rng(0).normal(0.3, 2.0, 1000)
    low, high = paired_interval(differences, 10_000, seed=1)
    error = differences.std() / np.sqrt(1000)
    assert low == pytest.approx(differences.mean() - 1.96 * error, abs=0.06 * error)
    assert high == pytest.approx(differences.mean() + 1.96 * error, abs=0.06 * error)


def test_it_is_that_of_another_program_for_skewed_values():
    differences = np.random.default_rng(2).exponential(1.0, 40)
    found = paired_interval(differences, 20_000, seed=1)
    drawn = stats.bootstrap(
        (differences,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(9)
    )
    assert found == pytest.approx(drawn.confidence_interval, abs=0.1 * drawn.standard_error)


def test_the_interval_of_two_images_is_known_exactly():
    # The four equally likely resamples have the means 0, 1/2, 1/2 and 1: both ends are beyond 2.5 % of a quarter.
    assert paired_interval(np.array([0.0, 1.0]), 1000, seed=0) == (0, 1)


def test_equal_differences_leave_no_doubt():
    assert paired_interval(np.full(5, 0.25), 100, seed=0) == (0.25, 0.25)


def test_columns_do_not_depend_on_each_other_and_images_without_a_value_are_left_out():
    rng = np.random.default_rng(3)
    columns = rng.normal(size=(30, 3))
    columns[:10, 1] = np.nan
    low, high = paired_interval(columns, 2000, seed=4)
    for index in (0, 2):
        assert (low[index], high[index]) == pytest.approx(paired_interval(columns[:, index], 2000, seed=4))
    # How many of the 20 images with a value are drawn varies, which widens the interval a little.
    known = columns[10:, 1]
    assert (high - low)[1] == pytest.approx(3.92 * known.std() / np.sqrt(20), rel=0.12)
    assert low[1] < known.mean() < high[1]


def test_many_images_are_drawn_in_parts():
    values = np.linspace(-1, 1, BATCH_DRAWS // 50)
    low, high = paired_interval(values, 120, seed=0)
    assert low < 0 < high


def test_the_interval_over_seeds_is_students_where_both_vary_alike():
    # Variances 2 and 2 of two seeds each: a standard error of sqrt(2), 2 degrees of freedom, whose quantile is known.
    found = seeds_interval([0.0, 2.0], [10.0, 12.0])
    assert found == pytest.approx((10, 10 - 4.302652729911275 * 2**0.5, 10 + 4.302652729911275 * 2**0.5))


def test_it_is_welchs_of_another_program():
    first, second = [0.31, 0.34, 0.28], [0.4, 0.41, 0.39, 0.46, 0.44]
    ends = stats.ttest_ind(second, first, equal_var=False).confidence_interval(0.95)
    found = seeds_interval(first, second)
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), rel=1e-9)


def test_it_holds_the_true_difference_in_95_of_100_cases():
    rng = np.random.default_rng(5)
    inside = 0
    for _ in range(400):
        found = seeds_interval(list(rng.normal(0, 1, 3)), list(rng.normal(1, 3, 5)))
        inside += found.low < 1 < found.high
    assert 0.92 < inside / 400 < 0.985


def test_one_seed_tells_nothing_and_equal_seeds_everything():
    assert seeds_interval([1.0], [2.0, 3.0]) is None
    assert seeds_interval([1.0, 1.0], [2.0, 2.0]) == Interval(1, 1, 1)
