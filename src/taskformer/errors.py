"""The errors users meet, each one clear sentence: what came, what was expected, where from, what to do."""

import difflib
from collections.abc import Iterable


class TaskformerError(Exception):
    """Base of every error that taskformer raises on purpose."""


class UnknownNameError(TaskformerError, ValueError):
    """A name (task, class, protocol, ...) that does not exist.

    Args:
        kind: What the name should have named, e.g. ``"task"``.
        name: The name that was received.
        known: The names that exist; the nearest one is suggested.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        super().__init__(f"unknown {kind} {name!r}{suggest(name, names)}; known: {', '.join(names) or 'none'}")


class DatasetNotFoundError(TaskformerError, FileNotFoundError):
    """A data set's files are not where the configuration says."""


class CorruptFileError(TaskformerError, ValueError):
    """A file that does not hold what its name promises."""


class InvalidImageError(TaskformerError, ValueError):
    """Something that is given as a photograph and is none."""


class InvalidTargetError(TaskformerError, ValueError):
    """A label map whose shape, type or values do not fit its task."""


class WeightsError(TaskformerError, ValueError):
    """Weights that cannot be found or do not fit the network."""


class ConfigError(TaskformerError, ValueError):
    """Settings that contradict each other."""


class TrainingStoppedError(TaskformerError, RuntimeError):
    """A training that cannot go on, e.g. because its loss is not finite."""


class MissingExtraError(TaskformerError, ImportError):
    """An optional package is needed and absent.

    Args:
        package: The import that failed.
        extra: The extra of taskformer that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f'this needs the package {package!r}: pip install "taskformer[{extra}]"')


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the nearest known name, or an empty string."""
    lowered = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
    return f" (did you mean {lowered[near[0]]!r}?)" if near else ""
