"""Whether a checkpoint is of the model that it is loaded into."""

from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch import LightningModule

from taskformer.errors import TaskformerError, WeightsError
from taskformer.tasks import Task, build_tasks

#: How many of what differs a message names.
NAMED = 3
#: Settings that do not change a network's tensors.
NO_SIZES = ("tasks", "weights", "initialisation", "loss_weights", "freeze", "layer_decay", "distillation")


def require_fitting(
    saved: Mapping[str, Any], state: Mapping[str, Any], module: LightningModule, own: Mapping[str, Task]
) -> None:
    """Refuse a checkpoint of other tasks, other classes or a network of other sizes.

    Args:
        saved: Its hyper-parameters.
        state: Its tensors.
        module: The model that they are to be loaded into.
        own: Its tasks.

    Raises:
        WeightsError: If it does not fit; says what differs.
    """
    if "tasks" not in saved or not state:
        msg = "the checkpoint does not name its tasks and weights; only checkpoints of `taskformer fit` can be loaded"
        raise WeightsError(msg)
    try:
        tasks = build_tasks(saved["tasks"])
    except TaskformerError as error:
        msg = f"the tasks of the checkpoint are not known here: {error}"
        raise WeightsError(msg) from error
    if differences := list(_task_differences(tasks, own)):
        msg = (
            f"the checkpoint is of other tasks or classes: {_some(differences)}; "
            "give the data set's configuration that it was trained with, or train anew"
        )
        raise WeightsError(msg)
    if differences := list(_shape_differences(state, module.state_dict())):
        settings = list(_setting_differences(saved, module.hparams))
        msg = (
            f"the checkpoint is of a network of other sizes: {_some(settings or differences)}; "
            "give the model's configuration that it was trained with"
        )
        raise WeightsError(msg)


def _task_differences(saved: Mapping[str, Task], own: Mapping[str, Task]) -> Iterator[str]:
    """Say which tasks differ, and in what."""
    if set(saved) != set(own):
        yield f"{', '.join(saved)} there, {', '.join(own)} here"
        return
    if list(saved) != list(own):  # weights of all tasks lie side by side, without names
        yield f"in the order {', '.join(saved)} there, {', '.join(own)} here"
        return
    for name, task in saved.items():
        mine = own[name]
        if type(task) is not type(mine) or task.channels != mine.channels:
            yield f"{name} is a {_kind(task)} there and a {_kind(mine)} here"
        elif task.classes != mine.classes:
            number = next(
                k for k, pair in enumerate(zip(task.classes, mine.classes, strict=True)) if len(set(pair)) > 1
            )
            yield f"class {number} of {name} is {task.classes[number]!r} there and {mine.classes[number]!r} here"


def _setting_differences(saved: Mapping[str, Any], own: Mapping[str, Any], group: str = "") -> Iterator[str]:
    """Say which settings that may change tensors differ, those of a group one by one."""
    for key, value in saved.items():
        if key in NO_SIZES or key not in own or own[key] == value:
            continue
        if isinstance(value, Mapping) and isinstance(own[key], Mapping):
            yield from _setting_differences(value, own[key], f"{group}{key}.")
        else:
            yield f"{group}{key} {value!r} there, {own[key]!r} here"


def _kind(task: Task) -> str:
    return f"{type(task).__name__} with {task.channels} channels"


def _shape_differences(saved: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[str]:
    """Say which tensors are missing, left over or of another shape."""
    for name in [*own, *(name for name in saved if name not in own)]:
        shapes = [tuple(state[name].shape) if name in state else "none" for state in (saved, own)]
        if shapes[0] != shapes[1]:
            yield f"{name} {shapes[0]} there, {shapes[1]} here"


def _some(items: list[str]) -> str:
    return "; ".join(items[:NAMED]) + (f"; and {len(items) - NAMED} more" if len(items) > NAMED else "")
