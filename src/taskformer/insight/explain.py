"""Everything that can be seen inside a trained model, of photographs and of the images that it was tested on."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.table import Table

from taskformer.data.configured import data_module
from taskformer.data.datamodules.base import collate
from taskformer.errors import ConfigError, CorruptFileError, DatasetNotFoundError, require
from taskformer.evaluation.details import read_details
from taskformer.insight.ablation import Influence, influence
from taskformer.insight.attention import Attention, recorded
from taskformer.insight.drawings import (
    draw_affinity,
    draw_conflicts,
    draw_maps,
    draw_shared_units,
    gathered_by_heads,
    most_read_queries,
    sharpest_queries,
)
from taskformer.insight.errors import ClassError, RangeError, class_errors, errors_by_range
from taskformer.insight.exchange import Affinity, affinity, affinity_of
from taskformer.insight.gradients import Conflicts, conflicts
from taskformer.insight.sharing import shared_units
from taskformer.insight.worst import WorstImage, draw_images, worst_images
from taskformer.metrics.units import shown
from taskformer.models.autotaskformer.subnet import Subnet
from taskformer.modules.base import MultiTaskModule
from taskformer.modules.evaluating import Batch
from taskformer.modules.exporting import plain_network
from taskformer.modules.loading import load
from taskformer.modules.photographs import find_images, result_names
from taskformer.pictures import read_picture
from taskformer.search.drawings import draw_architecture
from taskformer.tasks import Task
from taskformer.tasks.colors import Picture

Split = Literal["train", "val", "test"]
#: Queries that are drawn of each task, and classes that are printed.
QUERIES, CLASSES = 6, 5
#: What colours mean in each kind of picture.
ALIKE = dict.fromkeys(("gathering", "queries"), "attention; 1: to all pixels alike") | {
    "reading": "attention; 1: to all queries alike"
}


@dataclass
class Explanation:
    """What :func:`explain` has found.

    Attributes:
        out: The folder with the pictures.
        files: The pictures.
        photographs: Which task's queries read which others', by the name of the photograph.
        affinity: The same over images of the data set; None without.
        influence: Scores with and without the queries; None without.
        conflicts: Cosines of the tasks' gradients; None without.
        worst: The worst test images of each task.
        classes: Errors of the tasks with classes, the worst class first.
        ranges: Errors of other tasks by the range of the true value.
        notes: What could not be had, and why, a sentence each.
    """

    out: Path
    files: list[Path] = field(default_factory=list)
    photographs: dict[str, Affinity] = field(default_factory=dict)
    affinity: Affinity | None = None
    influence: Influence | None = None
    conflicts: Conflicts | None = None
    worst: dict[str, list[WorstImage]] = field(default_factory=dict)
    classes: dict[str, list[ClassError]] = field(default_factory=dict)
    ranges: dict[str, list[RangeError]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str) -> Path:
        """Return the place of a picture, and count it among the files."""
        self.files.append(self.out / name)
        return self.files[-1]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain types, for JSON."""
        listed = {
            name: {task: list(map(asdict, rows)) for task, rows in by_task.items()}
            for name, by_task in (("worst", self.worst), ("classes", self.classes), ("ranges", self.ranges))
        }
        return {
            "files": list(map(str, self.files)),
            "photographs": {name: found.as_dict() for name, found in self.photographs.items()},
            "affinity": None if self.affinity is None else self.affinity.as_dict(),
            "influence": None if self.influence is None else self.influence.scores,
            "conflicts": None if self.conflicts is None else self.conflicts.as_dict(),
            **listed,
            "notes": self.notes,
        }

    def tables(self) -> Iterator[Table]:
        """Build the tables for the terminal."""
        if (found := self.affinity or next(iter(self.photographs.values()), None)) is not None:
            yield found.table()
        if self.influence is not None:
            yield self.influence.table()
        for task, classes in self.classes.items():
            table = Table(
                "class", "IoU, %", "of all pixels, %", "taken for", "of its pixels, %", title=f"{task}: worst"
            )
            for one in classes[:CLASSES]:
                table.add_row(one.name, shown(one.iou), shown(one.share), one.taken_for, shown(one.taken))
            yield table
        for task, ranges in self.ranges.items():
            table = Table("from", "to", "of all pixels, %", "rmse", "mean error", title=f"{task}: by the true value")
            for span in (span for span in ranges if span.share):
                end = "" if span.high is None else f"{span.high:g}"
                table.add_row(f"{span.low:g}", end, shown(span.share), f"{span.rmse:.3g}", f"{span.absolute:.3g}")
            yield table


def explain(
    run: str | Path,
    photographs: str | Path | Iterable[str | Path] = (),
    out: str | Path | None = None,
    split: Split = "test",
    images: int = 64,
    worst: int = 4,
    architecture: str | None = None,
    device: str = "cpu",
) -> Explanation:
    """Look inside a trained model.

    Writes to ``out``, as far as the model and the run have it:

    * for each photograph a folder: ``gathering.png``, where each task's queries look, head by head; ``queries.png``,
      the queries of each task that tell most apart; ``reading.png``, which pixels read which queries; ``affinity.png``,
      which task's queries read which others'. With several scales or rounds one of each of the first three for each.
    * of the run's own images: ``affinity.png``, ``conflicts.png``, the cosines of the tasks' gradients in each layer,
      and ``worst_TASK.png``; scores without the queries show how much all this matters;
    * of a supernet's sub-network: ``architecture.png`` and ``sharing.png``.

    Args:
        run: Run folder, or a checkpoint in one.
        photographs: Image files, or folders of them; one or several.
        out: Folder to write to; by default ``insight`` in the run folder.
        split: Which of the run's images affinity and gradients are measured on.
        images: How many of them, spread evenly, in batches as large as in the training; 0: none.
        worst: How many of the worst test images of each task are drawn; 0: none.
        architecture: JSON file of a supernet's sub-network; None: the largest.
        device: Device to compute on.

    Returns:
        What was found, and what could not be had and why.

    Raises:
        ConfigError: If there is nothing to draw.
        DatasetNotFoundError: If there is no such photograph; one that is damaged is left out with a note.
        WeightsError: If there is no such model.
    """
    require("[0, inf)", images=images, worst=worst)
    folder = Path(run) if Path(run).is_dir() else Path(run).absolute().parent.parent
    files = find_images([photographs] if isinstance(photographs, str | Path) else photographs)
    module = load(run, map_location=device)
    module.network = plain_network(module, architecture)
    found = Explanation(folder / "insight" if out is None else Path(out))
    steps: list[Callable[[], None]] = [
        *(partial(_explain_photograph, found, module, name, file) for name, file in result_names(files).items()),
        partial(_explain_errors, found, folder),
        partial(_explain_sharing, found, module),
    ]
    if images:
        batches = _Batches(folder, split, images)
        steps += [
            partial(step, found, module, batches)
            for step in (_explain_affinity, _explain_influence, _explain_conflicts)
        ]
    if worst:
        steps += [partial(_explain_worst, found, module, folder, task, worst) for task in module.tasks.values()]
    for step in steps:
        try:
            step()
        except (ConfigError, CorruptFileError, DatasetNotFoundError) as error:
            found.notes += [str(error)] if str(error) not in found.notes else []
    if not found.files:
        msg = (
            "; ".join(found.notes)
            or f"{run} has nothing to show without photographs, images and worst ones; ask for some"
        )
        raise ConfigError(msg)
    return found


class _Batches:
    """Images of a run's data as an evaluation sees them, in batches as large as in the training.

    Args:
        run: The run folder.
        split: The split.
        count: How many images, spread evenly over it.
    """

    def __init__(self, run: Path, split: Split, count: int) -> None:
        self.run, self.split, self.count = run, split, count

    def __iter__(self) -> Iterator[Batch]:
        data = data_module(self.run)
        dataset = data.evaluation_dataset(self.split)
        places = np.linspace(0, len(dataset) - 1, min(self.count, len(dataset))).round().astype(int)
        for start in range(0, len(places), data.batch_size):
            batch = collate([dataset[int(place)] for place in places[start : start + data.batch_size]])
            if len(batch["image"]):
                yield batch


def _explain_photograph(found: Explanation, module: MultiTaskModule, name: str, file: Path) -> None:
    """Draw the attention of a model that sees a photograph."""
    pixels = read_picture(file)
    with recorded(module.network) as passes:
        module.predict_image(pixels)
    _draw_attention(found, name, pixels, passes[0])
    if all(one.between_tasks is not None for one in passes[0].rounds):
        found.photographs[name] = affinity_of(passes)
        draw_affinity(found.add(f"{name}/affinity.png"), found.photographs[name], f"who reads whom in {name}")


def _draw_attention(found: Explanation, name: str, pixels: Picture, attention: Attention) -> None:
    """Draw one pass round by round, scale by scale."""
    several = len(attention.rounds) > 1
    for number, one in enumerate(attention.rounds, start=1):
        grids = [look.shape[-2:] for look in next(iter(one.gathering.values()))]
        for scale, (rows, _) in enumerate(grids):
            stride = attention.padded[0] // rows
            of = f"_round{number}" * several + f"_stride{stride}" * (len(grids) > 1)
            where = f", round {number}" * several + f", stride {stride}"
            for kind, panels, title in (
                ("gathering", gathered_by_heads(one.gathering, scale), "where each task's queries look"),
                ("queries", sharpest_queries(one.gathering, scale, QUERIES), "where single queries look"),
                ("reading", most_read_queries(one.reading, scale, QUERIES), "which pixels read single queries"),
            ):
                path = found.add(f"{name}/{kind}{of}.png")
                draw_maps(path, pixels, attention, panels, f"{title}{where}", ALIKE[kind])


def _explain_errors(found: Explanation, run: Path) -> None:
    """Read where the test found errors."""
    for task, details in read_details(run).items():
        if "confusion" in details:
            found.classes[task] = class_errors(details)
        if "ranges" in details:
            found.ranges[task] = errors_by_range(details)


def _explain_sharing(found: Explanation, module: MultiTaskModule) -> None:
    """Draw a sub-network of a supernet, and what its tasks share."""
    if not isinstance(module.network, Subnet):
        return
    network, tasks = module.network.architecture, list(module.tasks)
    draw_architecture(found.add("architecture.png"), network, tasks, "what the tasks share")
    draw_shared_units(found.add("sharing.png"), shared_units(network, tasks), tasks, "units in common, %")


def _explain_affinity(found: Explanation, module: MultiTaskModule, batches: _Batches) -> None:
    """Measure which task's queries read which others' over the run's images."""
    found.affinity = affinity(module, (batch["image"] for batch in batches))
    title = f"who reads whom, {len(found.affinity.per_image)} {batches.split} images"
    draw_affinity(found.add("affinity.png"), found.affinity, title)


def _explain_influence(found: Explanation, module: MultiTaskModule, batches: _Batches) -> None:
    """Score the model with and without its queries."""
    found.influence = influence(module, batches)


def _explain_conflicts(found: Explanation, module: MultiTaskModule, batches: _Batches) -> None:
    """Measure where the gradients of tasks are at odds."""
    found.conflicts = conflicts(module, batches)
    count = len(found.conflicts.cosines)
    draw_conflicts(found.add("conflicts.png"), found.conflicts, f"mean over {count} batches of {batches.split} images")


def _explain_worst(found: Explanation, module: MultiTaskModule, run: Path, task: Task, count: int) -> None:
    """Draw the test images on which a task is worst."""
    images = worst_images(run, task, count)
    dataset = data_module(run).evaluation_dataset("test")
    if images:
        draw_images(found.out / f"worst_{task.name}.png", module, dataset, images)
        found.worst[task.name] = images
        found.add(f"worst_{task.name}.png")
