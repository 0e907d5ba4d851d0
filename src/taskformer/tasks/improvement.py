"""How much better one model does all tasks than single-task models do."""

from collections.abc import Mapping

from taskformer.metrics import delta_m, improvement
from taskformer.tasks.base import Task


def improvements(
    tasks: Mapping[str, Task], results: Mapping[str, Mapping[str, float]], references: Mapping[str, float]
) -> tuple[dict[str, float], float]:
    """Compute every task's relative improvement in its headline metric, and delta_m, their mean, in percent.

    Args:
        tasks: The tasks by name.
        results: ``{task: {metric: value}}`` of the multi-task model.
        references: Headline metric of each task's single-task model.

    Raises:
        ValueError: If a task lacks a reference or has one that is not above 0.
    """
    values = {name: results[name][task.headline] for name, task in tasks.items()}
    sense = {name: task.higher_is_better for name, task in tasks.items()}
    mean = delta_m(values, references, sense)
    return {name: improvement(value, references[name], sense[name]) for name, value in values.items()}, mean
