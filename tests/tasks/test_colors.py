"""Palettes and colour maps."""

import itertools

import numpy as np
import pytest

from taskformer.tasks import colors


@pytest.mark.parametrize("count", [0, 1, 2, 21, 40, 255])
def test_colors_are_distinct_and_not_the_invalid_one(count):
    palette = colors.distinct_colors(count)
    assert palette.shape == (count, 3)
    assert len({tuple(color) for color in palette.tolist()} | {colors.INVALID_COLOR}) == count + 1


def test_forty_colors_are_far_apart():
    palette = [*colors.distinct_colors(40).astype(int), np.array(colors.INVALID_COLOR)]
    assert min(np.abs(a - b).max() for a, b in itertools.combinations(palette, 2)) >= 15


def test_more_classes_keep_the_first_colors():
    assert (colors.distinct_colors(50)[:7] == colors.distinct_colors(7)).all()


def test_scale_clips_and_runs_both_ways():
    values = np.array([[-1.0, 0.0, 1.0, 9.0, np.nan, np.inf]])
    up, down = colors.color_scale(values, 0, 1)[0], colors.color_scale(values, 1, 0)[0]
    assert (up[0] == up[1]).all()
    assert (up[2] == up[3]).all()
    assert (up[1] == down[2]).all()
    assert (up[1] != up[2]).any()
    # viridis: purple to yellow, as RGB.
    assert up[1][2] > up[1][1]
    assert up[2][0] > 200
    assert up[2][2] < 60
    assert (up[4:] == colors.INVALID_COLOR).all()


def test_gray_rounds():
    assert colors.gray_scale(np.array([[0.5, 2.0, -1.0]]))[0, :, 0].tolist() == [128, 255, 0]
