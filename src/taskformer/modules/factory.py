"""Models by name, without data or configuration."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from taskformer.errors import UnknownNameError
from taskformer.modules import MultiTaskModule
from taskformer.parsing import subclasses


def create_model(name: str, tasks: Iterable[str] | Mapping[str, Mapping[str, Any]], **options: Any) -> MultiTaskModule:
    """Build an untrained model.

    Args:
        name: One of :func:`list_models`; also a model of your own whose file has been imported.
        tasks: Names of the tasks, or each one's plain description, see :func:`taskformer.tasks.build_tasks`.
        **options: Arguments of the model's class, e.g. ``backbone="resnet18"``, ``weights="timm"`` or ``embed_dim=64``.

    Returns:
        The LightningModule, for your own training loop or a ``lightning.Trainer``; ``.network`` is plain torch.

    Raises:
        UnknownNameError: If there is no such model, kind of task or option.
        ConfigError: If a task lacks what it needs, as a segmentation its classes, or an option does not fit.

    Example:
        >>> model = create_model("mqtransformer", ["depth", "normals"], backbone="lcnet_050", embed_dim=16)
        >>> list(model.tasks)
        ['depth', 'normals']
        >>> create_model("baseline", {"semseg": {"classes": ["wall", "floor"]}}).tasks["semseg"].classes
        ['wall', 'floor']
    """
    models = _models()
    if name.lower() not in models:
        kind = "model"
        raise UnknownNameError(kind, name, models)
    model = models[name.lower()]
    bases = [cls for cls in model.__mro__ if issubclass(cls, MultiTaskModule)]
    known = {key for cls in bases for key in _parameters(cls).keys() - _required(cls)}
    for option in options:
        if option not in known:
            kind = f"option of {model.__name__}"
            raise UnknownNameError(kind, option, known)
    names = [tasks] if isinstance(tasks, str) else tasks
    specs = names if isinstance(names, Mapping) else {task: {} for task in names}
    return model(specs, **options)


def list_models() -> list[str]:
    """Return the names of all models, those of your own too if their files have been imported.

    Example:
        >>> {"autotaskformer", "baseline", "mqtransformer"} <= set(list_models())
        True
    """
    return sorted(_models())


def _models() -> dict[str, type[MultiTaskModule]]:
    """Return every class that can be built from tasks alone, by its name in small letters."""
    classes = [cls for cls in subclasses(MultiTaskModule) if not inspect.isabstract(cls)]
    return {cls.__name__.lower(): cls for cls in classes if _required(cls) <= {"tasks"}}


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    """Return what a class itself declares as arguments of its constructor."""
    parameters = inspect.signature(cls).parameters
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: each for name, each in parameters.items() if each.kind in named}


def _required(cls: type) -> set[str]:
    """Name the arguments that a class cannot be built without."""
    return {name for name, each in _parameters(cls).items() if each.default is each.empty}
