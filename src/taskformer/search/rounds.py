"""The course of a search: generation after generation, then what it is compared with."""

from collections.abc import Iterator, Sequence
from functools import partial

from optuna.trial import TrialState

from taskformer.errors import ConfigError
from taskformer.models.autotaskformer import Architecture
from taskformer.search.evolution import RANDOM_ATTEMPTS, Evolution
from taskformer.search.objectives import Candidate, front
from taskformer.search.predictor import Predictor
from taskformer.search.references import Baselines
from taskformer.search.study import Record, Round

#: Evaluated candidates that a predictor needs before it is asked.
LEARNABLE = 50


def evolution_rounds(evolution: Evolution, generations: int, predictor: Predictor | None = None) -> Iterator[Round]:
    """Plan an evolution, with or without a predictor that screens offspring."""
    for number in range(generations):
        yield Round("evolution", number, partial(_breed, evolution, number, predictor))


def baseline_rounds(evolution: Evolution, generations: int, baselines: Baselines) -> Iterator[Round]:
    """Plan what an evolution is compared with, once it has finished."""
    for number in range(generations):
        yield Round("random", number, partial(_draw, baselines, number))

    def found(records: Sequence[Record]) -> list[Candidate]:
        return front(results(records, "evolution"), evolution.objectives)

    yield Round("all-shared", 0, lambda records: baselines.all_shared(found(records), architectures(records)))
    yield Round("all-specific", 0, lambda records: baselines.all_specific(found(records), architectures(records)))
    yield Round("hand-made", 0, lambda records: baselines.hand_made(architectures(records)))


def results(records: Sequence[Record], origin: str) -> list[Candidate]:
    """Return the candidates of an origin that were evaluated completely."""
    return [
        record.candidate for record in records if record.key.origin == origin and record.state == TrialState.COMPLETE
    ]


def architectures(records: Sequence[Record]) -> set[Architecture]:
    """Return all architectures of some records."""
    return {record.candidate.architecture for record in records}


def _breed(
    evolution: Evolution, number: int, predictor: Predictor | None, records: Sequence[Record]
) -> list[Architecture]:
    history = results(records, "evolution")
    screen = None
    if predictor and len(history) >= LEARNABLE:
        predictor.fit(history)
        screen = predictor.screen
    generation = evolution.generation(number, history, architectures(records), screen)
    if not generation and not records:
        draws = evolution.population * RANDOM_ATTEMPTS
        msg = f"of {draws} random sub-networks none is inside all constraints; widen them"
        raise ConfigError(msg)
    return generation


def _draw(baselines: Baselines, number: int, records: Sequence[Record]) -> list[Architecture]:
    """Draw as many random architectures as the evolution's generation of that number has."""
    count = sum(record.key[:2] == ("evolution", number) for record in records)
    return baselines.random(number, count, architectures(records))
