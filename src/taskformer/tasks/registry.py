"""Task names and what they build."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from taskformer.errors import ConfigError, TaskformerError, UnknownNameError
from taskformer.tasks.base import Task

TaskClass = TypeVar("TaskClass", bound=type[Task])

_registry: dict[str, tuple[type[Task], dict[str, Any]]] = {}


def register(name: str, **defaults: Any) -> Callable[[TaskClass], TaskClass]:
    """Make a task class known under a name; a class may have several.

    Args:
        name: The name, which a spec's ``type`` gives.
        **defaults: Options of the class that differ under this name; a spec may still set them.

    Example:
        >>> from taskformer.tasks import Regression
        >>> @register("albedo", channels=3)  # doctest: +SKIP
        ... class Albedo(Regression):
        ...     "Reflectance of the surface."
    """

    def decorate(task_class: TaskClass) -> TaskClass:
        _registry[name] = (task_class, defaults)
        return task_class

    return decorate


def registered() -> list[str]:
    """Return the known names in alphabetical order."""
    return sorted(_registry)


def task_class(kind: str) -> type[Task] | None:
    """Return what a name builds; None if it is not registered.

    >>> task_class("depth").headline
    'rmse'
    """
    return _registry[kind][0] if kind in _registry else None


def build_tasks(specs: Mapping[str, Mapping[str, Any]]) -> dict[str, Task]:
    """Build tasks from plain specs, as they stand in configs and checkpoints.

    >>> tasks = build_tasks({"depth": {"max_depth": 10.0}, "heat": {"type": "regression", "channels": 2}})
    >>> tasks["heat"].channels
    2

    Args:
        specs: Task name to options. ``type`` names the kind of task and defaults to the task's name; the other keys
            are constructor arguments of that kind, e.g. ``{"depth": {"max_depth": 10.0}, "heat": {"type":
            "regression"}}``.

    Returns:
        The tasks by name, in the order of the specs.

    Raises:
        UnknownNameError: If a kind of task or an option does not exist.
        ConfigError: If an option is missing or does not fit.
    """
    return {name: build_task(name, spec) for name, spec in specs.items()}


def build_task(name: str, spec: Mapping[str, Any]) -> Task:
    """Build one task, see :func:`build_tasks`."""
    if not name.isidentifier():
        message = f"task name {name!r} must be letters, digits and underscores: it names modules and results"
        raise ConfigError(message)
    options = dict(spec)
    kind = options.pop("type", name)
    if kind not in _registry:
        what = "task type"
        raise UnknownNameError(what, kind, _registry)
    task_class, defaults = _registry[kind]
    options = {**defaults, **options}
    parameters = dict(inspect.signature(task_class).parameters)
    del parameters["name"]
    for key in options:
        if key not in parameters:
            what = f"option of task {name!r}"
            raise UnknownNameError(what, key, [*parameters, "type"])
    missing = [key for key, value in parameters.items() if value.default is value.empty and key not in options]
    if missing:
        message = f"task {name!r} of type {kind!r} needs the option {', '.join(missing)}"
        raise ConfigError(message)
    try:
        return task_class(name, **options)
    except TaskformerError:
        raise
    except (TypeError, ValueError) as error:
        message = f"task {name!r}: an option does not fit ({error}); got {options}"
        raise ConfigError(message) from error
