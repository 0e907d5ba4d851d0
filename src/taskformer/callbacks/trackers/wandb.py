"""Weights & Biases: one experiment is one run, whichever commands work on it."""

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import WandbLogger
from numpy.typing import NDArray
from PIL import Image

from taskformer.callbacks.trackers.base import NOTHING, Names, Tracker, tracks
from taskformer.evaluation.gallery import DrawnSample, Panel
from taskformer.tasks.base import IGNORE_INDEX

#: The environment variables by which wandb, and the agents of its sweeps, say the same as an argument; they win.
VARIABLES = {
    "id": "WANDB_RUN_ID",
    "resume": "WANDB_RESUME",
    "project": "WANDB_PROJECT",
    "entity": "WANDB_ENTITY",
    "name": "WANDB_NAME",
    "group": "WANDB_RUN_GROUP",
    "job_type": "WANDB_JOB_TYPE",
    "tags": "WANDB_TAGS",
}
PROJECT = "taskformer"
#: The value that Lightning makes the x-axis.
STEP = "trainer/global_step"
SUMMARIES = {"lower": "min", "higher": "max"}
#: Longer side in pixels of the pictures that are uploaded.
LONGEST = 512


@tracks(WandbLogger)
class WandbTracker(Tracker):
    """Keep all of a run in wandb, online, offline or disabled.

    Every command opens the run by its id and closes it, also offline: there each leaves a folder ``offline-run-*`` of
    the same id, which ``wandb sync`` joins.
    """

    kind = "wandb"

    @classmethod
    def arguments(cls, names: Names, known: Mapping[str, str]) -> dict[str, Any]:
        """Name the run; one that is known keeps its id."""
        found = {
            "resume": "allow",
            "project": PROJECT,
            "name": names.name,
            "group": names.group,
            "tags": names.tags,
            **({} if known else {"job_type": names.command}),
            **known,
        }
        return {name: value for name, value in found.items() if VARIABLES[name] not in os.environ}

    @property
    def run(self) -> Any:
        """The run of wandb, which is opened if it is not."""
        return self.logger.experiment

    @property
    def identity(self) -> dict[str, str]:
        """The run's id and place."""
        if self.run.disabled:
            return {}
        found = {name: getattr(self.run, name) for name in ("id", "project", "entity")}
        return {name: value for name, value in found.items() if value}

    def describe(self, config: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Keep what is not there yet: settings that a sweep gave are locked."""
        known = dict(self.run.config)
        news = {key: value for key, value in {**config, **facts}.items() if key not in known or known[key] != value}
        self.run.config.update(news, allow_val_change=True)

    def define(self, senses: Mapping[str, str]) -> None:
        """Let the best value be the summary.

        wandb's own would be ``{"min": value}``, where a sweep looks for a number: in a sweep :meth:`best` writes it.
        """
        for key, sense in senses.items():
            summary = "none" if self.run.sweep_id else SUMMARIES[sense]
            self.run.define_metric(key, step_metric=STEP, step_sync=True, summary=summary)

    def best(self, values: Mapping[str, float], senses: Mapping[str, str]) -> None:
        """Write the best values over those of this process, which may have seen only the end of the training."""
        sweep = self.run.sweep_id
        news = {key: value if sweep else {SUMMARIES[senses[key]]: value} for key, value in values.items()}
        self.run.summary.update(news)

    def gallery(self, key: str, samples: Sequence[DrawnSample], epoch: int) -> None:
        """Keep each image with its label maps as masks, and the other maps as pictures of the same size."""
        size = _common_size([sample.image for sample in samples])
        images = [image for sample in samples for image in _images(sample, size)]
        self.run.log({key: images, "epoch": epoch})

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Keep a table."""
        import wandb

        self.run.log({key: wandb.Table(list(columns), [[_cell(cell) for cell in row] for row in rows])})

    def picture(self, key: str, path: Path, step: int | None = None) -> None:
        """Keep a picture file."""
        import wandb

        self.logger.log_metrics({key: wandb.Image(str(path))}, step)

    def values(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Keep numbers, those without a step in the summary."""
        if step is None:
            self.run.summary.update(dict(values))
        else:
            self.logger.log_metrics(values, step)

    def progress(self, values: Mapping[str, float], axis: str) -> None:
        """Keep numbers that are drawn against one of them, not against optimizer steps."""
        for key in values:
            self.run.define_metric(key, step_metric=axis)
        self.run.log(dict(values))

    def artifact(self, path: Path, name: str, kind: str, metadata: Mapping[str, Any] = NOTHING) -> None:
        """Keep a file or folder as a version of an artifact; what wandb's names may not hold becomes ``-``."""
        import wandb

        artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", name), type=kind, metadata=dict(metadata))
        (artifact.add_dir if path.is_dir() else artifact.add_file)(str(path))
        self.run.log_artifact(artifact)

    def finish(self, failed: bool = False) -> None:
        """Close the run, so that the next one of this process is another; the logger would go on with this one."""
        run, self.logger._experiment = self.logger._experiment, None
        if run is not None:
            self.logger._wandb_init["id"] = run.id
            run.finish(exit_code=int(failed))


def _images(sample: DrawnSample, size: tuple[int, int]) -> Iterator[Any]:
    """Yield what the gallery shows of a sample: the image with all masks, then two pictures of each other task.

    Args:
        sample: The sample.
        size: Width and height of every picture; wandb shows those of one gallery at one size.
    """
    import wandb

    labels = {task: panel for task, panel in sample.panels.items() if _has_masks(panel)}
    masks = {
        f"{task} {what}": {"mask_data": _fitted(values.astype(np.uint8), size, IGNORE_INDEX), "class_labels": names}
        for task, panel in labels.items()
        for names in [dict(enumerate(panel.task.classes)) | {IGNORE_INDEX: "unlabelled"}]
        for what, values in (("prediction", panel.prediction), ("target", panel.target))
    }
    scores = ", ".join(f"{task} {panel.caption}" for task, panel in labels.items() if panel.caption)
    caption = f"{sample.name}: {scores}" if scores else sample.name
    yield wandb.Image(_fitted(sample.image, size), caption=caption, masks=masks or None)
    for task, panel in sample.panels.items():
        if task not in labels:
            score = f", {panel.caption}" if panel.caption else ""
            yield wandb.Image(_fitted(panel.prediction_picture, size), caption=f"{sample.name}: {task}{score}")
            yield wandb.Image(_fitted(panel.target_picture, size), caption=f"{sample.name}: {task}, target")


def _has_masks(panel: Panel) -> bool:
    return panel.task.geometry == "label"


def _common_size(pictures: Sequence[NDArray[Any]]) -> tuple[int, int]:
    """Width and height that every picture fits into, at most :data:`LONGEST`."""
    height, width = (max(picture.shape[axis] for picture in pictures) for axis in (0, 1))
    scale = min(1.0, LONGEST / max(height, width))
    return round(width * scale), round(height * scale)


def _fitted(values: NDArray[np.uint8], size: tuple[int, int], filler: int = 0) -> NDArray[np.uint8]:
    """Shrink a picture ``(H, W, 3)`` or a map of classes ``(H, W)`` and fill it up to a size."""
    image = Image.fromarray(values)
    scale = min(1.0, *(room / side for room, side in zip(size, image.size, strict=True)))
    shrunk = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    resampling = Image.Resampling.NEAREST if values.ndim == 2 else Image.Resampling.BILINEAR
    sheet = Image.new(image.mode, size, filler if values.ndim == 2 else (filler,) * 3)
    sheet.paste(image.resize(shrunk, resampling))
    return np.asarray(sheet)


def _cell(value: Any) -> Any:
    """Turn a picture into wandb's, and what is no number into nothing."""
    import wandb

    if isinstance(value, np.ndarray):
        return wandb.Image(_fitted(value, _common_size([value])))
    return None if isinstance(value, float) and math.isnan(value) else value
