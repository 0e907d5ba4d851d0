"""LightningCLI's parser with errors that fit on a line."""

import inspect
import re
from typing import NoReturn

from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser

from taskformer.data import MultiTaskDataModule
from taskformer.errors import ConfigError, UnknownNameError, suggest
from taskformer.modules import MultiTaskModule


class TaskformerParser(LightningArgumentParser):
    """LightningCLI's parser with short errors: the reason and the nearest right name, not pages of usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the reason as a :class:`ConfigError`."""
        raise ConfigError(explain(message, self)) from ex


def explain(message: str, parser: ArgumentParser) -> str:
    """Shorten a parser error to its reason and add the nearest right name."""
    if wrong := re.search(r"dot import path string: (\S+)", message):
        classes = [cls.__name__ for base in (MultiTaskModule, MultiTaskDataModule) for cls in _subclasses(base)]
        return str(UnknownNameError("class", wrong[1], classes))
    if wrong := re.search(r"(?:Option|Key) '([\w.]+)' is not|not accept option '([\w.]+)'", message):
        name = wrong[1] or wrong[2]
        return f"{_key(message)}unknown setting {name!r}{_nearest_setting(name, _flags(parser))}"
    # Of the errors of a union's members the last is always that the value is not null.
    lines = [line.strip(" -") for line in message.splitlines() if line.strip()]
    start = next((k + 1 for k, line in enumerate(lines) if line.startswith("Errors:")), 0)
    reasons = [line for line in lines[start:] if not re.match(r"Expected a <class 'NoneType'>|Given value", line)]
    reason = " ".join(reasons)
    unknown = re.search(r"[Uu]nrecogni[sz]ed arguments: -*([\w.]+)", reason)
    hint = suggest(unknown[1], _flags(parser)) if unknown else ""
    return f"{_key(message) if start else ''}{reason}{hint}"


def _key(message: str) -> str:
    """Where in the configuration the error is."""
    found = re.match(r'\s*Parser key "([^"]+)"', message)
    return f"{found[1]}: " if found else ""


def _nearest_setting(name: str, flags: set[str]) -> str:
    """Suggest the right name for a setting, whose mistake may be in its first part or its last."""
    groups = {flag.split(".")[0] for flag in flags}
    first, *rest = name.split(".")
    if rest and first not in groups:
        return suggest(first, groups)
    return suggest(name, flags) or suggest(name.rsplit(".", 1)[-1], _settings())


def _flags(parser: ArgumentParser) -> set[str]:
    """Dotted names of the settings of a parser and its subcommands, e.g. ``trainer.max_epochs``."""
    flags = {action.dest for action in parser._actions}
    for action in parser._actions:
        if isinstance(action.choices, dict):
            flags |= {flag for subparser in action.choices.values() for flag in _flags(subparser)}
    return flags


def _settings() -> set[str]:
    """Every name that a setting of some model or data set has."""
    classes = [cls for base in (MultiTaskModule, MultiTaskDataModule) for cls in _subclasses(base)]
    return {name for cls in classes for name in inspect.signature(cls).parameters}


def _subclasses(base: type) -> list[type]:
    """All concrete classes below a base class."""
    children: list[type] = base.__subclasses__()
    return children + [cls for child in children for cls in _subclasses(child)]
