"""Tasks whose target is the image: autoencoding, and restoring an image that was spoilt on purpose.

One forward pass has one input, so an image is either clean, with all its labels and itself as the target of
``autoencoding``, or spoilt for one task and labelled for that one only: grey for ``colorization`` (target: the two
colour differences of BT.601), noisy for ``denoising`` (Gaussian noise of variance 0.01 on 0..1), with an empty middle
for ``inpainting``.
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from taskformer.data.datasets.base import Sample
from taskformer.normalisation import denormalise, normalise
from taskformer.tasks import Task

#: What the tasks are, for :func:`taskformer.tasks.build_tasks`.
SPECS: dict[str, dict[str, Any]] = {
    "autoencoding": {"type": "regression", "channels": 3},
    "colorization": {"type": "regression", "channels": 2, "value_range": [-0.5, 0.5]},
    "denoising": {"type": "regression", "channels": 3},
    "inpainting": {"type": "regression", "channels": 3},
}
CLEAN = "autoencoding"
NOISE_DEVIATION = 0.1
_LUMA = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)


class ImageVariants:
    """The last step of a pipeline: leaves an image as it is or spoils it for one task, and makes the target.

    Args:
        transform: The pipeline before, which moves a stand-in target of each of these tasks with the image.
        tasks: All tasks by name, some of :data:`SPECS` among them.
        share: Share of the images that is spoilt, equally often for each task.
        repeatable: Let the choice follow from the image's id, for evaluation; otherwise it is random.
    """

    def __init__(
        self, transform: Callable[[Sample], Sample], tasks: Mapping[str, Task], share: float, repeatable: bool
    ) -> None:
        self.transform = transform
        self.tasks = dict(tasks)
        self.share = share
        self.repeatable = repeatable
        self._spoiling = [name for name in tasks if name in SPOIL]

    def __call__(self, sample: Sample) -> Sample:
        """Transform a sample and choose its variant; targets that this variant lacks are all invalid."""
        sample = self.transform(sample)
        image = sample["image"]
        stand_in = next(target for name, target in sample["targets"].items() if name in SPECS)
        inside = torch.isfinite(stand_in[:1])  # (1, H, W): not padding
        pixels = denormalise(image)
        random = torch.Generator().manual_seed(self._seed(sample["meta"]))
        chosen = self._choose(random)
        targets = {name: task.invalid(*image.shape[-2:]) for name, task in self.tasks.items()}
        if chosen is not None:
            spoilt, target = SPOIL[chosen](pixels, random)
            image = normalise(spoilt)
            targets[chosen] = torch.where(inside, target, torch.nan)
        else:
            targets |= {name: target for name, target in sample["targets"].items() if name not in SPECS}
            targets |= {CLEAN: torch.where(inside, pixels, torch.nan)} if CLEAN in self.tasks else {}
        return {**sample, "image": image, "targets": targets}

    def _seed(self, meta: Mapping[str, Any]) -> int:
        return zlib.crc32(meta["id"].encode()) if self.repeatable else int(torch.randint(2**31, ()))

    def _choose(self, random: torch.Generator) -> str | None:
        """Draw the task to spoil the image for, or None."""
        draw = float(torch.rand((), generator=random))
        if not self._spoiling or draw >= self.share:
            return None
        return self._spoiling[int(draw / self.share * len(self._spoiling))]


def _colorization(pixels: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    del random
    luma = (pixels * _LUMA).sum(dim=0, keepdim=True)  # (1, H, W)
    blue, red = (pixels[2:] - luma) / 1.772, (pixels[:1] - luma) / 1.402
    return luma.expand(3, -1, -1), torch.cat([blue, red])


def _denoising(pixels: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    noise = NOISE_DEVIATION * torch.randn(pixels.shape, generator=random)
    return (pixels + noise).clamp(0, 1), pixels


def _inpainting(pixels: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    del random
    height, width = pixels.shape[1:]
    spoilt = pixels.clone()
    spoilt[:, height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = 0.5
    return spoilt, pixels


#: How each task spoils an image ``(3, H, W)`` in 0..1, and its target.
SPOIL: dict[str, Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]] = {
    "colorization": _colorization,
    "denoising": _denoising,
    "inpainting": _inpainting,
}
