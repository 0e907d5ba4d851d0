"""The errors users meet, each one clear sentence: what came, what was expected, where from, what to do."""

import difflib
import re
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path

#: Largest number of characters of a sentence; what came can be longer than anyone reads.
LONGEST = 1000
PACKAGE = Path(__file__).parent


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
    """Something that is given as a photograph and is not one."""


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


#: Errors of libraries that the user can fix: the class (by name, because nothing is imported here), a pattern of its
#: message, and what the sentence adds.
MISTAKES = (
    ("builtins.OSError", "", ""),  # a file missing, forbidden or in the way, a full disk, no network, no image
    ("yaml.error.YAMLError", "", ""),
    ("builtins.UnicodeDecodeError", "", "the file is not text"),
    ("builtins.ImportError", "", ""),  # an optional package
    ("lightning.fabric.utilities.exceptions.MisconfigurationException", "", ""),
    ("builtins.MemoryError", "", "there is not enough memory: choose smaller sizes"),
    ("torch.OutOfMemoryError", "", "choose smaller sizes or a smaller batch"),
    ("builtins.RuntimeError", "can't allocate memory|Storage size calculation overflowed", "choose smaller sizes"),
    ("builtins.RuntimeError", "NVIDIA|CUDA driver|CUDA-capable|No CUDA GPUs|invalid device", ""),
    ("builtins.AssertionError", "Torch not compiled with", ""),
    ("builtins.RuntimeError", "PytorchStreamWriter failed|unexpected pos", "the disk may be full"),
    ("builtins.RuntimeError", "DataLoader worker .* (exited|is killed)", "often there is too little memory"),
    ("torch.distributed.DistError", "", ""),
    ("wandb.errors.errors.Error", "", "WANDB_MODE=offline needs no account and no network"),
    ("mlflow.exceptions.MlflowException", "", ""),
)


def mistake(error: BaseException) -> str | None:
    """Explain an error that the user can fix in one sentence; None if it is a bug of ours."""
    chain = [error]  # configuration parsers wrap our errors in their own
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and inner not in chain:
        chain.append(inner)
    ours = next((one for one in chain if isinstance(one, TaskformerError)), None)
    if ours is not None:
        return _one_line(str(ours))
    advice = _advice(error)
    if advice is None and not _is_refusal(error):
        return None
    return _one_line("; ".join(filter(None, [_reason(error).removesuffix("."), advice])))


def _advice(error: BaseException) -> str | None:
    """Return what :data:`MISTAKES` adds to an error, None if the error is not among them."""
    if isinstance(error, ImportError) and (error.name or "").startswith("taskformer"):
        return None
    classes = {f"{cls.__module__}.{cls.__qualname__}" for cls in type(error).__mro__}
    rows = (advice for name, words, advice in MISTAKES if name in classes and re.search(words, str(error)))
    return next(rows, None)


def _is_refusal(error: BaseException) -> bool:
    """Tell whether a library's constructor refuses a value, which then came from the configuration.

    Lightning's constructors also refuse types, because a setting may have one of several.
    """
    calls = [(frame.filename, frame.name) for frame in traceback.extract_tb(error.__traceback__)]
    ours = [place for place, (file, _) in enumerate(calls) if Path(file).is_relative_to(PACKAGE)]
    inside = calls[ours[-1] + 1 :] if ours else calls
    by_lightning = bool(calls) and "lightning" in Path(calls[-1][0]).parts
    refuses = isinstance(error, ValueError) or (isinstance(error, TypeError) and by_lightning)
    return refuses and any(name == "__init__" for _, name in inside)


def _reason(error: BaseException) -> str:
    """Say what went wrong: of the operating system's errors the words and the file, of others the message."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def _one_line(text: str) -> str:
    """Fit a message on a line; one from a loader process comes as the last line of that process's traceback."""
    if "\nOriginal Traceback" in text:
        text = text.rstrip().splitlines()[-1].split(": ", 1)[-1]
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."


def require(interval: str, **values: float | Sequence[float] | None) -> None:
    """Refuse values outside an interval; NaN is in none, infinity only where the interval has it.

    Args:
        interval: As in mathematics, e.g. ``"[0, 1)"`` or ``"(0, inf)"``.
        values: Settings by name, each a number, several numbers, or None where nothing is set.

    Raises:
        ConfigError: If a value is outside; names the setting, the interval and the value.
    """
    low, high = (float(end) for end in interval[1:-1].split(","))
    for name, value in values.items():
        for number in value if isinstance(value, Sequence) else () if value is None else (value,):
            inside = low <= number <= high
            if not inside or (number == low and interval[0] == "(") or (number == high and interval[-1] == ")"):
                msg = f"{name} must be in {interval}, got {value}"
                raise ConfigError(msg)


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the nearest known name, or an empty string."""
    lowered = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.6)
    hint = lowered[near[0]] if near else name
    return "" if hint == name else f" (did you mean {hint!r}?)"
