"""The images on which a task is worst, with everything drawn beside them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from taskformer.errors import ConfigError
from taskformer.evaluation.comparison.scored import read_run
from taskformer.evaluation.gallery import draw_sample, gallery_sheet
from taskformer.files import replacing
from taskformer.modules.base import MultiTaskModule
from taskformer.tasks import Task


@dataclass(frozen=True)
class WorstImage:
    """An image of a test.

    Attributes:
        name: Its identifier.
        score: The task's headline metric of this image alone; shares as fractions.
        position: How many images were scored before it.
    """

    name: str
    score: float
    position: int


def worst_images(run: Path, task: Task, count: int = 4) -> list[WorstImage]:
    """List the test images on which a task scored worst, the worst first; those without a label have no score.

    Args:
        run: Run folder of a test that scored every image alone.
        task: The task.
        count: How many images at most.

    Raises:
        ConfigError: If the run was not tested, or its images were not scored alone.
    """
    images = read_run(run, "test").images
    if (task.name, task.headline) not in images:
        msg = (
            f"{run} has no {task.headline} of single images for {task.name}; `taskformer test {run} "
            "--results.per_image true` writes them"
        )
        raise ConfigError(msg)
    names, values = images[task.name, task.headline]
    order = np.argsort(values if task.higher_is_better else -values, kind="stable")
    scored = [int(place) for place in order if np.isfinite(values[place])]
    return [WorstImage(names[place], float(values[place]), place) for place in scored[:count]]


def draw_images(path: Path, module: MultiTaskModule, dataset: Any, images: Sequence[WorstImage]) -> None:
    """Draw images with the targets and the predictions of every task.

    Args:
        path: The picture.
        module: The model.
        dataset: The images of the test, in its order.
        images: At least one of them.

    Raises:
        ConfigError: If an image is not there.
    """
    sheet = gallery_sheet([draw_sample(module, _sample(dataset, image)) for image in images])
    with replacing(path) as temporary:
        sheet.save(temporary)


def _sample(dataset: Any, image: WorstImage) -> dict[str, Any]:
    """Load an image; before it may lie some that could not be read, and were not scored."""
    for place in range(image.position, len(dataset)):
        sample: dict[str, Any] = dataset[place]
        if str(sample["meta"]["id"]) == image.name:
            return sample
    msg = f"the test scored the image {image.name!r}, which is not in the run's data; was the data set changed?"
    raise ConfigError(msg)
