"""Evolution against its invariants, AutoFormer's settings, and a brute-force idea of what is better."""

import itertools
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from taskformer.errors import ConfigError, UnknownNameError
from taskformer.models.autotaskformer import Architecture, SearchSpace
from taskformer.modules.picking import spread
from taskformer.search.evolution import Distinct, Evolution
from taskformer.search.objectives import (
    Candidate,
    Constraint,
    Objective,
    best,
    build_objectives,
    crowding_distances,
    front,
    front_ranks,
)
from taskformer.search.references import ReferenceArchitectures
from taskformer.tasks import build_tasks

QUALITY = Objective("delta_m", "maximize")
SIZE = Objective("params", "minimize")
KINDS = ("none", "binary", "grouped", "tree")


def toy(sharing="binary", num_tasks=3):
    return SearchSpace((8, 16, 24), (2, 3, 5), (2.0, 3.5, 4.0), (1, 2), num_tasks=num_tasks, sharing=sharing, copies=3)


def params(architecture):
    """A stand-in for a network's size: it grows with everything that makes one larger."""
    copies = [len(set(row)) for row in architecture.sharing] or [1] * 2 * architecture.depth
    units = sum(copies[2 * layer] * heads for layer, heads in enumerate(architecture.num_heads))
    units += sum(copies[2 * layer + 1] * ratio for layer, ratio in enumerate(architecture.mlp_ratio))
    return architecture.embed_dim * units


def quality(architecture):
    """A rugged landscape: heads help, wide is not always better, sharing helps in early layers only."""
    early = sum(len(set(row)) == 1 for row in architecture.sharing[: architecture.depth])
    heads = sum(place * heads for place, heads in enumerate(architecture.num_heads))
    return heads - abs(architecture.embed_dim - 16) - sum(architecture.mlp_ratio) / 4 + early


def candidate(architecture):
    return Candidate(architecture, {"delta_m": quality(architecture), "params": params(architecture)})


def check(space, architecture):
    """What must hold of every architecture, spelt out."""
    depth = architecture.depth
    assert architecture in space
    assert len(architecture.mlp_ratio) == len(architecture.num_heads) == depth
    assert architecture.embed_dim in space.embed_dims
    assert depth in space.depths
    assert set(architecture.mlp_ratio) <= set(space.mlp_ratios)
    assert set(architecture.num_heads) <= set(space.num_heads)
    assert len(architecture.sharing) in (0, 2 * depth)
    assert all(len(row) == space.num_tasks for row in architecture.sharing)
    if space.sharing == "tree":
        for before, after in itertools.pairwise(architecture.sharing):
            pairs = list(itertools.combinations(range(space.num_tasks), 2))
            assert all(before[i] == before[j] for i, j in pairs if after[i] == after[j])  # parted for good


def evolve(evolution, generations):
    """Run an evolution on the toy landscape."""
    history, found = [], []
    for number in range(generations):
        found.append(evolution.generation(number, history, {one.architecture for one in history}))
        history += map(candidate, found[-1])
    return found, history


@pytest.mark.parametrize("sharing", KINDS)
@pytest.mark.parametrize("objectives", [[QUALITY], [QUALITY, SIZE]], ids=["one", "two"])
def test_ten_thousand_children_are_well_formed_distinct_and_inside_the_limits(sharing, objectives):
    space = toy(sharing)
    limit = Constraint("params", 150, 900)
    evolution = Evolution(space, objectives, lambda one: limit.admits({"params": params(one)}), population=125)
    generations, _ = evolve(evolution, 10)
    children = [child for generation in generations for child in generation]
    assert len(children) == 1250  # 8 x 1250 = 10,000
    assert len(set(children)) == len(children)
    for child in children:
        check(space, child)
        assert 150 <= params(child) <= 900


def test_every_child_of_a_generation_comes_from_the_ten_best():
    space = toy()
    evolution = Evolution(space, [QUALITY], lambda _: True, gene_prob=0.0, size_prob=0.0)
    history = [candidate(one) for one in evolution.generation(0, [], set())]
    assert len(history) == 50
    ten = sorted(history, key=lambda one: (-one.values["delta_m"], one.values["params"]))[:10]
    # Mutations change nothing here and are all refused as seen: what is no random filling is a crossover of parents.
    children = evolution.generation(1, history, {one.architecture for one in history})
    assert len(children) == 50
    for child in children[:10]:
        parents = [one.architecture for one in ten if one.architecture.depth == child.depth]
        assert child.embed_dim in {one.embed_dim for one in parents}
        for place in range(child.depth):
            assert child.num_heads[place] in {one.num_heads[place] for one in parents}
            assert child.mlp_ratio[place] in {one.mlp_ratio[place] for one in parents}


def test_half_are_mutations_at_autoformers_rates():
    space = SearchSpace.preset("small")
    evolution = Evolution(space, [QUALITY], lambda _: True)
    parent = space.median()
    history = [Candidate(parent, {"delta_m": 0.0, "params": 1.0})]
    # A single parent crossed with itself is itself: the generation is 25 mutations, then random architectures.
    generations = [replace(evolution, seed=seed).generation(1, history, {parent}) for seed in range(40)]
    mutants = [child for generation in generations for child in generation[:25]]
    others = [child for generation in generations for child in generation[25:]]
    kept = np.mean([child.embed_dim == parent.embed_dim for child in mutants])
    assert kept == pytest.approx(1 - 0.4 * 2 / 3, abs=0.05)
    assert np.mean([child.embed_dim == parent.embed_dim for child in others]) == pytest.approx(1 / 3, abs=0.05)
    genes = [(a, b) for child in mutants for a, b in zip(child.num_heads[:12], parent.num_heads[:12], strict=True)]
    assert np.mean([a == b for a, b in genes]) == pytest.approx(1 - 0.2 * 2 / 3, abs=0.02)


def test_a_generation_depends_on_seed_number_and_history_alone():
    evolution = Evolution(toy(), [QUALITY, SIZE], lambda _: True, population=20)
    first, history = evolve(evolution, 3)
    assert evolve(evolution, 3)[0] == first
    assert evolution.generation(2, history[:40], {one.architecture for one in history[:40]}) == first[2]
    assert evolve(replace(evolution, seed=1), 1)[0] != first[:1]


def test_evolution_finds_better_networks_than_chance():
    admits = lambda one: params(one) <= 500  # noqa: E731
    gains = []
    for seed in range(3):
        space = toy("grouped")
        _, history = evolve(Evolution(space, [QUALITY], admits, seed=seed, population=30), 8)
        drawn = ReferenceArchitectures(space, admits, params, seed).random(0, len(history), set())
        gains.append(max(one.values["delta_m"] for one in history) - max(map(quality, drawn)))
    assert min(gains) >= 0
    assert sum(gains) > 1


def test_a_space_that_is_used_up_ends_quietly():
    space = SearchSpace((8,), (2,), (2.0,), (1, 2))  # four architectures
    generations, history = evolve(Evolution(space, [QUALITY], lambda _: True, population=3), 3)
    assert [len(generation) for generation in generations] == [3, 1, 0]
    assert len({one.architecture for one in history}) == 4


def test_a_predictor_chooses_from_ten_times_as_many():
    evolution = Evolution(toy(), [QUALITY], lambda _: True, population=10)
    _, history = evolve(evolution, 2)
    offered = []

    def screen(offspring, keep):
        offered.extend(offspring)
        return sorted(offspring, key=params)[:keep]

    seen = {one.architecture for one in history}
    chosen = evolution.generation(2, history, seen, screen)
    assert len(set(offered)) == len(offered) == 100
    assert not seen & set(offered)
    assert chosen == sorted(offered, key=params)[:10]


def test_distinct_bounds_its_attempts():
    refused = []

    def admits(one):
        refused.append(one)
        return False

    source = (Architecture(8, 1, (2.0,), (heads,)) for heads in itertools.count(1))
    assert Distinct(admits, set()).collect(source, 3, attempts=4) == []
    assert len(refused) == 12


def random_points(seed, count=40, width=2, levels=6):
    return np.random.default_rng(seed).integers(0, levels, (count, width)).astype(float)


@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_ranks_are_those_of_peeling_fronts_off(seed, width):
    points = random_points(seed, width=width)
    left, rank, expected = set(range(len(points))), 0, {}
    while left:
        beaten = {
            i
            for i in left
            for j in left
            if all(points[j] <= points[i]) and any(points[j] < points[i])
        }  # fmt: skip
        expected |= dict.fromkeys(left - beaten, rank)
        left, rank = beaten, rank + 1
    assert front_ranks(points).tolist() == [expected[i] for i in range(len(points))]


def test_crowding_is_the_normalised_side_of_the_box_around_a_point():
    points = np.array([[0.0, 10.0], [1.0, 6.0], [4.0, 5.0], [10.0, 0.0]])
    infinite, second, third, last = crowding_distances(points)
    assert np.isinf([infinite, last]).all()
    assert second == pytest.approx(4 / 10 + 5 / 10)
    assert third == pytest.approx(9 / 10 + 6 / 10)
    assert crowding_distances(np.zeros((3, 1))).tolist() == [0, 0, 0]


def test_the_best_of_one_objective_are_its_highest_and_ties_go_to_the_smaller():
    space, rng = toy(), Random(0)
    some = [candidate(space.random(rng)) for _ in range(60)]
    expected = sorted(some, key=lambda one: (-one.values["delta_m"], one.values["params"]))
    got = best(some, [QUALITY], 20)
    assert [one.values for one in got] == [one.values for one in expected[:20]]


def test_the_best_of_two_objectives_hold_the_whole_front_first():
    space, rng = toy(), Random(1)
    some = [candidate(space.random(rng)) for _ in range(60)]
    undominated = [
        one
        for one in some
        if not any(
            other.values["delta_m"] >= one.values["delta_m"]
            and other.values["params"] <= one.values["params"]
            and other.values != one.values
            for other in some
        )
    ]
    whole = front(some, [QUALITY, SIZE])
    assert {one.architecture for one in whole} == {one.architecture for one in undominated}
    assert [one.values["delta_m"] for one in whole] == sorted((one.values["delta_m"] for one in whole), reverse=True)
    first = best(some, [QUALITY, SIZE], len(whole))
    assert {one.architecture for one in first} == {one.architecture for one in whole}


def test_spread_takes_the_ends():
    some = [Candidate(Architecture(8, 1, (2.0,), (heads,)), {}) for heads in range(1, 12)]
    assert [one.architecture.num_heads[0] for one in spread(some, 3)] == [1, 6, 11]
    assert spread(some, 1) == some[:1]
    assert spread(some, 50) == some
    assert spread([], 2) == []


def test_objectives_know_their_direction():
    tasks = build_tasks({"depth": {"type": "depth"}, "semseg": {"type": "semseg", "classes": ["a", "b"]}})
    got = build_objectives(["delta_m", "semseg", "depth", "params", "macs", "latency"], tasks)
    assert [each.direction for each in got] == ["maximize", "maximize"] + ["minimize"] * 4
    with pytest.raises(UnknownNameError, match="did you mean 'params'"):
        build_objectives(["parms"], tasks)
    with pytest.raises(ConfigError, match="different"):
        build_objectives(["params", "params"], tasks)
    with pytest.raises(ConfigError, match="lowest, highest"):
        Constraint("params", 7e6, 5e6)


@pytest.mark.parametrize("sharing", KINDS)
def test_references_share_what_their_names_say(sharing):
    space, rng = toy(sharing), Random(0)
    references = ReferenceArchitectures(space, lambda one: params(one) >= 60, params)
    some = front([candidate(space.random(rng)) for _ in range(200)], [QUALITY, SIZE])
    largest = max(one.values["params"] for one in some)
    shared = references.all_shared(some, set())
    assert shared
    assert all(one.sharing == () for one in shared)
    specific = references.all_specific(some, set())
    split = space.largest().sharing
    assert bool(specific) == bool(split)
    assert all(set(one.sharing) == set(split) for one in specific)
    for one in shared + specific:
        check(space, one)
        assert 60 <= params(one) <= largest
    hand_made = references.hand_made(set())
    assert len(hand_made) == (1 if sharing == "none" else 3)
    assert all(len(set(one.num_heads)) == len(set(one.mlp_ratio)) == 1 and one.embed_dim == 16 for one in hand_made)
    assert references.hand_made(set(hand_made)) == []
