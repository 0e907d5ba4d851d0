"""Predictions that are logged to the run that they come from."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import dict_to_namespace
from lightning.pytorch.loggers import Logger

from taskformer.callbacks.trackers import Tracker, close, settle, trackers
from taskformer.callbacks.trackers.photographs import keep_photographs
from taskformer.commands.trainer import as_list, names_of
from taskformer.errors import ConfigError
from taskformer.modules.photographs import Predicted, predict
from taskformer.parsing import Parser


def predict_and_log(model: str, **settings: Any) -> Predicted:
    """Predict for photographs, and give the first ones to the loggers of the run.

    Args:
        model: The run folder, or a checkpoint in it.
        settings: Further arguments of :func:`taskformer.predict`.

    Raises:
        ConfigError: If the run has no logger that keeps pictures.
    """
    found = trackers_of(Path(model) if Path(model).is_dir() else Path(model).absolute().parent.parent)
    done = predict(model, **settings)
    keep_photographs(found, done)
    close(found)
    return done


def trackers_of(run: Path) -> list[Tracker]:
    """Build what keeps pictures and tables of a run, from its configuration.

    Raises:
        ConfigError: If there is none.
    """
    file = run / "config.yaml"
    config = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {"trainer": {"logger": None}}
    parser = Parser()
    parser.add_argument("--logger", type=Logger | Iterable[Logger] | bool | None)
    settings = parser.parse_object({"logger": config["trainer"]["logger"]})
    if loggers := as_list(settings.logger):
        settle(loggers, run, names_of("predict", dict_to_namespace(config | {"name": run.resolve().name})))
    found = trackers(as_list(parser.instantiate_classes(settings).logger))
    if not found:
        msg = f"{run} has no logger that keeps pictures; train it e.g. with --config configs/logger/wandb.yaml"
        raise ConfigError(msg)
    return found
