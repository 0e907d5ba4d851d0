"""The results table: one row per task and metric, on the screen and as JSON, markdown and LaTeX, with a model card."""

import json as jsonlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from torchmetrics import MetricCollection

from taskformer._version import __version__
from taskformer.callbacks.baselines import Comparison, compare_with_baselines, run_facts
from taskformer.callbacks.per_image import ImageScores, write_rows
from taskformer.callbacks.run_folder import data_module, git_revision, is_fitting, run_folder
from taskformer.callbacks.tables import Scores, better, latex_table, markdown_classes, markdown_table, screen_table
from taskformer.errors import ConfigError
from taskformer.files import write_json, write_text
from taskformer.modules.base import MultiTaskModule, Results
from taskformer.tasks import LabelMapTask

#: Training images that the constant predictor is fitted to, spread evenly over the split.
CONSTANT_IMAGES = 100
PER_IMAGE = "per_image.csv"


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
        baselines: Folder of single-task results, or one file of it; ``test`` prints delta_m against those that
            belong to the run.
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
        self._image_scores: ImageScores | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose how the model is scored."""
        if isinstance(pl_module, MultiTaskModule):
            pl_module.test_stage = "test" if self.edge_benchmark else "val"
            pl_module.protocol = self.protocol

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fit the constant predictor and start to count images."""
        if not isinstance(pl_module, MultiTaskModule):
            return
        self._images = 0
        self._fit_constant(trainer, pl_module)
        if self.per_image:
            loader = trainer.test_dataloaders
            self._image_scores = ImageScores(pl_module, loader, trainer.global_rank, trainer.world_size)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Score the constant predictor on the batch that the model has just seen, and the images one by one."""
        if not isinstance(pl_module, MultiTaskModule):
            return
        self._images += len(batch["image"])
        for name, (constant, metrics) in self._constants.items():
            target = batch["targets"][name]
            size = target.shape[-2:] if constant.ndim == 3 else ()
            output = constant.to(target.device).expand(len(target), -1, *size)
            metrics.update(output, pl_module.tasks[name].check(target, output))
        if self._image_scores:
            self._image_scores.update(outputs, batch)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the test results."""
        if isinstance(pl_module, MultiTaskModule):
            self._report_test(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the validation results; print them when validation was what the user asked for."""
        if trainer.sanity_checking or not isinstance(pl_module, MultiTaskModule):
            return
        folder = run_folder(trainer)
        if folder is None:
            return
        scores = Scores(pl_module.tasks, pl_module.results["val"], {}, class_table(pl_module, "val"))
        record = self._record(scores)
        record |= {"epoch": trainer.current_epoch} if is_fitting(trainer) else {}
        self._save("val", folder, record)
        if not is_fitting(trainer):
            self._show("val", trainer, pl_module, scores)

    def _fit_constant(self, trainer: Trainer, module: MultiTaskModule) -> None:
        """Fit every task's constant to training targets."""
        if not self.constant:
            return
        dataset = data_module(trainer).evaluation_dataset("train")
        indices = np.linspace(0, len(dataset) - 1, min(CONSTANT_IMAGES, len(dataset))).round().astype(int)
        targets = [dataset[int(index)]["targets"] for index in indices]
        for name, task in module.tasks.items():
            constant = task.constant([target[name] for target in targets])
            constant = constant if task.geometry == "image" else constant.view(-1, 1, 1)
            self._constants[name] = (constant, task.metrics(self.protocol, module.test_stage).to(module.device))

    def _report_test(self, trainer: Trainer, module: MultiTaskModule) -> None:
        """Gather from all processes, each of which must come here; the first one writes and prints."""
        constant = {name: _floats(metrics.compute()) for name, (_, metrics) in self._constants.items()}
        counted = trainer.strategy.reduce(torch.tensor(self._images, device=module.device), reduce_op="sum")
        rows = self._image_scores.gather() if self._image_scores else []
        self._constants, self._image_scores = {}, None
        folder = run_folder(trainer)
        if folder is None:
            return
        facts = run_facts(module, data_module(trainer), "test", int(counted))
        results = module.results["test"]
        comparison, reason = self._compare(facts, module, results)
        scores = Scores(module.tasks, results, constant, class_table(module, "test"), comparison)
        record = self._record(scores) | {"facts": facts}
        if rows:
            write_rows(folder / PER_IMAGE, rows)
            record |= {"per_image": PER_IMAGE}
        self._save("test", folder, record)
        self._show("test", trainer, module, scores)
        Console().print(reason, soft_wrap=True, markup=False, highlight=False)

    def _compare(
        self, facts: dict[str, Any], module: MultiTaskModule, results: Results
    ) -> tuple[Comparison | None, str]:
        """Compare with single-task runs, and say with which or why with none."""
        try:
            comparison = compare_with_baselines(Path(self.baselines), facts, module.tasks, results)
        except ConfigError as error:
            return None, f"no delta_m: {error}"
        return comparison, f"delta_m:    {comparison.delta_m:+.2f} % against {comparison.source}"

    def _record(self, scores: Scores) -> dict[str, Any]:
        """Gather what ``metrics.json`` says of a stage."""
        senses = {
            name: {metric: better(task, metric) for metric in scores.results[name]}
            for name, task in scores.tasks.items()
        }
        record: dict[str, Any] = {"protocol": self.protocol, "tasks": scores.results, "better": senses}
        record |= {"per_class": scores.per_class} if scores.per_class else {}
        record |= {"constant": scores.constant} if scores.constant else {}
        if found := scores.comparison:
            record |= {
                "delta_m": found.delta_m,
                "improvement": found.improvement,
                "baselines": str(found.source),
            }
        return record

    def _save(self, stage: str, folder: Path, record: dict[str, Any]) -> None:
        """Replace one stage's record in ``metrics.json``, and write the file that was asked for."""
        path = folder / "metrics.json"
        known = jsonlib.loads(path.read_text()) if path.exists() else {}
        write_json(path, known | {stage: record})
        if self.json:
            write_json(Path(self.json), {stage: record})

    def _show(self, stage: str, trainer: Trainer, module: MultiTaskModule, scores: Scores) -> None:
        """Write the tables for people, and print one."""
        folder = Path(trainer.default_root_dir)
        title = f"{stage}, protocol {self.protocol}"
        write_text(folder / "results.md", f"{title}\n\n{markdown_table(scores)}{markdown_classes(scores)}")
        write_text(folder / "results.tex", latex_table(scores))
        write_text(folder / "model_card.md", model_card(trainer, module, title, scores))
        Console().print(screen_table(title, scores))
        Console().print(f"run folder: {folder}\ngallery:    {folder / 'gallery' / f'{stage}.png'}", soft_wrap=True)


def class_table(module: MultiTaskModule, stage: str) -> Results:
    """Name the classes whose IoU is known."""
    scores = module.per_class[stage].items()
    tasks = ((name, module.tasks[name], values) for name, values in scores)
    return {
        name: dict(zip(task.classes, values, strict=True))
        for name, task, values in tasks
        if isinstance(task, LabelMapTask)
    }


def model_card(trainer: Trainer, module: MultiTaskModule, title: str, scores: Scores) -> str:
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
            f"* taskformer {__version__}, git {git_revision() or 'unknown'}",
            "",
            f"## Results ({title})",
            "",
            markdown_table(scores),
        ]
    )


def _floats(values: dict[str, torch.Tensor]) -> dict[str, float]:
    return {key: float(value) for key, value in values.items()}
