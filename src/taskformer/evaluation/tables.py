"""Results as tables: on the screen, in markdown and in LaTeX."""

from collections.abc import Iterator
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from taskformer.evaluation.references import Improvement
from taskformer.metrics.units import shown
from taskformer.modules.evaluating import Results
from taskformer.tasks import Task

#: What LaTeX writes differently.
LATEX = str.maketrans({"_": r"\_", "%": r"\%", "°": r"$^\circ$", "±": r"$\pm$"})


@dataclass(frozen=True)
class Scores:
    """What the tables show.

    >>> from taskformer.tasks import build_tasks
    >>> scores = Scores(build_tasks({"saliency": {}}), {"saliency": {"mIoU": 0.5, "maxF": 0.7512}}, {}, {})
    >>> print(markdown_table(scores), end="")
    | task | metric | value | unit | better |
    | --- | --- | --- | --- | --- |
    | saliency | maxF | 75.12 | % | higher |
    | saliency | mIoU | 50.00 | % |  |

    Attributes:
        tasks: The tasks by name.
        results: The model's metrics.
        constant: The constant predictor's; empty without.
        per_class: ``{task: {class: IoU}}``.
        improvement: Over the single-task references; None without.
    """

    tasks: dict[str, Task]
    results: Results
    constant: Results
    per_class: Results
    improvement: Improvement | None = None

    def header(self) -> list[str]:
        """Headings of the columns."""
        constant = ["constant"] if self.constant else []
        compared = ["single task", "vs single task, %"] if self.improvement else []
        return ["task", "metric", "value", *constant, *compared, "unit", "better"]

    def rows(self) -> Iterator[list[str]]:
        """Format each task's metrics, its headline first. delta_m comes last."""
        for name, task in self.tasks.items():
            for metric in sorted(self.results[name], key=lambda key: key != task.headline):
                yield self._row(name, metric)
        if self.improvement:
            filler = [""] * (3 if self.constant else 2)
            yield ["delta_m", "", *filler, f"{self.improvement.delta_m:+.2f}", "%", "higher"]

    def _row(self, name: str, metric: str) -> list[str]:
        task = self.tasks[name]
        unit, headline = task.units.get(metric, ""), metric == task.headline
        values = [self.results[name][metric], *([self.constant[name][metric]] if self.constant else [])]
        cells = [shown(value, unit) for value in values]
        if self.improvement and headline:
            reference = self.improvement.references[name]
            spread = "" if reference.spread is None else f" ± {shown(reference.spread, unit, digits=2)}"
            cells += [shown(reference.value, unit) + spread, f"{self.improvement.by_task[name]:+.2f}"]
        elif self.improvement:
            cells += ["", ""]
        return [name, metric, *cells, unit, task.better(metric) if headline else ""]


def screen_table(title: str, scores: Scores) -> Table:
    """Build the table for the terminal."""
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in scores.header():
        text = heading in ("task", "metric", "unit")
        table.add_column(heading, justify="left" if text else "right", no_wrap=text)  # names are never cut off
    previous = ""
    for row in scores.rows():
        table.add_row(row[0] if row[0] != previous else "", *row[1:])
        previous = row[0]
    return table


def markdown_table(scores: Scores) -> str:
    """Format the table as markdown."""
    return markdown([scores.header(), *scores.rows()])


def markdown_classes(scores: Scores) -> str:
    """Format the table of each task's classes as markdown."""
    sections = []
    for name, ious in scores.per_class.items():
        rows = [[label, "" if iou != iou else shown(iou)] for label, iou in ious.items()]
        sections.append(f"\n## {name}: IoU of each class\n\n{markdown([['class', 'IoU, %'], *rows])}")
    return "".join(sections)


def latex_table(scores: Scores) -> str:
    """Format the table as a LaTeX ``tabular``."""
    return latex([scores.header(), *scores.rows()])


def markdown(lines: list[list[str]]) -> str:
    """Format lines of cells, the first of which are headings."""
    lines = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def latex(lines: list[list[str]]) -> str:
    """Format lines of cells, the first of which are headings, as a LaTeX ``tabular``."""
    body = " \\\\\n".join(" & ".join(line).translate(LATEX) for line in lines)
    return f"\\begin{{tabular}}{{{'l' * len(lines[0])}}}\n{body} \\\\\n\\end{{tabular}}\n"
