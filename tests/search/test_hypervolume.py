"""The hypervolume against counting cells, and its curves by hand."""

from itertools import product
from random import Random

import numpy as np
import pytest
from optuna.trial import TrialState

from taskformer.models.autotaskformer import Architecture
from taskformer.search.hypervolume import hypervolume, hypervolume_curves
from taskformer.search.objectives import Candidate, Objective
from taskformer.search.study import Key, Record

OBJECTIVES = [Objective("delta_m", "maximize"), Objective("params", "minimize")]


def record(origin, generation, delta_m, params, state=TrialState.COMPLETE):
    candidate = Candidate(Architecture(8, 1, (2.0,), (1,)), {"delta_m": delta_m, "params": params})
    return Record(0, Key(origin, generation, 0), candidate, state, (), "host:1", 0.0)


def counted(points, reference):
    """Count the unit cells below the reference that some point dominates."""
    cells = product(*(range(side) for side in reference))
    return sum(any(all(p <= c for p, c in zip(point, cell, strict=True)) for point in points) for cell in cells)


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_the_hypervolume_is_the_number_of_dominated_cells(objectives):
    rng = Random(objectives)
    reference = [7, 6, 5, 4][:objectives]
    for count in (0, 1, 2, 5, 12):
        for _ in range(5):
            points = [[rng.randrange(8) for _ in reference] for _ in range(count)]
            array = np.array(points, dtype=float).reshape(-1, objectives)
            assert hypervolume(array, np.array(reference, dtype=float)) == counted(points, reference)


def test_the_curves_by_hand():
    made = [
        record("evolution", 0, -10.0, 4.0),
        record("evolution", 0, -8.0, 5.0),  # reference (-10, 5)
        record("evolution", 1, 0.0, 0.0, TrialState.PRUNED),  # counts as an evaluation only
        record("evolution", 2, -6.0, 1.0),
        record("random", 0, -9.0, 3.0),
        record("random", 0, -20.0, 1.0),  # worse than the reference
        record("random", 1, -5.0, 9.0),
        record("hand-made", 0, 0.0, 3.0),  # ideal (0, 1): the box is 10 x 4
    ]
    volume = hypervolume_curves(made, OBJECTIVES)
    assert volume.reference == {"delta_m": -10.0, "params": 5.0}
    assert volume.ideal == {"delta_m": 0.0, "params": 1.0}
    assert vars(volume.curves["evolution"]) == {"evaluations": [2, 3, 4], "shares": [0.0, 0.0, 4 * 4 / 40]}
    assert vars(volume.curves["random"]) == {"evaluations": [2, 3], "shares": [1 * 2 / 40, 1 * 2 / 40]}
    assert set(volume.curves) == {"evolution", "random"}


def test_one_network_alone_has_no_hypervolume():
    volume = hypervolume_curves([record("evolution", 0, 1.0, 1.0)], OBJECTIVES)
    assert volume.curves["evolution"].shares == [0.0]
