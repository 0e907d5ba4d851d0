"""What a sweep has found: a table of its settings over their seeds, pictures, and the command of the best."""

import csv
import json
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from taskformer.evaluation.settings import short_names, text_of, without_seed
from taskformer.evaluation.tables import latex, markdown
from taskformer.files import replacing, write_json, write_text
from taskformer.sweeps.expansion import command_line
from taskformer.sweeps.importance import importances
from taskformer.sweeps.labels import Unit, unit_of
from taskformer.sweeps.pictures import Axis, draw_importance, draw_parallel
from taskformer.sweeps.schema import Sweep
from taskformer.sweeps.study import Run, State
from taskformer.sweeps.worker import run_folder


@dataclass(frozen=True)
class Group:
    """The runs that differ in their seed alone.

    >>> seeds = [Run(0, {"lr": 0.1, "seed_everything": 0}, State.FINISHED, 1.0),
    ...          Run(1, {"lr": 0.1, "seed_everything": 1}, State.FINISHED, 3.0)]
    >>> group = Group(seeds)
    >>> group.settings, group.mean, round(group.spread, 3)
    ({'lr': 0.1}, 2.0, 1.414)

    Args:
        runs: The runs.
    """

    runs: Sequence[Run]

    @property
    def settings(self) -> dict[str, Any]:
        """What the runs have in common."""
        return without_seed(self.runs[0].settings)

    @property
    def values(self) -> list[float]:
        """The metric's best value of each run that was finished."""
        return [run.value for run in self.runs if run.state == State.FINISHED and run.value is not None]

    @property
    def mean(self) -> float | None:
        """Their mean; None without one."""
        return fmean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        """Their standard deviation, as of a sample; None for fewer than two."""
        return stdev(self.values) if len(self.values) > 1 else None

    @property
    def others(self) -> str:
        """How many runs were not finished, and why."""
        counts = Counter(run.state for run in self.runs if run.state != State.FINISHED)
        return ", ".join(f"{count} {state}" for state, count in counts.items())


@dataclass(frozen=True)
class SweepResult:
    """What a sweep has found so far.

    Args:
        sweep: The sweep.
        folder: Its folder.
        runs: Those of its runs that were begun, by number.
        count: How many there are to be.
    """

    sweep: Sweep
    folder: Path
    runs: Sequence[Run]
    count: int

    @cached_property
    def groups(self) -> list[Group]:
        """The runs of each setting, the best by the mean first and those without a finished run last."""
        found: dict[str, list[Run]] = {}
        for run in self.runs:
            found.setdefault(json.dumps(without_seed(run.settings), sort_keys=True), []).append(run)
        sign = -1.0 if self.sweep.metric.goal == "maximize" else 1.0
        groups = [Group(runs) for runs in found.values()]
        return sorted(groups, key=lambda group: (group.mean is None, sign * (group.mean or 0.0)))

    @property
    def best(self) -> Group | None:
        """The settings with the best mean; None while no run is finished."""
        return next((group for group in self.groups if group.values), None)

    @property
    def command(self) -> str | None:
        """The command line that trains the best settings once more; None while there are none."""
        if self.best is None:
            return None
        settings = self.best.runs[0].settings
        words = command_line(self.sweep, settings)
        flags = [word for word in words[words.index("fit") :] if not word.startswith("--name=")]
        return shlex.join(["taskformer", *flags, f"--name={self.folder.name}-best"])

    @cached_property
    def importances(self) -> dict[str, float]:
        """How much each setting decides, see :func:`~taskformer.sweeps.importance.importances`."""
        runs = [run for group in self.groups for run in group.runs if run.state == State.FINISHED]
        values = [run.value for run in runs if run.value is not None]
        return importances(self.sweep.parameters, [run.settings for run in runs], values, self.sweep.metric)

    @cached_property
    def unit(self) -> Unit:
        """How the metric is written."""
        return unit_of(self.sweep.metric.name, [run_folder(self.folder, run.number) for run in self.runs])

    @property
    def heading(self) -> str:
        """The metric with its unit."""
        return ", ".join(filter(None, [self.sweep.metric.name, self.unit.name]))

    @property
    def varied(self) -> list[str]:
        """The settings in which runs differ, but for the seed."""
        names = without_seed(self.sweep.parameters)
        return [name for name in names if len({str(run.settings[name]) for run in self.runs}) > 1]

    def lines(self) -> list[list[str]]:
        """Return the table, its headings first."""
        names = short_names(self.varied)
        lines = [[*names.values(), self.heading, "spread", "seeds", "other runs"]]
        for group in self.groups:
            settings = [text_of(group.settings[name]) for name in names]
            numbers = ["" if value is None else self.unit.text(value) for value in (group.mean, group.spread)]
            lines.append([*settings, *numbers, str(len(group.values)), group.others])
        return lines if any(line[-1] for line in lines[1:]) else [line[:-1] for line in lines]

    def table(self) -> Table:
        """Build the table for the terminal."""
        headings, *rows = self.lines()
        finished = sum(len(group.values) for group in self.groups)
        title = f"{self.sweep.name}: {finished} of {self.count} runs finished"
        table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        for place, heading in enumerate(headings):
            table.add_column(heading, justify="left" if place < len(self.varied) else "right")
        for row in rows:
            table.add_row(*row)
        return table

    def as_dict(self) -> dict[str, Any]:
        """Return everything in plain types."""
        return {
            "sweep": self.sweep.name,
            "metric": self.sweep.metric.name,
            "goal": self.sweep.metric.goal,
            "settings": [
                {
                    "settings": group.settings,
                    "mean": group.mean,
                    "spread": group.spread,
                    "seeds": len(group.values),
                    "runs": [str(run_folder(self.folder, run.number)) for run in group.runs],
                }
                for group in self.groups
            ],
            "importances": self.importances,
            "best": self.command,
        }

    def write_trials(self) -> None:
        """Write ``trials.json``: the folder, settings, state and value of each run."""
        trials = [
            {
                "run": str(run_folder(self.folder, run.number)),
                "settings": run.settings,
                "state": str(run.state),
                "value": run.value,
                **({"reason": run.reason} if run.reason else {}),
            }
            for run in self.runs
        ]
        write_json(self.folder / "trials.json", trials)

    def write(self) -> None:
        """Write ``trials.json``, ``table.{md,tex,csv}``, ``parallel.png`` and ``importance.png`` into the folder."""
        self.write_trials()
        lines = self.lines()
        write_text(self.folder / "table.md", markdown(lines))
        write_text(self.folder / "table.tex", latex(lines))
        with replacing(self.folder / "table.csv") as temporary, temporary.open("w", newline="") as stream:
            csv.writer(stream).writerows(self._csv())
        if self.best is not None and self.varied:
            self._draw_parallel()
        if self.importances:
            names = short_names(list(self.importances))
            shares = {names[name]: share for name, share in self.importances.items()}
            draw_importance(self.folder / "importance.png", shares, self.sweep.metric.name)

    def _draw_parallel(self) -> None:
        """Draw the runs that have a value, the best first."""
        runs = [run for group in self.groups for run in group.runs if run.value is not None]
        axes = [
            Axis.of_setting(label, [run.settings[name] for run in runs], self.sweep.parameters[name])
            for name, label in short_names(self.varied).items()
        ]
        values = [run.value * self.unit.factor for run in runs if run.value is not None]
        axes.append(Axis.of_numbers(self.heading, values, turned=self.sweep.metric.goal == "minimize"))
        draw_parallel(self.folder / "parallel.png", axes, [run.state == State.FINISHED for run in runs])

    def _csv(self) -> Iterator[list[Any]]:
        """Yield the table for programs: whole names, and numbers as they were measured."""
        yield [*self.varied, "mean", "spread", "seeds", "runs"]
        for group in self.groups:
            settings = [group.settings[name] for name in self.varied]
            folders = " ".join(run_folder(self.folder, run.number).name for run in group.runs)
            yield [*settings, group.mean, group.spread, len(group.values), folders]
