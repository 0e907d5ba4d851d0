"""The loop of a search: round after round, shared with whoever works on the same study.

A round is a list of architectures that follows from the records of the rounds before it alone. First come the
evolution's generations, then the reference architectures that it is compared with.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from random import SystemRandom

from optuna.trial import TrialState

from taskformer.errors import ConfigError
from taskformer.models.autotaskformer import Architecture
from taskformer.modules.quantities import COSTS
from taskformer.search.costs import Costs
from taskformer.search.evaluator import Result, Stop, never
from taskformer.search.evolution import RANDOM_ATTEMPTS, Evolution
from taskformer.search.objectives import Candidate, best, front
from taskformer.search.predictor import Predictor
from taskformer.search.pruning import DOMINATED, Finished, History, Pruner
from taskformer.search.references import ReferenceArchitectures
from taskformer.search.study import Key, Record, SearchStudy, completed

#: Evaluated candidates that a predictor needs before it is asked.
LEARNABLE = 50


@dataclass(frozen=True)
class Round:
    """Architectures that are evaluated together, before anything that depends on them.

    Args:
        origin: What proposes them.
        generation: Which round of this origin, from 0.
        propose: Makes them from the records of all rounds before.
    """

    origin: str
    generation: int
    propose: Callable[[Sequence[Record]], Sequence[Architecture]]


def evolution_rounds(evolution: Evolution, generations: int, predictor: Predictor | None = None) -> Iterator[Round]:
    """Plan an evolution, with or without a predictor that screens offspring."""
    for number in range(generations):
        yield Round("evolution", number, partial(_breed, evolution, number, predictor))


def reference_rounds(evolution: Evolution, generations: int, references: ReferenceArchitectures) -> Iterator[Round]:
    """Plan what an evolution is compared with, once it has finished."""
    for number in range(generations):
        yield Round("random", number, partial(_draw, references, number))

    def found(records: Sequence[Record]) -> list[Candidate]:
        return front(completed(records, "evolution"), evolution.objectives)

    yield Round("all-shared", 0, lambda records: references.all_shared(found(records), _architectures(records)))
    yield Round("all-specific", 0, lambda records: references.all_specific(found(records), _architectures(records)))
    yield Round("hand-made", 0, lambda records: references.hand_made(_architectures(records)))


def _breed(
    evolution: Evolution, number: int, predictor: Predictor | None, records: Sequence[Record]
) -> list[Architecture]:
    """Breed a generation from those before."""
    history = completed(records, "evolution")
    screen = None
    if predictor and len(history) >= LEARNABLE:
        predictor.fit(history)
        screen = predictor.screen
    generation = evolution.generation(number, history, _architectures(records), screen)
    if not generation and not records:
        draws = evolution.population * RANDOM_ATTEMPTS
        msg = f"of {draws} random sub-networks none meets all constraints; widen them"
        raise ConfigError(msg)
    return generation


def _draw(references: ReferenceArchitectures, number: int, records: Sequence[Record]) -> list[Architecture]:
    """Draw as many random architectures as the evolution's generation of that number has."""
    count = sum(record.key[:2] == ("evolution", number) for record in records)
    return references.random(number, count, _architectures(records))


def _architectures(records: Sequence[Record]) -> set[Architecture]:
    return {record.candidate.architecture for record in records}


@dataclass(frozen=True)
class SearchLoop:
    """One process's part of a search.

    Args:
        study: The shared memory.
        evaluate: Scores architectures, asking after each batch of images whether one stops there.
        costs: What an architecture costs, by name.
        batch: Most architectures to evaluate at once.
        pruner: Decides who stops. A search that measures anything but delta_m on the images prunes nothing.
        parents: With a single objective, the rank of the candidate that a new one must not be worse than.
    """

    study: SearchStudy
    evaluate: Callable[[Sequence[Architecture], Stop], Sequence[Result]]
    costs: Costs
    batch: int = 8
    pruner: Pruner = DOMINATED
    parents: int = 10

    def run(self, rounds: Iterable[Round], report: Callable[[Sequence[Record]], None] = lambda _: None) -> None:
        """Work until all rounds are finished, whoever else does.

        Args:
            rounds: The rounds in their order.
            report: Told all records whenever there may be new ones.
        """
        earlier: list[Record] = []
        for each in rounds:
            architectures = each.propose(earlier)
            work = {Key(each.origin, each.generation, slot): one for slot, one in enumerate(architectures)}
            stop = self._rule([record for record in earlier if record.key.origin == each.origin])
            earlier += self._finish(work, stop, report)

    def _finish(
        self, work: Mapping[Key, Architecture], stop: Stop, report: Callable[[Sequence[Record]], None]
    ) -> list[Record]:
        """See to it that all architectures are evaluated; return their records by slot."""
        while True:
            records = self.study.records()
            report(records)
            known = {record.key: record for record in records if record.key in work}
            if len(known) == len(work) and all(record.state != TrialState.RUNNING for record in known.values()):
                return [known[key] for key in work]
            # This process evaluates nothing just now: what is its own is of one that died with the same number.
            left = [record for record in known.values() if record.is_left() or self._is_own(record)]
            left = [] if self.study.worker else left
            for record in left:
                self.study.fail(record.number)
            mine = self.study.claim(self._some(work, known), self.costs)
            if mine:
                self._evaluate(self._reuse(mine, records), stop)
            elif not left:
                time.sleep(self.study.poll)

    def _some(self, work: Mapping[Key, Architecture], known: Mapping[Key, Record]) -> dict[Key, Architecture]:
        """Choose some of the work that nobody does: similar architectures, which evaluate faster together."""
        free = sorted((key for key in work if key not in known), key=lambda key: work[key].to_json())
        if not free:
            return {}
        processes = {record.owner for record in known.values()} | {self.study.owner}
        size = min(self.batch, ceil(len(free) / len(processes)))  # to finish together
        start = size * SystemRandom().randrange(ceil(len(free) / size))  # rarely what another process chooses
        return {key: work[key] for key in free[start : start + size]}

    def _is_own(self, record: Record) -> bool:
        return record.state == TrialState.RUNNING and record.owner == self.study.owner

    def _reuse(self, mine: Sequence[Record], records: Sequence[Record]) -> list[Record]:
        """Finish what the study has evaluated elsewhere (in a search that was lengthened) and return the rest."""
        known = {record.candidate.architecture: record for record in records if record.state == TrialState.COMPLETE}
        new = []
        for record in mine:
            if old := known.get(record.candidate.architecture):
                self.study.finish(record, old.candidate.values, old.course, complete=True)
            else:
                new.append(record)
        return new

    def _evaluate(self, mine: Sequence[Record], stop: Stop) -> None:
        """Evaluate what this process has taken; give it up if that fails."""
        if not mine:
            return
        try:
            architectures = [record.candidate.architecture for record in mine]
            for record, result in zip(mine, self.evaluate(architectures, stop), strict=True):
                values = self.costs(record.candidate.architecture) | result.tasks | {"delta_m": result.delta_m}
                self.study.finish(record, values, result.course, result.complete)
        except BaseException:
            for record in mine:
                self.study.fail(record.number)
            raise

    def _rule(self, records: Sequence[Record]) -> Stop:
        """Return the rule that stops architectures, given the records of earlier rounds of the same origin."""
        objectives = self.study.objectives
        costs = [each.name for each in objectives if each.name in COSTS]
        measured = [each.name for each in objectives if each.name not in COSTS]
        finished = {
            record.candidate.architecture: Finished(record.course, _values(record.candidate.values, costs))
            for record in records
            if record.state == TrialState.COMPLETE
        }
        if not finished or measured != ["delta_m"]:
            return never
        candidates = [record.candidate for record in records if record.state == TrialState.COMPLETE]
        if len(objectives) == 1:
            chosen = best(candidates, objectives, self.parents)[self.parents - 1 :]
        else:
            chosen = front(candidates, objectives)
        history = History(tuple(finished.values()), tuple(finished[one.architecture] for one in chosen))

        def stop(architecture: Architecture, course: Sequence[float]) -> bool:
            return self.pruner.prune(course, _values(self.costs(architecture), costs), history)

        return stop


def _values(measured: Mapping[str, float], names: Sequence[str]) -> tuple[float, ...]:
    return tuple(measured[name] for name in names)
