"""Results as tables: on the screen, in markdown and in LaTeX."""

from collections.abc import Iterator
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from taskformer.evaluation.references import Comparison
from taskformer.modules.base import Results
from taskformer.tasks import Task

#: What LaTeX writes differently.
LATEX = str.maketrans({"_": r"\_", "%": r"\%", "°": r"$^\circ$", "±": r"$\pm$"})


@dataclass(frozen=True)
class Scores:
    """What the tables show.

    Attributes:
        tasks: The tasks by name.
        results: The model's metrics.
        constant: The constant predictor's; empty without.
        per_class: ``{task: {class: IoU}}``.
        comparison: Against single-task runs; None without.
    """

    tasks: dict[str, Task]
    results: Results
    constant: Results
    per_class: Results
    comparison: Comparison | None = None

    def header(self) -> list[str]:
        """Headings of the columns."""
        constant = ["constant"] if self.constant else []
        compared = ["single task", "vs single task, %"] if self.comparison else []
        return ["task", "metric", "value", *constant, *compared, "unit", "better"]

    def rows(self) -> Iterator[list[str]]:
        """Format each task's metrics, its headline first; shares are shown in percent. delta_m comes last."""
        for name, task in self.tasks.items():
            for metric in sorted(self.results[name], key=lambda key: key != task.headline):
                yield self._row(name, metric)
        if self.comparison:
            filler = [""] * (3 if self.constant else 2)
            yield ["delta_m", "", *filler, f"{self.comparison.delta_m:+.2f}", "%", "higher"]

    def _row(self, name: str, metric: str) -> list[str]:
        task = self.tasks[name]
        unit, headline = task.units.get(metric, ""), metric == task.headline
        values = [self.results[name][metric], *([self.constant[name][metric]] if self.constant else [])]
        cells = [_number(value, unit) for value in values]
        if self.comparison and headline:
            reference = self.comparison.references[name]
            spread = "" if reference.spread is None else f" ± {_number(reference.spread, unit, digits=2)}"
            cells += [_number(reference.value, unit) + spread, f"{self.comparison.improvement[name]:+.2f}"]
        elif self.comparison:
            cells += ["", ""]
        return [name, metric, *cells, unit, better(task, metric) if headline else ""]


def _number(value: float, unit: str, digits: int = 4) -> str:
    """Format a metric; shares are shown in percent."""
    return f"{value * 100:.2f}" if unit == "%" else f"{value:.{digits}g}"


def better(task: Task, metric: str) -> str:
    """Return which values of a metric are better, ``"higher"`` or ``"lower"``; empty for one that does not rate."""
    if metric == task.headline:
        return "higher" if task.higher_is_better else "lower"
    if "threshold" in metric:
        return ""
    # All but the headline are shares of what is right, or errors.
    return "higher" if task.units.get(metric) == "%" else "lower"


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
    return _markdown([scores.header(), *scores.rows()])


def markdown_classes(scores: Scores) -> str:
    """Format the table of each task's classes as markdown."""
    sections = []
    for name, ious in scores.per_class.items():
        rows = [[label, "" if iou != iou else f"{iou * 100:.2f}"] for label, iou in ious.items()]
        sections.append(f"\n## {name}: IoU of each class\n\n{_markdown([['class', 'IoU, %'], *rows])}")
    return "".join(sections)


def latex_table(scores: Scores) -> str:
    """Format the table as a LaTeX ``tabular``."""
    lines = [" & ".join(line).translate(LATEX) for line in (scores.header(), *scores.rows())]
    body = " \\\\\n".join(lines)
    return f"\\begin{{tabular}}{{{'l' * len(scores.header())}}}\n{body} \\\\\n\\end{{tabular}}\n"


def _markdown(lines: list[list[str]]) -> str:
    """Format lines of cells, the first of which are headings."""
    lines = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
