"""The bootstrap over images and seeds, against every draw that there is and against a closed form."""

from itertools import product

import numpy as np
import pytest

from taskformer.studies.intervals import Resampling, interval


def test_a_mean_s_distribution_is_that_of_all_draws():
    table = np.array([[0.1, 0.9], [0.4, 0.2]])
    drawn = Resampling(images=2, resamples=20_000).means({3: table[0], 7: table[1]})
    draws = [table[np.ix_(seeds, images)].mean() for seeds in product(range(2), repeat=2)
             for images in product(range(2), repeat=2)]  # fmt: skip
    assert drawn[0] == pytest.approx(table.mean())
    assert drawn[1:].mean() == pytest.approx(np.mean(draws), abs=0.005)
    assert drawn[1:].std() == pytest.approx(np.std(draws), abs=0.005)
    values, counts = np.unique(np.round(draws, 6), return_counts=True)
    shares = [np.isclose(drawn[1:], value, atol=1e-5).mean() for value in values]
    assert shares == pytest.approx(counts / 16, abs=0.015)


def test_with_one_seed_it_is_the_error_of_a_mean_over_images():
    scores = np.random.default_rng(0).normal(0.5, 0.1, 400)
    found = interval(Resampling(images=400, resamples=4000).means({0: scores}))
    half = 1.96 * scores.std() / 20
    assert found.difference == pytest.approx(scores.mean())
    assert (found.low, found.high) == pytest.approx((scores.mean() - half, scores.mean() + half), abs=0.1 * half)


def test_what_all_images_and_seeds_have_in_common_is_certain_where_both_are_drawn_jointly():
    rng = np.random.default_rng(1)
    first = {seed: rng.normal(size=30) for seed in (0, 1, 2)}
    resampling = Resampling(images=30, resamples=500)
    means, more = (resampling.means(each) for each in (first, {seed: each + 0.25 for seed, each in first.items()}))
    assert more - means == pytest.approx(np.full(501, 0.25))
    others = resampling.means({seed + 5: each + 0.25 for seed, each in first.items()})
    assert (others - means)[1:].std() > 0.05, "other seeds are drawn by themselves"


def test_an_image_without_a_value_counts_nowhere():
    resampling = Resampling(images=3, resamples=2000)
    means = resampling.means({0: np.array([1.0, np.nan, 3.0])})
    assert means[0] == 2.0
    assert set(np.round(means[1:][np.isfinite(means[1:])], 3)) == {1.0, 1.667, 2.0, 2.333, 3.0, 1.5, 2.5} - {1.5, 2.5}
    assert np.isnan(means[1:]).mean() == pytest.approx(1 / 27, abs=0.015)
