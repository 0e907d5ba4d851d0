"""The macros in a sweep's command, such as ``${args}``, and what they stand for in wandb's agent."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from taskformer.errors import ConfigError, UnknownNameError

#: wandb's, where a sweep has no command.
DEFAULT_COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")
MACRO = re.compile(r"\$\{(\w+)\}")
VARIABLE = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")
#: Macros that stand for the settings, as flags of a program like ours.
SETTINGS = ("args", "args_no_equals", "args_no_boolean_flags", "args_no_hyphens", "args_json")
#: All macros that can be expanded; an agent has some more, for programs that are not ours.
MACROS = ("env", "interpreter", "program", *SETTINGS)


def require_command(command: Sequence[str]) -> None:
    """Refuse a command that an agent would misunderstand without a word.

    Raises:
        ConfigError: If a macro is unknown or none stands for the settings.
    """
    macros = [found[1] for word in command if (found := MACRO.fullmatch(word))]
    for macro in macros:
        if macro not in MACROS:
            raise ConfigError(str(UnknownNameError("macro of command", macro, MACROS)))
    if not set(macros) & set(SETTINGS):
        msg = "command has no ${args}, so that all runs would be the same; add it as a line of its own"
        raise ConfigError(msg)


def words_of_settings(settings: Mapping[str, Any]) -> dict[str, list[str]]:
    """Write settings in each of the ways that a macro of wandb asks for: values as Python writes them.

    Example:
        >>> words_of_settings({"model.lr": 0.001, "name": None})["args"]
        ['--model.lr=0.001', '--name=None']
    """
    plain = [f"{name}={value}" for name, value in settings.items()]
    flags = [f"--{word}" for word in plain]
    return {
        "args": flags,
        "args_no_hyphens": plain,
        "args_no_equals": [word for name, value in settings.items() for word in (f"--{name}", str(value))],
        "args_no_boolean_flags": [
            flag if not isinstance(value, bool) else f"--{name}"
            for flag, (name, value) in zip(flags, settings.items(), strict=True)
            if value is not False
        ],
        "args_json": [json.dumps(settings)],
    }


def grouped(settings: Mapping[str, Any], groups: Sequence[str]) -> dict[str, Any]:
    """Put the settings of each group together, as wandb hands them over; a group in another comes after it.

    Example:
        >>> grouped({"seed": 1, "optimizer.lr": 0.1, "optimizer.momentum": 0.9}, ["optimizer"])
        {'seed': 1, 'optimizer': {'lr': 0.1, 'momentum': 0.9}}
    """
    result: dict[str, Any] = {}
    for name, value in settings.items():
        place, above = result, ""
        for group in groups:
            if name.startswith(f"{group}."):
                place, above = place.setdefault(group.removeprefix(above), {}), f"{group}."
        place[name.removeprefix(above)] = value
    return result
