"""One architecture: the sizes of a sub-network, and which tasks share each unit of it.

A *unit* is the attention or the MLP of one layer, with its norm: unit 2l is the attention of layer l, unit 2l + 1 its
MLP. A *row* holds, for one unit, the id of the stored copy of its weights that each task uses; copy 0 is the one that
all tasks may share.
"""

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

from taskformer.errors import ConfigError, UnknownNameError
from taskformer.models.autotaskformer.sharing import Rows


class DecoderSize(NamedTuple):
    """Sizes of the query decoder; 0: all that its weights hold.

    Attributes:
        num_queries: Queries per task, the first ones.
        num_scales: Scales: taps of the transformer that it reads, the last ones.
        width: Channels of its tokens and queries, the first ones: whole attention heads.
    """

    num_queries: int = 0
    num_scales: int = 0
    width: int = 0


FULL = DecoderSize()


@dataclass(frozen=True)
class Architecture:
    """One sub-network of a supernet; hashable, and equal if and only if the sub-networks are.

    >>> architecture = Architecture(embed_dim=192, depth=2, mlp_ratio=(3.5, 4.0), num_heads=(3, 4))
    >>> architecture.unit_widths
    (3, 672, 4, 768)
    >>> architecture.rows(num_tasks=2)  # nothing is said about sharing: two tasks share all four units
    ((0, 0), (0, 0), (0, 0), (0, 0))
    >>> Architecture.from_json(architecture.to_json()) == architecture
    True

    Args:
        embed_dim: Width of the tokens.
        depth: Number of layers.
        mlp_ratio: Hidden width of each layer's MLP over ``embed_dim``.
        num_heads: Attention heads of each layer.
        sharing: The row of each unit. Empty: all tasks share everything; rows of zeros become empty.
        num_queries: Queries per task of the query decoder; 0: all that it has; so for the next two.
        num_scales: Its scales: taps of the transformer that it reads.
        decoder_width: Its width.

    Raises:
        ConfigError: If lengths or values do not fit.
    """

    embed_dim: int
    depth: int
    mlp_ratio: tuple[float, ...]
    num_heads: tuple[int, ...]
    sharing: Rows = ()
    num_queries: int = 0
    num_scales: int = 0
    decoder_width: int = 0

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "mlp_ratio", tuple(float(ratio) for ratio in self.mlp_ratio))
            object.__setattr__(self, "num_heads", tuple(self.num_heads))
            object.__setattr__(self, "sharing", tuple(tuple(row) for row in self.sharing))
        except (TypeError, ValueError) as error:
            msg = f"an architecture has one mlp_ratio and num_heads per layer and one row per unit: {error}"
            raise ConfigError(msg) from error
        self._check_layers()
        self._check_sharing()
        self._check_decoder()
        if not any(copy for row in self.sharing for copy in row):
            object.__setattr__(self, "sharing", ())

    def _check_layers(self) -> None:
        if not len(self.mlp_ratio) == len(self.num_heads) == self.depth:
            msg = (
                f"an architecture of depth {self.depth} needs {self.depth} values of mlp_ratio and of num_heads, "
                f"got {len(self.mlp_ratio)} and {len(self.num_heads)}"
            )
            raise ConfigError(msg)
        if not all(is_count(value) for value in (self.embed_dim, self.depth, *self.num_heads)):
            msg = (
                f"embed_dim, depth and num_heads are integers above 0, "
                f"got {self.embed_dim}, {self.depth} and {list(self.num_heads)}"
            )
            raise ConfigError(msg)
        if not all(width >= 1 for width in self.hidden_widths):
            msg = f"every mlp_ratio must leave at least one hidden channel, got {list(self.mlp_ratio)}"
            raise ConfigError(msg)

    def _check_sharing(self) -> None:
        if self.sharing and len(self.sharing) != 2 * self.depth:
            msg = f"sharing of depth {self.depth} needs {2 * self.depth} rows (or none), got {len(self.sharing)}"
            raise ConfigError(msg)
        if len({len(row) for row in self.sharing}) > 1:
            msg = f"every row of sharing names one copy per task, got rows of {[len(row) for row in self.sharing]}"
            raise ConfigError(msg)
        if not all(copy == 0 or is_count(copy) for row in self.sharing for copy in row):
            msg = f"sharing holds ids of copies, 0 or above, got {[list(row) for row in self.sharing]}"
            raise ConfigError(msg)

    def _check_decoder(self) -> None:
        if not all(value == 0 or is_count(value) for value in self.decoder):
            msg = f"num_queries, num_scales and decoder_width are integers, 0 or above, got {list(self.decoder)}"
            raise ConfigError(msg)

    def rows(self, num_tasks: int) -> Rows:
        """Return one row per unit, also where everything is shared."""
        return self.sharing or ((0,) * num_tasks,) * (2 * self.depth)

    @property
    def hidden_widths(self) -> tuple[int, ...]:
        """Width of the hidden layer of each layer's MLP."""
        return tuple(int(self.embed_dim * ratio) for ratio in self.mlp_ratio)

    @property
    def unit_widths(self) -> tuple[int, ...]:
        """What each unit is cut to: the heads of an attention, the hidden channels of an MLP."""
        return tuple(width for layer in zip(self.num_heads, self.hidden_widths, strict=True) for width in layer)

    @property
    def decoder(self) -> DecoderSize:
        """The sizes of the query decoder."""
        return DecoderSize(self.num_queries, self.num_scales, self.decoder_width)

    def to_dict(self) -> dict[str, Any]:
        """Describe the architecture in plain types; sizes that are the decoder's own are left out."""
        decoder = {name: getattr(self, name) for name in ("num_queries", "num_scales", "decoder_width")}
        return {
            "embed_dim": self.embed_dim,
            "depth": self.depth,
            "mlp_ratio": list(self.mlp_ratio),
            "num_heads": list(self.num_heads),
            "sharing": [list(row) for row in self.sharing],
            **{name: value for name, value in decoder.items() if value},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build an architecture from :meth:`to_dict`; ``sharing`` and the decoder's sizes may be left out.

        Raises:
            ConfigError: If a key is missing, unknown or does not fit.
        """
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                kind = "key of an architecture"
                raise UnknownNameError(kind, key, known)
        missing = [field.name for field in fields(cls) if field.default is MISSING and field.name not in values]
        if missing:
            msg = f"the architecture lacks {', '.join(missing)}"
            raise ConfigError(msg)
        return cls(**values)

    def to_json(self) -> str:
        """Describe the architecture as one line of JSON."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Build an architecture from :meth:`to_json`.

        Raises:
            ConfigError: If the text is not a JSON object or does not fit.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            msg = f"the architecture is not valid JSON: {error}"
            raise ConfigError(msg) from error
        if not isinstance(values, dict):
            msg = f"an architecture is a JSON object with embed_dim, depth, ..., got {type(values).__name__}"
            raise ConfigError(msg)
        return cls.from_dict(values)

    @classmethod
    def read(cls, source: str, num_tasks: int) -> Self:
        """Read an architecture from a JSON file, or from JSON text, for a supernet of some tasks.

        Args:
            source: The file, or the text.
            num_tasks: Tasks of the supernet. A single one, which serves as the reference of several, has no other
                to share with: what the source says about sharing is left out.

        Raises:
            ConfigError: If the file cannot be read or does not fit.
        """
        text = source
        try:
            if not source.lstrip().startswith("{"):
                text = Path(source).read_text(encoding="utf-8")
        except OSError as error:
            msg = (
                f"cannot read the architecture {source!r}: {error.strerror}; "
                "give a JSON file with embed_dim, depth, ..."
            )
            raise ConfigError(msg) from error
        architecture = cls.from_json(text)
        return architecture if num_tasks > 1 else replace(architecture, sharing=())


def is_count(value: object) -> bool:
    """Tell whether a value is an integer above 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
