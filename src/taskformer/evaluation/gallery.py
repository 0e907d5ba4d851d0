"""Pictures of what a network sees, should see and predicts."""

from typing import Any

import torch
from torch import Tensor

from taskformer.modules.base import MultiTaskModule
from taskformer.normalisation import denormalise
from taskformer.tasks.colors import Picture, unit_to_byte


def column_names(module: MultiTaskModule) -> list[str]:
    """Headings of a gallery's columns."""
    pixel_tasks = [name for name, task in module.tasks.items() if task.geometry != "image"]
    return ["image", *(heading for name in pixel_tasks for heading in (f"{name}: target", "prediction"))]


@torch.no_grad()
def draw_sample(module: MultiTaskModule, sample: dict[str, Any]) -> list[Picture]:
    """Draw one sample: the image, then target and prediction of every pixel task, each ``(H, W, 3)`` uint8."""
    image: Tensor = sample["image"]
    training = module.training
    module.eval()
    predictions = module.decode(module(image.unsqueeze(0).to(module.device)))
    module.train(training)
    pictures: list[Picture] = [unit_to_byte(denormalise(image.cpu()).permute(1, 2, 0).numpy())]
    for name, task in module.tasks.items():
        if task.geometry != "image":
            pictures.append(task.colorize(sample["targets"][name].cpu().numpy()))
            pictures.append(task.colorize(predictions[name][0].float().cpu().numpy()))
    return pictures
