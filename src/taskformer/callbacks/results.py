"""The results table: one row per task and metric, on the screen and as JSON, markdown and LaTeX, with a model card."""

import json as jsonlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from torchmetrics import MetricCollection

from taskformer._version import __version__
from taskformer.callbacks.run_folder import git_revision, is_fitting, run_folder
from taskformer.files import write_json, write_text
from taskformer.modules.base import MultiTaskModule, Results
from taskformer.tasks import Task

#: Training images that the constant predictor is fitted to, spread evenly over the split.
CONSTANT_IMAGES = 100


class ResultsTable(Callback):
    """Print and save the metrics at the end of ``test`` and ``validate``.

    Args:
        constant: Also score the best constant prediction (majority class, mean depth, mean normal, edge prior), fitted
            to training images and evaluated on the same split: the floor that every model must beat.
        json: Also write the table to this file.
    """

    def __init__(self, constant: bool = False, json: str | None = None) -> None:
        self.constant = constant
        self.json = json
        self._constants: dict[str, tuple[torch.Tensor, MetricCollection]] = {}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Fit the constant predictor."""
        self._fit_constant(trainer, pl_module)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Score the constant predictor on the batch that the model has just seen."""
        tasks: dict[str, Task] = getattr(pl_module, "tasks", {})
        for name, (constant, metrics) in self._constants.items():
            target = batch["targets"][name]
            size = target.shape[-2:] if constant.ndim == 3 else ()
            output = constant.to(target.device).expand(len(target), -1, *size)
            metrics.update(output, tasks[name].check(target, output))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the test results."""
        self._report("test", trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the validation results; print them when validation was what the user asked for."""
        if not trainer.sanity_checking:
            self._report("val", trainer, pl_module, quiet=is_fitting(trainer))

    def _fit_constant(self, trainer: Trainer, module: LightningModule) -> None:
        """Fit every task's constant to training targets."""
        if not self.constant or not isinstance(module, MultiTaskModule):
            return
        dataset = _data(trainer).evaluation_dataset("train")
        indices = np.linspace(0, len(dataset) - 1, min(CONSTANT_IMAGES, len(dataset))).round().astype(int)
        targets = [dataset[int(index)]["targets"] for index in indices]
        for name, task in module.tasks.items():
            constant = task.constant([target[name] for target in targets])
            constant = constant if task.geometry == "image" else constant.view(-1, 1, 1)
            self._constants[name] = (constant, task.metrics().to(module.device))

    def _report(self, stage: str, trainer: Trainer, module: LightningModule, quiet: bool = False) -> None:
        """Write the files and print the table."""
        if not isinstance(module, MultiTaskModule) or stage not in module.results:
            return
        results = module.results[stage]
        # Every process takes part in reducing the states; one of them writes.
        constant = {name: _floats(metrics.compute()) for name, (_, metrics) in self._constants.items()}
        self._constants = {}
        folder = run_folder(trainer)
        if folder is None:
            return
        record: dict[str, Any] = {"protocol": "standard", "tasks": results}
        record |= {"constant": constant} if constant else {}
        record |= {"epoch": trainer.current_epoch} if is_fitting(trainer) else {}
        _merge_json(folder / "metrics.json", stage, record)
        if self.json:
            write_json(Path(self.json), {stage: record})
        if quiet:
            return
        write_text(folder / "results.md", markdown_table(module.tasks, results, constant))
        write_text(folder / "results.tex", latex_table(module.tasks, results, constant))
        write_text(folder / "model_card.md", model_card(trainer, module, stage, constant))
        Console().print(screen_table(f"{stage}, protocol standard", module.tasks, results, constant))
        Console().print(f"run folder: {folder}\ngallery:    {folder / 'gallery' / f'{stage}.png'}", soft_wrap=True)


def screen_table(title: str, tasks: dict[str, Task], results: Results, constant: Results) -> Table:
    """Build the table for the terminal."""
    table = Table(title=title)
    for heading in header(constant):
        table.add_column(heading, justify="left" if heading in ("task", "metric", "unit") else "right")
    previous = ""
    for row in table_rows(tasks, results, constant):
        table.add_row(row[0] if row[0] != previous else "", *row[1:])
        previous = row[0]
    return table


def header(constant: Results) -> list[str]:
    """Headings of the results table."""
    return ["task", "metric", "value", *(["constant"] if constant else []), "unit", "better"]


def table_rows(tasks: dict[str, Task], results: Results, constant: Results) -> Iterator[list[str]]:
    """Format each task's metrics, its headline first; shares are shown in percent."""
    for name, task in tasks.items():
        for metric in sorted(results[name], key=lambda key: key != task.headline):
            unit = task.units.get(metric, "")
            values = [results[name][metric], *([constant[name][metric]] if constant else [])]
            cells = [f"{value * 100:.2f}" if unit == "%" else f"{value:.4g}" for value in values]
            better = ("higher" if task.higher_is_better else "lower") if metric == task.headline else ""
            yield [name, metric, *cells, unit, better]


def markdown_table(tasks: dict[str, Task], results: Results, constant: Results) -> str:
    """Format the table as markdown."""
    lines = [header(constant), ["---"] * len(header(constant)), *table_rows(tasks, results, constant)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def latex_table(tasks: dict[str, Task], results: Results, constant: Results) -> str:
    """Format the table as a LaTeX ``tabular``."""
    lines = [" & ".join(line) for line in (header(constant), *table_rows(tasks, results, constant))]
    body = " \\\\\n".join(line.replace("_", "\\_").replace("%", "\\%").replace("°", "$^\\circ$") for line in lines)
    return f"\\begin{{tabular}}{{{'l' * len(header(constant))}}}\n{body} \\\\\n\\end{{tabular}}\n"


def model_card(trainer: Trainer, module: MultiTaskModule, stage: str, constant: Results) -> str:
    """Describe the model next to its numbers."""
    parameters = sum(parameter.numel() for parameter in module.network.parameters())
    settings = {key: value for key, value in module.hparams.items() if key != "tasks"}
    data = _data(trainer)
    return "\n".join(
        [
            f"# {type(module).__name__} on {data.name if data else 'unknown data'}",
            "",
            f"* Tasks: {', '.join(module.tasks)}",
            f"* Parameters: {parameters / 1e6:.2f} M",
            f"* Settings: {settings}",
            f"* taskformer {__version__}, git {git_revision() or 'unknown'}",
            "",
            f"## Results ({stage}, protocol standard)",
            "",
            markdown_table(module.tasks, module.results[stage], constant),
        ]
    )


def _data(trainer: Trainer) -> Any:
    """The run's data module."""
    return trainer.datamodule  # type: ignore[attr-defined]  # the Trainer gets it when it starts


def _floats(values: dict[str, torch.Tensor]) -> dict[str, float]:
    return {key: float(value) for key, value in values.items()}


def _merge_json(path: Path, stage: str, record: dict[str, Any]) -> None:
    """Replace one stage's record in ``metrics.json``."""
    known = jsonlib.loads(path.read_text()) if path.exists() else {}
    write_json(path, known | {stage: record})
