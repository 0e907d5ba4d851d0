"""Runs that lie in wandb: what their configuration and summary say."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taskformer.data import data_modules
from taskformer.errors import ConfigError
from taskformer.evaluation.comparison.groups import COUNTS
from taskformer.evaluation.comparison.scored import ScoredRun, Split, settings_text
from taskformer.modules.recipe import initialisation
from taskformer.tasks.registry import task_class

#: How the address of a run in wandb begins; ``ENTITY/PROJECT/ID`` follows.
WANDB = "wandb:"
#: Names of values of an evaluation.
VALUE = re.compile(r"(?P<split>test|val)/(?P<task>\w+)/(?P<metric>[\w.]+)")


@dataclass(frozen=True)
class OnlineRun:
    """A run of wandb.

    >>> config = {"model.class_path": "taskformer.modules.Baseline", "results.protocol": "standard", "parameters": 9}
    >>> run = OnlineRun("wandb:me/rooms/1a2b", config, {"test/depth/rmse": 0.5, "val/depth/rmse": {"min": 0.4}})
    >>> found = run.scored("val")
    >>> found.scores(), found.unit(("depth", "rmse")), found.better(("depth", "rmse")), found.record["parameters"]
    ({('depth', 'rmse'): 0.4}, 'm', 'lower', 9)

    Attributes:
        name: Its address.
        config: Its configuration by dotted names.
        summary: Its last or best values.
    """

    name: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any]

    @property
    def splits(self) -> set[str]:
        """The splits that it was evaluated on."""
        return {found["split"] for name in self.summary if (found := VALUE.fullmatch(name))}

    def scored(self, split: Split) -> ScoredRun:
        """Return what it says of a split; the values of a validation are the best, each of its own epoch.

        Raises:
            ConfigError: If it was not evaluated on it.
        """
        tasks: dict[str, dict[str, float]] = {}
        for name in self.summary:
            found, number = VALUE.fullmatch(name), self._number(name)
            if found and found["split"] == split and number is not None:
                tasks.setdefault(found["task"], {})[found["metric"]] = number
        if not tasks:
            msg = f"{self.name} has no {split} results; `taskformer test RUN` adds them to a run that wandb has"
            raise ConfigError(msg)
        record = self._record(tasks, split)
        kept = {key: value for key, value in self.config.items() if key.startswith(("model.", "data."))}
        return ScoredRun(self.name, split, record, self.config.get("seed_everything"), settings_text(kept))

    def _record(self, tasks: dict[str, dict[str, float]], split: Split) -> dict[str, Any]:
        """Write it as ``metrics.json`` would."""
        classes = {task: known for task in tasks if (known := task_class(task)) is not None}
        weights = {key: self.config.get(f"model.init_args.{key}") for key in ("weights", "initialisation")}
        return {
            "protocol": self.config.get("results.protocol", "standard"),
            "tasks": tasks,
            "better": {task: {name: known.better(name) for name in tasks[task]} for task, known in classes.items()},
            "headline": {task: known.headline for task, known in classes.items()},
            "units": {task: known.units for task, known in classes.items()},
            "facts": {
                "split": split,
                **({"data": data} if (data := self._data()) else {}),
                **({"initialisation": initialisation(weights)} if weights["weights"] else {}),
            },
            **{key: self.config[key] for key in COUNTS if key in self.config},
            **({"epoch": "best"} if split == "val" else {}),
            "delta_m": self._number(f"{split}/delta_m"),
        }

    def _number(self, name: str) -> float | None:
        """Return a value of the summary, where the best of several is ``{"min": value}``."""
        value = self.summary.get(name)
        number = next(iter(value.values()), None) if isinstance(value, Mapping) else value
        return float(number) if isinstance(number, int | float) else None

    def _data(self) -> str | None:
        """Name its data set."""
        name = str(self.config.get("data.class_path")).rpartition(".")[2]
        known = {module.__name__: key for key, module in data_modules().items() if key != "folder"}
        return known.get(name)


def fetch_run(address: str) -> OnlineRun:
    """Fetch a run from wandb.

    Args:
        address: ``wandb:ENTITY/PROJECT/ID``.

    Raises:
        ConfigError: If there is no such run, or wandb cannot be reached.
    """
    path = address.removeprefix(WANDB)
    if path.count("/") != 2:
        msg = f"{address!r} is no run of wandb; give {WANDB}ENTITY/PROJECT/ID, as the run's page has them"
        raise ConfigError(msg)
    import wandb  # takes a second to import

    try:
        run = wandb.Api().run(path)
        return OnlineRun(address, dict(run.config), dict(run.summary))
    except (wandb.Error, ValueError, OSError) as error:
        msg = (
            f"{address} cannot be read: {' '.join(str(error).split())}; log in with `wandb login`, or give run folders"
        )
        raise ConfigError(msg) from error
