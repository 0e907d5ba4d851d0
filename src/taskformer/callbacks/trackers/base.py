"""What a tracker is: a logger's other half, which keeps more of a run than numbers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

from lightning.pytorch.loggers import Logger

from taskformer.evaluation.gallery import DrawnSample

#: Facts that artifacts have none of unless they are given.
NOTHING: Mapping[str, Any] = {}
_KINDS: dict[type[Logger], type["Tracker"]] = {}
Kind = TypeVar("Kind", bound=type["Tracker"])


class Names(NamedTuple):
    """What a run is called where nobody says otherwise.

    Attributes:
        name: Name of the run.
        group: What runs that differ in their seed alone have in common: model and data.
        command: The command that begins the run, e.g. ``"fit"``.
        tags: Words to find it by.
    """

    name: str
    group: str
    command: str
    tags: list[str]


class Tracker(ABC):
    """Keep configuration, pictures, tables and files where a logger keeps its numbers.

    Only the first process may use one. Keys are names like those of logged values, ``"val/depth/rmse"``; steps are
    optimizer steps. A subclass is found by its logger, see :func:`tracks`.

    >>> from lightning.pytorch.loggers import CSVLogger
    >>> trackers([CSVLogger(".")])  # knows nothing but numbers
    []

    Args:
        logger: The logger.

    Attributes:
        kind: Its entry in ``tracking.json``, e.g. ``"wandb"``.
    """

    kind: ClassVar[str]

    def __init__(self, logger: Logger) -> None:
        self.logger: Any = logger

    @classmethod
    def arguments(cls, names: Names, known: Mapping[str, str]) -> dict[str, Any]:  # noqa: ARG003  # for subclasses
        """Return what the logger's arguments are where the user leaves them open; nothing by default.

        Args:
            names: What the run is called.
            known: What an earlier command noted as :attr:`identity`; empty for a new run.
        """
        return {}

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

    def best(self, values: Mapping[str, float], senses: Mapping[str, str]) -> None:  # noqa: B027  # few need it
        """Note the best values so far, of a training that other processes may have begun; ignored by default."""

    @abstractmethod
    def gallery(self, key: str, samples: Sequence[DrawnSample], epoch: int) -> None:
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

    def progress(self, values: Mapping[str, float], axis: str) -> None:
        """Keep numbers of something that is not counted in optimizer steps.

        Args:
            values: The numbers.
            axis: Which of them counts.
        """
        self.values(values, int(values[axis]))

    @abstractmethod
    def artifact(self, path: Path, name: str, kind: str, metadata: Mapping[str, Any] = NOTHING) -> None:
        """Keep a file or folder.

        Args:
            path: The file or folder.
            name: What it is called, e.g. ``"demo-best"``.
            kind: What it is, e.g. ``"model"``.
            metadata: What to know of it, e.g. its scores.
        """

    def finish(self, failed: bool = False) -> None:  # noqa: B027  # few need it
        """Close the run; what else is logged opens it again. By default Lightning does that."""


def tracks(logger: type[Logger]) -> Callable[[Kind], Kind]:
    """Register a class as the tracker of a kind of logger."""

    def register(tracker: Kind) -> Kind:
        _KINDS[logger] = tracker
        return tracker

    return register


def tracker_of(logger: type[Any]) -> type[Tracker] | None:
    """Return the tracker of a kind of logger, or of what that inherits from; None without one."""
    return next((_KINDS[kind] for kind in logger.__mro__ if kind in _KINDS), None)


def trackers(loggers: Iterable[Logger]) -> list[Tracker]:
    """Return a tracker for each logger of a kind that has one; others are left alone."""
    pairs = [(logger, tracker_of(type(logger))) for logger in loggers]
    return [tracker(logger) for logger, tracker in pairs if tracker]


def close(found: Iterable[Tracker], failed: bool = False) -> None:
    """Close runs that no Trainer has opened, which would do that itself."""
    for tracker in found:
        tracker.logger.finalize("failed" if failed else "success")
        tracker.finish(failed)
