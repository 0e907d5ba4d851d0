"""Palettes and colour maps."""

import itertools

import numpy as np
import pytest
from skimage.color import deltaE_ciede2000, rgb2lab

from taskformer.tasks import colors

#: What is seen of linear RGB without red, green or blue cones: Machado, Oliveira and Fernandes (2009), table 1.
EYES = {
    "all cones": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def least_difference(palette, eyes):
    """Smallest CIEDE2000 difference of two colours to these eyes; 2 can just be told apart side by side."""
    shares = np.asarray(palette) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.transpose(EYES[eyes]), 0, 1)
    lab = rgb2lab(np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)[None])[0]
    return min(deltaE_ciede2000(a, b) for a, b in itertools.combinations(lab, 2))


@pytest.mark.parametrize("eyes", EYES)
def test_colour_blind_people_tell_the_first_colours_apart(eyes):
    assert least_difference(colors.distinct_colors(7), eyes) > 10
    assert least_difference([*colors.distinct_colors(21), colors.INVALID_COLOR], eyes) > 9


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
