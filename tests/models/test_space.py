"""The search space against AutoFormer's numbers, its operations against what a network needs of their results."""

import itertools
import json
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskformer.errors import ConfigError, UnknownNameError
from taskformer.models.autotaskformer import Architecture, SearchSpace

#: AutoFormer-S as published.
SMALL = {
    "embed_dim": 384,
    "depth": 13,
    "mlp_ratio": [3, 3.5, 3, 3.5, 4, 4, 4, 4, 4, 4, 4, 3.5, 4],
    "num_heads": [6, 6, 5, 7, 5, 5, 5, 6, 6, 7, 7, 6, 7],
}
KINDS = ("none", "binary", "grouped", "tree")
DECODERS = {"num_queries": (16, 4, 8), "num_scales": (1, 4), "decoder_widths": (32, 64, 96)}


def toy(sharing="none", num_tasks=5, copies=3, **decoders):
    sizes = (8, 16), (2, 3, 5), (2.0, 3.5), (1, 2)
    return SearchSpace(*sizes, num_tasks=num_tasks, sharing=sharing, copies=copies, **decoders)


def groups(row):
    """The partition of the tasks that a row of copies stands for."""
    return {frozenset(task for task, copy in enumerate(row) if copy == one) for one in row}


def check(space, architecture):
    """What must hold of every architecture of a space, spelt out."""
    assert architecture in space
    assert architecture.embed_dim in space.embed_dims
    assert architecture.depth in space.depths
    assert len(architecture.mlp_ratio) == len(architecture.num_heads) == architecture.depth
    assert set(architecture.mlp_ratio) <= set(space.mlp_ratios)
    assert set(architecture.num_heads) <= set(space.num_heads)
    assert architecture.num_queries in (space.num_queries or {0})
    assert architecture.num_scales in (space.num_scales or {0})
    assert architecture.decoder_width in (space.decoder_widths or {0})
    if not architecture.sharing:
        return
    assert [len(row) for row in architecture.sharing] == [space.num_tasks] * 2 * architecture.depth
    assert all(0 <= copy < space.num_copies for row in architecture.sharing for copy in row)
    if space.sharing == "binary":
        assert set(architecture.sharing) <= {(0,) * space.num_tasks, tuple(range(1, space.num_tasks + 1))}
    else:
        for row in architecture.sharing:
            seen = list(dict.fromkeys(row))
            assert seen == list(range(len(seen)))  # named by first appearance
    if space.sharing == "tree":
        for before, after in itertools.pairwise(architecture.sharing):
            assert all(any(group <= larger for larger in groups(before)) for group in groups(after))


def test_draws_follow_autoformers_sequence():
    space, rng = SearchSpace.preset("tiny"), Random(0)
    first = space.random(rng)
    assert (first.depth, first.embed_dim) == (13, 216)
    assert first.mlp_ratio == (4, 3.5, 4, 4, 4, 4, 4, 4, 3.5, 3.5, 4, 3.5, 3.5)
    assert first.num_heads == (4, 3, 4, 3, 3, 4, 4, 3, 4, 4, 4, 3, 4)
    assert space.random(rng).depth == 14


@pytest.mark.parametrize("sharing", KINDS)
def test_sharing_is_drawn_after_the_sizes(sharing):
    shared = SearchSpace.preset("tiny", num_tasks=3, sharing=sharing).random(Random(0))
    plain = SearchSpace.preset("tiny").random(Random(0))
    assert shared.to_dict() | {"sharing": []} == plain.to_dict()


@pytest.mark.parametrize("sharing", KINDS)
def test_decoders_are_drawn_after_everything_else(sharing):
    space, plain = toy(sharing, **DECODERS), toy(sharing)
    drawn = [(space.random(Random(seed)), plain.random(Random(seed))) for seed in range(300)]
    decoders = [one.decoder for one, _ in drawn]
    assert [one.to_dict() for _, one in drawn] == [
        {
            key: value
            for key, value in one.to_dict().items()
            if key not in ("num_queries", "num_scales", "decoder_width")
        }
        for one, _ in drawn
    ]
    assert set(decoders) == set(itertools.product(*DECODERS.values()))
    assert space.size() == 18 * plain.size()


@pytest.mark.parametrize(
    ("sharing", "following"),
    [("none", 0.6219331368609262), ("binary", 0.7665977011165321), ("grouped", 0.5827816955352305),
     ("tree", 0.4329268403494141)],
)  # fmt: skip
def test_without_choices_of_the_decoder_draws_are_as_before_there_were_any(sharing, following):
    space, rng = toy(sharing), Random(0)
    one = space.random(rng)
    for _ in range(200):
        other = space.mutate(one, rng)
        one = space.crossover(other, space.mutate(other, rng, size_prob=0.0), rng)
    assert rng.random() == following


@pytest.mark.parametrize(("name", "size"), [("tiny", 1.06e9), ("small", 7.71e13), ("base", 1.01e13)])
def test_presets_are_as_large_as_autoformers(name, size):
    assert SearchSpace.preset(name).size() == pytest.approx(size, rel=5e-3)
    assert SearchSpace.preset(name, 16, "binary").size() == SearchSpace.preset(name).size()


def test_a_small_space_counts_what_can_be_drawn():
    space = SearchSpace((8, 16), (1, 2), (2.0, 3.0), (1, 2))
    rng = Random(0)
    assert len({space.random(rng) for _ in range(2000)}) == space.size() == 2 * (4 + 16)


def test_weights_are_as_wide_as_autoformers():
    sizes = {name: SearchSpace.preset(name) for name in ("tiny", "small", "base")}
    assert [space.super_embed_dim for space in sizes.values()] == [256, 448, 640]
    assert [space.super_depth for space in sizes.values()] == [14, 14, 16]
    assert [space.super_heads for space in sizes.values()] == [4, 7, 10]
    assert {space.super_mlp_ratio for space in sizes.values()} == {4.0}
    assert {space.head_dim for space in sizes.values()} == {64}


@pytest.mark.parametrize(
    ("sharing", "num_tasks", "copies", "stored"),
    [("none", 4, 3, 1), ("binary", 4, 3, 5), ("grouped", 4, 3, 3), ("tree", 2, 3, 2), ("binary", 1, 3, 1)],
)
def test_copies_that_no_architecture_needs_are_not_stored(sharing, num_tasks, copies, stored):
    space = toy(sharing, num_tasks, copies)
    assert space.num_copies == stored
    rng = Random(0)
    used = {copy for _ in range(200) for row in space.random(rng).sharing or [(0,)] for copy in row}
    assert used == set(range(stored))


def test_an_architecture_is_what_its_json_says():
    architecture = Architecture.from_json(json.dumps(SMALL))
    assert architecture == Architecture(**SMALL)
    assert architecture in SearchSpace.preset("small")
    assert json.loads(architecture.to_json()) == SMALL | {"sharing": []}
    assert hash(Architecture(**SMALL | {"mlp_ratio": tuple(map(float, SMALL["mlp_ratio"]))})) == hash(architecture)


def test_json_holds_the_decoders_sizes_that_are_chosen():
    architecture = Architecture(**SMALL, num_queries=8, decoder_width=64)
    assert json.loads(architecture.to_json()) == SMALL | {"sharing": [], "num_queries": 8, "decoder_width": 64}
    assert Architecture.from_json(architecture.to_json()) == architecture != Architecture(**SMALL)
    assert architecture.decoder == (8, 0, 64)


def test_sharing_everything_is_the_same_as_no_genes():
    plain = Architecture(8, 2, (2, 2), (1, 1))
    assert Architecture(8, 2, (2, 2), (1, 1), [[0, 0, 0]] * 4) == plain
    split = Architecture(8, 2, (2, 2), (1, 1), [[0, 0, 0]] * 3 + [[1, 2, 3]])
    assert split != plain
    assert len({split, plain, Architecture.from_json(split.to_json())}) == 2


def test_interchangeable_copies_are_named_by_first_appearance():
    rows = ((2, 0, 2), (1, 1, 1), (0, 2, 1), (0, 0, 1))
    architecture = Architecture(8, 2, (2.0, 2.0), (1, 1), rows)
    space = toy("grouped", num_tasks=3)
    assert architecture not in space
    assert space.canonical(architecture).sharing == ((0, 1, 0), (0, 0, 0), (0, 1, 2), (0, 0, 1))
    assert space.canonical(architecture) in space
    own = Architecture(8, 2, (2.0, 2.0), (1, 1), ((1, 2, 3),) * 4)
    assert toy("binary", num_tasks=3).canonical(own) == own  # task t's own copy is no other task's


def test_a_space_knows_what_is_not_in_it():
    inside = {"embed_dim": 8, "depth": 2, "mlp_ratio": (2, 2), "num_heads": (1, 2)}
    split, merged = ((0, 0, 1),) * 4, ((0, 0, 1), (0, 1, 1), (0, 1, 1), (0, 1, 1))
    tree = toy("tree", num_tasks=3)
    assert Architecture(**inside) in tree
    assert Architecture(**inside, sharing=split) in tree
    assert Architecture(**inside, sharing=merged) not in tree
    assert Architecture(**inside, sharing=merged) in toy("grouped", num_tasks=3)
    assert Architecture(**inside, sharing=split) not in toy("binary", num_tasks=3)
    assert Architecture(**inside, sharing=split) not in toy("none", num_tasks=3)
    assert Architecture(**inside, sharing=split) not in toy("tree", num_tasks=4)
    assert Architecture(**inside, sharing=((0, 1, 2),) * 4) not in toy("tree", num_tasks=3, copies=2)
    for change in ({"embed_dim": 12}, {"mlp_ratio": (2, 3)}, {"num_heads": (1, 3)}):
        assert Architecture(**inside | change) not in tree
    assert "something else" not in tree
    chosen = {"num_queries": 8, "num_scales": 1, "decoder_width": 96}
    assert Architecture(**inside, **chosen) in toy("tree", num_tasks=3, **DECODERS)
    assert Architecture(**inside, **chosen) not in tree
    for change in ({"num_queries": 0}, {"num_scales": 2}, {"decoder_width": 128}):
        assert Architecture(**inside, **chosen | change) not in toy("tree", num_tasks=3, **DECODERS)


@pytest.mark.parametrize("sharing", KINDS)
def test_the_fixed_architectures_bound_the_others(sharing):
    space = toy(sharing, **DECODERS)
    smallest, median, largest = space.smallest(), space.median(), space.largest()
    assert (smallest.decoder, median.decoder, largest.decoder) == ((4, 1, 32), (8, 1, 64), (16, 4, 96))
    for architecture in (smallest, median, largest):
        check(space, architecture)
    assert (smallest.embed_dim, smallest.depth, largest.embed_dim, largest.depth) == (8, 2, 16, 5)
    assert smallest.sharing == ()
    assert median.depth == 3
    if sharing != "none":
        assert {len(groups(row)) for row in largest.sharing} == {5 if sharing == "binary" else 3}
        assert [len(groups(row)) > 1 for row in median.sharing] == [False] * 3 + [True] * 3


@pytest.mark.parametrize("sharing", KINDS[1:])
def test_the_probability_of_a_split_is_the_callers(sharing):
    space, rng = toy(sharing), Random(0)
    assert {space.random(rng, split=0.0).sharing for _ in range(50)} == {()}
    shares = []
    for split in (0.1, 0.5, 0.9):
        drawn = [space.random(rng, split) for _ in range(300)]
        rows = [row for one in drawn for row in one.sharing or [(0,) * 5] * 2 * one.depth]
        shares.append(sum(len(groups(row)) > 1 for row in rows) / len(rows))
    assert shares == sorted(shares)
    if sharing == "binary":
        assert shares == pytest.approx([0.1, 0.5, 0.9], abs=0.03)


@pytest.mark.parametrize("sharing", KINDS)
@pytest.mark.parametrize("decoders", [{}, DECODERS], ids=len)
def test_ten_thousand_operations_stay_in_the_space(sharing, decoders):
    space, rng = toy(sharing, **decoders), Random(1)
    population = [space.random(rng) for _ in range(30)]
    for _ in range(2500):
        first, second = rng.sample(population, 2)
        same = [other for other in population if other.depth == first.depth]
        for child in (space.mutate(first, rng), space.crossover(first, rng.choice(same), rng), space.random(rng)):
            check(space, child)
            assert Architecture.from_json(child.to_json()) == child
            assert space.canonical(child) == child
        population[rng.randrange(30)] = space.mutate(second, rng)
    assert len({one.depth for one in population}) == 3
    assert len({one.decoder for one in population}) > (5 if decoders else 0)


@given(
    sharing=st.sampled_from(KINDS),
    num_tasks=st.integers(1, 7),
    copies=st.integers(1, 5),
    seed=st.integers(0, 2**32),
    rates=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    chosen=st.sets(st.sampled_from(list(DECODERS))),
)
@settings(max_examples=300, deadline=None)
def test_any_space_is_closed_under_its_operations(sharing, num_tasks, copies, seed, rates, chosen):
    space, rng = toy(sharing, num_tasks, copies, **{name: DECODERS[name] for name in chosen}), Random(seed)
    one = space.random(rng)
    changed = space.mutate(one, rng, *rates)
    for child in (one, changed, space.crossover(changed, space.mutate(changed, rng, size_prob=0.0), rng)):
        check(space, child)


@pytest.mark.parametrize("sharing", KINDS)
def test_mutation_with_probability_zero_changes_nothing_and_one_changes_all(sharing):
    space, rng = toy(sharing, **DECODERS), Random(2)
    for _ in range(100):
        one = space.random(rng)
        assert space.mutate(one, rng, 0.0, 0.0) == one
    assert {space.mutate(one, rng, 0.0, 1.0).decoder for _ in range(300)} == set(space.decoders())
    if sharing == "binary":
        flipped = space.mutate(one, rng, 1.0, 0.0).sharing
        assert all((a == (0,) * 5) != (b == (0,) * 5) for a, b in zip(one.sharing, flipped, strict=True))


@pytest.mark.parametrize("sharing", KINDS)
def test_children_have_the_genes_of_their_parents(sharing):
    space, rng = toy(sharing, **DECODERS), Random(3)
    decoders = set()
    for _ in range(100):
        one = space.random(rng)
        assert space.crossover(one, one, rng) == one
        other = replace(space.mutate(one, rng, size_prob=0.0), num_queries=4, num_scales=1, decoder_width=32)
        one = replace(one, num_queries=8, num_scales=4, decoder_width=96)
        child = space.crossover(one, other, rng)
        assert all(gene in pair for gene, *pair in zip(child.num_heads, one.num_heads, other.num_heads, strict=True))
        decoders.add(child.decoder)
    assert decoders == set(itertools.product((4, 8), (1, 4), (32, 96)))


def test_every_tree_can_be_drawn():
    """Three tasks, four units, three copies: chains of ever finer partitions, counted by brute force."""
    space = SearchSpace((8,), (2,), (2.0,), (1,), num_tasks=3, sharing="tree", copies=3)
    partitions = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (0, 1, 2)]
    chains = {
        chain
        for chain in itertools.product(partitions, repeat=4)
        if all(any(g <= h for h in groups(a)) for a, b in itertools.pairwise(chain) for g in groups(b))
    }
    rng = Random(0)
    drawn = {space.random(rng).sharing or ((0, 0, 0),) * 4 for _ in range(5000)}
    assert drawn == chains


def test_networks_of_different_depth_are_not_crossed():
    space = toy()
    with pytest.raises(ConfigError, match="equal depth can be crossed, got 2 and 5"):
        space.crossover(space.smallest(), space.largest(), Random(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": [6]}, "depth 13 needs 13 values of mlp_ratio and of num_heads, got 13 and 1"),
        ({"embed_dim": 0}, "integers above 0"),
        ({"embed_dim": 1.5}, "integers above 0"),
        ({"mlp_ratio": [0.0] * 13}, "at least one hidden channel"),
        ({"mlp_ratio": "wide"}, "one mlp_ratio and num_heads per layer"),
        ({"sharing": [[0, 1]]}, "needs 26 rows"),
        ({"sharing": [[0, 1]] * 25 + [[0]]}, "one copy per task"),
        ({"sharing": [[0, -1]] * 26}, "0 or above"),
        ({"heads": 3}, "unknown key of an architecture 'heads'"),
        ({"num_querys": 3}, "unknown key of an architecture 'num_querys' .did you mean 'num_queries'"),
        ({"num_scales": -1}, r"integers, 0 or above, got \[0, -1, 0\]"),
        ({"decoder_width": 1.5}, "integers, 0 or above"),
    ],
)
def test_impossible_architectures_are_refused(change, message):
    with pytest.raises(ConfigError if "unknown" not in message else UnknownNameError, match=message):
        Architecture.from_dict(SMALL | change)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "not valid JSON"), ("[1]", "got list"), ('{"depth": 1}', "lacks embed_dim, mlp_ratio")]
)
def test_broken_json_is_named(text, message):
    with pytest.raises(ConfigError, match=message):
        Architecture.from_json(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embed_dims": ()}, "embed_dims needs one or more"),
        ({"depths": (2, 2)}, "different values above 0"),
        ({"super_heads": 1}, "super_heads must be at least the largest of num_heads, 2, got 1"),
        ({"num_tasks": 0}, "integers above 0"),
        ({"num_queries": (4, 0)}, "num_queries needs one or more different values above 0"),
        ({"sharing": "trees"}, "did you mean 'tree'"),
    ],
)
def test_contradicting_settings_are_refused(change, message):
    settings = {"embed_dims": (8,), "depths": (2,), "mlp_ratios": (2.0,), "num_heads": (1, 2)}
    with pytest.raises((ConfigError, UnknownNameError), match=message):
        SearchSpace(**settings | change)


def test_unknown_presets_are_named():
    with pytest.raises(UnknownNameError, match="did you mean 'small'"):
        SearchSpace.preset("smal")
