"""Pictures of what training sees: samples as they are on disk, and the same ones augmented."""

from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from taskformer.data.datamodules.base import MultiTaskDataModule
from taskformer.data.datasets.base import IMAGE, Sample
from taskformer.datatools.selection import spread
from taskformer.errors import ConfigError
from taskformer.files import replacing
from taskformer.normalisation import denormalise
from taskformer.tasks import Task, build_tasks
from taskformer.tasks.colors import INVALID_COLOR, Picture, unit_to_byte
from taskformer.tasks.sheets import contact_sheet

if TYPE_CHECKING:
    from taskformer.data.transforms import Transform

#: An image ``(H, W, 3)`` and its maps by task, channels first.
Drawn: TypeAlias = tuple[Picture, dict[str, NDArray[Any]]]


def preview(
    module: MultiTaskDataModule,
    out: Path,
    split: str = "train",
    count: int = 4,
    seed: int = 0,
    tasks: Sequence[str] | None = None,
    width: int = 160,
) -> Path:
    """Draw samples of a data set, each in two rows: raw, and augmented as in training.

    Args:
        module: The data set. One without ``train_transforms`` is shown zoomed, mirrored and with other colours.
        out: The PNG to write.
        split: The split.
        count: Number of samples, spread evenly over the split.
        seed: Seed of the augmentations.
        tasks: The tasks to draw; None takes all that there are files for.
        width: Width of each picture in pixels.

    Returns:
        The PNG.

    Raises:
        ConfigError: If the number of samples is below 1.
    """
    if count < 1:
        msg = f"count={count} is not possible; expected at least 1"
        raise ConfigError(msg)
    module = copy(module)
    module.task_names = list(module.available() if tasks is None else tasks)
    built = build_tasks(module.task_specs)
    module.train_transforms = module.train_transforms or _example_transforms(built)
    raw, augmented = module.dataset(split, built, None), module.training_dataset(split)
    samples: list[Drawn] = []
    captions = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for index in spread(len(raw), count):
            samples += [_raw(built, raw.raw(index)), _augmented(augmented[index])]
            captions += [[str(raw.ids[index])], ["augmented"]]
    rows = [[image, *_pictures(built, image, maps)] for image, maps in samples]
    shown = {name: [maps[name] for _, maps in samples if name in maps] for name in built}
    legends = {name: task.legend(*shown[name]) for name, task in built.items()}
    sheet = contact_sheet([IMAGE, *built], rows, width, captions, legends)
    with replacing(out) as temporary:
        sheet.save(temporary, format="PNG")
    return out


def _example_transforms(tasks: Mapping[str, Task]) -> "list[Transform]":
    """Make augmentations for a data set without any; numbers about the camera do not survive moved pixels."""
    from taskformer.data.transforms import PhotoMetricDistortion, RandomHorizontalFlip, RandomScale

    moves: list[Transform] = [RandomScale(0.75, 1.5), RandomHorizontalFlip()]
    about_camera = any(task.about_camera for task in tasks.values())
    return [*([] if about_camera else moves), PhotoMetricDistortion()]


def _raw(tasks: Mapping[str, Task], sample: Sample) -> Drawn:
    """Return the image and its targets as they are on disk."""
    targets = {name: target for name, target in sample["targets"].items() if not tasks[name].misfit(target)}
    return sample[IMAGE], {name: np.moveaxis(map_, -1, 0) if map_.ndim == 3 else map_ for name, map_ in targets.items()}


def _augmented(sample: Sample) -> Drawn:
    """Return the tensors that training gets."""
    image = denormalise(sample[IMAGE]).permute(1, 2, 0).numpy()
    return unit_to_byte(image), {name: target.numpy() for name, target in sample["targets"].items()}


def _pictures(tasks: Mapping[str, Task], image: Picture, maps: Mapping[str, NDArray[Any]]) -> list[Picture]:
    """Draw the map of each task; one that is missing is dark."""
    blank = np.full_like(image, INVALID_COLOR)
    return [task.colorize(maps[name]) if name in maps else blank for name, task in tasks.items()]
