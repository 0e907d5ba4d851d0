"""The boundary benchmark against brute force, scikit-image, hand-worked curves and the official numbers."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from skimage import morphology

from taskformer.data.images import File, read_mat, read_plane
from taskformer.metrics import boundaries
from taskformer.metrics.boundaries import (
    average_precision,
    best_point,
    count_matches,
    counts_at_best,
    even_thresholds,
    match,
    recall_precision_f,
    suppress,
    thin,
)

BENCH = Path(__file__).parents[3] / "shared" / "data" / "bsds_bench"
needs_bench = pytest.mark.skipif(not BENCH.is_dir(), reason=f"the benchmark's five images are not in {BENCH}")
#: What the spec demands of an exact matcher: integers of its own, found before this program was written.
FOUND = [41890, 30828, 26662, 26465, 19074]
RIGHT = [10666, 6587, 5619, 5454, 3831]
PREDICTED = [12573, 7109, 5812, 5533, 3847]


def mask_of(*rows):
    return np.array([[char == "#" for char in row] for row in rows])


def maps(count, size=(7, 6), share=0.25, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.random(size) < share for _ in range(count)]


# --- thinning


def test_thinning_is_that_of_scikit_image():
    rng = np.random.default_rng(1)
    for share in (0.02, 0.3, 0.5, 0.8, 0.97):
        mask = rng.random((60, 47)) < share
        assert np.array_equal(thin(mask), morphology.thin(mask)), share
    blobs = morphology.dilation(rng.random((90, 80)) < 0.01, morphology.disk(6))
    assert np.array_equal(thin(blobs), morphology.thin(blobs))


@pytest.mark.parametrize("mask", [np.zeros((4, 5), bool), np.ones((1, 1), bool), np.ones((1, 9), bool)])
def test_thinning_leaves_what_is_thin(mask):
    assert np.array_equal(thin(mask), mask)


# --- suppression


def test_a_ridge_is_kept_and_its_flanks_are_not():
    for turned in (False, True):
        ridge = np.exp(-((np.arange(31) - 15.0) ** 2) / 8) * np.ones((41, 1))
        kept = suppress(ridge.T if turned else ridge)
        kept = kept.T if turned else kept
        inner = kept[6:-6]
        assert (inner[:, 15] == 1).all()
        assert not np.delete(inner, 15, axis=1).any()


def test_a_slanted_ridge_becomes_a_thin_line():
    y, x = np.mgrid[:60, :60]
    ridge = np.exp(-(((x - y) / math.sqrt(2)) ** 2) / 8)
    kept = suppress(ridge)[8:-8, 8:-8] > 0.5
    # On the diagonal the value is the largest across the line, and every other pixel lies below a neighbour there.
    assert np.array_equal(kept, np.eye(44, dtype=bool))


def test_the_frame_fades_by_fifths():
    # A constant map has no ridges: nothing is below its neighbours, only the frame changes.
    kept = suppress(np.full((20, 30), 0.5))
    assert kept[10, :7] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.5])
    assert kept[-3:, 15] == pytest.approx([0.2, 0.1, 0])
    assert kept[1, 1] == pytest.approx(0.5 / 25)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 2), (3, 40)])
def test_small_maps_are_suppressed_without_complaint(shape):
    assert np.isfinite(suppress(np.full(shape, 0.7))).all()


def test_values_within_the_tolerance_of_their_neighbours_stay():
    rise = np.broadcast_to(1.005 ** np.arange(40) / 2, (40, 40))
    assert (suppress(rise)[10:-10, 10:-10] > 0).all()
    assert not (suppress(rise, tolerance=1.001)[10:-10, 10:-10] > 0).any()


# --- matching


def brute_force(prediction, truth, radius):
    """The best (number of pairs, total rounded distance) over all ways to match."""
    pixels, edges = np.argwhere(prediction), np.argwhere(truth)
    distance = np.hypot(*(pixels[:, None] - edges[None]).T).T

    def best(row, free):
        if row == len(pixels):
            return 0, 0
        options = [best(row + 1, free)]
        for column in free:
            if distance[row, column] <= radius:
                pairs, cost = best(row + 1, free - {column})
                options.append((pairs + 1, cost - round(100 * distance[row, column])))
        return max(options)

    pairs, cost = best(0, frozenset(range(len(edges))))
    return pairs, -cost


@pytest.mark.parametrize("radius", [0.0, 1.0, 1.5, 2.3])
def test_matching_is_as_good_as_any(radius):
    rng = np.random.default_rng(2)
    for _ in range(25):
        prediction, truth = rng.random((2, 5, 6)) < rng.uniform(0.05, 0.27, (2, 1, 1))
        right, found = match(prediction, truth, radius)
        rows, columns = boundaries._assign(
            boundaries._pairs(truth, prediction, radius)[np.flatnonzero(prediction)], radius
        )
        pixels, edges = np.argwhere(prediction)[rows], np.argwhere(truth)[columns]
        cost = np.rint(100 * np.hypot(*(pixels - edges).T)).sum()
        assert (len(rows), cost) == brute_force(prediction, truth, radius)
        assert len(set(rows)) == len(set(columns)) == len(rows) == right.sum() == found.sum()
        assert not (right & ~prediction).any()
        assert not (found & ~truth).any()


def test_the_two_sides_are_alike():
    for prediction, truth in itertools.pairwise(maps(6, (40, 50), 0.1)):
        right, found = match(prediction, truth, 2.5)
        assert match(truth, prediction, 2.5)[0].sum() == right.sum() == found.sum()


@pytest.mark.parametrize(("shift", "radius", "share"), [(4, 4.0, 1), (4, 3.999, 0), (3, 3.5, 1), (0, 0.0, 1)])
def test_a_shifted_line_is_found_up_to_the_radius(shift, radius, share):
    prediction, truth = np.zeros((2, 30, 30), bool)
    prediction[:, 10], truth[:, 10 + shift] = True, True
    right, found = match(prediction, truth, radius)
    assert right.sum() == found.sum() == share * 30


def test_the_radius_is_neither_rounded_nor_a_square():
    prediction, truth = mask_of("#....", ".....", "....."), mask_of(".....", ".....", "..#..")
    assert match(prediction, truth, math.sqrt(8))[0].any()
    assert not match(prediction, truth, 2.8)[0].any()


def test_one_true_pixel_confirms_one_prediction():
    right, found = match(mask_of("#.#"), mask_of(".#."), 1)
    assert (right.sum(), found.sum()) == (1, 1)


def test_more_pairs_come_before_nearer_pairs():
    # The near pair would leave two pixels alone; the two far pairs leave none.
    prediction, truth = mask_of("#..#..."), mask_of("..#..#.")
    right, _ = match(prediction, truth, 2)
    assert right.sum() == 2


def test_only_the_nearest_of_equally_many_pairs_are_taken():
    right, _ = match(mask_of("#.##"), mask_of("..#."), 2)
    assert right.tolist() == [[False, False, True, False]]


def test_maps_of_two_sizes_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 4\) and truth \(4, 3\)"):
        match(np.ones((3, 4), bool), np.ones((4, 3), bool), 1)


# --- counting


def test_counts_of_two_annotators_by_hand():
    probability = np.array([[0.9, 0, 0, 0, 0.4, 0, 0, 0, 0.9]])
    truths = [mask_of("#.......#"), mask_of("#...#....")]
    counts = count_matches(probability, truths, np.array([0.25, 0.5, 0.95]), 1.0)
    # Found: 2 + 2, then 2 + 1; of both annotators' 4. Each of the 3 (2) predictions is confirmed by somebody.
    assert counts.tolist() == [[4, 3, 0], [4, 4, 4], [3, 2, 0], [3, 2, 0]]


def test_a_probability_equal_to_the_threshold_is_an_edge():
    probability = np.array([[84, 0, 85, 0, 86]]) / 255
    assert count_matches(probability, [], np.array([1 / 3]), 1.0)[3] == 2
    # The official threshold is the float above 2 / 6.
    assert count_matches(probability, [], even_thresholds(5)[1:2], 1.0)[3] == 1


def test_equal_maps_are_counted_as_if_matched_again(monkeypatch):
    rng = np.random.default_rng(4)
    probability, truths = rng.integers(0, 4, (30, 30)) / 4, maps(2, (30, 30), 0.1)
    thresholds = even_thresholds(19)
    whole = count_matches(probability, truths, thresholds, 2.5)
    alone = [count_matches(probability, truths, thresholds[k : k + 1], 2.5) for k in range(19)]
    assert np.array_equal(whole[[0, 1, 3]], np.concatenate(alone, axis=1)[[0, 1, 3]])
    calls = []
    monkeypatch.setattr(boundaries, "thin", lambda mask: calls.append(1) or thin(mask))
    count_matches(probability, truths, thresholds, 2.5)
    assert len(calls) == 4  # what reaches .25, .5, .75 and nothing


EMPTY, FULL = np.zeros((5, 5)), np.eye(5)


@pytest.mark.parametrize(
    ("probability", "truths", "expected"),
    [
        (EMPTY, [EMPTY > 0], [0, 0, 0, 0]),
        (EMPTY, [FULL > 0], [0, 5, 0, 0]),
        (FULL, [EMPTY > 0], [0, 0, 0, 5]),
        (FULL, [EMPTY > 0, FULL > 0], [5, 5, 5, 5]),
        (FULL, [], [0, 0, 0, 5]),
    ],
)
def test_empty_maps_count_nothing(probability, truths, expected):
    counts = count_matches(probability, truths, np.array([0.5]), 1.0)
    assert counts[:, 0].tolist() == expected
    curve = recall_precision_f(counts)
    assert np.isfinite(curve).all()
    point = best_point(counts, np.array([0.5]))
    assert point.f == (1 if expected[0] else 0)
    assert point.threshold == 0.5


# --- the curve


def test_the_best_f_measure_between_two_thresholds_by_hand():
    # Recall falls from 1 to .2 and precision rises from .2 to 1. At the middle of the line both are .6, so F is .6;
    # of the 100 points the nearest to the middle are 49/99 and 50/99, where F = 2 R P / 1.2 with
    # R = 1 - .8 * 49/99 and P = 1.2 - R. At both thresholds F is only 2 * .2 / 1.2 = 1/3.
    counts = np.array([[10, 2], [10, 10], [10, 10], [50, 10]])
    point = best_point(counts, np.array([0.3, 0.5]))
    recall = 1 - 0.8 * 49 / 99
    assert point.f == pytest.approx(2 * recall * (1.2 - recall) / 1.2)
    assert point.f == pytest.approx(0.6, abs=1e-4)
    assert (point.recall, point.precision) == pytest.approx((recall, 1.2 - recall))
    assert point.threshold == pytest.approx(0.3 + 0.2 * 49 / 99)
    # The OIS takes only thresholds that were sampled, the first of equals.
    assert counts_at_best(counts).tolist() == [10, 10, 10, 50]


def test_the_first_of_equal_bests_counts():
    counts = np.array([[4, 4, 4], [8, 8, 8], [4, 4, 4], [8, 8, 8]])
    assert best_point(counts, np.array([0.2, 0.4, 0.6])).threshold == 0.2


def test_average_precision_by_hand():
    # Recall .5 and 1 with precision 1 and .5: on the grid of .01 from .5 to 1 the precision falls linearly,
    # 51 points with a mean of .75. Equal maps at two thresholds change nothing.
    counts = np.array([[10, 10, 5], [10, 10, 10], [10, 10, 5], [20, 20, 5]])
    assert average_precision(counts) == pytest.approx(51 * 0.75 * 0.01)
    assert average_precision(counts[:, :2]) == 0


# --- the official numbers


def bench(thresholds):
    """Counts of the five images, by name."""
    counts = {}
    for path in sorted((BENCH / "png").glob("*.png")):
        probability = read_plane(File(str(path), path.read_bytes())) / 255
        truth = BENCH / "groundTruth" / f"{path.stem}.mat"
        drawn = read_mat(File(str(truth), truth.read_bytes()))["groundTruth"].ravel()
        truths = [item["Boundaries"][0, 0] > 0 for item in drawn]
        counts[path.stem] = count_matches(probability, truths, thresholds, 0.0075 * math.hypot(*probability.shape))
    return counts


@needs_bench
def test_the_official_numbers():
    thresholds = even_thresholds(5)
    counts = bench(thresholds)
    total = sum(counts.values())
    assert total[0].tolist() == FOUND
    assert total[1].tolist() == [69505] * 5
    assert np.abs(total[2] - RIGHT).max() <= 3
    assert total[3].tolist() == PREDICTED
    recall, precision, f = recall_precision_f(total)
    official = np.loadtxt(BENCH / "test_2" / "eval_bdry_thr.txt")
    close = {"abs": 1e-3, "rel": 0}
    assert thresholds == pytest.approx(official[:, 0], abs=1e-6)
    # Theirs is a matching too, and this one is the largest.
    assert (recall >= official[:, 1] - 1e-6).all()
    assert np.stack([recall, precision, f], axis=1) == pytest.approx(official[:, 1:], **close)
    for row, image in zip(np.loadtxt(BENCH / "test_2" / "eval_bdry_img.txt"), counts.values(), strict=True):
        point = best_point(image, thresholds)
        assert point.threshold == pytest.approx(row[1], abs=1e-6)
        assert point.recall >= row[2] - 1e-6
        assert (point.recall, point.precision, point.f) == pytest.approx(row[2:], abs=2e-3, rel=0)
    threshold, *ods, ois_recall, ois_precision, ois, area = np.loadtxt(BENCH / "test_2" / "eval_bdry.txt")
    point = best_point(total, thresholds)
    assert point.threshold == pytest.approx(threshold, abs=1e-6)
    assert (point.recall, point.precision, point.f) == pytest.approx(ods, **close)
    best = recall_precision_f(sum(map(counts_at_best, counts.values())))
    assert best == pytest.approx((ois_recall, ois_precision, ois), **close)
    assert average_precision(total) == pytest.approx(area, abs=5e-4)


@needs_bench
@pytest.mark.slow
def test_among_99_thresholds_the_official_ones_count_the_same():
    official, thresholds = even_thresholds(5), np.union1d(even_thresholds(5), even_thresholds(99))
    total = sum(bench(thresholds).values())
    places = np.searchsorted(thresholds, official)
    assert total[0, places].tolist() == FOUND
    assert np.abs(total[2, places] - RIGHT).max() <= 3
    assert total[3, places].tolist() == PREDICTED
