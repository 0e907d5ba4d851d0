"""Which tasks and which images of a data set are looked at."""

from collections.abc import Sequence

import numpy as np

from taskformer.data.datamodules.base import MultiTaskDataModule
from taskformer.tasks import Task, build_tasks


def chosen_tasks(module: MultiTaskDataModule, names: Sequence[str] | None = None) -> dict[str, Task]:
    """Build tasks of a data set by name; None builds all that there are files for."""
    offered = module.task_offers()
    return build_tasks({name: offered[name] for name in (module.available() if names is None else names)})


def spread(count: int, sample: int | None) -> Sequence[int]:
    """Choose ``sample`` of ``count`` places evenly, the first and the last among them; None chooses all.

    >>> spread(9, 3)
    [0, 4, 8]
    """
    if sample is None or sample >= count:
        return range(count)
    return [int(place) for place in np.linspace(0, count - 1, sample).round()]
