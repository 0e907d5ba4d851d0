"""What a search wants: objectives, constraints that always hold, and which of several networks are better.

Networks are compared as in NSGA-II (Deb et al., IEEE Transactions on Evolutionary Computation 2002): by their front,
then by their crowding distance on it. With a single objective that is the order of its values.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from taskformer.errors import ConfigError, UnknownNameError
from taskformer.models.autotaskformer import Architecture
from taskformer.modules.quantities import COSTS
from taskformer.tasks import Task

Direction = Literal["maximize", "minimize"]


@dataclass(frozen=True)
class Candidate:
    """An evaluated network.

    >>> small = Candidate(Architecture(64, 1, (2.0,), (1,)), {"delta_m": -3.0, "params": 1e6})
    >>> large = Candidate(Architecture(128, 1, (2.0,), (2,)), {"delta_m": 0.0, "params": 2e6})
    >>> front([small, large], [Objective("delta_m", "maximize")]) == [large]
    True

    Args:
        architecture: Which one.
        values: All that was measured, by name: ``"delta_m"`` (percent), each task's headline metric by the task's
            name, ``"params"``, ``"macs"``, ``"latency"`` (seconds).
    """

    architecture: Architecture
    values: Mapping[str, float]


@dataclass(frozen=True)
class Objective:
    """A quantity to improve.

    Args:
        name: A key of :attr:`Candidate.values`.
        direction: Which way is better.
    """

    name: str
    direction: Direction

    def loss(self, values: Mapping[str, float]) -> float:
        """Return the quantity such that less is better."""
        return values[self.name] if self.direction == "minimize" else -values[self.name]


@dataclass(frozen=True)
class Constraint:
    """Limits on a cost, which every network keeps.

    >>> Constraint("params", 5e6, 7e6).admits({"params": 6e6, "macs": 1e9})
    True

    Args:
        name: One of :data:`~taskformer.modules.quantities.COSTS`.
        low: Least value allowed.
        high: Largest value allowed.

    Raises:
        ConfigError: If no value is allowed.
    """

    name: str
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            msg = f"the constraint on {self.name} is [lowest, highest], got [{self.low:g}, {self.high:g}]"
            raise ConfigError(msg)

    def admits(self, costs: Mapping[str, float]) -> bool:
        """Tell whether costs are within the limits."""
        return self.low <= costs[self.name] <= self.high


@dataclass(frozen=True)
class Constraints:
    """Lowest and highest value that a network may have; null: any.

    >>> (limits,) = Constraints(params=(5e6, 7e6)).given()
    >>> limits.admits({"params": 6e6}), limits.admits({"params": 8e6})
    (True, False)

    Args:
        params: Parameters.
        macs: Multiply-accumulates for one image.
        latency: Seconds for one batch, see the settings of ``latency``.
    """

    params: tuple[float, float] | None = None
    macs: tuple[float, float] | None = None
    latency: tuple[float, float] | None = None

    def given(self) -> list[Constraint]:
        """List the constraints that there are.

        Raises:
            ConfigError: If one admits no value.
        """
        return [Constraint(name, *limits) for name, limits in vars(self).items() if limits]


def build_objectives(names: Sequence[str], tasks: Mapping[str, Task]) -> list[Objective]:
    """Give every objective its direction; a task's is that of its headline metric.

    Raises:
        UnknownNameError: If there is no such quantity.
        ConfigError: If none is named, or one twice.
    """
    directions: dict[str, Direction] = {"delta_m": "maximize"}
    directions |= {name: "maximize" if task.higher_is_better else "minimize" for name, task in tasks.items()}
    directions |= dict.fromkeys(COSTS, "minimize")
    for name in names:
        if name not in directions:
            kind = "objective"
            raise UnknownNameError(kind, name, directions)
    if not names or len(set(names)) < len(names):
        msg = f"objectives are one or more different quantities, e.g. [delta_m, params], got {list(names)}"
        raise ConfigError(msg)
    return [Objective(name, directions[name]) for name in names]


def losses(candidates: Iterable[Candidate], objectives: Sequence[Objective]) -> NDArray[np.float64]:
    """Gather what to minimise: ``(candidates, objectives)``."""
    rows = [[objective.loss(candidate.values) for objective in objectives] for candidate in candidates]
    return np.array(rows, dtype=np.float64).reshape(-1, len(objectives))


def front_ranks(points: NDArray[np.float64]) -> NDArray[np.int64]:
    """Number the fronts: 0 for points ``(N, M)`` that none dominates, 1 for those that only front 0 does, ..."""
    no_worse = np.all(points[:, None] <= points, axis=2)
    dominates = no_worse & ~no_worse.T  # [i, j]: i is no worse than j anywhere, and j is worse than i somewhere
    ranks = np.full(len(points), -1)
    rank = 0
    while ranks.min(initial=0) < 0:
        left = np.flatnonzero(ranks < 0)
        ranks[left[~dominates[np.ix_(left, left)].any(axis=0)]] = rank
        rank += 1
    return ranks


def crowding_distances(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the crowding distance of every point ``(N, M)`` of a front: 0 among equal ones, infinite at the ends."""
    distances = np.zeros(len(points))
    for values in points.T:
        order = np.argsort(values, kind="stable")
        ordered = values[order]
        span = ordered[-1] - ordered[0]
        if span > 0:
            distances[order[[0, -1]]] = np.inf
            distances[order[1:-1]] += (ordered[2:] - ordered[:-2]) / span
    return distances


def best(candidates: Sequence[Candidate], objectives: Sequence[Objective], count: int) -> list[Candidate]:
    """Return the best candidates, best first; of equal ones those with fewer parameters, then those that came first."""
    points = losses(candidates, objectives)
    ranks = front_ranks(points)
    crowding = np.zeros(len(points))
    for rank in np.unique(ranks):
        crowding[ranks == rank] = crowding_distances(points[ranks == rank])
    params = np.array([candidate.values["params"] for candidate in candidates])
    return [candidates[index] for index in np.lexsort((params, -crowding, ranks))[:count].tolist()]


def front(candidates: Sequence[Candidate], objectives: Sequence[Objective]) -> list[Candidate]:
    """Return the candidates that none dominates, the best by the first objective first."""
    points = losses(candidates, objectives)
    first = [candidates[index] for index in np.flatnonzero(front_ranks(points) == 0).tolist()]
    return sorted(first, key=lambda candidate: objectives[0].loss(candidate.values))
