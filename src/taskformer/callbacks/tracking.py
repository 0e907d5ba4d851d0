"""What loggers keep beyond numbers: configuration, best values, tables of a test, checkpoints."""

import csv
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from taskformer.callbacks.checkpoints import BEST, DELTA_M, monitors
from taskformer.callbacks.curves import read_curves
from taskformer.callbacks.run_folder import data_module, is_fitting, run_folder
from taskformer.callbacks.trackers import Tracker, remember, trackers
from taskformer.data.configured import training_size
from taskformer.errors import require
from taskformer.evaluation.benchmark.cost import count, counts
from taskformer.evaluation.environment import git_revision
from taskformer.evaluation.gallery import DrawnSample, draw_sample
from taskformer.evaluation.report import PER_IMAGE, read_metrics
from taskformer.metrics.units import factor
from taskformer.modules.base import MultiTaskModule
from taskformer.modules.evaluating import Batch
from taskformer.tasks import Task
from taskformer.tasks.colors import Picture

#: Images per second of training.
THROUGHPUT = "train/images_per_second"


class Tracking(Callback):
    """Give loggers that keep more than numbers what there is: wandb, TensorBoard, MLflow.

    >>> trainer = Trainer(callbacks=[Tracking(images=8)], accelerator="cpu", logger=False)

    A run is described by its configuration, the source's revision, parameters and multiply-accumulates. Training logs
    its throughput, and the best value of all that validation rates sums the run up. ``test`` adds a table of all images
    with their scores, one of all classes, and the results table. Numbers need no help: Lightning logs them.

    Args:
        images: How many rows of the table of images show pictures of all tasks.
        checkpoint: Whether to keep the best checkpoint, as an artifact with its scores; of a search its front's
            architectures.
    """

    def __init__(self, images: int = 16, checkpoint: bool = False) -> None:
        require("[0, inf)", images=images)
        self.images = images
        self.checkpoint = checkpoint
        self._senses: dict[str, str] = {}
        self._seen, self._seconds, self._since = 0, 0.0, 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Describe the run, and say which values are better."""
        for tracker in self._opened(trainer, pl_module):
            tracker.define(self._senses)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Describe the run where validation is what the user asked for, and stop the clock where it is not."""
        if is_fitting(trainer):
            self._seconds += time.monotonic() - self._since
        else:
            self._opened(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Describe the run."""
        self._opened(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._seen, self._seconds, self._since = 0, 0.0, time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count images."""
        self._seen += len(batch["image"])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the best values of the training so far; a later validation alone does not take their place."""
        self._since = time.monotonic()
        if trainer.sanity_checking:
            return
        for tracker in _trackers(trainer):
            tracker.best(self._best(trainer), self._senses)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log how many images a second were trained on, by all processes, without validations."""
        seconds = self._seconds + time.monotonic() - self._since
        rate = self._seen * trainer.world_size / max(seconds, 1e-9)
        for tracker in _trackers(trainer):
            tracker.values({THROUGHPUT: rate}, trainer.global_step - 1)  # as Lightning counts

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the best checkpoint if that is wanted."""
        folder = run_folder(trainer)
        if folder is None or not self.checkpoint or not (folder / "checkpoints" / BEST).is_file():
            return
        for tracker in _trackers(trainer):
            tracker.artifact(folder / "checkpoints" / BEST, f"{folder.name}-best", "model", self._best(trainer))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the tables of the test, from the files that the results table has written."""
        found = _trackers(trainer)
        if not found or not isinstance(pl_module, MultiTaskModule):
            return
        folder = Path(trainer.default_root_dir)
        record = read_metrics(folder).get("test", {})
        if not record:  # the Trainer has no results table
            return
        tables = {"test/results": _results(record, pl_module.tasks)}
        if classes := list(_classes(record)):
            tables["test/classes"] = (["task", "class", "IoU, %"], classes)
        if "per_image" in record:
            loader: Any = trainer.test_dataloaders
            tables["test/images"] = self._images(folder, pl_module, loader.dataset)
        for tracker in found:
            for key, (columns, rows) in tables.items():
                tracker.table(key, columns, rows)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the run as one that failed."""
        for tracker in _trackers(trainer):
            tracker.finish(failed=True)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the run."""
        for tracker in _trackers(trainer):
            tracker.finish()

    def _opened(self, trainer: Trainer, module: LightningModule) -> list[Tracker]:
        """Open the run, and describe it."""
        found = _trackers(trainer)
        if not found or not isinstance(module, MultiTaskModule):
            return []
        folder = Path(trainer.default_root_dir)
        known = monitors(module) | {DELTA_M: True}
        self._senses = {key: "higher" if higher else "lower" for key, higher in known.items()}
        file = folder / "config.yaml"
        config = dict(flat(yaml.safe_load(file.read_text(encoding="utf-8")))) if file.is_file() else {}
        facts = facts_of(module, training_size(data_module(trainer)))
        for tracker in found:
            tracker.describe(config, facts)
        remember(folder, found)
        return found

    def _best(self, trainer: Trainer) -> dict[str, float]:
        """Return the best value of all that rates the model, from the curves of the whole training."""
        file = Path(trainer.default_root_dir, "logs", "fit", "metrics.csv")
        rows = read_curves(file) if file.is_file() else []
        values = {key: [float(row[key]) for row in rows if row.get(key)] for key in self._senses}
        finite = {key: [value for value in each if math.isfinite(value)] for key, each in values.items()}
        return {key: (max if self._senses[key] == "higher" else min)(each) for key, each in finite.items() if each}

    def _images(self, folder: Path, module: MultiTaskModule, images: Any) -> tuple[list[str], list[list[Any]]]:
        """Return the table of all images with their scores, the first of them with pictures."""
        with (folder / PER_IMAGE).open(newline="", encoding="utf-8") as stream:
            lines = list(csv.DictReader(stream))
        scores: dict[str, dict[str, float]] = {}
        for line in lines:
            scores.setdefault(line["id"], {})[f"{line['task']}/{line['metric']}"] = float(line["value"])
        metrics = list(dict.fromkeys(key for values in scores.values() for key in values))
        samples = (images[index] for index in range(min(self.images, len(images))))
        drawn = [draw_sample(module, sample) for sample in samples if "image" in sample]
        pictures = {sample.name: _pictures(sample) for sample in drawn}
        headings = list(_pictures(drawn[0])) if drawn else []
        rows = [
            [name, *(values.get(key, math.nan) for key in metrics), *map(pictures.get(name, {}).get, headings)]
            for name, values in scores.items()
        ]
        return ["id", *metrics, *headings], rows


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield a configuration's values by the command line's names.

    >>> dict(flat({"model": {"class_path": "MQTransformer", "init_args": {"loss_weights": None}}}))
    {'model.class_path': 'MQTransformer', 'model.init_args.loss_weights': None}
    """
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def facts_of(module: MultiTaskModule, size: tuple[int, int] | None) -> dict[str, Any]:
    """Return what to know of a run that is no setting.

    Args:
        module: The model.
        size: Height and width of the training images; None: multiply-accumulates are not counted.

    Returns:
        ``git``: the source's revision; ``parameters``; ``macs``: multiply-accumulates for one training image;
        ``trained_parameters``, where not all parameters train.
    """
    facts: dict[str, Any] = {"git": git_revision(), "parameters": sum(p.numel() for p in module.network.parameters())}
    if size:
        training = module.training
        facts |= counts(count(module.network, torch.zeros(1, 3, *size, device=module.device))["total"])
        module.train(training)
    return facts


def _trackers(trainer: Trainer) -> list[Tracker]:
    """Return the trackers of the loggers, none in processes that may not write."""
    return trackers(trainer.loggers) if run_folder(trainer) else []


def _pictures(sample: DrawnSample) -> dict[str, Picture]:
    """Name the pictures of a drawn sample."""
    found = {"image": sample.image}
    for task, panel in sample.panels.items():
        found |= {f"{task}: prediction": panel.prediction_picture, f"{task}: target": panel.target_picture}
    return found


def _results(record: Mapping[str, Any], tasks: Mapping[str, Task]) -> tuple[list[str], list[list[Any]]]:
    """Return the results table of a record of ``metrics.json``, in the units of people."""
    compared = "delta_m" in record
    columns = ["task", "metric", "value", "unit", "better", *(["single task", "vs single task, %"] if compared else [])]
    rows: list[list[Any]] = []
    for name, task in tasks.items():
        for metric, value in record["tasks"][name].items():
            unit = task.units.get(metric, "")
            row = [name, metric, _scaled(value, unit), unit, record["better"][name][metric]]
            if compared and metric == task.headline:
                row += [_scaled(record["single_task"][name]["value"], unit), record["improvement"][name]]
            rows.append(row + [None] * (len(columns) - len(row)))
    if compared:
        rows.append(["delta_m", "delta_m", record["delta_m"], "%", "higher", None, None])
    return columns, rows


def _classes(record: Mapping[str, Any]) -> Iterator[list[Any]]:
    """Yield the classes of a record of ``metrics.json`` with their IoU in percent."""
    for task, classes in record.get("per_class", {}).items():
        for name, value in classes.items():
            yield [task, name, _scaled(value, "%")]


def _scaled(value: float | None, unit: str) -> float:
    """Return a value in the unit in which people read it, NaN where there is none."""
    return math.nan if value is None else value * factor(unit)
