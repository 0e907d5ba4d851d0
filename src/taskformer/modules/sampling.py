"""Which sub-networks of a supernet train at a step: a function of (seed, step) alone, equal on all processes."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Literal

from taskformer.models.autotaskformer import Architecture, SearchSpace

SamplerName = Literal["uniform", "sandwich", "complexity_aware", "grow"]

#: Probability that tasks part once training has left the sharing warm-up behind.
SPLIT = 0.5
#: Draws among which ``complexity_aware`` chooses one.
CANDIDATES = 9
#: Share of training after which ``grow`` draws from the whole space.
GROWTH = 0.5


@dataclass(frozen=True)
class Draw:
    """What a sampler may depend on.

    Args:
        space: The search space.
        cost: Cost of an architecture.
        rng: Source of randomness of this step.
        step: Optimizer steps done.
        progress: Their share of all steps.
        split: Probability that tasks part.
    """

    space: SearchSpace
    cost: Callable[[Architecture], float]
    rng: Random
    step: int
    progress: float
    split: float


def sample(
    sampler: SamplerName,
    space: SearchSpace,
    cost: Callable[[Architecture], float],
    seed: int,
    step: int,
    progress: float,
    sharing_warmup: float,
) -> list[Architecture]:
    """Draw the sub-networks that train at a step; the first one may teach the others.

    Args:
        sampler: ``"uniform"``: one at random (AutoFormer). ``"sandwich"``: the largest, the smallest and one at
            random (BigNAS, Yu et al., ECCV 2020). ``"complexity_aware"``: one whose cost is near that of the step
            before (after ElasticViT, Tang et al., ICCV 2023). ``"grow"``: one of the smallest at first, larger ones
            join bit by bit (after GrowTAS, arXiv 2512.12296).
        space: The search space.
        cost: Cost of an architecture, for ``"complexity_aware"``.
        seed: The run's seed.
        step: Optimizer steps done.
        progress: Their share of all steps.
        sharing_warmup: Share of all steps in which tasks share everything.
    """
    split = split_probability(progress, sharing_warmup)
    return _SAMPLERS[sampler](Draw(space, cost, Random(f"{seed} {step}"), step, progress, split))


def split_probability(progress: float, warmup: float) -> float:
    """Return the probability that tasks part: 0 in the warm-up, then rising for as long as that took."""
    if progress < warmup:
        return 0.0
    return SPLIT * min((progress - warmup) / warmup, 1.0) if warmup else SPLIT


def _uniform(draw: Draw) -> list[Architecture]:
    return [draw.space.random(draw.rng, draw.split)]


def _sandwich(draw: Draw) -> list[Architecture]:
    largest = draw.space.largest()
    return [largest if draw.split else replace(largest, sharing=()), draw.space.smallest(), *_uniform(draw)]


def _complexity_aware(draw: Draw) -> list[Architecture]:
    """Choose among some draws by a rank that moves up and down by one per step, so that every rank gets its turn."""
    candidates = sorted((draw.space.random(draw.rng, draw.split) for _ in range(CANDIDATES)), key=draw.cost)
    turn = CANDIDATES - 1
    return [candidates[abs(draw.step % (2 * turn) - turn)]]


def _grow(draw: Draw) -> list[Architecture]:
    """Draw from a space whose larger choices are unlocked one after the other."""
    grown = min(draw.progress / GROWTH, 1.0)

    def unlocked(choices: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(sorted(choices)[: 1 + round(grown * (len(choices) - 1))])  # without choices: still none

    names = ("embed_dims", "depths", "mlp_ratios", "num_heads", "num_queries", "num_scales", "decoder_widths")
    sizes: dict[str, Any] = {name: unlocked(getattr(draw.space, name)) for name in names}
    young = replace(draw.space, **sizes)
    return [young.random(draw.rng, draw.split)]


_SAMPLERS: dict[SamplerName, Callable[[Draw], list[Architecture]]] = {
    "uniform": _uniform,
    "sandwich": _sandwich,
    "complexity_aware": _complexity_aware,
    "grow": _grow,
}
