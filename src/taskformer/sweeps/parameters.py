"""The settings of a sweep: a few values to choose from, or a distribution, by the names that wandb has for them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna import Trial

#: Digits that are kept where a value is rounded to multiples of q: 3 * 0.1 is 0.3.
DIGITS = 12


class Parameter(ABC):
    """One setting of a sweep."""

    @abstractmethod
    def at(self, quantile: float) -> Any:
        """Return the value at a quantile of its distribution, 0 to 1; drawn uniformly, it gives a random value."""

    @abstractmethod
    def suggest(self, trial: "Trial", name: str) -> Any:
        """Ask an Optuna trial for a value."""

    def grid(self) -> Sequence[Any] | None:
        """List all values; None if they cannot be counted."""
        return None


@dataclass(frozen=True)
class Choice(Parameter):
    """A few values, which may be anything that YAML can hold: numbers, names of files, lists, settings by name.

    Args:
        values: The values; one is a constant.
        probabilities: How often each is drawn, in the same order; None: all alike.

    Example:
        >>> [Choice((16, 32), (0.9, 0.1)).at(quantile) for quantile in (0.0, 0.5, 0.95)]
        [16, 16, 32]
    """

    values: tuple[Any, ...]
    probabilities: tuple[float, ...] | None = None

    def at(self, quantile: float) -> Any:
        """Return the value at a quantile, in the order of the values."""
        shares = self.probabilities or [1 / len(self.values)] * len(self.values)
        below = sum(total <= quantile * sum(shares) for total in accumulate(shares))
        return self.values[min(below, len(self.values) - 1)]

    def suggest(self, trial: "Trial", name: str) -> Any:
        """Ask for one of the values by its text, as Optuna keeps no lists; a constant is nothing to ask for."""
        if len(self.values) == 1:
            return self.values[0]
        if self.probabilities:
            return self.at(trial.suggest_float(name, 0.0, 1.0))
        texts = [str(value) for value in self.values]
        return self.values[texts.index(trial.suggest_categorical(name, texts))]

    def grid(self) -> Sequence[Any]:
        """List the values."""
        return self.values


@dataclass(frozen=True)
class Distribution(Parameter):
    """Numbers of a distribution.

    Args:
        kind: Name of the distribution without ``q_``, see :data:`LAWS`.
        numbers: Its parameters by name, e.g. ``{"min": 0.1, "max": 1.0}``.
        q: Values are rounded to multiples of it; None: they are not.

    Example:
        >>> rate = Distribution("log_uniform_values", {"min": 1.0e-4, "max": 1.0e-2})
        >>> round(rate.at(0.5), 6)
        0.001
        >>> Distribution("uniform", {"min": 0.0, "max": 1.0}, q=0.1).at(0.52)
        0.5
    """

    kind: str
    numbers: Mapping[str, float]
    q: float | None = None

    @cached_property
    def law(self) -> Any:
        """The distribution of scipy."""
        return LAWS[self.kind](**self.numbers)

    def at(self, quantile: float) -> int | float:
        """Return the value at a quantile."""
        value = float(self.law.ppf(quantile))
        if self.kind == "int_uniform":
            return max(int(value), int(self.numbers["min"]))  # scipy's is one less at 0
        if self.q is None:
            return value
        return _tidy(round(value / self.q) * self.q)

    def suggest(self, trial: "Trial", name: str) -> int | float:
        """Ask for a number; for a quantile where Optuna has no such distribution."""
        if self.kind == "int_uniform":
            return trial.suggest_int(name, int(self.numbers["min"]), int(self.numbers["max"]))
        if self.q is None and "uniform" in self.kind:
            low, high = self.law.support()
            return trial.suggest_float(name, float(low), float(high), log="log" in self.kind)
        return self.at(trial.suggest_float(name, 0.0, 1.0))

    def grid(self) -> Sequence[int | float] | None:
        """List all values, as wandb does, of whole numbers and of multiples of q below the largest; else None."""
        low, high = self.numbers.get("min", 0.0), self.numbers.get("max", 0.0)
        if self.kind == "int_uniform":
            return range(int(low), int(high) + 1)
        if self.kind != "uniform" or self.q is None:
            return None
        return [_tidy(low + count * self.q) for count in range(math.ceil((high - low) / self.q))]


def _tidy(multiple: float) -> int | float:
    """Leave out the last digits, which are not those of a multiple; whole numbers are exact."""
    return multiple if isinstance(multiple, int) else float(f"{multiple:.{DIGITS}g}")


def _laws() -> Any:
    from scipy import stats  # takes a while

    return stats


#: Each distribution that wandb knows, to scipy's; its arguments are those of the YAML file.
LAWS: dict[str, Callable[..., Any]] = {
    "uniform": lambda min, max: _laws().uniform(min, max - min),
    "int_uniform": lambda min, max: _laws().randint(min, max + 1),
    "log_uniform": lambda min, max: _laws().loguniform(math.exp(min), math.exp(max)),
    "log_uniform_values": lambda min, max: _laws().loguniform(min, max),
    "inv_log_uniform": lambda min, max: _laws().loguniform(math.exp(-max), math.exp(-min)),
    "inv_log_uniform_values": lambda min, max: _laws().loguniform(min, max),
    "normal": lambda mu=0.0, sigma=1.0: _laws().norm(mu, sigma),
    "log_normal": lambda mu=0.0, sigma=1.0: _laws().lognorm(sigma, scale=math.exp(mu)),
    "beta": lambda a=1.0, b=1.0: _laws().beta(a, b),
}
