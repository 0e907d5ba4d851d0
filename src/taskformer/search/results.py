"""What a search found, from its study: the front, what it is compared with, and the best network for a budget."""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.trial import TrialState

from taskformer.errors import ConfigError
from taskformer.files import inside, replacing, write_json
from taskformer.models.autotaskformer import Architecture
from taskformer.search.drawings import draw_architecture, draw_front, draw_hyper_volume
from taskformer.search.objectives import COSTS, Candidate, Objective, front, losses
from taskformer.search.quantities import describe
from taskformer.search.rounds import results
from taskformer.search.study import Record, open_storage, read_records
from taskformer.tasks import Task

#: What evaluates generations of equal numbers of networks, to be compared at equal effort.
COMPARED = ("evolution", "random")


@dataclass(frozen=True)
class Progress:
    """How much an origin had found when.

    Args:
        evaluations: Networks evaluated by the end of each generation, also those stopped early.
        shares: Share of the possible hyper-volume that was dominated then, from 0 to 1.
    """

    evaluations: list[int]
    shares: list[float]


@dataclass(frozen=True)
class HyperVolume:
    """The hyper-volume over the course of a search.

    Args:
        reference: For each objective the worst value of the first, random generation; worse ones count nothing.
        ideal: For each objective the best value of all networks; reaching all of them at once would be a share of 1.
        progress: The course of each origin that was compared.
    """

    reference: dict[str, float]
    ideal: dict[str, float]
    progress: dict[str, Progress]


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
    found = front(results(records, "evolution"), objectives)
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
    origins = {record.key.origin: results(records, record.key.origin) for record in records}
    draw_front(folder / "pareto.png", origins, objectives, tasks)
    course = hyper_volume_course(records, objectives)
    write_json(
        folder / "hypervolume.json",
        {
            "reference": course.reference,
            "ideal": course.ideal,
            "progress": {origin: vars(progress) for origin, progress in course.progress.items()},
        },
    )
    curves = {origin: (progress.evaluations, progress.shares) for origin, progress in course.progress.items()}
    draw_hyper_volume(folder / "hypervolume.png", curves)


def name_of(record: Record) -> str:
    """Name a network after its place in the search."""
    return f"{record.key.origin}-{record.key.generation:02d}-{record.key.slot:02d}"


def write_architecture(folder: Path, name: str, architecture: Architecture) -> Path:
    """Write an architecture as ``fit --model.architecture`` takes it and return the file."""
    path = inside(folder / "architectures", f"{name}.json", "the network")
    write_json(path, architecture.to_dict())
    return path


def hyper_volume(points: NDArray[np.float64], reference: NDArray[np.float64]) -> float:
    """Measure what a set of points dominates, exactly.

    Args:
        points: ``(N, M)``, less is better.
        reference: ``(M,)``; points that are not better everywhere count nothing.

    Returns:
        The volume of the union of the boxes between the points and the reference.
    """
    inside = points[(points < reference).all(axis=1)]
    if not len(inside):
        return 0.0
    if len(reference) == 1:
        return float(reference[0] - inside.min())
    inside = inside[np.argsort(inside[:, 0])]
    widths = np.diff(inside[:, 0], append=reference[0])  # of the slices from each point to the next
    if len(reference) == 2:
        return float(widths @ (reference[1] - np.minimum.accumulate(inside[:, 1])))
    slices = [hyper_volume(inside[: last + 1, 1:], reference[1:]) for last in range(len(inside))]
    return float(widths @ slices)


def hyper_volume_course(records: Sequence[Record], objectives: Sequence[Objective]) -> HyperVolume:
    """Measure the hyper-volume that each compared origin had reached after every generation.

    Args:
        records: Records of a study, at least one of the first generation of them complete.
        objectives: What was improved.
    """
    complete = [record for record in records if record.state == TrialState.COMPLETE]
    first = [record.candidate for record in complete if record.key[:2] == ("evolution", 0)]
    reference = losses(first, objectives).max(axis=0)
    ideal = losses([record.candidate for record in complete], objectives).min(axis=0)
    box = float(np.prod(reference - ideal))
    progress = {}
    for origin in COMPARED:
        own = [record for record in records if record.key.origin == origin and record.state != TrialState.RUNNING]
        if own:
            progress[origin] = _course(own, objectives, reference, box)
    signs = [1 if objective.direction == "minimize" else -1 for objective in objectives]
    names = [objective.name for objective in objectives]
    return HyperVolume(
        dict(zip(names, (reference * signs).tolist(), strict=True)),
        dict(zip(names, (ideal * signs).tolist(), strict=True)),
        progress,
    )


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
        limits: Largest values by name, any of :data:`~taskformer.search.objectives.COSTS`.

    Raises:
        ConfigError: If no evaluated network is inside the limits, or a cost was not measured.
    """
    complete = [record for record in records if record.state == TrialState.COMPLETE]
    for name in limits:
        if any(name not in record.candidate.values for record in complete):
            msg = f"the search did not measure {name}; search with it among --objectives or with --constraint.{name}"
            raise ConfigError(msg)
    quality = next((one for one in objectives if one.name not in COSTS), Objective("delta_m", "maximize"))

    def order(record: Record) -> tuple[float, float]:
        return quality.loss(record.candidate.values), record.candidate.values["params"]

    fitting = [
        record for record in complete if all(record.candidate.values[name] <= most for name, most in limits.items())
    ]
    if not fitting:
        raise ConfigError(_nothing_fits(complete, limits))
    return min(fitting, key=order)


def _course(
    records: Sequence[Record], objectives: Sequence[Objective], reference: NDArray[np.float64], box: float
) -> Progress:
    """Follow one origin's hyper-volume, as a share of the box between the reference and the ideal."""
    evaluations, shares = [], []
    found: list[Candidate] = []
    for generation in sorted({record.key.generation for record in records}):
        new = [record.candidate for record in records
               if record.key.generation == generation and record.state == TrialState.COMPLETE]  # fmt: skip
        found = front([*found, *new], objectives)
        evaluations.append(sum(record.key.generation <= generation for record in records))
        shares.append(hyper_volume(losses(found, objectives), reference) / box if box else 0.0)
    return Progress(evaluations, shares)


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the front as a table, a network a row."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        names = list(rows[0]["values"])
        writer.writerow(["name", *names, "file"])
        writer.writerows([row["name"], *(row["values"][name] for name in names), row["file"]] for row in rows)


def _nothing_fits(records: Sequence[Record], limits: Mapping[str, float]) -> str:
    """Explain why no network is inside the limits."""
    if not records:
        return "no network has been evaluated completely yet"
    least = {name: min(record.candidate.values[name] for record in records) for name in limits}
    wanted = ", ".join(f"{name} <= {most:g}" for name, most in limits.items())
    return f"no evaluated network has {wanted}; the least of each are {describe(least)}"
