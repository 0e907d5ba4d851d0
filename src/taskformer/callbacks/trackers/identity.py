"""One experiment, one run: ``tracking.json`` in the run folder says which run a logger goes on with."""

import json
import pydoc
from collections.abc import Iterable
from pathlib import Path

from jsonargparse import Namespace

from taskformer.callbacks.trackers.base import Names, Tracker, tracker_of
from taskformer.files import write_json

FILE = "tracking.json"


def settle(loggers: Iterable[Namespace], folder: Path, names: Names) -> None:
    """Complete the settings of loggers, so that they log the run of a folder; what the user says stays.

    Args:
        loggers: Settings of loggers, each with ``class_path``, changed in place.
        folder: The run folder.
        names: What the run is called.
    """
    known = recall(folder)
    for logger in loggers:
        arguments = logger.get("init_args") or Namespace()
        # Loggers that would share the current folder write to the run's own.
        if arguments.get("save_dir", "") in (".", None):
            arguments.save_dir = str(folder)
        tracker = tracker_of(pydoc.locate(logger.class_path))  # type: ignore[arg-type]  # the parser knows that it is a class
        if tracker is None:
            continue
        for name, value in tracker.arguments(names, known.get(tracker.kind, {})).items():
            if arguments.get(name) is None:
                arguments[name] = value
        logger.init_args = arguments


def remember(folder: Path, trackers: Iterable[Tracker]) -> None:
    """Note in ``tracking.json`` what finds the runs again."""
    found = {tracker.kind: tracker.identity for tracker in trackers if tracker.identity}
    known = recall(folder)
    if found and known | found != known:
        write_json(folder / FILE, known | found)


def recall(folder: Path) -> dict[str, dict[str, str]]:
    """Read ``tracking.json``, ``{kind: identity}``; nothing where there is none, or a broken one."""
    try:
        known = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
