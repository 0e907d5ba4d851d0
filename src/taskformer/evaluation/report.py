"""The report of an evaluation: the record in ``metrics.json``, tables for people, the model card."""

import json
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from taskformer._version import __version__
from taskformer.errors import ConfigError
from taskformer.evaluation.benchmark.cost import Cost, counts
from taskformer.evaluation.environment import git_revision
from taskformer.evaluation.references import Facts, compare_with_references, run_facts
from taskformer.evaluation.tables import Scores, latex_table, markdown_classes, markdown_table, screen_table
from taskformer.files import write_json, write_text
from taskformer.modules.augmented import TTA
from taskformer.modules.base import MultiTaskModule
from taskformer.modules.evaluating import Results

#: Files of a run folder.
METRICS, PER_IMAGE = "metrics.json", "per_image.csv"
#: How many of the images that cannot be read a message names.
NAMED = 3


@dataclass(frozen=True)
class Report:
    """What the evaluation of a model found.

    Attributes:
        stage: ``"test"`` or ``"val"``.
        scores: What the tables show.
        facts: What was evaluated, and how, see :func:`~taskformer.evaluation.references.run_facts`.
        unreadable: Identifiers of the images that could not be read and are not scored.
        compared: With which single-task references the model was compared, or why with none.
        cost: Parameters and multiply-accumulates for one of the images; None where nobody has counted.
    """

    stage: str
    scores: Scores
    facts: Facts
    unreadable: list[str]
    compared: str
    cost: Cost | None = None

    @property
    def title(self) -> str:
        """What was scored, and how."""
        title = f"{self.stage}, protocol {self.facts['protocol']}, initialisation {self.facts['initialisation']}"
        tta = self.facts.get("tta")
        return f"{title}, averaged over {TTA(**tta)}" if tta else title

    @property
    def notes(self) -> list[str]:
        """What the tables do not say, a line each."""
        if not self.unreadable:
            return [self.compared]
        total = self.facts["images"] + len(self.unreadable)
        names = ", ".join(self.unreadable[:NAMED]) + (", ..." if len(self.unreadable) > NAMED else "")
        return [
            f"{len(self.unreadable)} of {total} images could not be read ({names}) and are not scored",
            self.compared,
        ]

    def table(self) -> Table:
        """Build the table for the terminal."""
        return screen_table(self.title, self.scores)

    def as_dict(self) -> dict[str, Any]:
        """Return what ``metrics.json`` says of the stage."""
        scores = self.scores
        senses = {
            name: {metric: task.better(metric) for metric in scores.results[name]}
            for name, task in scores.tasks.items()
        }
        record: dict[str, Any] = {
            "protocol": self.facts["protocol"],
            "tasks": scores.results,
            "better": senses,
            "headline": {name: task.headline for name, task in scores.tasks.items()},
            "units": {name: dict(task.units) for name, task in scores.tasks.items()},
            "channels": {name: task.channels for name, task in scores.tasks.items()},
        }
        record |= counts(self.cost) if self.cost else {}
        record |= {"unreadable": self.unreadable} if self.unreadable else {}
        record |= {"per_class": scores.per_class} if scores.per_class else {}
        record |= {"constant": scores.constant} if scores.constant else {}
        if found := scores.improvement:
            record |= {
                "delta_m": found.delta_m,
                "improvement": found.by_task,
                "baselines": str(found.source),
                "single_task": {name: asdict(reference) for name, reference in found.references.items()},
            }
        return record | {"facts": self.facts}

    def write(self, folder: Path, module: MultiTaskModule, data: Any) -> None:
        """Write the files for people: ``results.md``, ``results.tex`` and ``model_card.md``.

        Args:
            folder: The run folder.
            module: The model.
            data: Its data module, or None.
        """
        table, notes = markdown_table(self.scores), "\n".join(self.notes)
        write_text(folder / "results.md", f"{self.title}\n\n{table}\n{notes}\n{markdown_classes(self.scores)}")
        write_text(folder / "results.tex", latex_table(self.scores))
        write_text(folder / "model_card.md", self._model_card(module, data))

    def _costs(self) -> list[str]:
        """Say what the network costs, a line each."""
        if self.cost is None:
            return []
        trained = f", {self.cost.trained / 1e6:.2f} M of them trained" if self.cost.frozen else ""
        return [
            f"* Parameters: {self.cost.params / 1e6:.2f} M{trained}",
            f"* MACs: {self.cost.macs / 1e9:.2f} G for one image",
        ]

    def _model_card(self, module: MultiTaskModule, data: Any) -> str:
        """Describe the model next to its numbers."""
        settings = {key: value for key, value in module.hparams.items() if key != "tasks"}
        return "\n".join(
            [
                f"# {type(module).__name__} on {data.name if data else 'unknown data'}",
                "",
                f"* Tasks: {', '.join(module.tasks)}",
                *self._costs(),
                f"* Settings: {settings}",
                f"* Training: {module.recipe or 'unknown'}",
                f"* taskformer {__version__}, git {git_revision() or 'unknown'}",
                "",
                f"## Results ({self.title})",
                "",
                markdown_table(self.scores),
                *self.notes,
                "",
            ]
        )


def make_report(
    module: MultiTaskModule,
    data: Any,
    stage: str,
    images: int,
    references: Path,
    unreadable: list[str] | None = None,
    constant: Results | None = None,
    cost: Cost | None = None,
) -> Report:
    """Report on the last evaluation of a model.

    Args:
        module: The model, with the results of the stage.
        data: Its data module, or None.
        stage: ``"test"`` or ``"val"``.
        images: How many images were scored.
        references: Folder of single-task entries, or one entry; where none belongs to the model there is no delta_m,
            and the report says why.
        unreadable: Images that could not be read.
        constant: Metrics of the best constant prediction.
        cost: What the network costs for one of the images.
    """
    facts, results = run_facts(module, data, stage, images), module.results[stage]
    try:
        improvement = compare_with_references(references, facts, module.tasks, results)
        compared = f"delta_m:    {improvement}"
    except ConfigError as error:
        improvement, compared = None, f"no delta_m: {error}"
    scores = Scores(module.tasks, results, constant or {}, _class_table(module, stage), improvement)
    return Report(stage, scores, facts, unreadable or [], compared, cost)


def _class_table(module: MultiTaskModule, stage: str) -> Results:
    """Name the classes whose IoU is known."""
    scores = module.per_class[stage].items()
    tasks = ((name, module.tasks[name], values) for name, values in scores)
    return {name: dict(zip(task.classes, values, strict=True)) for name, task, values in tasks if task.classes}


def write_metrics(folder: Path, stage: str, record: dict[str, Any]) -> None:
    """Replace a stage's record in a run folder's ``metrics.json``."""
    write_json(folder / METRICS, read_metrics(folder) | {stage: record})


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read a run folder's ``metrics.json``, ``{stage: record}``, empty where there is none.

    One that is broken is set aside, and a line says so.
    """
    path = folder / METRICS
    if not path.exists():
        return {}
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        reason = f"it holds a {type(metrics).__name__}"
    except (OSError, ValueError) as error:
        metrics, reason = None, str(error)
    if isinstance(metrics, dict) and all(isinstance(record, dict) for record in metrics.values()):
        return metrics
    number = next(k for k in count(1) if not path.with_suffix(f".broken{k}").exists())
    aside = path.replace(path.with_suffix(f".broken{number}"))
    Console().print(f"{path} was no file of results ({reason}) and is now {aside.name}", soft_wrap=True, markup=False)
    return {}
