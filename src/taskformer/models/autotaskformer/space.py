"""The search space: all architectures that a supernet holds, and how they are drawn, changed and mixed.

Sizes and the order of random draws are AutoFormer's (Chen et al., ICCV 2021, arXiv 2107.00651). What tasks share
(AutoTaskFormer, Liu et al., arXiv 2304.08756) follows the text of that paper, whose search space is not published.
"""

from dataclasses import dataclass, replace
from itertools import product
from random import Random
from typing import Any, Literal, Self, get_args

from taskformer.errors import ConfigError, UnknownNameError
from taskformer.models.autotaskformer.architecture import Architecture, DecoderSize, is_count
from taskformer.models.autotaskformer.sharing import KINDS, Rows, Sharing

SharingKind = Literal["none", "binary", "grouped", "tree"]
PresetName = Literal["tiny", "small", "base"]

#: AutoFormer's supernets: choices, then the size of the weights, which may exceed the largest choice.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "embed_dims": (192, 216, 240),
        "depths": (12, 13, 14),
        "mlp_ratios": (3.5, 4.0),
        "num_heads": (3, 4),
        "super_embed_dim": 256,
    },
    "small": {
        "embed_dims": (320, 384, 448),
        "depths": (12, 13, 14),
        "mlp_ratios": (3.0, 3.5, 4.0),
        "num_heads": (5, 6, 7),
    },
    "base": {
        "embed_dims": (528, 576, 624),
        "depths": (14, 15, 16),
        "mlp_ratios": (3.0, 3.5, 4.0),
        "num_heads": (9, 10),
        "super_embed_dim": 640,
    },
}


@dataclass(frozen=True)
class SearchSpace:
    """All architectures of a supernet.

    >>> from random import Random
    >>> space = SearchSpace((8, 16), (1, 2), (2.0, 3.0), (1, 2), num_tasks=2, sharing="binary")
    >>> space.size(), space.largest().sharing  # 40 choices of sizes; nothing is shared in the largest network
    (40, ((1, 2), (1, 2), (1, 2), (1, 2)))
    >>> space.random(Random(0)) in space
    True

    Args:
        embed_dims: Choices of the width.
        depths: Choices of the number of layers.
        mlp_ratios: Choices of each layer's MLP ratio.
        num_heads: Choices of each layer's attention heads.
        super_embed_dim: Width of the weights; 0: the largest choice.
        super_depth: Layers of the weights; 0: the largest choice.
        super_heads: Heads of the weights; 0: the largest choice.
        super_mlp_ratio: MLP ratio of the weights; 0: the largest choice.
        head_dim: Channels of one attention head.
        num_tasks: Tasks of the supernet.
        sharing: What tasks may share in each unit (attention or MLP of a layer). ``"none"``: there is nothing to
            choose, all is shared. ``"binary"``: a unit is shared by all or every task has its own. ``"grouped"``: any
            task uses any of ``copies``. ``"tree"``: as grouped, but tasks that parted never meet again.
        copies: Stored copies of each unit for ``"grouped"`` and ``"tree"``; more copies than tasks are of no use.
        num_queries: Choices of the query decoder's queries per task; empty: there is nothing to choose; so for the
            next two.
        num_scales: Choices of its scales, the taps of the transformer that it reads.
        decoder_widths: Choices of its width.

    Raises:
        ConfigError: If settings contradict each other.
    """

    embed_dims: tuple[int, ...]
    depths: tuple[int, ...]
    mlp_ratios: tuple[float, ...]
    num_heads: tuple[int, ...]
    super_embed_dim: int = 0
    super_depth: int = 0
    super_heads: int = 0
    super_mlp_ratio: float = 0.0
    head_dim: int = 64
    num_tasks: int = 1
    sharing: SharingKind = "none"
    copies: int = 4
    num_queries: tuple[int, ...] = ()
    num_scales: tuple[int, ...] = ()
    decoder_widths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for choices, largest in {
            "embed_dims": "super_embed_dim",
            "depths": "super_depth",
            "num_heads": "super_heads",
            "mlp_ratios": "super_mlp_ratio",
        }.items():
            self._set_choices(choices)
            self._set_size(choices, largest)
        for choices in ("num_queries", "num_scales", "decoder_widths"):
            if getattr(self, choices):
                self._set_choices(choices)
        if self.sharing not in get_args(SharingKind):
            kind = "kind of sharing"
            raise UnknownNameError(kind, self.sharing, get_args(SharingKind))
        if not all(is_count(value) for value in (self.head_dim, self.num_tasks, self.copies)):
            msg = (
                f"head_dim, num_tasks and copies are integers above 0, "
                f"got {self.head_dim}, {self.num_tasks} and {self.copies}"
            )
            raise ConfigError(msg)

    def _set_choices(self, choices: str) -> None:
        """Check the choices of one size."""
        values = tuple(getattr(self, choices))
        if not values or min(values) <= 0 or len(set(values)) < len(values):
            msg = f"{choices} needs one or more different values above 0, got {list(values)}"
            raise ConfigError(msg)
        object.__setattr__(self, choices, values)

    def _set_size(self, choices: str, largest: str) -> None:
        """Check and fill in the size of the weights."""
        needed = max(getattr(self, choices))
        size = getattr(self, largest) or needed
        if size < needed:
            msg = f"{largest} must be at least the largest of {choices}, {needed}, got {size}"
            raise ConfigError(msg)
        object.__setattr__(self, largest, size)

    @classmethod
    def preset(cls, name: PresetName, num_tasks: int = 1, sharing: SharingKind = "none", copies: int = 4) -> Self:
        """Build one of AutoFormer's spaces.

        Args:
            name: ``"tiny"``, ``"small"`` or ``"base"``.
            num_tasks: Tasks of the supernet.
            sharing: What tasks may share.
            copies: Stored copies for ``"grouped"`` and ``"tree"``.

        Raises:
            UnknownNameError: If there is no such space.
        """
        if name not in PRESETS:
            kind = "search space"
            raise UnknownNameError(kind, name, PRESETS)
        return cls(**PRESETS[name], num_tasks=num_tasks, sharing=sharing, copies=copies)

    @property
    def num_copies(self) -> int:
        """Copies of every unit that a supernet stores."""
        if self.sharing == "none" or self.num_tasks == 1:
            return 1
        return 1 + self.num_tasks if self.sharing == "binary" else min(self.copies, self.num_tasks)

    def size(self) -> int:
        """Count the architectures, sharing left aside."""
        layers = len(self.mlp_ratios) * len(self.num_heads)
        transformers = len(self.embed_dims) * sum(int(layers**depth) for depth in self.depths)
        return transformers * len(self.decoders())

    def decoders(self) -> list[DecoderSize]:
        """List the sizes that the query decoder may have."""
        return [DecoderSize(*sizes) for sizes in product(*(choices or (0,) for choices in self._decoder_choices))]

    def random(self, rng: Random, split: float = 0.5) -> Architecture:
        """Draw an architecture uniformly, in AutoFormer's order: depth, MLP ratios, heads, width; then the rest.

        Args:
            rng: Source of randomness.
            split: Probability that tasks part: of each unit, in a tree of each task.
        """
        depth = rng.choice(self.depths)
        mlp_ratio = tuple(rng.choice(self.mlp_ratios) for _ in range(depth))
        num_heads = tuple(rng.choice(self.num_heads) for _ in range(depth))
        embed_dim = rng.choice(self.embed_dims)
        kind = self._kind()
        sharing = kind.random(2 * depth, rng, split) if kind else ()
        decoder = [rng.choice(choices) if choices else 0 for choices in self._decoder_choices]
        return Architecture(embed_dim, depth, mlp_ratio, num_heads, sharing, *decoder)

    def mutate(
        self, architecture: Architecture, rng: Random, gene_prob: float = 0.2, size_prob: float = 0.4
    ) -> Architecture:
        """Change an architecture at random (AutoFormer's mutation; layers beyond a smaller depth are dropped).

        Args:
            architecture: One of this space.
            rng: Source of randomness.
            gene_prob: Probability of each layer's ratio and heads, and of each sharing gene, to be drawn anew.
            size_prob: Probability of depth, of width and of each of the decoder's sizes to be drawn anew.
        """
        depth = rng.choice(self.depths) if rng.random() < size_prob else architecture.depth

        def layers(genes: tuple[Any, ...], choices: tuple[Any, ...]) -> tuple[Any, ...]:
            kept = genes[:depth] + (None,) * (depth - len(genes))
            return tuple(rng.choice(choices) if gene is None or rng.random() < gene_prob else gene for gene in kept)

        mlp_ratio = layers(architecture.mlp_ratio, self.mlp_ratios)
        num_heads = layers(architecture.num_heads, self.num_heads)
        embed_dim = rng.choice(self.embed_dims) if rng.random() < size_prob else architecture.embed_dim
        sharing: Rows = ()
        kind = self._kind()
        if kind:
            kept = kind.mutate(architecture.rows(self.num_tasks)[: 2 * depth], rng, gene_prob)
            sharing = kind.grow(kept, 2 * depth, rng)
        decoder = [
            rng.choice(choices) if choices and rng.random() < size_prob else gene
            for gene, choices in zip(architecture.decoder, self._decoder_choices, strict=True)
        ]
        return Architecture(embed_dim, depth, mlp_ratio, num_heads, sharing, *decoder)

    def crossover(self, first: Architecture, second: Architecture, rng: Random) -> Architecture:
        """Take each gene from either of two architectures of equal depth.

        Raises:
            ConfigError: If the depths differ.
        """
        if first.depth != second.depth:
            msg = f"only architectures of equal depth can be crossed, got {first.depth} and {second.depth}"
            raise ConfigError(msg)
        mlp_ratio = tuple(map(rng.choice, zip(first.mlp_ratio, second.mlp_ratio, strict=True)))
        num_heads = tuple(map(rng.choice, zip(first.num_heads, second.num_heads, strict=True)))
        embed_dim = rng.choice((first.embed_dim, second.embed_dim))
        kind = self._kind()
        sharing = kind.crossover(first.rows(self.num_tasks), second.rows(self.num_tasks), rng) if kind else ()
        pairs = zip(first.decoder, second.decoder, self._decoder_choices, strict=True)
        decoder = [rng.choice((one, other)) if choices else 0 for one, other, choices in pairs]
        return Architecture(embed_dim, first.depth, mlp_ratio, num_heads, sharing, *decoder)

    def smallest(self) -> Architecture:
        """Return the architecture of the least cost: the smallest sizes, everything shared."""
        return self._uniform(0.0, shared=1.0)

    def median(self) -> Architecture:
        """Return an architecture in the middle: middle sizes, the first half of the units shared."""
        return self._uniform(0.5, shared=0.5)

    def largest(self) -> Architecture:
        """Return the architecture of the highest cost: the largest sizes, nothing shared that need not be."""
        return self._uniform(1.0, shared=0.0)

    def canonical(self, architecture: Architecture) -> Architecture:
        """Rename interchangeable copies, so that equal sharing gets equal, and equally hashed, architectures."""
        kind = self._kind()
        return replace(architecture, sharing=kind.canonical(architecture.sharing)) if kind else architecture

    def __contains__(self, architecture: object) -> bool:
        return (
            isinstance(architecture, Architecture)
            and architecture.embed_dim in self.embed_dims
            and architecture.depth in self.depths
            and set(architecture.mlp_ratio) <= set(self.mlp_ratios)
            and set(architecture.num_heads) <= set(self.num_heads)
            and architecture.decoder in self.decoders()
            and self._contains_sharing(architecture)
        )

    def _contains_sharing(self, architecture: Architecture) -> bool:
        if not architecture.sharing:
            return True
        kind = self._kind()
        return (
            kind is not None
            and len(architecture.sharing[0]) == self.num_tasks
            and kind.contains(architecture.sharing)
            and self.canonical(architecture) == architecture
        )

    @property
    def _decoder_choices(self) -> tuple[tuple[int, ...], ...]:
        """The choices of each of the decoder's sizes."""
        return self.num_queries, self.num_scales, self.decoder_widths

    def _kind(self) -> Sharing | None:
        """Return what draws and changes sharing genes, None where there is nothing to choose."""
        return KINDS[self.sharing](self.num_tasks, self.num_copies) if self.num_copies > 1 else None

    def _uniform(self, quantile: float, shared: float) -> Architecture:
        """Build the architecture whose every size is at a quantile of its choices; later units are split."""

        def pick(choices: tuple[Any, ...]) -> Any:
            return sorted(choices)[round(quantile * (len(choices) - 1))]

        depth = pick(self.depths)
        kind = self._kind()
        units = round(shared * 2 * depth)
        sharing = (kind.shared,) * units + (kind.split,) * (2 * depth - units) if kind else ()
        return Architecture(
            pick(self.embed_dims),
            depth,
            (pick(self.mlp_ratios),) * depth,
            (pick(self.num_heads),) * depth,
            sharing,
            *(pick(choices) if choices else 0 for choices in self._decoder_choices),
        )
