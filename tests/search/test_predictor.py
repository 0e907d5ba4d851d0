"""Guesses of delta_m: what the encoding says, and what can be learned from it."""

import sys
from random import Random

import numpy as np
import pytest

from taskformer.errors import ConfigError, MissingExtraError
from taskformer.models.autotaskformer import Architecture, SearchSpace
from taskformer.search.objectives import Candidate
from taskformer.search.predictor import Predictor, encode

SPACE = SearchSpace((12, 16), (2, 3, 4), (2.0, 3.0), (1, 2, 3), head_dim=8, num_tasks=3, sharing="grouped", copies=3)


def draw(count, seed=0):
    rng = Random(seed)
    return list({SPACE.random(rng): None for _ in range(count)})


def truth(architecture):
    """More is better, sharing early is better, and depth makes heads matter less."""
    shared = sum(len(set(row)) == 1 for row in architecture.sharing[:4]) if architecture.sharing else 4
    return architecture.embed_dim / 4 + sum(architecture.num_heads) / architecture.depth + shared


def candidates(architectures):
    return [Candidate(architecture, {"delta_m": truth(architecture)}) for architecture in architectures]


def test_the_encoding_is_one_hot_and_empty_beyond_the_depth():
    architecture = Architecture(16, 2, (2.0, 3.0), (1, 3), ((0, 1, 2), (0, 0, 0), (0, 0, 1), (0, 0, 0)))
    genes = encode(architecture, SPACE)
    assert genes[:5].tolist() == [0, 1, 1, 0, 0]  # width, depth
    assert genes[5:13].tolist() == [1, 0, 0, 1, 0, 0, 0, 0]  # ratios of four layers
    assert genes[13:25].tolist() == [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]  # heads
    sharing = genes[25:].reshape(8, 3, 3)  # units, tasks, copies
    assert np.array_equal(sharing[:4].argmax(axis=2), architecture.sharing)
    assert (sharing[:4].sum(axis=2) == 1).all()
    assert not sharing[4:].any()


def test_everything_shared_is_written_out():
    architecture = Architecture(16, 2, (2.0, 3.0), (1, 3))
    assert encode(architecture, SPACE)[25:].reshape(8, 3, 3)[:4, :, 0].all()


@pytest.mark.parametrize("sharing", ["none", "binary", "grouped", "tree"])
def test_different_architectures_look_different(sharing):
    sizes = {"num_queries": (4, 8), "num_scales": (1, 4), "decoder_widths": (8, 16)}
    space = SearchSpace(
        (12, 16), (2, 3), (2.0, 3.0), (1, 2), head_dim=8, num_tasks=3, sharing=sharing, copies=3, **sizes
    )
    rng = Random(0)
    architectures = {space.random(rng) for _ in range(500)}
    assert len({encode(architecture, space).tobytes() for architecture in architectures}) == len(architectures)


def test_it_ranks_architectures_that_it_has_not_seen():
    architectures = draw(300)
    predictor = Predictor(SPACE)
    predictor.fit(candidates(architectures[:200]))
    unseen = architectures[200:]
    guesses = predictor.predict(unseen)
    places = [np.argsort(np.argsort(values)) for values in (guesses, [truth(each) for each in unseen])]
    assert np.corrcoef(places)[0, 1] > 0.9


def test_the_rank_correlation_is_one_of_guesses_without_the_answers():
    architectures = draw(200)
    predictor = Predictor(SPACE)
    assert 0.9 < predictor.rank_correlation(candidates(architectures)) <= 1
    noise = Random(1)
    nothing = [Candidate(each, {"delta_m": noise.random()}) for each in architectures]
    assert abs(predictor.rank_correlation(nothing)) < 0.3


def test_screening_keeps_the_best_guesses_best_first():
    architectures = draw(300)
    predictor = Predictor(SPACE)
    predictor.fit(candidates(architectures[:200]))
    offspring = architectures[200:]
    kept = predictor.screen(offspring, 10)
    guesses = predictor.predict(offspring)
    assert predictor.predict(kept).tolist() == sorted(guesses.tolist(), reverse=True)[:10]
    assert set(kept) <= set(offspring)
    assert predictor.screen(offspring, 1000) == predictor.screen(offspring, len(offspring))


def test_screening_with_costs_keeps_what_none_beats_in_both():
    architectures = draw(300)
    predictor = Predictor(SPACE, costs=lambda architecture: (architecture.depth,))
    predictor.fit(candidates(architectures[:200]))
    offspring = architectures[200:]
    by_depth = {depth: [each for each in offspring if each.depth == depth] for depth in SPACE.depths}
    cheapest = max(by_depth[2], key=lambda each: predictor.predict([each])[0])
    best = max(offspring, key=lambda each: predictor.predict([each])[0])
    kept = predictor.screen(offspring, 3)
    assert {cheapest, best} <= set(kept)


def test_too_little_to_learn_from_is_refused():
    few = candidates(draw(9))
    with pytest.raises(ConfigError, match="at least 10 evaluated architectures, got 9"):
        Predictor(SPACE).rank_correlation(few)
    with pytest.raises(ConfigError, match="at least 2 evaluated architectures, got 1"):
        Predictor(SPACE).fit(few[:1])


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(MissingExtraError, match="scikit-learn"):
        Predictor(SPACE)
