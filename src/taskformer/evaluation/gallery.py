"""What a network sees, should see and predicts: maps, pictures and scores of single images."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from taskformer.metrics.units import shown
from taskformer.modules.base import MultiTaskModule
from taskformer.normalisation import denormalise
from taskformer.tasks import Task
from taskformer.tasks.colors import Picture, Swatch, unit_to_byte
from taskformer.tasks.sheets import Row, contact_sheet


@dataclass(frozen=True)
class Panel:
    """One task of one image.

    Attributes:
        task: The task; its ``classes``, ``units`` and ``legend`` say what is shown.
        target: The target ``(H, W)`` or ``(C, H, W)``.
        prediction: The decoded prediction, ``(H, W)`` or ``(C, H, W)``.
        target_picture: The target's colours ``(H, W, 3)``; both pictures have one scale, that of all images.
        prediction_picture: The prediction's colours ``(H, W, 3)``.
        scores: The headline metric of this image alone, shares as fractions; empty if the image has no label, or
            nothing to be found.
    """

    task: Task
    target: NDArray[Any]
    prediction: NDArray[Any]
    target_picture: Picture
    prediction_picture: Picture
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def caption(self) -> str:
        """The score as people read it, e.g. ``mIoU 45.20 %``; empty without one."""
        units = self.task.units
        return ", ".join(f"{name} {shown(value, units[name], 3)} {units[name]}" for name, value in self.scores.items())


@dataclass(frozen=True)
class DrawnSample:
    """One image with every task that has a value for each pixel.

    Attributes:
        name: The image's name in its data set.
        image: What the network saw ``(H, W, 3)``.
        panels: The tasks by name.
    """

    name: str
    image: Picture
    panels: dict[str, Panel]


@torch.no_grad()
def draw_sample(module: MultiTaskModule, sample: dict[str, Any]) -> DrawnSample:
    """Predict, draw and score one sample of a data set.

    Args:
        module: The model; it goes back to training if it was.
        sample: As data sets of evaluations give it: ``image`` ``(3, H, W)``, ``targets`` and ``meta``.

    Returns:
        The image and its tasks.
    """
    image: Tensor = sample["image"]
    training = module.training
    module.eval()
    outputs = module.evaluated(image.unsqueeze(0).to(module.device))
    module.train(training)
    panels = {
        name: _panel(task, outputs[name].float().cpu(), sample["targets"][name].cpu(), module.protocol)
        for name, task in module.tasks.items()
        if task.geometry != "image"
    }
    return DrawnSample(str(sample["meta"]["id"]), picture_of(image), panels)


def gallery_sheet(samples: Sequence[DrawnSample], width: int = 200) -> Image.Image:
    """Draw samples below each other, each with its targets above its predictions and their scores, and legends.

    Args:
        samples: At least one.
        width: Width in pixels at which each picture is drawn.

    Returns:
        The sheet.
    """
    rows: list[Row] = []
    captions = []
    for sample in samples:
        panels = sample.panels.values()
        rows += [[sample.image, *(panel.target_picture for panel in panels)]]
        rows += [[None, *(panel.prediction_picture for panel in panels)]]
        said = [", ".join(filter(None, ("prediction", panel.caption))) for panel in panels]
        captions += [["", *("target" for _ in panels)], [sample.name, *said]]
    legends = {name: _legend([sample.panels[name] for sample in samples]) for name in samples[0].panels}
    return contact_sheet(["image", *legends], rows, width, captions, legends)


def _legend(panels: Sequence[Panel]) -> list[Swatch]:
    """Say what the colours of a task's panels mean."""
    return panels[0].task.legend(*(map_ for panel in panels for map_ in (panel.target, panel.prediction)))


def picture_of(image: Tensor) -> Picture:
    """Turn an ImageNet-normalised image ``(3, H, W)`` back into a picture ``(H, W, 3)``."""
    return unit_to_byte(denormalise(image.cpu()).permute(1, 2, 0).numpy())


def _panel(task: Task, output: Tensor, target: Tensor, protocol: str) -> Panel:
    """Draw and score the raw output ``(1, channels, H, W)`` of one image."""
    true, predicted = target.numpy(), task.decode(output)[0].numpy()
    score = _score(task, output, target.unsqueeze(0), protocol)
    scores = {task.headline: score} if np.isfinite(score) else {}
    return Panel(task, true, predicted, task.colorize(true), task.colorize(predicted), scores)


def _score(task: Task, output: Tensor, target: Tensor, protocol: str) -> float:
    """Compute the headline metric of one image, NaN where there is none."""
    with warnings.catch_warnings():
        # Many an image lacks a task's label, or what is to be found.
        warnings.simplefilter("ignore")
        # Called, not updated and computed: that would wait for the other processes.
        return float(task.metrics(protocol)(output, task.check(target, output))[task.headline])
