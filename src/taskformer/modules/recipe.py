"""What a model is trained with, in plain types: results of trainings can only be compared if this is the same."""

import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import WeightAveraging


def training_recipe(trainer: Trainer, lr_scheduler: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Describe a training that is about to start: its length, optimizer, schedule and augmentation.

    What does not change what is learned on average (seed, names, logging, number of processes) is left out, and so are
    the weights of losses: each task trained alone has its own scale.

    Args:
        trainer: The Trainer, with its optimizers.
        lr_scheduler: What builds the model's schedule.
        settings: The model's hyper-parameters that belong to the training.

    Returns:
        Plain values and texts, which checkpoints and JSON files can hold.
    """
    data = getattr(trainer, "datamodule", None)
    steps = trainer.estimated_stepping_batches
    steps = int(steps) if math.isfinite(steps) else -1
    images = getattr(data, "batch_size", 0) * trainer.accumulate_grad_batches * trainer.world_size
    recipe = {
        "steps": steps,
        "epochs": trainer.max_epochs,
        "batch_size": images,
        "optimizer": [_call(optimizer, optimizer.defaults) for optimizer in trainer.optimizers],
        "lr_scheduler": [
            _call(config.scheduler, _scheduler_settings(config.scheduler, lr_scheduler, steps))
            for config in trainer.lr_scheduler_configs
        ],
        "gradient_clip_val": trainer.gradient_clip_val or 0.0,
        "precision": str(trainer.precision),
        "ema_decay": _average_decay(trainer),
        "augmentation": pipeline(data, "train_transforms"),
        "labels": labels(data),
    }
    return recipe | dict(settings)


def initialisation(settings: Mapping[str, Any]) -> str:
    """Say what a network was filled with before its training; runs that differ in it belong in different tables.

    >>> initialisation({"weights": "files/upernet.pth", "initialisation": "ade20k"})
    'ade20k (upernet.pth)'
    >>> initialisation({"weights": "hub:timm/vit_small_patch14_dinov2.lvd142m"})
    'hub:timm/vit_small_patch14_dinov2.lvd142m'

    Args:
        settings: The model's hyper-parameters.

    Returns:
        The user's label, if there is one, and where the weights came from: of a file its name, for folders differ
        between machines.
    """
    weights, label = settings["weights"], settings.get("initialisation")
    source = weights if weights.startswith("hub:") else Path(weights).name
    return f"{label} ({source})" if label and source != "random" else source


def pipeline(data: Any, steps: str) -> list[str]:
    """Describe the transforms of a data module, or of each of its parts, in plain text.

    Args:
        data: The data module, or None.
        steps: Name of the list, ``"train_transforms"`` or ``"eval_transforms"``.
    """
    if hasattr(data, "parts"):
        return [f"{part.name}: {text}" for part in data.parts for text in pipeline(part, steps)]
    size = getattr(data, "size", None)
    loaded = [f"loaded at {size[0]}x{size[1]}"] if size else []
    return loaded + [" ".join(repr(step).split()) for step in getattr(data, steps, [])]


def labels(data: Any) -> list[str]:
    """Describe which labels a data module, or each of its parts, trains with; nothing where it is all of them.

    >>> from taskformer.data import RoomsDataModule
    >>> labels(RoomsDataModule(label_share=0.25, one_label_of=["semseg", "depth"]))
    ['0.25 of the images', 'one of depth, semseg on each']
    """
    if hasattr(data, "parts"):
        return [f"{part.name}: {text}" for part in data.parts for text in labels(part)]
    share, names = getattr(data, "label_share", 1.0), getattr(data, "one_label_of", [])
    found = [f"{share:g} of the images"] if share < 1 else []
    return found + ([f"one of {', '.join(sorted(names))} on each"] if names else [])


def _average_decay(trainer: Trainer) -> float | None:
    """Return the decay of the moving average that becomes the model; None where the weights are the last ones."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]  # set in its constructor
    return next((getattr(each, "decay", None) for each in callbacks if isinstance(each, WeightAveraging)), None)


def _call(built: Any, settings: dict[str, Any]) -> str:
    """Write an object as the call that builds it; what is off or left out is not named."""
    given = {key: value for key, value in sorted(settings.items()) if value is not None and value is not False}
    return f"{type(built).__name__}({', '.join(f'{key}={value}' for key, value in given.items())})"


def _scheduler_settings(scheduler: Any, factory: Any, steps: int) -> dict[str, Any]:
    """Return what a scheduler was built with: its attributes, or what the command line gave where it keeps none."""
    given = getattr(factory, "keywords", {})
    names = [name for name in inspect.signature(type(scheduler)).parameters if name not in ("optimizer", "last_epoch")]
    settings = {name: getattr(scheduler, name, given.get(name)) for name in names}
    if settings.get("total_steps") == steps:
        del settings["total_steps"]  # the length of the training, which is said already
    return settings
