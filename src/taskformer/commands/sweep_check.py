"""Reading the command lines of a sweep's runs before any of them begins."""

import importlib
from typing import Any

from taskformer.commands.parser import in_order, joined
from taskformer.commands.trainer import TaskformerCLI, silence_lightning
from taskformer.errors import ConfigError, mistake
from taskformer.sweeps import Choice, Sweep, command_line, read_sweep
from taskformer.sweeps.run import require_training

#: Quantiles at which settings that are drawn are read.
QUANTILES = (0.05, 0.5, 0.95)


class Reading(TaskformerCLI):
    """A training of which only the command line is read."""

    def before_instantiate_classes(self) -> None:
        """Claim no folder."""

    def instantiate_classes(self) -> None:
        """Build nothing."""

    def _set_seed(self) -> None:
        """Draw nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Train nothing."""


def check(file: str) -> str:
    """Read the command line of every run, or of samples where settings are drawn.

    Returns:
        What was read, in words.

    Raises:
        ConfigError: If the file or a command line is wrong; names the settings.
    """
    silence_lightning()
    sweep = read_sweep(file)
    require_training(sweep)
    runs = sweep.grid() if sweep.method == "grid" else samples(sweep)
    reader: Reading | None = None
    for settings in runs:
        words = joined(command_line(sweep, settings, ["--name=check"]))
        words = words[words.index("fit") :]
        for word in words:
            if word.startswith("--import="):
                importlib.import_module(word.removeprefix("--import="))
        words = [word for word in words if not word.startswith("--import=")]
        try:
            if reader is None:
                reader = Reading(words)
            reader.parser.parse_args(["fit", *in_order(words[1:])])
        except Exception as error:
            if (reason := mistake(error)) is None:
                raise
            msg = f"{file}: the run of {settings} cannot begin: {reason}"
            raise ConfigError(msg) from error
    what = f"all {len(runs)} runs" if sweep.method == "grid" else f"{len(runs)} samples of the settings"
    return f"{file}: {what} can be read"


def samples(sweep: Sweep) -> list[dict[str, Any]]:
    """Draw settings so that every choice is taken at least once, and numbers are low, medium and high.

    Example:
        >>> from types import SimpleNamespace
        >>> sweep = SimpleNamespace(parameters={"model": Choice(("a", "b")), "merge": Choice(("x", "y", "z"))})
        >>> samples(sweep)
        [{'model': 'a', 'merge': 'x'}, {'model': 'b', 'merge': 'y'}, {'model': 'a', 'merge': 'z'}]
    """
    choices = {name: each.values for name, each in sweep.parameters.items() if isinstance(each, Choice)}
    count = max(len(QUANTILES), *(len(values) for values in choices.values()))
    return [
        {
            name: choices[name][run % len(choices[name])]
            if name in choices
            else parameter.at(QUANTILES[run % len(QUANTILES)])
            for name, parameter in sweep.parameters.items()
        }
        for run in range(count)
    ]
