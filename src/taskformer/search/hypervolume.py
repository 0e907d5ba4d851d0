"""The hypervolume: how much of what is possible a search has found, and when."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from optuna.trial import TrialState

from taskformer.search.objectives import Candidate, Objective, front, losses
from taskformer.search.study import Record

#: What evaluates generations of equal numbers of networks, to be compared at equal effort.
COMPARED = ("evolution", "random")


@dataclass(frozen=True)
class Curve:
    """How much an origin had found when.

    Args:
        evaluations: Networks evaluated by the end of each generation, also those that were pruned.
        shares: Share of the possible hypervolume that was dominated then, from 0 to 1.
    """

    evaluations: list[int]
    shares: list[float]


@dataclass(frozen=True)
class HyperVolume:
    """The hypervolume over the course of a search.

    Args:
        reference: For each objective the worst value of the first, random generation; worse ones count nothing.
        ideal: For each objective the best value of all networks; reaching all of them at once would be a share of 1.
        curves: The course of each origin that was compared.
    """

    reference: dict[str, float]
    ideal: dict[str, float]
    curves: dict[str, Curve]


def hypervolume(points: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """Measure what a set of points dominates, exactly.

    >>> hypervolume(np.array([[1.0, 2.0], [2.0, 1.0]]), reference=np.array([3.0, 3.0]))
    3.0

    Args:
        points: ``(N, M)``, less is better.
        reference: ``(M,)``; points that are not better everywhere count nothing.

    Returns:
        The volume of the union of the boxes between the points and the reference.
    """
    inside = points[(points < reference).all(axis=1)]
    if not len(inside):
        return 0.0
    if len(reference) == 1:
        return float(reference[0] - inside.min())
    inside = inside[np.argsort(inside[:, 0])]
    widths = np.diff(inside[:, 0], append=reference[0])  # of the slices from each point to the next
    if len(reference) == 2:
        return float(widths @ (reference[1] - np.minimum.accumulate(inside[:, 1])))
    slices = [hypervolume(inside[: last + 1, 1:], reference[1:]) for last in range(len(inside))]
    return float(widths @ slices)


def hypervolume_curves(records: Sequence[Record], objectives: Sequence[Objective]) -> HyperVolume:
    """Measure the hypervolume that each compared origin had reached after every generation.

    Args:
        records: Records of a study, at least one of the first generation of them complete.
        objectives: What was improved.
    """
    complete = [record for record in records if record.state == TrialState.COMPLETE]
    first = [record.candidate for record in complete if record.key[:2] == ("evolution", 0)]
    reference = losses(first, objectives).max(axis=0)
    ideal = losses([record.candidate for record in complete], objectives).min(axis=0)
    box = float(np.prod(reference - ideal))
    curves = {}
    for origin in COMPARED:
        own = [record for record in records if record.key.origin == origin and record.state != TrialState.RUNNING]
        if own:
            curves[origin] = _curve(own, objectives, reference, box)
    signs = [1 if objective.direction == "minimize" else -1 for objective in objectives]
    names = [objective.name for objective in objectives]
    return HyperVolume(
        dict(zip(names, (reference * signs).tolist(), strict=True)),
        dict(zip(names, (ideal * signs).tolist(), strict=True)),
        curves,
    )


def _curve(
    records: Sequence[Record], objectives: Sequence[Objective], reference: NDArray[np.float64], box: float
) -> Curve:
    """Follow one origin's hypervolume, as a share of the box between the reference and the ideal."""
    evaluations, shares = [], []
    found: list[Candidate] = []
    for generation in sorted({record.key.generation for record in records}):
        new = [record.candidate for record in records
               if record.key.generation == generation and record.state == TrialState.COMPLETE]  # fmt: skip
        found = front([*found, *new], objectives)
        evaluations.append(sum(record.key.generation <= generation for record in records))
        shares.append(hypervolume(losses(found, objectives), reference) / box if box else 0.0)
    return Curve(evaluations, shares)
