"""The results table: one row per task and metric, on the screen and as JSON, markdown and LaTeX, with a model card."""

import json as jsonlib
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console
from torch import distributed
from torchmetrics import MetricCollection

from taskformer._version import __version__
from taskformer.callbacks.run_folder import data_module, git_revision, is_fitting, run_folder
from taskformer.errors import ConfigError, DatasetNotFoundError
from taskformer.evaluation.per_image import ImageScores, write_rows
from taskformer.evaluation.references import (
    Comparison,
    Facts,
    Reference,
    compare_with_baselines,
    find_references,
    run_facts,
)
from taskformer.evaluation.tables import Scores, better, latex_table, markdown_classes, markdown_table, screen_table
from taskformer.files import write_json, write_text
from taskformer.modules.base import Batch, MultiTaskModule, Results
from taskformer.modules.recipe import training_recipe

#: Training images that the constant predictor is fitted to, spread evenly over the split.
CONSTANT_IMAGES = 100
PER_IMAGE = "per_image.csv"
METRICS = "metrics.json"
#: How many of the images that cannot be read a message names.
NAMED = 3


class ResultsTable(Callback):
    """Print and save the metrics at the end of ``test`` and ``validate``.

    Args:
        constant: Also score the best constant prediction (majority class, mean depth, mean normal, edge prior), fitted
            to training images and evaluated on the same split: the floor that every model must beat.
        json: Also write the table to this file.
        protocol: How to score: ``standard``, or ``atrc``, ``invpt`` or ``adashare`` to compare with published numbers.
        per_image: In ``test`` also score every image alone and write ``per_image.csv`` to the run folder, for
            ``taskformer compare``.
        edge_benchmark: Whether ``test`` scores edges by odsF, oisF and AP. Matching takes a fifth of a second per image
            of 160x128 and several seconds per image of 560x425; ``taskformer evaluate`` does it later in parallel.
        baselines: Folder of single-task results, or one file of it; ``test`` and ``validate`` print delta_m against
            those that belong to the run, and ``fit`` logs it as ``val/delta_m``.
    """

    def __init__(
        self,
        constant: bool = False,
        json: str | None = None,
        protocol: str = "standard",
        per_image: bool = False,
        edge_benchmark: bool = True,
        baselines: str = "configs/baselines",
    ) -> None:
        self.constant = constant
        self.json = json
        self.protocol = protocol
        self.per_image = per_image
        self.edge_benchmark = edge_benchmark
        self.baselines = baselines
        self._constants: dict[str, tuple[torch.Tensor, MetricCollection]] = {}
        self._images = 0
        self._unreadable: list[str] = []
        self._image_scores: ImageScores | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose how the model is scored."""
        if isinstance(pl_module, MultiTaskModule):
            pl_module.test_stage = "test" if self.edge_benchmark else "val"
            pl_module.protocol = self.protocol

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to count images, and look for the single-task results that an epoch is compared with."""
        self._images, self._unreadable = 0, []
        if is_fitting(trainer) and isinstance(pl_module, MultiTaskModule):
            try:
                references = self.references(trainer, pl_module)
            except ConfigError:
                references = {}
            pl_module.single_task = {name: reference.value for name, reference in references.items()}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fit the constant predictor and start to count images."""
        if not isinstance(pl_module, MultiTaskModule):
            return
        self._images, self._unreadable = 0, []
        self._fit_constant(trainer, pl_module)
        if self.per_image:
            loader = trainer.test_dataloaders
            self._image_scores = ImageScores(pl_module, loader, trainer.global_rank, trainer.world_size)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Count the images."""
        self._count(batch)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Score the constant predictor on the batch that the model has just seen, and the images one by one."""
        if not isinstance(pl_module, MultiTaskModule):
            return
        self._count(batch)
        for name, target in batch["targets"].items():
            if name in self._constants:
                constant, metrics = self._constants[name]
                size = target.shape[-2:] if constant.ndim == 3 else ()
                output = constant.to(target.device).expand(len(target), -1, *size)
                metrics.update(output, pl_module.tasks[name].check(target, output))
        if self._image_scores:
            self._image_scores.update(outputs, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather from all processes what was read; an epoch of other images is not compared with single tasks."""
        if trainer.sanity_checking or not isinstance(pl_module, MultiTaskModule):
            return
        self._gather(trainer, pl_module)
        if pl_module.single_task and self._images != _validation_images(trainer):
            pl_module.single_task = {}
            rank_zero_warn(f"no val/delta_m: only {self._images} validation images could be read", category=UserWarning)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gather from all processes what was read."""
        if isinstance(pl_module, MultiTaskModule):
            self._gather(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the test results."""
        if not isinstance(pl_module, MultiTaskModule):
            return
        # All processes must come here; the first one writes and prints.
        constant = {name: _floats(metrics.compute()) for name, (_, metrics) in self._constants.items()}
        rows = self._image_scores.gather() if self._image_scores else []
        self._constants, self._image_scores = {}, None
        folder = run_folder(trainer)
        if folder is None:
            return
        record = {}
        if rows:
            write_rows(folder / PER_IMAGE, rows)
            record = {"per_image": PER_IMAGE}
        self._report("test", trainer, pl_module, constant, record)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the validation results; print them when validation was what the user asked for."""
        if trainer.sanity_checking or not isinstance(pl_module, MultiTaskModule) or run_folder(trainer) is None:
            return
        record = {"epoch": trainer.current_epoch} if is_fitting(trainer) else {}
        self._report("val", trainer, pl_module, {}, record)

    def references(self, trainer: Trainer, module: MultiTaskModule) -> dict[str, Reference]:
        """Find the single-task results that the validations of a training are compared with.

        Before the first step the size of the training images is not known; it is compared from then on.

        Raises:
            ConfigError: If there are none; says why.
        """
        images = _validation_images(trainer)
        if images is None:
            msg = "val/delta_m needs all images of the validation split; leave trainer.limit_val_batches at 1.0"
            raise ConfigError(msg)
        facts = run_facts(module, data_module(trainer), "val", images)
        facts |= {"training": training_recipe(trainer, module)}
        if not module.train_size.any():
            del facts["input_size"]
        return find_references(Path(self.baselines), facts, module.tasks)[1]

    def _fit_constant(self, trainer: Trainer, module: MultiTaskModule) -> None:
        """Fit every task's constant to training targets."""
        if not self.constant:
            return
        dataset = data_module(trainer).evaluation_dataset("train")
        indices = np.linspace(0, len(dataset) - 1, min(CONSTANT_IMAGES, len(dataset))).round().astype(int)
        samples = [dataset[int(index)] for index in indices]
        targets = [sample["targets"] for sample in samples if "image" in sample]
        for name, task in module.tasks.items():
            constant = task.constant([target[name] for target in targets])
            constant = constant if task.geometry == "image" else constant.view(-1, 1, 1)
            self._constants[name] = (constant, task.metrics(self.protocol, module.test_stage).to(module.device))

    def _count(self, batch: Batch) -> None:
        """Count the images of a batch that could be read, and note the others."""
        self._images += len(batch["image"])
        self._unreadable += batch.get("unreadable", {}).values()

    def _gather(self, trainer: Trainer, module: MultiTaskModule) -> None:
        """Add up what the processes counted.

        Raises:
            DatasetNotFoundError: If not one image could be read.
        """
        if distributed.is_available() and distributed.is_initialized():
            parts: list[Any] = [None] * distributed.get_world_size()
            distributed.all_gather_object(parts, (self._images, self._unreadable))
            self._images = sum(images for images, _ in parts)
            self._unreadable = sorted(image for _, images in parts for image in images)
        if not self._images:
            msg = f"none of the {len(self._unreadable)} images to evaluate can be read; see the files logged above"
            raise DatasetNotFoundError(msg)

    def _report(
        self, stage: str, trainer: Trainer, module: MultiTaskModule, constant: Results, record: dict[str, Any]
    ) -> None:
        """Print and save the results of a stage; during training they are only saved."""
        facts = run_facts(module, data_module(trainer), stage, self._images)
        results = module.results[stage]
        comparison, reason = self._compare(facts, module, results)
        scores = Scores(module.tasks, results, constant, class_table(module, stage), comparison)
        folder = Path(trainer.default_root_dir)
        notes = [reason]
        if self._unreadable:
            notes.insert(0, f"{_unreadable(self._images, self._unreadable)} and are not scored")
        title = f"{stage}, protocol {self.protocol}"
        if not is_fitting(trainer):  # first of all, for saving may fail
            Console().print(screen_table(title, scores))
            Console().print("\n".join(notes), soft_wrap=True, markup=False, highlight=False)
        self._save(stage, folder, self._record(scores) | {"facts": facts} | record)
        if not is_fitting(trainer):
            _write_tables(folder, title, scores, notes, model_card(trainer, module, title, scores, notes))
            gallery = folder / "gallery" / f"{stage}.png"
            Console().print(f"run folder: {folder}\ngallery:    {gallery}", soft_wrap=True)

    def _compare(self, facts: Facts, module: MultiTaskModule, results: Results) -> tuple[Comparison | None, str]:
        """Compare with single-task runs, and say with which or why with none."""
        try:
            comparison = compare_with_baselines(Path(self.baselines), facts, module.tasks, results)
        except ConfigError as error:
            return None, f"no delta_m: {error}"
        return comparison, f"delta_m:    {comparison}"

    def _record(self, scores: Scores) -> dict[str, Any]:
        """Gather what ``metrics.json`` says of a stage."""
        senses = {
            name: {metric: better(task, metric) for metric in scores.results[name]}
            for name, task in scores.tasks.items()
        }
        record: dict[str, Any] = {"protocol": self.protocol, "tasks": scores.results, "better": senses}
        record |= {"unreadable": self._unreadable} if self._unreadable else {}
        record |= {"per_class": scores.per_class} if scores.per_class else {}
        record |= {"constant": scores.constant} if scores.constant else {}
        if found := scores.comparison:
            record |= {
                "delta_m": found.delta_m,
                "improvement": found.improvement,
                "baselines": str(found.source),
                "single_task": {name: asdict(reference) for name, reference in found.references.items()},
            }
        return record

    def _save(self, stage: str, folder: Path, record: dict[str, Any]) -> None:
        """Replace one stage's record in ``metrics.json``, and write the file that was asked for."""
        path = folder / METRICS
        write_json(path, read_metrics(path) | {stage: record})
        if self.json:
            write_json(Path(self.json), {stage: record})


def why_no_delta_m(trainer: Trainer, module: MultiTaskModule) -> str | None:
    """Say why a training will not log ``val/delta_m``; None if it will.

    Args:
        trainer: The Trainer, from ``on_fit_start`` on.
        module: The model that it trains.
    """
    tables = [callback for callback in trainer.callbacks if isinstance(callback, ResultsTable)]  # type: ignore[attr-defined]  # set in its constructor
    if not tables:
        return "the training has no results table"
    try:
        tables[0].references(trainer, module)
    except ConfigError as error:
        return str(error)
    return None


def read_metrics(path: Path) -> dict[str, Any]:
    """Read a run's ``metrics.json``, empty where there is none. One that is broken is set aside, and a line says so."""
    if not path.exists():
        return {}
    try:
        metrics = jsonlib.loads(path.read_text(encoding="utf-8"))
        reason = f"it holds a {type(metrics).__name__}"
    except (OSError, ValueError) as error:
        metrics, reason = None, str(error)
    if isinstance(metrics, dict) and all(isinstance(record, dict) for record in metrics.values()):
        return metrics
    number = next(k for k in count(1) if not path.with_suffix(f".broken{k}").exists())
    aside = path.replace(path.with_suffix(f".broken{number}"))
    Console().print(f"{path} was no file of results ({reason}) and is now {aside.name}", soft_wrap=True, markup=False)
    return {}


def class_table(module: MultiTaskModule, stage: str) -> Results:
    """Name the classes whose IoU is known."""
    scores = module.per_class[stage].items()
    tasks = ((name, module.tasks[name], values) for name, values in scores)
    return {name: dict(zip(task.classes, values, strict=True)) for name, task, values in tasks if task.classes}


def model_card(trainer: Trainer, module: MultiTaskModule, title: str, scores: Scores, notes: list[str]) -> str:
    """Describe the model next to its numbers."""
    parameters = sum(parameter.numel() for parameter in module.network.parameters())
    settings = {key: value for key, value in module.hparams.items() if key != "tasks"}
    data = data_module(trainer)
    return "\n".join(
        [
            f"# {type(module).__name__} on {data.name if data else 'unknown data'}",
            "",
            f"* Tasks: {', '.join(module.tasks)}",
            f"* Parameters: {parameters / 1e6:.2f} M",
            f"* Settings: {settings}",
            f"* Training: {module.recipe or 'unknown'}",
            f"* taskformer {__version__}, git {git_revision() or 'unknown'}",
            "",
            f"## Results ({title})",
            "",
            markdown_table(scores),
            *notes,
            "",
        ]
    )


def _write_tables(folder: Path, title: str, scores: Scores, notes: list[str], card: str) -> None:
    """Write the tables for people."""
    said = "\n".join(notes)
    write_text(folder / "results.md", f"{title}\n\n{markdown_table(scores)}\n{said}\n{markdown_classes(scores)}")
    write_text(folder / "results.tex", latex_table(scores))
    write_text(folder / "model_card.md", card)


def _unreadable(read: int, others: list[str]) -> str:
    """Say how many images could not be read, and which."""
    names = ", ".join(others[:NAMED]) + (", ..." if len(others) > NAMED else "")
    return f"{len(others)} of {read + len(others)} images could not be read ({names})"


def _validation_images(trainer: Trainer) -> int | None:
    """How many images a validation of a training has; None if it does not look at all of them."""
    dataset = getattr(data_module(trainer), "datasets", {}).get("val")
    limit = trainer.limit_val_batches
    return len(dataset) if dataset is not None and isinstance(limit, float) and limit == 1 else None


def _floats(values: dict[str, torch.Tensor]) -> dict[str, float]:
    return {key: float(value) for key, value in values.items()}
