"""Sweep files: the schema of Weights & Biases, read strictly, so that the same file runs there and here.

https://docs.wandb.ai/models/sweeps/sweep-config-keys
"""

import inspect
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import yaml

from taskformer.errors import ConfigError, UnknownNameError, require
from taskformer.sweeps.macros import DEFAULT_COMMAND, require_command
from taskformer.sweeps.parameters import LAWS, Choice, Distribution, Parameter

METHODS = ("grid", "random", "bayes")
GOALS = ("minimize", "maximize")
#: What a sweep file may say. Of these, apiVersion to project are wandb's own business.
KEYS = (
    *("apiVersion", "kind", "controller", "description", "entity", "project"),
    *("program", "name", "method", "metric", "parameters", "early_terminate", "command", "run_cap"),
)
#: The distributions that are a choice, and what they need.
CHOICES = {
    "constant": ("value",),
    "categorical": ("values",),
    "categorical_w_probabilities": ("values", "probabilities"),
}
#: All distributions of wandb's schema.
DISTRIBUTIONS = (
    *CHOICES,
    *LAWS,
    *("q_uniform", "q_log_uniform", "q_log_uniform_values", "q_normal", "q_log_normal", "q_beta"),
)
#: Largest exponent that gives a number.
LARGEST_EXPONENT = 700
#: What to write where something is missing.
EXAMPLES = {
    "metric": ", e.g. metric: {name: val/delta_m, goal: maximize}",
    "goal": ": minimize or maximize",
    "method": ": grid, random or bayes",
}


@dataclass(frozen=True)
class Metric:
    """What the runs of a sweep are compared by.

    Args:
        name: A value that runs log, e.g. ``val/delta_m``.
        goal: Which is better, the lower or the higher.
        target: A value that is good enough: when a run reaches it, no new ones begin; None: none is.
    """

    name: str
    goal: Literal["minimize", "maximize"]
    target: float | None = None


@dataclass(frozen=True)
class Hyperband:
    """When runs that lag behind are stopped: after ``min_iter * eta**k`` values of the metric, for k = 0, 1, ...

    Args:
        min_iter: Values of the metric after which runs are first compared.
        eta: The best one of this many goes on.
        max_iter: Values of the metric of a whole run; None: not said.
        strict: Whether more than that are stopped where values are few; wandb's alone.
    """

    min_iter: int
    eta: float = 3.0
    max_iter: int | None = None
    strict: bool = True


@dataclass(frozen=True)
class Sweep:
    """A sweep file.

    Args:
        path: The file.
        name: Its name, by default that of the file.
        method: How settings are chosen.
        metric: What the runs are compared by.
        parameters: The settings by dotted name.
        groups: Settings that the file writes as groups of others; a run gets each as one, as wandb hands it over.
        command: The words of a run's command line, with wandb's macros, see :func:`command_line`.
        program: What ``${program}`` stands for.
        early_terminate: When runs are stopped early; None: never.
        run_cap: Largest number of runs; None: any.
    """

    path: Path
    name: str
    method: Literal["grid", "random", "bayes"]
    metric: Metric
    parameters: Mapping[str, Parameter]
    groups: tuple[str, ...] = ()
    command: tuple[str, ...] = DEFAULT_COMMAND
    program: str = "taskformer"
    early_terminate: Hyperband | None = None
    run_cap: int | None = None

    def grid(self) -> list[dict[str, Any]]:
        """List every combination of the settings' values; the last setting changes fastest.

        Raises:
            ConfigError: If the values of a setting cannot be counted.
        """
        axes = {name: parameter.grid() for name, parameter in self.parameters.items()}
        if endless := [name for name, values in axes.items() if values is None]:
            msg = (
                f"{self.path}: a grid needs settings whose values can be counted, {endless[0]} is any number of a "
                "distribution; give it values, or use the method random or bayes"
            )
            raise ConfigError(msg)
        return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]  # type: ignore[arg-type]  # no None is left


def read_sweep(path: str | Path) -> Sweep:
    """Read a sweep file.

    Args:
        path: A YAML file in wandb's schema. Two things are stricter here: the metric and its goal must be said, and
            what wandb would pass over is an error.

    Raises:
        ConfigError: If something is missing, unknown or wrong; names the place in the file.
        OSError: If the file cannot be read.
        yaml.YAMLError: If it is not YAML.
    """
    file = Path(path)
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    try:
        return make_sweep(file, content)
    except ConfigError as error:
        msg = f"{file}: {error}"
        raise ConfigError(msg) from error


def make_sweep(file: Path, content: Any) -> Sweep:
    """Build a sweep of what its file holds.

    Raises:
        ConfigError: If something is missing, unknown or wrong.
    """
    _require_keys("", content, KEYS, ("method", "metric", "parameters"))
    method = _one_of("method", content["method"], METHODS)
    parameters, groups = _parameters("parameters", content["parameters"])
    command = tuple(map(str, _list("command", content.get("command", [*DEFAULT_COMMAND]))))
    require_command(command)
    cap = content.get("run_cap")
    if cap is not None:
        _require_number("run_cap", cap, int)
        require("[1, inf)", run_cap=cap)
    sweep = Sweep(
        file,
        str(content.get("name") or file.stem),
        method,  # type: ignore[arg-type]  # one of them
        _metric(content["metric"]),
        parameters,
        groups,
        command,
        str(content.get("program", Sweep.program)),
        _hyperband(content["early_terminate"]) if "early_terminate" in content else None,
        cap,
    )
    if method == "grid":
        sweep.grid()
    return sweep


def _metric(content: Any) -> Metric:
    """Read what the runs are compared by; ``impute`` is about wandb's own search."""
    _require_keys("metric", content, ("name", "goal", "target", "impute", "impute_while_running"), ("name", "goal"))
    goal = _one_of("metric.goal", content["goal"], GOALS)
    if "target" in content:
        _require_number("metric.target", content["target"])
    return Metric(str(content["name"]), goal, content.get("target"))  # type: ignore[arg-type]  # one of them


def _hyperband(content: Any) -> Hyperband:
    """Read when runs are stopped: either from ``min_iter`` on, or at the last ``s`` times before ``max_iter``."""
    where = "early_terminate"
    _require_keys(where, content, ("type", "min_iter", "max_iter", "s", "eta", "strict"), ("type",))
    _one_of(f"{where}.type", content["type"], ("hyperband",))
    numbers = {name: content[name] for name in ("min_iter", "max_iter", "s", "eta") if name in content}
    for name, number in numbers.items():
        _require_number(f"{where}.{name}", number, float if name == "eta" else int)
        require("(1, inf)" if name == "eta" else "[1, inf)", **{f"{where}.{name}": number})
    eta, last, strict = float(numbers.get("eta", 3.0)), numbers.get("max_iter"), bool(content.get("strict", True))
    if "min_iter" in numbers:
        return Hyperband(numbers["min_iter"], eta, last, strict)
    if last is None or "s" not in numbers:
        msg = f"{where} needs min_iter, or max_iter and s"
        raise ConfigError(msg)
    return Hyperband(max(1, int(last / eta ** numbers["s"])), eta, last, strict)


def _parameters(where: str, content: Any, above: str = "") -> tuple[dict[str, Parameter], tuple[str, ...]]:
    """Read settings and those of their groups, by dotted name, and the names of the groups."""
    if not isinstance(content, dict) or not content:
        msg = f"{where} must be settings by name, got {content!r}"
        raise ConfigError(msg)
    found: dict[str, Parameter] = {}
    groups: tuple[str, ...] = ()
    for name, spec in content.items():
        if not re.fullmatch(r"[A-Za-z_][\w.-]*", str(name)):
            msg = f"{where}: {name!r} is no name of a setting; names are those of flags without hyphens, e.g. model.lr"
            raise ConfigError(msg)
        full, place = f"{above}{name}", f"{where}.{name}"
        if isinstance(spec, dict) and "parameters" in spec:
            _require_keys(place, spec, ("parameters",))
            inside, below = _parameters(f"{place}.parameters", spec["parameters"], f"{full}.")
            found |= inside
            groups += (full, *below)
        else:
            found[full] = _parameter(place, spec)
    return found, groups


def _parameter(where: str, spec: Any) -> Parameter:
    """Read one setting: a value, values, or a distribution, which wandb guesses where none is named."""
    _require_keys(where, spec)
    kind = spec.get("distribution", _guessed(spec))
    _require_known(f"distribution in {where}", kind, DISTRIBUTIONS)
    settings = {name: value for name, value in spec.items() if name != "distribution"}
    if kind in CHOICES:
        _require_keys(where, settings, CHOICES[kind], CHOICES[kind])
        return _choice(where, **settings)
    law, arguments = kind.removeprefix("q_"), inspect.signature(LAWS[kind.removeprefix("q_")]).parameters
    needed = [name for name, each in arguments.items() if each.default is each.empty]
    _require_keys(where, settings, [*arguments, *(["q"] if kind.startswith("q_") else [])], needed)
    for name, value in settings.items():
        _require_number(f"{where}.{name}", value, int if law == "int_uniform" else float)
    _require_range(where, law, settings)
    q = settings.pop("q", 1) if kind.startswith("q_") else None
    return Distribution(law, settings, q)


def _guessed(spec: Mapping[str, Any]) -> str:
    """Return the distribution of settings that name none, as wandb guesses it."""
    if "value" in spec:
        return "constant"
    if "values" in spec:
        return "categorical_w_probabilities" if "probabilities" in spec else "categorical"
    whole = all(isinstance(spec.get(end), int) for end in ("min", "max"))
    return "int_uniform" if whole else "uniform"


def _choice(where: str, value: Any = None, values: Any = None, probabilities: Any = None) -> Choice:
    """Read a value or a choice of several."""
    if values is None:
        return Choice((value,))
    _list(f"{where}.values", values)
    if twice := [text for text, times in Counter(map(str, values)).items() if times > 1]:
        msg = f"{where}.values has {twice[0]} more than once, which would be the same run again"
        raise ConfigError(msg)
    if probabilities is None:
        return Choice(tuple(values))
    if not isinstance(probabilities, list) or len(probabilities) != len(values):
        msg = f"{where}.probabilities must be one number for each of the {len(values)} values, got {probabilities!r}"
        raise ConfigError(msg)
    for number in probabilities:
        _require_number(f"{where}.probabilities", number)
    require("[0, inf)", **{f"{where}.probabilities": probabilities})
    require("(0, inf)", **{f"sum of {where}.probabilities": sum(probabilities)})
    return Choice(tuple(values), tuple(probabilities))


def _require_range(where: str, law: str, numbers: Mapping[str, float]) -> None:
    """Refuse ranges without inside, logarithms of what is not positive, and negative widths."""
    if "min" in numbers and numbers["min"] >= numbers["max"]:
        msg = f"{where}: min must be less than max, got {numbers['min']} and {numbers['max']}"
        raise ConfigError(msg)
    positive = ["q", "sigma", "a", "b", *(["min"] if law.endswith("_values") else [])]
    require("(0, inf)", **{f"{where}.{name}": numbers[name] for name in positive if name in numbers})
    if law == "log_uniform" and numbers["max"] > LARGEST_EXPONENT:
        msg = f"{where}: log_uniform takes exponents of e, got max {numbers['max']}; log_uniform_values takes values"
        raise ConfigError(msg)


def _require_keys(where: str, content: Any, known: Collection[str] | None = None, needed: Collection[str] = ()) -> None:
    """Refuse what is no settings by name, has unknown names, or lacks some."""
    place = where or "a sweep"
    if not isinstance(content, dict):
        msg = f"{place} must be settings by name, got {content!r}"
        raise ConfigError(msg)
    for name in content if known is not None else ():
        _require_known(f"key of {place}", name, known or ())
    if missing := [name for name in needed if name not in content]:
        msg = f"{place} needs {', '.join(missing)}{EXAMPLES.get(missing[0], '')}"
        raise ConfigError(msg)


def _require_known(kind: str, name: Any, known: Collection[str]) -> None:
    """Refuse a name that is none of those known."""
    if name not in known:
        raise ConfigError(str(UnknownNameError(kind, str(name), known)))


def _one_of(where: str, value: Any, known: Collection[str]) -> str:
    """Return one of a few words."""
    _require_known(where, value, known)
    return str(value)


def _list(where: str, content: Any) -> list[Any]:
    """Return a list that must not be empty."""
    if not isinstance(content, list) or not content:
        msg = f"{where} must be a list of one item or more, got {content!r}"
        raise ConfigError(msg)
    return content


def _require_number(where: str, value: Any, kind: type[int] | type[float] = float) -> None:
    """Refuse what is no number; YAML takes 1e-3 for text."""
    if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
        hint = ""
        if isinstance(value, str) and re.fullmatch(r"[+-]?\d+e[+-]?\d+", value, re.IGNORECASE):
            hint = f", which is text in YAML: write {value.lower().replace('e', '.0e', 1)}"
        msg = f"{where} must be a {'whole number' if kind is int else 'number'}, got {value!r}{hint}"
        raise ConfigError(msg)
