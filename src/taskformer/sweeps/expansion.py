"""From the settings of one run of a sweep to its command line, word for word as wandb's agent writes it."""

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from taskformer.sweeps.macros import MACRO, VARIABLE, grouped, words_of_settings
from taskformer.sweeps.schema import Sweep


def command_line(sweep: Sweep, settings: Mapping[str, Any], extra: Sequence[str] = ()) -> list[str]:
    """Write the command line of one run.

    Args:
        sweep: The sweep.
        settings: Its settings by dotted name.
        extra: Words to append, e.g. ``["--name=rooms_models/0003"]``.

    Returns:
        The words, for a process without a shell. ``${interpreter}`` is this Python, where an agent takes the first
        ``python`` that it finds.
    """
    macros = {
        "env": [] if platform.system() == "Windows" else ["/usr/bin/env"],
        "interpreter": [sys.executable],
        "program": [sweep.program],
        **words_of_settings(grouped(settings, sweep.groups)),
    }
    words: list[str] = []
    for word in sweep.command:
        found = MACRO.fullmatch(word)
        words += macros[found[1]] if found else [VARIABLE.sub(lambda name: os.environ.get(name[1], name[1]), word)]
    return [*words, *extra]
