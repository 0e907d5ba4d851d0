"""What is drawn is read back from the figures."""

import numpy as np
import pytest
from matplotlib import colormaps

from taskformer.insight import Affinity, Attention, Conflicts, Round
from taskformer.insight import drawings as module
from taskformer.insight.sharing import shared_units
from taskformer.models import Architecture


@pytest.fixture
def figures(monkeypatch):
    """Keep the figures that are saved."""
    kept = []
    monkeypatch.setattr(module, "save", lambda figure, path: kept.append(figure))
    return kept


def attention():
    """Two tasks, three heads of four queries on a grid of 2 x 3 and one of 1 x 2."""
    generator = np.random.default_rng(0)
    maps = {task: [generator.random((1, 3, 4, *grid)).astype(np.float32) for grid in ((2, 3), (1, 2))]
            for task in ("depth", "edges")}  # fmt: skip
    gathering = {task: [x / x.sum((-1, -2), keepdims=True) for x in scales] for task, scales in maps.items()}
    reading = {task: [x / x.sum(2, keepdims=True) for x in scales] for task, scales in maps.items()}
    return Attention(["depth", "edges"], (10, 16), (16, 24), [Round(gathering, reading, None, None)])


def test_looks_of_heads_are_means_over_queries_and_1_where_all_is_alike():
    (one,) = attention().rounds
    rows = module.gathered_by_heads(one.gathering, 0)
    assert list(rows) == ["depth", "edges"]
    assert all(list(row) == ["head 1", "head 2", "head 3", "mean"] for row in rows.values())
    expected = sum(one.gathering["edges"][0][0, 1, n] for n in range(4)) / 4 * 6
    np.testing.assert_allclose(rows["edges"]["head 2"], expected, rtol=1e-6)
    assert all(look.mean() == pytest.approx(1, rel=1e-5) for row in rows.values() for look in row.values())
    alike = {"depth": [np.full((1, 3, 4, 2, 3), 1 / 6)]}
    assert module.gathered_by_heads(alike, 0)["depth"]["mean"] == pytest.approx(np.ones((2, 3)))


@pytest.mark.parametrize(
    ("lay_out", "kind", "alike"), [(module.sharpest_queries, "gathering", 2), (module.most_read_queries, "reading", 4)]
)
def test_the_queries_that_vary_most_are_chosen(lay_out, kind, alike):
    maps = getattr(attention().rounds[0], kind)
    rows = lay_out(maps, 1, 2)
    for task, row in rows.items():
        looks = maps[task][1][0].mean(axis=0)  # (4, 1, 2)
        varied = sorted(range(4), key=lambda n: -np.ptp(looks[n]))[:2]  # of two pixels the range is twice the deviation
        assert list(row) == [f"query {n + 1}" for n in sorted(varied)]
        for name, look in row.items():
            np.testing.assert_allclose(look, looks[int(name.split()[1]) - 1] * alike, rtol=1e-6)


def test_maps_lie_on_the_image_without_the_padding(figures):
    found = attention()
    rows = module.gathered_by_heads(found.rounds[0].gathering, 0)
    module.draw_maps("out.png", np.zeros((20, 32, 3), np.uint8), found, rows, "title", "label")
    (figure,) = figures
    panels = [axes for axes in figure.axes if len(axes.images) == 2]
    assert len(panels) == 8
    for axes, look in zip(panels, [look for row in rows.values() for look in row.values()], strict=True):
        photograph, heat = axes.images
        assert photograph.get_extent() == [0, 16, 10, 0]
        assert heat.get_extent() == [0, 24, 16, 0]
        assert (axes.get_xlim(), axes.get_ylim()) == ((0, 16), (10, 0))
        np.testing.assert_array_equal(heat.get_array(), look)
        assert heat.get_clim() == panels[0].images[1].get_clim()
    assert [axes.get_ylabel() for axes in panels[::4]] == ["depth", "edges"]


def test_a_matrix_has_the_numbers_in_its_cells(figures):
    shares = np.array([[[0.9, 0.1], [0.4, 0.6]], [[0.7, 0.3], [0.4, 0.6]]])
    module.draw_affinity("out.png", Affinity(["depth", "edges"], shares), "title")
    axes = figures[0].axes[0]
    texts = {text.get_position(): text for text in axes.texts}
    assert {place: text.get_text() for place, text in texts.items()} == {
        (0, 0): "80.0\n± 10.0", (1, 0): "20.0\n± 10.0", (0, 1): "40.0\n± 0.0", (1, 1): "60.0\n± 0.0",
    }  # fmt: skip
    shown = axes.images[0]
    for (column, row), text in texts.items():  # dark on light or light on dark
        red, green, blue, _ = colormaps["Blues"](shown.norm(shown.get_array()[row, column]))
        assert (0.3 * red + 0.6 * green + 0.1 * blue > 0.45) == (text.get_color() == "black")
    module.draw_affinity("out.png", Affinity(["depth", "edges"], shares[:1]), "title")
    assert [text.get_text() for text in figures[1].axes[0].texts] == ["90.0", "10.0", "40.0", "60.0"]


def test_shared_units_are_percent(figures):
    half = Architecture(64, 1, (2.0,), (1,), sharing=((0, 0), (0, 1)))
    module.draw_shared_units("out.png", shared_units(half, ["a", "b"]), ["a", "b"], "title")
    assert [text.get_text() for text in figures[0].axes[0].texts] == ["100", "50", "50", "100"]


def test_conflicts_have_a_row_for_each_pair_and_a_column_for_each_layer(figures):
    cosines = np.full((2, 2, 3, 3), np.nan)
    cosines[:, 0] = [[1, 0.5, -0.25], [0.5, 1, 0], [-0.25, 0, 1]]
    cosines[0, 1, 0, 1] = -0.5
    module.draw_conflicts("out.png", Conflicts(list("abc"), ["backbone.encoder.stem", "head.x"], cosines), "title")
    axes = figures[0].axes[0]
    np.testing.assert_array_equal(
        axes.images[0].get_array().filled(np.nan), [[0.5, -0.5], [-0.25, np.nan], [0, np.nan]]
    )
    assert axes.images[0].get_clim() == (-0.5, 0.5)
    assert sorted(map(tuple, axes.lines[0].get_xydata())) == [(0, 0), (0, 1), (0, 2), (1, 0)]  # no cosine, no dot
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a - b", "a - c", "b - c"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["stem", "head.x"]
