"""The weights of tasks' losses: given one by one, or as in a published recipe."""

from collections.abc import Mapping
from typing import Literal, TypeAlias

from taskformer.errors import ConfigError, UnknownNameError, require
from taskformer.tasks import Task

RecipeName: TypeAlias = Literal[
    "mqtransformer", "invpt", "mtinet", "mtlora", "sak", "adashare_nyud", "adashare_cityscapes", "adashare_taskonomy"
]
#: Weights of some tasks by name, or the name of a recipe.
LossWeights: TypeAlias = dict[str, float] | RecipeName

#: What most of the literature on NYUD-v2 and PASCAL-Context has, from ASTMT on; our tasks' defaults.
_USUAL = {"semseg": 1.0, "depth": 1.0, "human_parts": 2.0, "saliency": 5.0, "normals": 10.0, "edges": 50.0}

#: Published weights by recipe. They belong to its losses, which our tasks' are, but for AdaShare's normals: those are
#: compared by their cosine, ``--data.normals_loss cosine``. AdaShare's weights on Taskonomy (1, 3, 2, 7 and 7) are of
#: other units: its keypoints and edges span 2 and ours 1, its depth is a logarithm, of which a metre is 0.036 at 2.5 m.
RECIPES: dict[str, dict[str, float]] = {
    "mqtransformer": _USUAL,  # also ATRC, DeMT
    "invpt": _USUAL,  # also TaskPrompter, MTMamba++ on NYUD-v2
    "mtinet": _USUAL,  # of NYUD-v2 only semseg and depth
    "mtlora": {task: _USUAL[task] for task in ("semseg", "human_parts", "saliency", "normals")},
    "sak": dict.fromkeys(_USUAL, 1.0),
    "adashare_nyud": {"semseg": 1.0, "normals": 20.0, "depth": 3.0},
    "adashare_cityscapes": {"semseg": 1.0, "inverse_depth": 20.0},
    "adashare_taskonomy": {
        "semseg": 1.0,
        "normals": 3.0,
        "depth_zbuffer": 0.07,
        "keypoints2d": 14.0,
        "edge_texture": 14.0,
    },
}


def configured_weights(given: LossWeights | None, tasks: Mapping[str, Task]) -> dict[str, float]:
    """Return the weight of each task's loss.

    >>> from taskformer.tasks import build_tasks
    >>> configured_weights("adashare_nyud", build_tasks({"depth": {}, "normals": {}}))
    {'depth': 3.0, 'normals': 20.0}

    Args:
        given: Weights of some tasks, the others keep their defaults; or a recipe, which must have all of them.
        tasks: The tasks by name.

    Raises:
        ConfigError: If a weight is negative, or the recipe does not have a task.
        UnknownNameError: If there is no such task or recipe.
    """
    if isinstance(given, str):
        return _of_recipe(given, tasks)
    weights = {name: task.loss_weight for name, task in tasks.items()}
    for name, weight in (given or {}).items():
        if name not in tasks:
            kind = "task in loss_weights"
            raise UnknownNameError(kind, name, tasks)
        require("[0, inf)", **{f"loss_weights.{name}": weight})
        weights[name] = weight
    return weights


def _of_recipe(recipe: str, tasks: Mapping[str, Task]) -> dict[str, float]:
    """Return the weights that a recipe has for the tasks."""
    if recipe not in RECIPES:
        kind = "recipe of loss_weights"
        raise UnknownNameError(kind, recipe, RECIPES)
    weights = RECIPES[recipe]
    if lacking := [name for name in tasks if name not in weights]:
        msg = (
            f"the loss_weights of {recipe} are of {', '.join(weights)}, not of {', '.join(lacking)}; "
            "give numbers, e.g. --model.loss_weights '{depth: 1.0}'"
        )
        raise ConfigError(msg)
    return {name: weights[name] for name in tasks}
