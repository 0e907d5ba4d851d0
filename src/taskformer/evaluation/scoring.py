"""Scores of predictions that lie in files, ours or other people's, under any protocol."""

from collections.abc import Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, cast

from numpy.typing import NDArray
from rich.table import Table
from torchmetrics import MetricCollection

from taskformer.data import MultiTaskDataModule, MultiTaskDataset
from taskformer.data.configured import data_module
from taskformer.data.datasets.base import Sample
from taskformer.data.predictions import (
    SUFFIXES,
    find_predictions,
    is_only_padded,
    read_prediction,
    taken_as,
    task_folder,
)
from taskformer.errors import ConfigError, CorruptFileError, DatasetNotFoundError, UnknownNameError
from taskformer.metrics.counting import SumMetric
from taskformer.metrics.units import shown
from taskformer.modules.evaluating import Results
from taskformer.parallel import default_workers, run_jobs
from taskformer.tasks import PROTOCOLS, Task, build_tasks

#: Metrics by task and protocol.
Metrics: TypeAlias = dict[str, dict[str, MetricCollection]]
#: File of every image's prediction by task; None where there is none.
Files: TypeAlias = Mapping[str, Sequence[Path | None]]
#: Task, protocol, metric, and the sums of its states.
Sums: TypeAlias = list[tuple[str, str, str, dict[str, NDArray[Any]]]]

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Evaluation:
    """Scores of saved predictions.

    >>> found = evaluate("runs/a", protocol="all")  # doctest: +SKIP
    >>> found = Evaluation(
    ...     data="nyud", split="test", images=654, unreadable=[], protocols={"standard": {"depth": {"rmse": 0.5}}},
    ...     taken={"depth": "float32 of .npy, in m"}, tasks=build_tasks({"depth": {}}), notes=[],
    ... )
    >>> found.results["depth"]["rmse"], found.table().row_count
    (0.5, 1)

    Attributes:
        data: Name of the data set.
        split: Its split.
        images: How many images were scored.
        unreadable: Those of the split that could not be read and are left out, where the data set's ``on_error`` is
            ``skip``.
        protocols: ``{protocol: {task: {metric: value}}}``; shares are fractions.
        taken: What the numbers in the files of each task were taken for.
        tasks: The tasks by name.
        notes: What may be a mistake, a sentence each.
    """

    data: str
    split: str
    images: int
    unreadable: list[str]
    protocols: dict[str, Results]
    taken: dict[str, str]
    tasks: dict[str, Task] = field(repr=False)
    notes: list[str]

    @property
    def results(self) -> Results:
        """The metrics ``{task: {metric: value}}`` by the only protocol, or the first of several."""
        return next(iter(self.protocols.values()))

    def as_dict(self) -> dict[str, Any]:
        """Return the scores and what they are of as plain types, for JSON."""
        names = ("data", "split", "images", "unreadable", "protocols", "taken")
        return {name: getattr(self, name) for name in names}

    def table(self) -> Table:
        """Build the table for the terminal: a column per protocol, the headline metrics first."""
        lacking = f", {len(self.unreadable)} more could not be read" if self.unreadable else ""
        taken = "; ".join(f"{name}: {what}" for name, what in self.taken.items())
        table = Table(title=f"{self.data}, {self.split}: {self.images} images{lacking}", caption=f"read {taken}")
        table.add_column("task")
        table.add_column("metric")
        for protocol in self.protocols:
            table.add_column(protocol, justify="right")
        table.add_column("unit")
        for name, result in self.results.items():
            task = self.tasks[name]
            for place, metric in enumerate(sorted(result, key=lambda key: key != task.headline)):
                unit = task.units.get(metric, "")
                cells = [shown(results[name][metric], unit) for results in self.protocols.values()]
                table.add_row("" if place else name, metric, *cells, unit)
        return table


def evaluate(
    predictions: str | Path,
    data: MultiTaskDataModule | str | Path | None = None,
    root: str | None = None,
    tasks: Sequence[str] | None = None,
    protocol: str = "standard",
    split: str = "test",
    workers: int | None = None,
) -> Evaluation:
    """Score predictions that lie in files, ours or other people's, under any protocol.

    Args:
        predictions: Folder with a folder of files for each task, named by the images' identifiers; or a run folder that
            has them in ``predictions``.
        data: The data set: its short name, a YAML file with its options, a run folder, or a data module; by default
            that of the run in whose folder the predictions lie.
        root: The data set's folder, if it is not the default one.
        tasks: The tasks; by default all of the data set's that there are predictions for.
        protocol: How to score, one of :data:`taskformer.tasks.PROTOCOLS` or ``"all"``.
        split: The split that was predicted: ``"train"``, ``"val"`` or ``"test"``.
        workers: Number of processes; one per processor by default.

    Raises:
        UnknownNameError: If there is no such data set, task, protocol or split.
        ConfigError: If it is not said which data set it is, or if it is a mixture of several.
        DatasetNotFoundError: If a task or an image has no prediction.
        CorruptFileError: If a file does not hold a prediction of its image.
    """
    for kind, name, known in (("protocol", protocol, [*PROTOCOLS, "all"]), ("split", split, SPLITS)):
        if name not in known:
            raise UnknownNameError(kind, name, known)
    protocols = list(PROTOCOLS) if protocol == "all" else [protocol]
    folder = Path(predictions)
    module = _data_module(folder, data, root, tasks)
    inside = folder / "predictions"
    if tasks is not None:
        module.task_names = list(tasks)
    folders = _folders(inside if inside.is_dir() else folder, build_tasks(module.task_specs), tasks is not None)
    module.task_names = list(folders)
    if is_only_padded(module.eval_transforms):
        module.eval_transforms = []  # files have the size of the image
    dataset = module.evaluation_dataset(split)
    if not isinstance(dataset, MultiTaskDataset):
        msg = f"{module.name} is a mixture of data sets, predictions are scored on one; name it with --data"
        raise ConfigError(msg)
    scored = build_tasks(module.task_specs)
    files = {name: find_predictions(path, dataset.ids) for name, path in folders.items()}
    _refuse_missing(dataset, folders, files)
    metrics: Metrics = {
        name: {protocol: task.metrics(protocol, stage="test") for protocol in protocols}
        for name, task in scored.items()
    }
    unreadable = _score_all(dataset, files, metrics, default_workers() if workers is None else workers)
    if len(unreadable) == len(dataset):
        msg = f"none of the {len(dataset)} images of the split {split!r} can be read; see the files logged above"
        raise DatasetNotFoundError(msg)
    firsts = {name: next((path for path in paths if path), None) for name, paths in files.items()}
    return Evaluation(
        data=module.name,
        split=split,
        images=len(dataset) - len(unreadable),
        unreadable=unreadable,
        protocols={protocol: {name: _floats(metrics[name][protocol]) for name in metrics} for protocol in protocols},
        taken={name: taken_as(path, scored[name]) for name, path in firsts.items() if path},
        tasks=scored,
        notes=_others(folders, files),
    )


def _data_module(
    folder: Path, data: MultiTaskDataModule | str | Path | None, root: str | None, tasks: Sequence[str] | None
) -> MultiTaskDataModule:
    """Build the data module that is meant, or copy the one that is given."""
    if isinstance(data, MultiTaskDataModule):
        if root is not None:
            msg = f"the data module of {data.name} has its folder, {data.root}; root is for data that are given by name"
            raise ConfigError(msg)
        for task in tasks or ():
            if task not in data.task_offers():
                kind = f"task of {type(data).__name__}"
                raise UnknownNameError(kind, task, data.task_offers())
        return copy(data)
    if data is None:
        data = next((path for path in (folder, folder.parent) if (path / "config.yaml").is_file()), None)
    if data is None:
        msg = f"{folder} is not in a run's folder with a config.yaml; name the data set with --data NAME"
        raise ConfigError(msg)
    chosen = {"root": root, "tasks": None if tasks is None else list(tasks)}
    return data_module(data, **{key: value for key, value in chosen.items() if value is not None})


def _floats(metrics: MetricCollection) -> dict[str, float]:
    return {key: float(value) for key, value in metrics.compute().items()}


def _folders(folder: Path, tasks: Mapping[str, Task], all_of_them: bool) -> dict[str, Path]:
    """Find the folders of the tasks' predictions: of all of them, or at least of one."""
    found = {name: path for name, task in tasks.items() if (path := task_folder(folder, task))}
    missing = [name for name in tasks if name not in found]
    if not found or (missing and all_of_them):
        msg = f"{folder} has no folder of predictions called {' or '.join(missing)}"
        raise DatasetNotFoundError(msg)
    return found


def _refuse_missing(dataset: MultiTaskDataset, folders: dict[str, Path], files: dict[str, list[Path | None]]) -> None:
    """Refuse images that have a label and no prediction: other programs write none where there is no label."""
    for name, paths in files.items():
        empty = [index for index, path in enumerate(paths) if path is None]
        missing = [dataset.ids[index] for index in empty if _has_label(dataset[index], name)]
        if missing:
            names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            msg = f"{folders[name]} lacks the predictions of {len(missing)} of {len(paths)} images: {names}"
            raise DatasetNotFoundError(msg)


def _has_label(sample: Sample, name: str) -> bool:
    """Whether an image could be read and has a valid pixel of a task."""
    if "targets" not in sample:
        return False
    target = sample["targets"][name]
    return bool((target.isfinite() if target.is_floating_point() else target != 255).any())


def _others(folders: dict[str, Path], files: Files) -> list[str]:
    """Say which files belong to no image of the split; they may be of another."""
    notes = []
    for name, folder in folders.items():
        others = sorted({path for path in folder.iterdir() if path.suffix in SUFFIXES} - set(files[name]))
        if others:
            found = f"{folder} has {len(others)} files of no image of this split"
            notes.append(f"{found}, e.g. {others[0].name}; they do not count")
    return notes


def _score_all(dataset: MultiTaskDataset, files: Files, metrics: Metrics, workers: int) -> list[str]:
    """Update the metrics with all images, in several processes; return those that cannot be read.

    Raises:
        CorruptFileError: If an image cannot be scored.
    """
    unreadable = []
    job = partial(_score, dataset=dataset, files=files, metrics=deepcopy(metrics))
    for outcome in run_jobs(range(len(dataset)), job, workers, "evaluate"):
        if outcome.value is None:
            raise CorruptFileError(outcome.error)
        read, found = outcome.value
        unreadable += [] if read else [dataset.ids[outcome.item]]
        for name, protocol, metric, sums in found:
            _as_sums(metrics[name][protocol][metric]).add(sums)
    return unreadable


def _score(index: int, dataset: MultiTaskDataset, files: Files, metrics: Metrics) -> tuple[bool, Sums]:
    """Score the predictions of one image.

    Returns:
        Whether it could be read, and the sums of every task's, protocol's and metric's states.
    """
    axes = getattr(dataset, "axes", getattr(dataset, "normal_axes", (1, 2, 3)))
    sample = dataset[index]
    if "targets" not in sample:
        return False, []
    targets = sample["targets"]
    found: Sums = []
    for name, paths in files.items():
        path, task = paths[index], dataset.tasks[name]
        if path is None:
            continue
        output, target = read_prediction(path, task, axes).unsqueeze(0), targets[name].unsqueeze(0)
        if output.shape[2:] != target.shape[-2:] and output.ndim == 4:
            sizes = [f"{height}x{width}" for height, width in (output.shape[2:], target.shape[-2:])]
            msg = f"{path} is {sizes[0]} and the label of its image {sizes[1]} (height x width)"
            raise CorruptFileError(msg)
        for protocol, collection in metrics[name].items():
            collection.reset()
            collection.update(output, task.check(target, output))
            found += [(name, protocol, metric, _as_sums(scores).sums()) for metric, scores in collection.items()]
    return True, found


def _as_sums(metric: Any) -> SumMetric:
    """All metrics of ours are sums."""
    return cast(SumMetric, metric)
