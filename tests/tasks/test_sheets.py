"""Where pictures, captions and legends lie on a sheet, read back from its pixels."""

import numpy as np
import pytest

from taskformer.tasks.colors import Swatch, scale_colors, swatch
from taskformer.tasks.sheets import BAR, GAP, HEADER, LINE, SCALE, SWATCH, contact_sheet

GREY = np.full((10, 20, 3), 77, np.uint8)


def draw(*args, **options):
    return np.asarray(contact_sheet(*args, **options))


def find(sheet, color):
    """Left, top, width and height of what is drawn in a colour."""
    rows, columns = np.nonzero((sheet == np.array(color)).all(axis=-1))
    return columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1


def test_a_sheet_without_captions_is_only_pictures():
    sheet = draw(["", ""], [[GREY, GREY]], width=20)
    assert sheet.shape == (HEADER + 10 + GAP, 2 * 20 + GAP, 3)
    assert (sheet[HEADER:-GAP, :20] == 77).all()
    assert (sheet[HEADER:-GAP, 20 + GAP :] == 77).all()


def test_captions_are_in_their_own_pictures():
    sheet = draw(["", ""], [[GREY, GREY], [None, GREY]], 20, [["x"], ["x", ""]])
    top, low = sheet[HEADER : HEADER + 10], sheet[HEADER + 10 + GAP : -GAP]
    assert not (top[:, :20] == 77).all()
    assert (top[:, 20 + GAP :] == 77).all()
    assert (low[:, 20 + GAP :] == 77).all()
    assert (low[:, :20] == 255).any()  # an empty place is white, with its caption in black
    assert (low[:, :20] < 100).any()


def test_headings_are_above_their_columns():
    sheet = draw(["", "x"], [[GREY, GREY]], width=20)
    assert (sheet[:HEADER, :20] == 255).all()
    assert (sheet[:HEADER, 20 + GAP :] < 100).any()


def test_legends_show_every_colour_below_the_pictures():
    red, blue = (200, 10, 20), (10, 20, 200)
    legends = {
        "parts": [swatch(red, "head"), swatch(blue, "arm")],
        "none": [],
        "depth": [Swatch(scale_colors(), "7 m", "0 m")],
    }
    wide = np.full((10, 300, 3), 77, np.uint8)
    sheet = draw([""], [[wide]], 300, legends=legends)
    bottom = HEADER + 10 + GAP
    assert sheet.shape[0] == bottom + 2 * LINE  # a task without a legend has no line
    for color in (red, blue):
        _, top, width, height = find(sheet, color)
        assert (width, height) == (SWATCH - 2, BAR - 2)  # within a frame
        assert bottom < top < bottom + LINE
    assert find(sheet, red)[0] < find(sheet, blue)[0]
    line = sheet[bottom + LINE + LINE // 2]
    ends = scale_colors()[0, [0, -1]].astype(int)
    columns = [int(np.abs(line.astype(int) - end).sum(axis=1).argmin()) for end in ends]
    assert columns[1] - columns[0] == pytest.approx(SCALE, abs=6)


@pytest.mark.parametrize("width", [150, 400])
def test_long_legends_go_on_in_the_next_line(width):
    colors = [(10 + 5 * k, 200 - 6 * k, 30 * (k % 8)) for k in range(20)]
    sheet = draw(
        [""], [[GREY]], width, legends={"semseg": [swatch(color, f"class {k}") for k, color in enumerate(colors)]}
    )
    bottom = HEADER + width // 2 + GAP
    assert (sheet.shape[0] - bottom) % LINE == 0
    places = [find(sheet[bottom:], color) for color in colors]
    assert all(left + SWATCH - 2 < width for left, *_ in places)
    order = [(top // LINE, left) for left, top, *_ in places]
    assert order == sorted(order)
    assert order[-1][0] > 1
