"""Pictures of what training sees: samples as they are on disk, and the same ones augmented."""

from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from taskformer.data.datamodules.base import MultiTaskDataModule
from taskformer.data.datasets.base import IMAGE, Sample
from taskformer.datatools.selection import spread
from taskformer.errors import ConfigError
from taskformer.files import replacing
from taskformer.normalisation import denormalise
from taskformer.tasks import Task, build_tasks
from taskformer.tasks.colors import INVALID_COLOR, Picture, contact_sheet, unit_to_byte

if TYPE_CHECKING:
    from taskformer.data.transforms import Transform


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
    rows, captions = [], []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for index in spread(len(raw), count):
            rows += [_draw_raw(built, raw.raw(index)), _draw_augmented(built, augmented[index])]
            captions += [str(raw.ids[index]), "augmented"]
    sheet = contact_sheet([IMAGE, *built], rows, width, captions)
    with replacing(out) as temporary:
        sheet.save(temporary, format="PNG")
    return out


def _example_transforms(tasks: Mapping[str, Task]) -> "list[Transform]":
    """Make augmentations for a data set without any; numbers about the camera do not survive moved pixels."""
    from taskformer.data.transforms import PhotoMetricDistortion, RandomHorizontalFlip, RandomScale

    moves: list[Transform] = [RandomScale(0.75, 1.5), RandomHorizontalFlip()]
    about_camera = any(task.about_camera for task in tasks.values())
    return [*([] if about_camera else moves), PhotoMetricDistortion()]


def _draw_raw(tasks: Mapping[str, Task], sample: Sample) -> list[Picture]:
    """Draw the image and its targets as they are on disk; a missing target is dark."""
    targets = {name: target for name, target in sample["targets"].items() if not tasks[name].misfit(target)}
    channels_first = {name: np.moveaxis(map_, -1, 0) if map_.ndim == 3 else map_ for name, map_ in targets.items()}
    blank = np.full_like(sample[IMAGE], INVALID_COLOR)
    pictures = (task.colorize(channels_first[name]) if name in targets else blank for name, task in tasks.items())
    return [sample[IMAGE], *pictures]


def _draw_augmented(tasks: Mapping[str, Task], sample: Sample) -> list[Picture]:
    """Draw the tensors that training gets."""
    image = denormalise(sample[IMAGE]).permute(1, 2, 0).numpy()
    pictures = (task.colorize(sample["targets"][name].numpy()) for name, task in tasks.items())
    return [unit_to_byte(image), *pictures]
