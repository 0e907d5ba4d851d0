"""The boundary benchmark: thinning, non-maximum suppression, one-to-one matching, ODS, OIS and AP, in numpy and scipy.

The definitions are those of the Berkeley benchmark (Martin, Fowlkes, Malik, PAMI 2004; Arbelaez et al., PAMI 2011) as
SEISM applies it to learned edges. Only the matching differs, and on purpose: the official program leaves it to chance
which pixels may remain unmatched and so loses about 0.1 % of the matches, this one finds the optimum.
"""

from __future__ import annotations  # scipy, which takes a while to import, is only imported where it is used

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy import sparse

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

#: What is counted, in the order of the rows of all counts: true pixels found and all true pixels, both summed over the
#: annotators; predicted pixels that some annotator confirms and all predicted pixels.
COUNTED = ("found", "true", "right", "predicted")
#: Points on each line between neighbouring thresholds where the best F-measure is looked for.
POINTS = 100


def even_thresholds(count: int) -> Floats:
    """Return ``count`` evenly spaced thresholds inside (0, 1), float64.

    8-bit predictions meet thresholds exactly (85 / 255 = 1 / 3): computed in another way they may fall to the other
    side.
    """
    return np.linspace(1 / (count + 1), 1 - 1 / (count + 1), count)


def thin(mask: Mask) -> Mask:
    """Thin lines to a width of one pixel, as MATLAB's ``bwmorph(mask, "thin", Inf)`` does.

    Args:
        mask: ``(H, W)``.

    Returns:
        The thinned mask ``(H, W)``; ends are kept, and what was connected stays connected.
    """
    thinned, before = mask.astype(np.uint8), -1
    while (size := cv2.countNonZero(thinned)) != before:
        before = size
        for removable in _THINNING:
            around = cv2.filter2D(thinned, cv2.CV_8U, _NEIGHBOURS, borderType=cv2.BORDER_CONSTANT)
            thinned[removable[around]] = 0
    return thinned.astype(bool)


def _thinning_tables() -> tuple[Mask, Mask]:
    """Tell for each of the 256 neighbourhoods whether the two passes remove its pixel (Guo and Hall, CACM 1989)."""
    x = [(np.arange(256) >> bit & 1).astype(bool) for bit in range(8)]
    lines = sum((~x[k] & (x[k + 1] | x[(k + 2) % 8])).astype(int) for k in (0, 2, 4, 6))
    pairs = [sum((x[k] | x[(k + step) % 8]).astype(int) for k in (0, 2, 4, 6)) for step in (1, -1)]
    removable = (lines == 1) & (np.minimum(*pairs) >= 2) & (np.minimum(*pairs) <= 3)
    return removable & ~((x[1] | x[2] | ~x[7]) & x[0]), removable & ~((x[5] | x[6] | ~x[3]) & x[4])


#: The bit of each neighbour: east, then counter-clockwise.
_NEIGHBOURS = np.array([[8, 4, 2], [16, 0, 1], [32, 64, 128]], np.float32)
_THINNING = _thinning_tables()


def suppress(probability: Floats, reach: int = 1, border: int = 5, tolerance: float = 1.01) -> Floats:
    """Keep the ridges of an edge map: non-maximum suppression across the edges (Dollar and Zitnick, PAMI 2015).

    The defaults are SEISM's.

    Args:
        probability: Map in [0, 1], ``(H, W)``.
        reach: A pixel is compared with the values up to this many pixels away on either side of its edge.
        border: Width in pixels of the frame where values fade to 0, as estimates there are noisy.
        tolerance: Factor by which a pixel may be lower than those it is compared with.

    Returns:
        The map ``(H, W)`` with 0 where it was suppressed.
    """
    from scipy import ndimage

    rows, columns = np.indices(probability.shape, dtype=np.float64)
    normal = _normal(probability)
    kept = probability.copy()
    for step in (*range(-reach, 0), *range(1, reach + 1)):
        place = [rows + step * np.sin(normal), columns + step * np.cos(normal)]
        other = ndimage.map_coordinates(probability, place, order=1, mode="nearest")
        kept[probability * tolerance < other] = 0
    for axis, size in enumerate(probability.shape):
        depth = np.minimum(np.arange(size), np.arange(size)[::-1])
        fade = np.minimum(depth / max(min(border, size // 2), 1), 1)
        kept *= np.expand_dims(fade, 1 - axis)
    return kept


def _normal(probability: Floats, radius: int = 4) -> Floats:
    """Return the direction across the edges of a map ``(H, W)``: an angle in [0, pi), 0 along x, growing to y (down).

    It comes from the second derivatives of the map under a triangle filter.
    """
    from scipy import ndimage

    triangle = np.concatenate([np.arange(1, radius + 1), np.arange(radius + 1, 0, -1)]) / (radius + 1) ** 2
    smooth = probability
    for axis in (0, 1):
        smooth = ndimage.convolve1d(smooth, triangle, axis, mode="reflect")
    if min(smooth.shape) < 2:
        return np.zeros_like(smooth)
    down, right = np.gradient(smooth)
    down_down, across = np.gradient(down)
    right_right = np.gradient(right, axis=1)
    # The original takes sign(-across), whose 0 on exactly horizontal lines makes them look vertical.
    sign = np.where(across > 0, -1, 1)
    angle: Floats = np.mod(np.arctan(down_down * sign / (right_right + 1e-5)), np.pi)
    return angle


def match(prediction: Mask, truth: Mask, radius: float) -> tuple[Mask, Mask]:
    """Match edge pixels one to one within a distance: as many as possible, then with the least total distance.

    Args:
        prediction: Predicted edge pixels ``(H, W)``.
        truth: True edge pixels ``(H, W)``.
        radius: Largest distance of a pair, in pixels; a pair exactly that far apart is allowed.

    Returns:
        The matched predicted and the matched true pixels, both ``(H, W)``.

    Raises:
        ValueError: If the shapes differ.
    """
    if prediction.shape != truth.shape:
        message = f"prediction {prediction.shape} and truth {truth.shape} must have the same shape"
        raise ValueError(message)
    right, found = np.zeros_like(prediction), np.zeros_like(truth)
    pixels, true_pixels = np.flatnonzero(prediction), np.flatnonzero(truth)
    rows, columns = _assign(_pairs(truth, prediction, radius)[pixels], radius)
    right.flat[pixels[rows]] = True
    found.flat[true_pixels[columns]] = True
    return right, found


def _pairs(truth: Mask, candidates: Mask, radius: float) -> sparse.csr_array:
    """List the pairs that may be matched.

    Args:
        truth: True edge pixels ``(H, W)``.
        candidates: Pixels ``(H, W)`` that a prediction may have.
        radius: Largest distance of a pair in pixels.

    Returns:
        A matrix (H * W pixels, true pixels) with ``1 + distance``, in hundredths of a pixel, rounded like the official
        costs. The 1 tells pairs at distance 0 from pixels that are not a pair.
    """
    from scipy import sparse

    reach = math.floor(radius)
    height, width = truth.shape
    down, right = (axis.ravel() for axis in np.indices((2 * reach + 1,) * 2) - reach)
    inside = down**2 + right**2 <= radius**2
    down, right = down[inside], right[inside]
    rows, columns = (axis[:, None] for axis in np.nonzero(truth))
    rows, columns = rows + down, columns + right
    near = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    near[near] = candidates[rows[near], columns[near]]
    true_pixel, offset = np.nonzero(near)
    cost = 1 + np.rint(100 * np.hypot(down, right))[offset]
    pixel = rows[near] * width + columns[near]
    return sparse.csr_array((cost, (pixel, true_pixel)), shape=(truth.size, np.count_nonzero(truth)))


def _assign(pairs: sparse.csr_array, radius: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Solve the assignment problem exactly: the most pairs, of these the cheapest.

    Args:
        pairs: Matrix (n, m) with the cost of each allowed pair.
        radius: Largest distance of a pair in pixels.

    Returns:
        Rows and columns of the chosen pairs.
    """
    rows = np.flatnonzero(np.diff(pairs.indptr))
    columns, place = np.unique(pairs.indices, return_inverse=True)
    if not rows.size:
        return rows, columns
    lengths = np.diff(pairs.indptr)[rows]
    row = np.repeat(np.arange(rows.size), lengths)
    if rows.size > columns.size:
        chosen_columns, chosen_rows = _solve(place, row, pairs.data, radius)
    else:
        chosen_rows, chosen_columns = _solve(row, place, pairs.data, radius)
    return rows[chosen_rows], columns[chosen_columns]


def _solve(
    row: NDArray[np.intp], column: NDArray[np.intp], cost: Floats, radius: float
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Choose pairs as a full matching of a square matrix, which is the case that scipy's solver is made for.

    Beside its own pairs each row has a substitute column, whose price is that of leaving it unmatched, and each column
    a substitute row. The substitutes of a pair may match each other, so every choice of pairs is a full matching.
    Costs must be whole numbers: with fractions the solver's bids would creep upwards.
    """
    from scipy import sparse
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    n, m = row.max() + 1, column.max() + 1
    # The official price, that of 100 pairs at the largest distance: the number of pairs comes first.
    unmatched = 1 + max(1, math.ceil(1e4 * radius))
    own, other = np.arange(n), np.arange(m)
    costs = np.concatenate([cost, np.full(n, unmatched), np.ones(row.size + m)])
    rows = np.concatenate([row, own, n + column, n + other])
    columns = np.concatenate([column, m + own, m + row, other])
    square = sparse.csr_array((costs, (rows, columns)), shape=(n + m, n + m))
    chosen_rows, chosen_columns = min_weight_full_bipartite_matching(square)
    pair = (chosen_rows < n) & (chosen_columns < m)
    return chosen_rows[pair], chosen_columns[pair]


def count_matches(probability: Floats, truths: Sequence[Mask], thresholds: Floats, radius: float) -> Counts:
    """Count the matches of one image at every threshold.

    Args:
        probability: Edge map in [0, 1], ``(H, W)`` float64; at least a threshold is an edge.
        truths: The edges ``(H, W)`` that each annotator drew, taken as they are.
        thresholds: Increasing, ``(T,)`` float64.
        radius: Largest distance of a match in pixels.

    Returns:
        ``(4, T)`` in the order of :data:`COUNTED`.
    """
    candidates = probability >= thresholds[0]
    pairs = [_pairs(truth, candidates, radius) for truth in truths]
    counts = np.zeros((len(COUNTED), len(thresholds)), np.int64)
    previous = -1
    for place, threshold in enumerate(thresholds):
        mask = probability >= threshold
        # The maps are nested: two with equally many pixels are the same.
        if (size := int(mask.sum())) == previous:
            counts[:, place] = counts[:, place - 1]
            continue
        previous = size
        pixels = np.flatnonzero(thin(mask))
        right = np.zeros(pixels.size, bool)
        for pair in pairs:
            rows, columns = _assign(pair[pixels], radius)
            right[rows] = True
            counts[0, place] += columns.size
        counts[1:, place] = sum(pair.shape[1] for pair in pairs), np.count_nonzero(right), pixels.size
    return counts


def recall_precision_f(counts: Counts) -> tuple[Floats, Floats, Floats]:
    """Return recall, precision and F-measure of counts ``(4, ...)``; 0 where nothing was drawn or predicted."""
    found, true, right, predicted = counts.astype(np.float64)
    recall, precision = found / np.maximum(true, 1), right / np.maximum(predicted, 1)
    return recall, precision, f_measure(recall, precision)


def f_measure(recall: Floats, precision: Floats) -> Floats:
    """Return the harmonic mean, 0 if both are 0."""
    total = recall + precision
    return 2 * recall * precision / np.where(total > 0, total, 1)


@dataclass(frozen=True)
class Point:
    """A point on a precision-recall curve; all fractions."""

    threshold: float
    recall: float
    precision: float
    f: float


def best_point(counts: Counts, thresholds: Floats) -> Point:
    """Find the best F-measure on the lines between neighbouring thresholds, the first if several are equal.

    Args:
        counts: ``(4, T)``, of an image or of a data set.
        thresholds: ``(T,)``.

    Returns:
        The best point; for a data set, its F-measure is the ODS.
    """
    recall, precision, _ = recall_precision_f(counts)
    curve = np.stack([thresholds, recall, precision])
    share = np.linspace(0, 1, POINTS)
    lines = [a[:, None] * (1 - share) + b[:, None] * share for a, b in pairwise(curve.T)]
    points = np.concatenate([curve[:, :1], *lines], axis=1)
    scores = f_measure(points[1], points[2])
    best = scores.argmax()
    threshold, r, p, f = (float(values[best]) for values in (*points, scores))
    return Point(threshold, r, p, f)


def counts_at_best(counts: Counts) -> Counts:
    """Return the counts ``(4,)`` of one image at its best threshold, the first if several are equal.

    Their sum over a data set gives the OIS.
    """
    return counts[:, recall_precision_f(counts)[2].argmax()]


def average_precision(counts: Counts) -> float:
    """Return the area under the precision-recall curve of counts ``(4, T)``, in steps of 0.01 in recall.

    Precision counts as 0 beyond the recalls that were measured.
    """
    recall, precision, _ = recall_precision_f(counts)
    known, first = np.unique(recall, return_index=True)
    if known.size < 2:
        return 0.0
    steps = np.linspace(0, 1, 101)
    return float(np.interp(steps, known, precision[first], left=0, right=0).sum() * 0.01)
