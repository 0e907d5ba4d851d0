"""What a tracker is: a logger's other half, which keeps more of a run than numbers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lightning.pytorch.loggers import Logger

if TYPE_CHECKING:
    from taskformer.evaluation.gallery import DrawnSample

#: Facts that artifacts have none of unless they are given.
NOTHING: Mapping[str, Any] = {}
_KINDS: dict[type[Logger], type["Tracker"]] = {}
Kind = TypeVar("Kind", bound=type["Tracker"])


class Tracker(ABC):
    """Keep configuration, pictures, tables and files where a logger keeps its numbers.

    Only the first process may use one. Keys are names like those of logged values, ``"val/depth/rmse"``; steps are
    optimizer steps. A subclass is found by its logger, see :func:`tracks`.

    >>> from lightning.pytorch.loggers import CSVLogger
    >>> trackers([CSVLogger(".")])  # knows nothing but numbers
    []

    Args:
        logger: The logger.
    """

    def __init__(self, logger: Logger) -> None:
        self.logger: Any = logger

    @property
    def identity(self) -> dict[str, str]:
        """What finds the run again, for ``tracking.json``; empty where it follows from the run folder."""
        return {}

    @abstractmethod
    def describe(self, config: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Keep what the run is.

        Args:
            config: Plain values by the command line's dotted names, e.g. ``{"model.init_args.embed_dim": 32}``.
            facts: What is no setting, e.g. ``{"git": "1f3a...", "parameters": 4_500_000}``.
        """

    @abstractmethod
    def define(self, senses: Mapping[str, str]) -> None:
        """Say which values are better, ``{"val/depth/rmse": "lower"}``, so that a run's best value sums it up."""

    @abstractmethod
    def gallery(self, key: str, samples: Sequence["DrawnSample"], epoch: int) -> None:
        """Keep drawn images; those of the same key make one gallery over the epochs."""

    @abstractmethod
    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Keep a table, whose cells may be pictures ``(H, W, 3)`` uint8; a later one of the same key replaces it."""

    @abstractmethod
    def picture(self, key: str, path: Path, step: int | None = None) -> None:
        """Keep a picture file."""

    @abstractmethod
    def values(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Keep numbers; without a step they belong to the run as a whole."""

    @abstractmethod
    def artifact(self, path: Path, name: str, kind: str, metadata: Mapping[str, Any] = NOTHING) -> None:
        """Keep a file or folder.

        Args:
            path: The file or folder.
            name: What it is called, e.g. ``"demo-best"``.
            kind: What it is, e.g. ``"model"``.
            metadata: What to know of it, e.g. its scores.
        """


def tracks(kind: type[Logger]) -> Callable[[Kind], Kind]:
    """Register a class as the tracker of a kind of logger."""

    def register(tracker: Kind) -> Kind:
        _KINDS[kind] = tracker
        return tracker

    return register


def trackers(loggers: Iterable[Logger]) -> list[Tracker]:
    """Return a tracker for each logger of a kind that has one; others are left alone."""
    found = []
    for logger in loggers:
        kind = next((kind for kind in type(logger).__mro__ if kind in _KINDS), None)
        if kind:
            found.append(_KINDS[kind](logger))
    return found
