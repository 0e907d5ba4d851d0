"""Reference architectures: what a search is compared with in its study, networks that nobody had to search for."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from random import Random

from taskformer.models.autotaskformer import Architecture, SearchSpace
from taskformer.models.autotaskformer.sharing import Row
from taskformer.modules.picking import spread
from taskformer.search.evolution import RANDOM_ATTEMPTS, Distinct, random_architectures
from taskformer.search.objectives import Candidate

#: How many networks of a front get one of each kind with as many parameters.
MATCHED = 5
#: Random architectures among which that one is looked for.
DRAWS = 500


@dataclass(frozen=True)
class ReferenceArchitectures:
    """Random, all-shared, all-specific and hand-made architectures; the same for the same seed and the same search.

    Args:
        space: Where architectures are drawn from.
        admits: Whether an architecture meets all constraints.
        params: Counts an architecture's parameters.
        seed: Seed of all draws.
    """

    space: SearchSpace
    admits: Callable[[Architecture], bool]
    params: Callable[[Architecture], float]
    seed: int = 0

    def random(self, number: int, count: int, seen: Collection[Architecture]) -> list[Architecture]:
        """Draw a generation of random search: ``count`` architectures that have not been seen."""
        rng = Random(f"random {self.seed} {number}")
        return self._new(seen).collect(random_architectures(self.space, rng), count, RANDOM_ATTEMPTS)

    def all_shared(self, front: Sequence[Candidate], seen: Collection[Architecture]) -> list[Architecture]:
        """Find networks that share everything, as large as those of a front."""
        return self._matched((0,) * self.space.num_tasks, front, seen)

    def all_specific(self, front: Sequence[Candidate], seen: Collection[Architecture]) -> list[Architecture]:
        """Find networks that share nothing (or as little as the space allows), as large as those of a front."""
        sharing = self.space.largest().sharing
        return self._matched(sharing[0], front, seen) if sharing else []

    def hand_made(self, seen: Collection[Architecture]) -> list[Architecture]:
        """Return what one would draw by hand: all layers alike, of middle sizes; all, half or none of them shared."""
        half = self.space.median()
        split = self.space.largest().sharing[:1] * 2 * half.depth
        return self._new(seen).collect([replace(half, sharing=()), half, replace(half, sharing=split)], 3)

    def _matched(self, row: Row, front: Sequence[Candidate], seen: Collection[Architecture]) -> list[Architecture]:
        """For networks spread over a front, find the largest with this row everywhere and no more parameters."""
        rng = Random(f"matched {self.seed} {row}")
        new = self._new(seen)
        found = []
        for candidate in spread(front, MATCHED):
            drawn = [self.space.random(rng) for _ in range(DRAWS)]
            alike = [replace(one, sharing=(row,) * 2 * one.depth) for one in drawn]
            smaller = [one for one in alike if self.params(one) <= candidate.values["params"]]
            found += new.collect(sorted(smaller, key=self.params, reverse=True), 1, DRAWS)
        return found

    def _new(self, seen: Collection[Architecture]) -> Distinct:
        return Distinct(self.admits, seen)
