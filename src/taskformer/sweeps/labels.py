"""How a sweep's metric is written where people read it."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from taskformer.errors import TaskformerError
from taskformer.metrics.units import SHARE, factor
from taskformer.modules.checkpoints import open_checkpoint
from taskformer.tasks import build_tasks


class Unit(NamedTuple):
    """How the values of a metric are written.

    >>> Unit("%", 100.0).text(0.4567), Unit("m").text(0.51234)
    ('45.67', '0.5123')

    Attributes:
        name: The unit; empty without one.
        factor: By what values are multiplied.
    """

    name: str
    factor: float = 1.0

    def text(self, value: float) -> str:
        """Write a value without its unit."""
        return f"{value * self.factor:.2f}" if self.name == SHARE else f"{value:.4g}"


def unit_of(metric: str, run_folders: Iterable[Path]) -> Unit:
    """Return the unit of a logged value, which the tasks of a run say; none where it has none or it is not known."""
    _, _, rest = metric.partition("/")
    if rest == "delta_m":  # is percent everywhere
        return Unit(SHARE)
    task, _, name = rest.partition("/")
    files = (folder / "checkpoints" / "best.ckpt" for folder in run_folders)
    checkpoint = next((file for file in files if file.is_file()), None)
    if not name or checkpoint is None:
        return Unit("")
    try:
        tasks = build_tasks(open_checkpoint(checkpoint).hyper_parameters["tasks"])
    except (TaskformerError, KeyError):  # of a class or a task that this process does not know
        return Unit("")
    unit = tasks[task].units.get(name, "") if task in tasks else ""
    return Unit(unit, factor(unit))
