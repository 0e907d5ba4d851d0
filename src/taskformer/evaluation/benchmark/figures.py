"""What a benchmark has found, as numbers and tables."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Any

from rich.table import Table
from rich.text import Text

from taskformer.evaluation.benchmark.cost import Cost
from taskformer.evaluation.benchmark.timing import Reading, Spread

MILLION, BILLION, MEGABYTE, MILLISECOND = 1e6, 1e9, 1e6, 1e-3


@dataclass(frozen=True)
class Timed:
    """The measurements of one call.

    Attributes:
        batch: Images that it takes.
        readings: What has passed in each round.
        memory: Its largest memory above that between calls, in bytes; None where nobody knows.
    """

    batch: int
    readings: list[Reading]
    memory: int | None

    @property
    def walls(self) -> list[float]:
        """Seconds of each round."""
        return [reading.wall for reading in self.readings]

    @property
    def cpus(self) -> list[float]:
        """Seconds of each round that this process has computed, on all threads together."""
        return [reading.cpu for reading in self.readings]

    @property
    def faults(self) -> float:
        """Median of the page faults."""
        return Spread.of([reading.faults for reading in self.readings]).median

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain types, in seconds and bytes."""
        wall = Spread.of(self.walls)
        return {
            "batch": self.batch,
            "seconds": wall._asdict(),
            "cpu_seconds": Spread.of(self.cpus)._asdict(),
            "images_per_second": self.batch / wall.median,
            "page_faults": self.faults,
            "peak_memory": self.memory,
            "rounds": [reading._asdict() for reading in self.readings],
        }


@dataclass(frozen=True)
class Figures:
    """All that was measured of one network.

    Attributes:
        name: The network.
        size: Height and width of its images.
        cost: Counts of the whole network and its parts.
        tasks: Counts of what each task adds.
        timed: The measurements of each call.
    """

    name: str
    size: tuple[int, int]
    cost: dict[str, Cost]
    tasks: dict[str, Cost] = field(default_factory=dict)
    timed: dict[str, Timed] = field(default_factory=dict)

    @property
    def costs(self) -> dict[str, Cost]:
        """Counts of the network, its parts, and what each task adds."""
        return self.cost | {f"+ {name}": cost for name, cost in self.tasks.items()}

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain types."""
        return {
            "name": self.name,
            "size": list(self.size),
            "cost": {part: cost._asdict() for part, cost in self.cost.items()},
            "tasks": {task: cost._asdict() for task, cost in self.tasks.items()},
            "calls": {name: timed.as_dict() for name, timed in self.timed.items()},
        }


@dataclass(frozen=True)
class Growth:
    """How a network's figures grow.

    Attributes:
        name: The network.
        axes: For ``tasks`` and ``side`` (of the image): their number, or factor, and the figures there.
    """

    name: str
    axes: dict[str, dict[int, Figures] | dict[float, Figures]]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain types."""
        return {
            axis: {f"{at:g}": figures.as_dict() for at, figures in points.items()} for axis, points in self.axes.items()
        }

    def rows(self) -> list[list[str]]:
        """Format the figures of each point, and how many times those of the first they are."""
        rows = []
        for axis, points in self.axes.items():
            first = _growing(next(iter(points.values())))
            for at, figures in points.items():
                cells = [_times(value, first[name]) for name, value in _growing(figures).items()]
                rows.append([f"{axis} {at:g}", *cells])
        return rows

    def header(self) -> list[str]:
        """Headings of the columns."""
        first = next(iter(next(iter(self.axes.values())).values()))
        return ["batch 1", *_growing(first)]


@dataclass(frozen=True)
class Methods:
    """What training steps of a network cost with other ways to balance its tasks.

    >>> rounds = [Reading(0.010, 0.020, 3), Reading(0.012, 0.024, 5)]
    >>> slower = [Reading(0.015, 0.030, 3), Reading(0.018, 0.036, 5)]
    >>> found = Methods("ours", {"FixedWeights": Timed(4, rounds, 7_000_000), "UPGrad": Timed(4, slower, 9_000_000)})
    >>> for row in found.rows():
    ...     print(" | ".join(row))
    FixedWeights | 11 (10.5-11.5) | 1.000 (1.000-1.000) | 1.000 | 7
    UPGrad | 16.5 (15.8-17.2) | 1.500 (1.500-1.500) | 1.500 | 9

    Attributes:
        name: The network.
        timed: The measurements of each method, of which the first is what the others are compared with.
    """

    name: str
    timed: dict[str, Timed]

    @property
    def ratios(self) -> dict[str, dict[str, Spread]]:
        """Each method's times over the first one's, round by round."""
        first = next(iter(self.timed.values()))
        return {method: _over(timed, first) for method, timed in self.timed.items()}

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain types."""
        return {
            method: self.timed[method].as_dict()
            | {"ratios": {clock: spread._asdict() for clock, spread in ratios.items()}}
            for method, ratios in self.ratios.items()
        }

    def header(self) -> list[str]:
        """Headings of the columns."""
        first, timed = next(iter(self.timed.items()))
        return [f"training, batch {timed.batch}", "ms", f"/{first}", "CPU", "peak memory, MB"]

    def rows(self) -> list[list[str]]:
        """Format the measurements of each method."""
        return [
            [method, _spread(Spread.of(self.timed[method].walls), MILLISECOND), *_paired(ratios, "seconds"),
             f"{ratios['cpu_seconds'].median:.3f}", _number(self.timed[method].memory, MEGABYTE)]
            for method, ratios in self.ratios.items()
        ]  # fmt: skip


@dataclass(frozen=True)
class Benchmark:
    """What :func:`~taskformer.evaluation.benchmark.run.benchmark` has measured.

    >>> rounds = [Reading(0.010, 0.020, 3), Reading(0.012, 0.024, 5)]
    >>> ours = Figures("ours", (32, 48), {"total": Cost(2_000_000, 5_000_000_000)})
    >>> ours.timed["inference, batch 1"] = Timed(1, rounds, memory=7_000_000)
    >>> for row in Benchmark([ours], [], {"device": "cpu"}).rows():
    ...     print(" | ".join(row))
    parameters, M | 2
    MACs, G | 5
    inference, batch 1: ms | 11 (10.5-11.5)
      CPU ms | 22 (21-23)
      images/s | 90.91
      peak memory, MB | 7
      page faults | 4

    Attributes:
        subjects: The figures of one or two networks.
        growth: How they grow; empty if that was not measured.
        conditions: What the figures depend on beside the networks.
        methods: What balancing costs each of them; empty if that was not measured.
    """

    subjects: list[Figures]
    growth: list[Growth]
    conditions: dict[str, Any]
    methods: list[Methods] = field(default_factory=list)

    @property
    def ratios(self) -> dict[str, dict[str, Spread]]:
        """The first network's times over the second's, round by round; empty of one network."""
        if len(self.subjects) == 1:
            return {}
        first, second = (figures.timed for figures in self.subjects)
        return {name: _over(timed, second[name]) for name, timed in first.items()}

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain types, for JSON."""
        growth = [grown.as_dict() for grown in self.growth]
        return {
            "conditions": self.conditions,
            "subjects": [figures.as_dict() for figures in self.subjects],
            "ratios": {
                name: {clock: spread._asdict() for clock, spread in ratios.items()}
                for name, ratios in self.ratios.items()
            },
            **({"growth": growth} if growth else {}),
            **({"balancing": [found.as_dict() for found in self.methods]} if self.methods else {}),
        }

    def header(self) -> list[str]:
        """Headings of the columns."""
        letters = list(ascii_uppercase[: len(self.subjects)])
        return ["", *letters, "A/B"] if len(letters) > 1 else ["", "value"]

    def rows(self) -> list[list[str]]:
        """Format all figures."""
        frozen = any(figures.cost["total"].frozen for figures in self.subjects)
        return [*self._cost_rows("parameters, M", "params", MILLION),
                *(self._cost_rows("trained, M", "trained", MILLION) if frozen else ()),
                *self._cost_rows("MACs, G", "macs", BILLION),
                *(row for name in self.subjects[0].timed for row in self._call_rows(name))]  # fmt: skip

    def table(self) -> Table:
        """Build the table for the terminal."""
        return _screen(self.title, self.header(), self.rows())

    def further_tables(self) -> list[Table]:
        """Build the tables of growth and of balancing for the terminal."""
        return [_screen(found.name, found.header(), found.rows()) for found in self.further]

    @property
    def further(self) -> list[Growth | Methods]:
        """What has a table of its own."""
        return [*self.growth, *self.methods]

    @property
    def title(self) -> str:
        """What was measured, where."""
        height, width = self.subjects[0].size
        letters = ascii_uppercase if len(self.subjects) > 1 else ""
        names = [f"{letter}: {each.name}" for letter, each in zip(letters, self.subjects, strict=False)]
        where = f"{height}x{width}, {self.conditions['device']}, {self.conditions['threads']} threads"
        return f"{', '.join(names) or self.subjects[0].name}; {where}"

    def _cost_rows(self, heading: str, key: str, unit: float) -> list[list[str]]:
        """Format a count of the network, of its parts and of what tasks add; tasks of the second alone come last."""
        parts = list(dict.fromkeys(part for figures in self.subjects for part in figures.costs))
        counts = {
            part: [getattr(figures.costs[part], key) if part in figures.costs else None for figures in self.subjects]
            for part in parts
        }
        return [
            [heading if part == "total" else f"  {part}", *(_number(value, unit) for value in values), *_ratio(values)]
            for part, values in counts.items()
        ]

    def _call_rows(self, name: str) -> list[list[str]]:
        """Format the measurements of one call."""
        timed = [figures.timed[name] for figures in self.subjects]
        ratios = self.ratios.get(name, {})
        walls = [Spread.of(each.walls) for each in timed]
        speeds = [each.batch / wall.median for each, wall in zip(timed, walls, strict=True)]
        memories = [each.memory for each in timed]
        faults = [each.faults for each in timed]
        return [
            [f"{name}: ms", *(_spread(wall, MILLISECOND) for wall in walls), *_paired(ratios, "seconds")],
            ["  CPU ms", *(_spread(Spread.of(each.cpus), MILLISECOND) for each in timed),
             *_paired(ratios, "cpu_seconds")],
            ["  images/s", *(_number(speed) for speed in speeds), *_ratio(speeds)],
            ["  peak memory, MB", *(_number(memory, MEGABYTE) for memory in memories), *_ratio(memories)],
            ["  page faults", *(_number(count) for count in faults), *_ratio(faults)],
        ]  # fmt: skip


def _over(first: Timed, second: Timed) -> dict[str, Spread]:
    """Divide one call's times by another's, round by round."""
    return {
        "seconds": Spread.of_ratios(first.walls, second.walls),
        "cpu_seconds": Spread.of_ratios(first.cpus, second.cpus),
    }


def _growing(figures: Figures) -> dict[str, float | None]:
    """Return what grows, in the units of tables."""
    found: dict[str, float | None] = {"MACs G": figures.cost["total"].macs / BILLION}
    for name, timed in figures.timed.items():
        call = name.split(",")[0]
        found[f"{call} ms"] = Spread.of(timed.walls).median / MILLISECOND
        found[f"{call} MB"] = None if timed.memory is None else timed.memory / MEGABYTE
    return found


def _times(value: float | None, first: float | None) -> str:
    """Format a value and how many times the first it is."""
    if value is None or not first:
        return _number(value)
    return f"{digits(value, 3)} (x{value / first:.1f})"


def digits(value: float, count: int = 4) -> str:
    """Format a number with a few digits, and all those before the point.

    >>> [digits(value) for value in (0.001234567, 3.14159, 123456.7)]
    ['0.001235', '3.142', '123457']
    """
    return f"{value:.0f}" if abs(value) >= 10 ** (count - 1) else f"{value:.{count}g}"


def _number(value: float | None, unit: float = 1.0) -> str:
    return "-" if value is None else digits(value / unit)


def _spread(spread: Spread, unit: float = 1.0) -> str:
    median, low, high = (digits(value / unit, 3) for value in spread)
    return f"{median} ({low}-{high})"


def _ratio(values: list[Any]) -> list[str]:
    """Return the cell of the ratio of two values; none of one."""
    if len(values) == 1:
        return []
    first, second = values
    return ["-" if first is None or not second else digits(first / second, 3)]


def _paired(ratios: Mapping[str, Spread], clock: str) -> list[str]:
    if not ratios:
        return []
    median, low, high = ratios[clock]
    return [f"{median:.3f} ({low:.3f}-{high:.3f})"]


def _screen(title: str, header: list[str], rows: list[list[str]]) -> Table:
    """Build a table for the terminal, 80 columns wide at most, whose first column is text."""
    table = Table(title=Text(title), box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for number, heading in enumerate(header):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table
