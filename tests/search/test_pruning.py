"""The rules that stop hopeless sub-networks, against hand-made histories."""

import math
from dataclasses import dataclass

import pytest

from taskformer.errors import ConfigError
from taskformer.search.pruning import DominatedPruner, Finished, History, NopPruner, Pruner

COURSES = [(4.0, 2.0, 1.0), (3.0, 3.0, 2.0), (8.0, 4.0, 3.0)]  # to come: -3 -1, -1 -1, -5 -1


def history(*courses, best=()):
    return History(tuple(Finished(course) for course in courses), best)


def test_deviations_are_of_what_remaining_images_change():
    assert history(*COURSES).deviations == pytest.approx((2.0, 0.0, 0.0))
    assert all(map(math.isnan, history(COURSES[0]).deviations))


def test_who_is_clearly_dominated_stops():
    earlier = history(*COURSES, best=(Finished(COURSES[2], (7.0, 1.0)),))
    pruner = DominatedPruner()  # half a deviation: 1, 0, 0
    assert pruner.prune([6.9], (7.0, 1.5), earlier)
    assert not pruner.prune([7.1], (7.0, 1.5), earlier)  # not clearly
    assert not pruner.prune([6.9], (6.9, 1.5), earlier)  # it costs less
    assert pruner.prune([7.1, 3.9], (7.0, 1.0), earlier)
    assert not pruner.prune([7.1, 4.0], (7.0, 1.0), earlier)  # who is equal beats nobody
    assert not pruner.prune([math.nan], (7.0, 1.5), earlier)


def test_the_margin_is_in_deviations():
    earlier = history(*COURSES, best=(Finished(COURSES[2]),))
    assert [DominatedPruner(margin).prune([5.0], (), earlier) for margin in (0.0, 1.4, 1.6)] == [True, True, False]
    with pytest.raises(ConfigError, match=r"margin must be in \[0, inf\), got -1"):
        DominatedPruner(-1)


def test_one_alone_tells_nothing_of_what_may_change():
    alone = Finished((1e9,))
    assert not DominatedPruner(0.0).prune([0.0], (), History((alone,), (alone,)))


def test_the_other_rule_stops_nobody():
    assert not NopPruner().prune([-1e9], (1e9,), history(*COURSES, best=(Finished(COURSES[2], (0.0,)),)))


def test_a_rule_is_one_method_and_says_what_it_depends_on():
    @dataclass(frozen=True)
    class Below(Pruner):
        limit: float
        share: float = 0.5

        def prune(self, course, costs, history):
            return course[-1] < self.limit

    assert str(Below(2.0)).endswith("Below(limit=2.0, share=0.5)")
    assert str(DominatedPruner()) == "DominatedPruner(margin=0.5)"
    assert str(NopPruner()) == "NopPruner()"
    with pytest.raises(TypeError, match="abstract"):
        Pruner()
