"""What a comparison has found, as tables and as plain types."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from taskformer.evaluation.benchmark.timing import Spread
from taskformer.evaluation.comparison.differences import Difference
from taskformer.evaluation.comparison.groups import COUNTS, Group, Mean
from taskformer.evaluation.comparison.scored import Key
from taskformer.evaluation.tables import latex, markdown
from taskformer.metrics.units import factor

#: Which metrics tables show: those that stand for their tasks, or all.
Shown = Literal["headline", "all"]
MILLION, BILLION, MILLISECOND = 1e6, 1e9, 1e-3
#: Headings and units of counts.
COLUMNS = (
    ("parameters", "parameters, M", MILLION),
    ("trained_parameters", "trained, M", MILLION),
    ("macs", "MACs, G", BILLION),
)
#: What the tables of differences are of.
OF_IMAGES = "Means over images, each scored alone; these are not the values of the whole data set."
OF_SEEDS = "Over seeds: values of the whole data set, Welch's t interval."


@dataclass(frozen=True)
class Comparison:
    """Runs beside each other, and each against the first.

    >>> from taskformer.evaluation.comparison.scored import ScoredRun
    >>> def run(name, rmse):
    ...     record = {"protocol": "standard", "better": {"depth": {"rmse": "lower"}}, "units": {"depth": {"rmse": "m"}}}
    ...     return ScoredRun(name, "test", {**record, "tasks": {"depth": {"rmse": rmse}}, "parameters": 4_500_000})
    >>> row = Difference("B", "depth", "rmse", 2, 1.0, 1.5, 0.5, low=0.4, high=0.6, better="A")
    >>> groups = {"A": Group("runs/a", [run("runs/a", 1.0)]), "B": Group("runs/b", [run("runs/b", 1.5)])}
    >>> found = Comparison(groups, [row], resamples=10_000)  # as `compare` returns it
    >>> found.runs[found.differences[0].better]
    'runs/a'
    >>> print(found.markdown().split(chr(10) * 2)[2])
    |  | run | depth rmse, m | parameters, M | initialisation |
    | --- | --- | --- | --- | --- |
    | A | runs/a | 1 | 4.50 | unknown |
    | B | runs/b | 1.5 | 4.50 | unknown |

    Attributes:
        groups: By letter, the first is A: a run, or runs that differ in their seed alone.
        differences: Every other group's difference to A in every metric that both have.
        resamples: Number of bootstrap samples.
        latency: Seconds for one image by letter; empty if that was not measured.
        notes: What a reader must know before he believes the tables, a line each.
    """

    groups: dict[str, Group]
    differences: list[Difference]
    resamples: int
    latency: dict[str, Spread] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def runs(self) -> dict[str, str]:
        """Name of each group by its letter."""
        return {letter: group.name for letter, group in self.groups.items()}

    @property
    def protocol(self) -> str:
        """How all were scored."""
        return str(self.groups["A"].first.facts["protocol"])

    @property
    def initialisations(self) -> dict[str, str]:
        """What each group's network was filled with before its training, by its letter."""
        return {letter: group.first.initialisation for letter, group in self.groups.items()}

    @property
    def title(self) -> str:
        """What was compared, and how it was scored."""
        facts = self.groups["A"].first.facts
        data = f"{facts['data']}, " if "data" in facts else ""
        images = f" ({facts['images']} images)" if "images" in facts else ""
        return f"{data}{facts['split']}{images}, protocol {self.protocol}"

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain types, for JSON."""
        settings = {"protocol": self.protocol, "split": self.groups["A"].first.split, "resamples": self.resamples}
        by_letter = {letter.lower(): label for letter, label in self.initialisations.items()}
        return {
            **{letter.lower(): name for letter, name in self.runs.items()},
            **settings,
            "initialisations": by_letter,
            "columns": {letter.lower(): self._column(letter) for letter in self.groups},
            "rows": [row.as_dict() for row in self.differences],
            "notes": self.notes,
        }

    def table(self) -> Table:
        """Build the table of results for the terminal."""
        return _screen(self.title, _stacked(self.header()), self.rows())

    def tables(self, metrics: Shown = "headline") -> list[Table]:
        """Build the tables for the terminal: results, with ``all`` those of each task, differences."""
        found = [self.table()]
        if metrics == "all":
            for task in self._tasks():
                header, rows = self.task_lines(task)
                found.append(_screen(task, _stacked(header), rows))
        if self.differences:
            runs = ", ".join(f"{letter}: {name}" for letter, name in self.runs.items())
            table = _screen(
                f"{runs}, protocol {self.protocol}", self.difference_header(), self.difference_rows(metrics)
            )
            table.caption = self._caption()
            found.append(table)
        return found

    def markdown(self, metrics: Shown = "headline") -> str:
        """Write the tables as markdown."""
        tables = [[self.header(), *self.rows()]]
        if metrics == "all":
            for task in self._tasks():
                header, rows = self.task_lines(task)
                tables.append([header, *rows])
        captions = [""] * len(tables)
        if self.differences:
            tables.append([self.difference_header(), *self.difference_rows(metrics)])
            captions.append(f"{self._caption()}\n")
        body = "\n".join(f"{markdown(lines)}\n{caption}" for lines, caption in zip(tables, captions, strict=True))
        notes = "".join(f"* {note}\n" for note in self.notes)
        return f"# {', '.join(self.runs.values())}\n\n{self.title}\n\n{body}\n{notes}"

    def latex(self) -> str:
        """Write the table of results as a LaTeX ``tabular``."""
        return latex([self.header(), *self.rows()])

    def header(self) -> list[str]:
        """Headings of the table of results."""
        return ["", "run", *(name for name, _ in self._cells("A"))]

    def rows(self) -> list[list[str]]:
        """Format what each group achieves in each task, and what it costs."""
        return [
            [letter, group.name, *(text for _, text in self._cells(letter))] for letter, group in self.groups.items()
        ]

    def task_lines(self, task: str) -> tuple[list[str], list[list[str]]]:
        """Format all metrics of a task: headings, and a row for each group."""
        keys = [key for key in self._keys() if key[0] == task]
        header = ["", "run", *(heading(key[1], self._unit(key)) for key in keys)]
        return header, [
            [letter, group.name, *(_text(group.score(key), self._unit(key)) for key in keys)]
            for letter, group in self.groups.items()
        ]

    def difference_header(self) -> list[str]:
        """Headings of the table of differences."""
        other = "B" if len(self.groups) == 2 else "other"
        run = [] if len(self.groups) == 2 else ["run"]
        images = ["images"] if self._of_images else []
        interval = ["95 % interval"] if self._of_images else []
        seeds = [f"{other} - A over seeds"] if self._of_seeds else []
        return [*run, "task", "metric", *images, "A", other, f"{other} - A", *interval, *seeds, "better"]

    def difference_rows(self, metrics: Shown = "headline") -> list[list[str]]:
        """Format the differences to the first group."""
        chosen = [row for row in self.differences if metrics == "all" or self._is_headline((row.task, row.metric))]
        return [self._difference_row(row) for row in chosen]

    @property
    def _of_images(self) -> bool:
        """Whether some differences are of single images."""
        return any(row.images for row in self.differences)

    @property
    def _of_seeds(self) -> bool:
        """Whether some differences have an interval over seeds."""
        return any(row.over_seeds for row in self.differences)

    def _difference_row(self, row: Difference) -> list[str]:
        run = [] if len(self.groups) == 2 else [row.other]
        unit = self._unit((row.task, row.metric))
        scale = factor(unit)
        digits = len(f"{scale * max(abs(row.first), abs(row.second)):.0f}")  # before the point

        def signed(value: float) -> str:
            return f"{scale * value:+.{max(0, 5 - digits)}f}"

        images = [str(row.images or "-")] if self._of_images else []
        interval = [f"{signed(row.low)} to {signed(row.high)}" if row.images else "-"] if self._of_images else []
        found = row.over_seeds
        over_seeds = f"{signed(found[0])} ({signed(found[1])} to {signed(found[2])})" if found else "-"
        means = [f"{scale * row.first:.4g}", f"{scale * row.second:.4g}", signed(row.difference)]
        seeds = [over_seeds] if self._of_seeds else []
        return [*run, row.task, heading(row.metric, unit), *images, *means, *interval, *seeds, row.better or "-"]

    def _caption(self) -> str:
        """Say what the differences are of."""
        return " ".join([OF_IMAGES] * self._of_images + [OF_SEEDS] * self._of_seeds)

    def _cells(self, letter: str) -> Iterator[tuple[str, str]]:
        """Yield headings and cells of a group; what nobody knows of any group has no column."""
        group, groups = self.groups[letter], list(self.groups.values())
        if any(len(each.runs) > 1 for each in groups):
            yield "seeds", str(len(group.runs))
        for key in self._keys():
            if self._is_headline(key):
                yield heading(" ".join(key), self._unit(key)), _text(group.score(key), self._unit(key))
        if any(each.delta_m for each in groups):
            yield "delta_m, %", _signed(group.delta_m)
        for name, label, unit in COLUMNS:
            if any(each.count(name) is not None for each in groups):
                count = group.count(name)
                yield label, "-" if count is None else f"{count / unit:.2f}"
        if self.latency:
            found = self.latency.get(letter)
            yield "latency, ms", "-" if found is None else f"{found.median / MILLISECOND:.1f}"
        yield "initialisation", group.first.initialisation

    def _column(self, letter: str) -> dict[str, Any]:
        """Return a group as plain types."""
        group = self.groups[letter]
        scores: dict[str, dict[str, Any]] = {}
        for key in self._keys():
            if (mean := group.score(key)) is not None:
                scores.setdefault(key[0], {})[key[1]] = mean._asdict()
        latency = self.latency.get(letter)
        return {
            "name": group.name,
            "runs": [run.name if run.folder is None else str(run.folder) for run in group.runs],
            "seeds": [run.seed for run in group.runs],
            "scores": scores,
            "delta_m": group.delta_m._asdict() if group.delta_m else None,
            **{name: group.count(name) for name in COUNTS},
            "latency": None if latency is None else latency._asdict(),
            "facts": group.first.facts,
        }

    def _keys(self) -> list[Key]:
        """List the metrics that some group has, those of a task together, and first the one that stands for it."""
        keys = dict.fromkeys(key for group in self.groups.values() for key in group.first.scores())
        tasks = list(dict.fromkeys(task for task, _ in keys))
        return sorted(keys, key=lambda key: (tasks.index(key[0]), not self._is_headline(key)))

    def _tasks(self) -> list[str]:
        """List the tasks that some group has."""
        return list(dict.fromkeys(task for task, _ in self._keys()))

    def _is_headline(self, key: Key) -> bool:
        """Whether a metric stands for its task."""
        return any(group.first.is_headline(key) for group in self.groups.values())

    def _unit(self, key: Key) -> str:
        """Return the unit of a metric, which the groups agree on as far as they know it."""
        return next((unit for group in self.groups.values() if (unit := group.first.unit(key))), "")


def heading(name: str, unit: str) -> str:
    """Name a metric with its unit."""
    return f"{name}, {unit}" if unit else name


def _stacked(header: list[str]) -> list[str]:
    """Put the words of headings below each other."""
    return [words.replace(" ", "\n") for words in header]


def _text(mean: Mean | None, unit: str) -> str:
    return "-" if mean is None else mean.text(unit)


def _signed(mean: Mean | None) -> str:
    """Write percent with its sign."""
    if mean is None:
        return "-"
    return f"{mean.mean:+.2f}" + ("" if mean.spread is None else f" ± {mean.spread:.2f}")


def _screen(title: str, header: list[str], rows: list[list[str]]) -> Table:
    """Build a table for the terminal."""
    table = Table(title=Text(title), box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for words in header:
        text = words in ("", "run", "task", "metric", "initialisation")
        table.add_column(Text(words), justify="left" if text else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    return table
