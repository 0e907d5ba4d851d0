"""Evolution of architectures: each generation is a function of the seed and of the generations before it.

The operators and their rates are AutoFormer's (Chen et al., ICCV 2021, arXiv 2107.00651), and so is the selection for a
single objective. For several, parents are chosen as in NSGA-II (Deb et al., 2002).
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from random import Random

from taskformer.models.autotaskformer import Architecture, SearchSpace
from taskformer.search.objectives import Candidate, Objective, best

#: Attempts at each new architecture, of which most fail where constraints are narrow or the space is used up.
MUTATION_ATTEMPTS = 10
RANDOM_ATTEMPTS = 1000
#: Offspring for each one that a predictor keeps.
SCREENED = 10

#: Chooses some of the offspring.
Screen = Callable[[Sequence[Architecture], int], Sequence[Architecture]]


@dataclass(frozen=True)
class Evolution:
    """How generations follow from each other.

    Args:
        space: Where architectures are drawn from.
        objectives: What to improve.
        admits: Whether an architecture meets all constraints.
        seed: Seed of all draws.
        population: Architectures of a generation; half of them mutations, half of them crossovers.
        parents: How many of the best become parents with a single objective; with several, as many as a population has.
        gene_prob: Probability of each layer's genes to mutate.
        size_prob: Probability of depth and of width to mutate.
    """

    space: SearchSpace
    objectives: Sequence[Objective]
    admits: Callable[[Architecture], bool]
    seed: int = 0
    population: int = 50
    parents: int = 10
    gene_prob: float = 0.2
    size_prob: float = 0.4

    def generation(
        self,
        number: int,
        history: Sequence[Candidate],
        seen: Collection[Architecture],
        screen: Screen | None = None,
    ) -> list[Architecture]:
        """Breed a generation: different architectures, none seen before, all admitted.

        Args:
            number: Which generation, from 0; without a history it is random, of several objectives with both extremes.
            history: What earlier generations achieved, in a fixed order.
            seen: All architectures of earlier generations.
            screen: Chooses the population from ten times as many; None: nothing is chosen.

        Returns:
            As many as a population, or fewer where the constraints leave no more.
        """
        rng = Random(f"evolution {self.seed} {number}")
        new = Distinct(self.admits, seen)
        if not history:
            # A front reaches from the smallest to the largest, which random draws hardly ever are.
            ends = [self.space.smallest(), self.space.largest()] if len(self.objectives) > 1 else []
            start = chain(ends, random_architectures(self.space, rng))
            return new.collect(start, self.population, RANDOM_ATTEMPTS)
        size = self.population * (SCREENED if screen else 1)
        parents = best(history, self.objectives, self.parents if len(self.objectives) == 1 else self.population)
        architectures = [parent.architecture for parent in parents]
        offspring = new.collect(self._mutations(architectures, rng), size // 2, MUTATION_ATTEMPTS)
        offspring += new.collect(self._crossovers(architectures, rng), size - size // 2, MUTATION_ATTEMPTS)
        offspring += new.collect(random_architectures(self.space, rng), size - len(offspring), RANDOM_ATTEMPTS)
        return list(screen(offspring, self.population)) if screen else offspring

    def _mutations(self, parents: Sequence[Architecture], rng: Random) -> Iterator[Architecture]:
        while True:
            yield self.space.mutate(self._parent(parents, rng), rng, self.gene_prob, self.size_prob)

    def _crossovers(self, parents: Sequence[Architecture], rng: Random) -> Iterator[Architecture]:
        while True:
            first = self._parent(parents, rng)
            mates = [parent for parent in parents if parent.depth == first.depth]  # only equal depths can be crossed
            yield self.space.crossover(first, self._parent(mates, rng), rng)

    def _parent(self, parents: Sequence[Architecture], rng: Random) -> Architecture:
        """Draw a parent: any, or for several objectives the better of two (parents are sorted)."""
        places = [rng.randrange(len(parents)) for _ in range(min(len(self.objectives), 2))]
        return parents[min(places)]


class Distinct:
    """Collect architectures that are admitted and have not been seen.

    Args:
        admits: Whether an architecture meets all constraints.
        seen: Architectures that are not wanted again.
    """

    def __init__(self, admits: Callable[[Architecture], bool], seen: Collection[Architecture]) -> None:
        self.admits = admits
        self.seen = set(seen)

    def collect(self, source: Iterable[Architecture], count: int, attempts: int = 1) -> list[Architecture]:
        """Take up to ``count`` architectures from a source, with so many attempts at each on average."""
        found: list[Architecture] = []
        for architecture in islice(source, count * attempts):
            if len(found) == count:
                break
            if architecture not in self.seen and self.admits(architecture):
                self.seen.add(architecture)
                found.append(architecture)
        return found


def random_architectures(space: SearchSpace, rng: Random) -> Iterator[Architecture]:
    """Draw architectures without end; how much their tasks share varies from everything to nothing."""
    while True:
        yield space.random(rng, split=rng.random())
