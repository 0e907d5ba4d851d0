"""Groups of AutoTaskFormer's settings, and where settings of older versions went.

Each group is one dataclass: its fields are settings on the command line (``--model.space.preset tiny``), in YAML and,
as plain dictionaries, in checkpoints.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from taskformer.errors import ConfigError, require
from taskformer.models.autotaskformer import SearchSpace
from taskformer.models.autotaskformer.space import SharingKind
from taskformer.models.autotaskformer.vit import VitShape
from taskformer.modules.sampling import SamplerName

Group = TypeVar("Group")

#: Settings from before there were groups, and their places today.
MOVED = {
    "space": "space.preset",
    "embed_dims": "space.embed_dims",
    "depths": "space.depths",
    "mlp_ratios": "space.mlp_ratios",
    "num_heads": "space.num_heads",
    "head_dim": "space.head_dim",
    "sharing": "space.sharing",
    "copies": "space.copies",
    "num_queries": "space.num_queries",
    "num_scales": "space.num_scales",
    "decoder_widths": "space.decoder_widths",
    "head": "head.kind",
    "head_width": "head.width",
    "sampler": "sampling.sampler",
    "distill": "sampling.distill",
    "sharing_warmup": "sampling.sharing_warmup",
}


@dataclass(frozen=True)
class Space:
    """What can be chosen after training: the sizes of sub-networks, and what their tasks share.

    >>> Space(sharing="tree").build(num_tasks=3).embed_dims  # AutoFormer-T's
    (192, 216, 240)

    Args:
        preset: AutoFormer's ``"tiny"``, ``"small"`` or ``"base"``; ``"custom"``, made of the four lists below; or
            ``"vit"``: up to the sizes of a plain vision transformer, from whose weights the supernet may start.
        embed_dims: Choices of the width. Of a ``"vit"``, the largest is its own; None: also 3/4 and 7/8 of it; so for
            the next three.
        depths: Choices of the number of layers. Of a ``"vit"``: its own, 3/4 and 7/8 of it.
        mlp_ratios: Choices of each layer's MLP ratio. Of a ``"vit"``: its own, 1/2 and 3/4 of it.
        num_heads: Choices of each layer's attention heads. Of a ``"vit"``: its own, 1/2 and 3/4 of it.
        head_dim: Channels of one attention head; a ``"vit"`` has its own.
        sharing: What tasks may share in each layer's attention and MLP: everything (``"none"``), all tasks or none
            (``"binary"``), any of ``copies`` (``"grouped"``), or the same where tasks that parted never meet again
            (``"tree"``).
        copies: Stored copies of every unit for ``"grouped"`` and ``"tree"``.
        num_queries: Choices of the query head's queries per task; None: nothing to choose; so for the next two.
        num_scales: Choices of its scales: how many of the transformer's taps it reads, from the last one on.
        decoder_widths: Choices of its width, multiples of an attention head's channels: of a fourth of the largest.
        vit: timm's name of the transformer of the preset ``"vit"``, e.g. ``"deit_tiny_patch16_224"``.
    """

    preset: Literal["tiny", "small", "base", "vit", "custom"] = "tiny"
    embed_dims: list[int] | None = None
    depths: list[int] | None = None
    mlp_ratios: list[float] | None = None
    num_heads: list[int] | None = None
    head_dim: int = 64
    sharing: SharingKind = "binary"
    copies: int = 4
    num_queries: list[int] | None = None
    num_scales: list[int] | None = None
    decoder_widths: list[int] | None = None
    vit: str | None = None

    def __post_init__(self) -> None:
        if (self.preset == "vit") != (self.vit is not None):
            msg = (
                f"space.vit, timm's name of a plain ViT, goes with space.preset='vit', "
                f"got space.vit={self.vit!r} and space.preset={self.preset!r}"
            )
            raise ConfigError(msg)

    def within(self, shape: VitShape) -> "Space":
        """Return the custom space that the preset ``"vit"`` is for a transformer of some sizes.

        >>> from taskformer.models.autotaskformer.layers import Variant
        >>> tiny = VitShape(192, 12, num_heads=3, head_dim=64, hidden=768, patch_size=16, variant=Variant())
        >>> space = Space("vit", vit="deit_tiny_patch16_224").within(tiny)
        >>> space.embed_dims, space.depths, space.mlp_ratios, space.num_heads
        ([144, 168, 192], [9, 11, 12], [2.0, 3.0, 4.0], [2, 3])

        Raises:
            ConfigError: If a choice is larger than the transformer, or none is as large.
        """
        most = (shape.embed_dim, shape.depth, shape.mlp_ratio, shape.num_heads)
        below: tuple[list[Any], ...] = (
            [shape.embed_dim * part // 64 * 8 for part in (6, 7)],  # of 8 channels, which processors like
            [math.ceil(shape.depth * part / 8) for part in (6, 7)],
            [shape.mlp_ratio * part / 4 for part in (2, 3)],
            [math.ceil(shape.num_heads * part / 4) for part in (2, 3)],
        )
        choices: dict[str, Any] = {}
        for name, largest, smaller in zip(
            ("embed_dims", "depths", "mlp_ratios", "num_heads"), most, below, strict=True
        ):
            chosen = getattr(self, name)
            choices[name] = sorted({*smaller, largest}) if chosen is None else chosen
            if max(choices[name]) != largest:
                msg = f"the largest of space.{name} must be that of {self.vit!r}, {largest:g}, got {choices[name]}"
                raise ConfigError(msg)
        return replace(self, preset="custom", vit=None, head_dim=shape.head_dim, **choices)

    def build(self, num_tasks: int) -> SearchSpace:
        """Build the search space for a number of tasks.

        Raises:
            ConfigError: If settings contradict each other.
        """
        sizes = self._given("embed_dims", "depths", "mlp_ratios", "num_heads")
        decoder = self._given("num_queries", "num_scales", "decoder_widths")
        sharing: dict[str, Any] = {"num_tasks": num_tasks, "sharing": self.sharing, "copies": self.copies}
        if self.preset == "vit":
            msg = f"the space's sizes are those of {self.vit!r}: build the space that they give, Space.within(shape)"
            raise ConfigError(msg)
        if self.preset != "custom":
            if sizes:
                names = ", ".join(sizes)
                msg = f"the space {self.preset!r} has its own {names}; set space.preset to 'custom' to choose them"
                raise ConfigError(msg)
            return replace(SearchSpace.preset(self.preset, **sharing), head_dim=self.head_dim, **decoder)
        if len(sizes) < 4:
            missing = [name for name in ("embed_dims", "depths", "mlp_ratios", "num_heads") if name not in sizes]
            msg = f"the custom space needs {', '.join(f'space.{name}' for name in missing)}"
            raise ConfigError(msg)
        return SearchSpace(**sizes, head_dim=self.head_dim, **sharing, **decoder)

    def _given(self, *names: str) -> dict[str, Any]:
        """Return those choices that the user made."""
        return {name: tuple(getattr(self, name)) for name in names if getattr(self, name) is not None}


@dataclass(frozen=True)
class Head:
    """What turns tokens into maps.

    Args:
        kind: One 1x1 convolution (``"linear"``), AdaShare's (``"aspp"``), SETR's (``"pup"``) or DPT's decoder, one per
            task, or MQTransformer's (``"query"``), in which tasks exchange.
        width: Channels inside; None: the kind's own default, or the largest of ``space.decoder_widths``. ``"linear"``
            has none.
    """

    kind: Literal["linear", "aspp", "pup", "dpt", "query"] = "linear"
    width: int | None = None

    def __post_init__(self) -> None:
        require("[1, inf)", **{"head.width": self.width})


@dataclass(frozen=True)
class Sampling:
    """Which sub-networks train, and from what they learn.

    Args:
        sampler: ``"uniform"``, ``"sandwich"``, ``"complexity_aware"`` or ``"grow"``, see
            :func:`taskformer.modules.sampling.sample`.
        distill: Sandwich only: share of the largest network's outputs, against the labels, in what the others learn.
        sharing_warmup: Share of the training in which tasks share everything; then all copies start from the shared
            one, and the probability that tasks part rises to a half.
        divide: Sandwich only: give each of the three a third of the batch, so that a step computes no more than with
            one sub-network. On images of their own none can teach the others: ``distill`` must be 0.
        sandwich_from: Sandwich only: share of the training in which one random sub-network trains alone at each step;
            the sandwich, which costs a few times as much, comes after it.
    """

    sampler: SamplerName = "uniform"
    distill: float = 0.5
    sharing_warmup: float = 0.2
    divide: bool = False
    sandwich_from: float = 0.0

    def __post_init__(self) -> None:
        shares = ("distill", "sandwich_from", "sharing_warmup")
        require("[0, 1]", **{f"sampling.{name}": getattr(self, name) for name in shares})
        if self.sampler != "sandwich" and (self.divide or self.sandwich_from):
            msg = f"sampling.divide and sampling.sandwich_from are the sandwich's, got the sampler {self.sampler!r}"
            raise ConfigError(msg)
        if self.divide and self.distill:
            msg = (
                "with sampling.divide every sub-network sees images of its own, so that none can teach another: "
                f"set sampling.distill to 0, got {self.distill}"
            )
            raise ConfigError(msg)


def regrouped(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Put settings of versions without groups, of a checkpoint or a run's ``config.yaml``, into their groups.

    Settings of today stay as they are.

    >>> regrouped({"space": "custom", "depths": [2, 3], "patch_size": 16})
    {'patch_size': 16, 'space': {'preset': 'custom', 'depths': [2, 3]}}
    """
    old = {key for key in MOVED.keys() & settings.keys() if not isinstance(settings[key], Mapping)}
    new = {key: value for key, value in settings.items() if key not in old}
    for key, place in MOVED.items():
        if key in old:
            group, name = place.split(".")
            new[group] = {**new.get(group, {}), name: settings[key]}
    return new
