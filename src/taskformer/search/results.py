"""What a search found, from its study: the files that show it, and the best network for a budget."""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from rich.table import Table

from taskformer.errors import ConfigError
from taskformer.files import inside, replacing, write_json
from taskformer.models.autotaskformer import Architecture, Supernet
from taskformer.modules.picking import MEASURED, spread
from taskformer.modules.quantities import COSTS, describe, unit_of
from taskformer.modules.timing import latencies
from taskformer.search.drawings import draw_architecture, draw_front, draw_hypervolume
from taskformer.search.hypervolume import hypervolume_curves
from taskformer.search.objectives import Candidate, Objective, front
from taskformer.search.storage import open_storage
from taskformer.search.study import Record, completed, read_records
from taskformer.tasks import Task


@dataclass(frozen=True)
class SearchResult:
    """What a search has found.

    >>> from taskformer.search.study import Key
    >>> def record(slot, delta_m, params):
    ...     candidate = Candidate(Architecture(64, 1, (2.0,), (slot + 1,)), {"delta_m": delta_m, "params": params})
    ...     return Record(slot, Key("evolution", 0, slot), candidate, TrialState.COMPLETE, (delta_m,), "host:1", 0.0)
    >>> objectives = [Objective("delta_m", "maximize"), Objective("params", "minimize")]
    >>> records = [record(0, -3.0, 1e6), record(1, 0.0, 2e6), record(2, -1.0, 3e6)]
    >>> found = SearchResult(Path("runs/a/search"), objectives, {}, records)
    >>> [candidate.values["delta_m"] for candidate in found.front]  # the third is worse than the second, and larger
    [0.0, -3.0]
    >>> found.pick(params=1.5e6).candidate.values["params"]
    1000000.0

    Args:
        folder: Folder of the study, with the files of :func:`write_results`.
        objectives: What was improved.
        tasks: The supernet's tasks by name, in its order.
        records: All that was or is being evaluated, in the order of the search.
        latency_error: Mean error in percent of the table of latencies, if this call has measured it.
        rank_correlation: How well the predictor orders sub-networks, if there was one and enough to learn from.
        test: Scores of the best sub-networks on the test images, if they were asked for.
    """

    folder: Path
    objectives: Sequence[Objective]
    tasks: Mapping[str, Task]
    records: Sequence[Record]
    latency_error: float | None = None
    rank_correlation: float | None = None
    test: Sequence[Mapping[str, Any]] = ()

    @property
    def front(self) -> list[Candidate]:
        """The sub-networks of the evolution that none dominates, the best by the first objective first."""
        return front(completed(self.records, "evolution"), self.objectives)

    def pick(self, **limits: float) -> Record:
        """Choose the best network that costs no more than some limits, see :func:`pick`; e.g. ``params=2e6``."""
        return pick(self.records, self.objectives, limits)

    def table(self, rows: int = 10) -> Table:
        """Show some sub-networks of the front, spread over it, and all that was measured of them."""
        shown = spread(self.front, rows)
        table = Table(box=None, header_style="bold", pad_edge=False)
        units = {name: unit_of(name, self.tasks) for name in shown[0].values} if shown else {}
        for unit in units.values():
            table.add_column(unit.short.strip(), justify="right")
        for candidate in shown:
            table.add_row(*(f"{candidate.values[name] / unit.scale:.4g}" for name, unit in units.items()))
        return table


def write_results(
    folder: Path, records: Sequence[Record], objectives: Sequence[Objective], tasks: Mapping[str, Task]
) -> None:
    """Write what a finished or a running search has found.

    Args:
        folder: Where ``pareto.{json,csv,png}``, ``hypervolume.{json,png}`` and ``architectures/`` go, with one file
            for each network of the front that ``fit --model.architecture`` takes, and its drawing.
        records: The study's records.
        objectives: What was improved.
        tasks: The supernet's tasks by name, in its order.

    Raises:
        ConfigError: If no network has been evaluated completely.
    """
    found = front(completed(records, "evolution"), objectives)
    if not found:
        msg = f"no network has been evaluated completely, so there is nothing to write to {folder}"
        raise ConfigError(msg)
    names = {record.candidate.architecture: name_of(record) for record in records if record.key.origin == "evolution"}
    rows = []
    for candidate in found:
        name = names[candidate.architecture]
        path = write_architecture(folder, name, candidate.architecture)
        title = f"{name}: {describe(candidate.values)}"
        draw_architecture(path.with_suffix(".png"), candidate.architecture, list(tasks), title)
        rows.append({"name": name, "file": str(path.relative_to(folder)), "values": dict(candidate.values)})
    write_json(
        folder / "pareto.json",
        {
            "objectives": {objective.name: objective.direction for objective in objectives},
            "evaluated": Counter(record.key.origin for record in records if record.state != TrialState.RUNNING),
            "front": rows,
        },
    )
    _write_csv(folder / "pareto.csv", rows)
    origins = {record.key.origin: completed(records, record.key.origin) for record in records}
    draw_front(folder / "pareto.png", origins, objectives, tasks)
    volume = hypervolume_curves(records, objectives)
    write_json(
        folder / "hypervolume.json",
        {
            "reference": volume.reference,
            "ideal": volume.ideal,
            "progress": {origin: vars(curve) for origin, curve in volume.curves.items()},
        },
    )
    draw_hypervolume(folder / "hypervolume.png", volume.curves)


def name_of(record: Record) -> str:
    """Name a network after its place in the search."""
    return f"{record.key.origin}-{record.key.generation:02d}-{record.key.slot:02d}"


def write_architecture(folder: Path, name: str, architecture: Architecture) -> Path:
    """Write an architecture as ``fit --model.architecture`` takes it and return the file."""
    path = inside(folder / "architectures", f"{name}.json", "the network")
    write_json(path, architecture.to_dict())
    return path


def load_search(folder: Path, storage: str | None = None) -> tuple[list[Objective], list[Record]]:
    """Read the study of a search.

    Args:
        folder: The study's folder in the run folder; its name is the study's.
        storage: Where the study is kept; None: in the folder.

    Returns:
        What the search improves, and its records.

    Raises:
        ConfigError: If there is no such study.
    """
    place = storage or str(folder / "study.db")
    msg = f"there is no study {folder.name!r} in {place}; run `taskformer search` first, or name its --storage"
    if "://" not in place and not Path(place).is_file():
        raise ConfigError(msg)
    try:
        study = optuna.load_study(storage=open_storage(place), study_name=folder.name)
        names = study.user_attrs["objectives"]
    except KeyError as error:
        raise ConfigError(msg) from error
    objectives = [
        Objective(name, "maximize" if direction == optuna.study.StudyDirection.MAXIMIZE else "minimize")
        for name, direction in zip(names, study.directions, strict=True)
    ]
    return objectives, read_records(study)


def pick(records: Sequence[Record], objectives: Sequence[Objective], limits: Mapping[str, float]) -> Record:
    """Choose the best network that costs no more than some limits.

    Args:
        records: Records of a study, of all origins.
        objectives: What was improved; the best is that by the first of them that is no cost, or by delta_m. Of equal
            ones it is the one with the fewest parameters.
        limits: Largest values by name, any of :data:`~taskformer.modules.quantities.COSTS`.

    Raises:
        ConfigError: If no evaluated network keeps the limits, or a cost was not measured.
    """
    complete = [record for record in records if record.state == TrialState.COMPLETE]
    quality = _quality(objectives)
    for name in limits:
        if any(name not in record.candidate.values for record in complete):
            msg = f"the search did not measure {name}; search with it among --objectives or with --constraint.{name}"
            raise ConfigError(msg)

    def order(record: Record) -> tuple[float, float]:
        return quality.loss(record.candidate.values), record.candidate.values["params"]

    fitting = [
        record for record in complete if all(record.candidate.values[name] <= most for name, most in limits.items())
    ]
    if not fitting:
        raise ConfigError(_nothing_fits(complete, limits))
    return min(fitting, key=order)


def measured_here(
    records: Sequence[Record],
    objectives: Sequence[Objective],
    limits: Mapping[str, float],
    supernet: Supernet,
    size: tuple[int, int],
) -> list[Record]:
    """Return what :func:`pick` may choose from where latency is that of the present machine.

    Args:
        records: Records of a study, of all origins.
        objectives: What was improved.
        limits: Largest values of other costs.
        supernet: The supernet, where networks are to run; its weights do not matter.
        size: Height and width of the image.

    Returns:
        Of the evaluated networks that keep the limits, up to :data:`~taskformer.modules.picking.MEASURED` that are
        spread over the front of quality against multiply-accumulates, with the seconds that each takes here.
    """
    complete = {record.candidate.architecture: record for record in records if record.state == TrialState.COMPLETE}
    fitting = [
        record.candidate
        for record in complete.values()
        if all(record.candidate.values[name] <= most for name, most in limits.items())
    ]
    ends = [_quality(objectives), Objective("macs", "minimize")]
    chosen = spread(front(fitting, ends), MEASURED)
    seconds = latencies(supernet, [each.architecture for each in chosen], size) if chosen else []
    return [
        replace(complete[each.architecture], candidate=replace(each, values={**each.values, "latency": time}))
        for each, time in zip(chosen, seconds, strict=True)
    ]


def _quality(objectives: Sequence[Objective]) -> Objective:
    """Return by what a network is the best: the first objective that is no cost, or delta_m."""
    return next((one for one in objectives if one.name not in COSTS), Objective("delta_m", "maximize"))


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the front as a table, a network a row."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        names = list(rows[0]["values"])
        writer.writerow(["name", *names, "file"])
        writer.writerows([row["name"], *(row["values"][name] for name in names), row["file"]] for row in rows)


def _nothing_fits(records: Sequence[Record], limits: Mapping[str, float]) -> str:
    """Explain why no network keeps the limits."""
    if not records:
        return "no network has been evaluated completely yet"
    least = {name: min(record.candidate.values[name] for record in records) for name in limits}
    wanted = ", ".join(f"{name} <= {most:g}" for name, most in limits.items())
    return f"no evaluated network has {wanted}; the least of each are {describe(least)}"
