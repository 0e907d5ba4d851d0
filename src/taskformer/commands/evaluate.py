"""``taskformer evaluate``: score predictions that lie in files, ours or other people's, under any protocol.

``taskformer evaluate edges --help`` explains the boundary benchmark, which needs no data set.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from jsonargparse import Namespace
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torchmetrics import MetricCollection

from taskformer.commands.data import open_data
from taskformer.errors import ConfigError, CorruptFileError, DatasetNotFoundError, UnknownNameError
from taskformer.evaluation.predictions import (
    SUFFIXES,
    find_predictions,
    is_only_padded,
    read_prediction,
    taken_as,
    task_folder,
)
from taskformer.files import write_json
from taskformer.metrics.counting import SumMetric
from taskformer.modules.base import Results
from taskformer.parallel import default_workers, run_jobs
from taskformer.parsing import Parser
from taskformer.tasks import PROTOCOLS, Task, build_tasks

if TYPE_CHECKING:
    from taskformer.data import MultiTaskDataModule
    from taskformer.data.datasets.base import MultiTaskDataset, Sample

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

    Attributes:
        data: Name of the data set.
        split: Its split.
        images: How many images were scored.
        unreadable: Those of the split that could not be read and are left out, where the data set's ``on_error`` is
            ``skip``.
        protocols: Metrics of every task by protocol.
        taken: What the numbers in the files of each task were taken for.
    """

    data: str
    split: str
    images: int
    unreadable: list[str]
    protocols: dict[str, Results]
    taken: dict[str, str]


def main(argv: list[str]) -> None:
    """Parse the command line and score."""
    if argv[1:2] == ["edges"]:
        from taskformer.commands import evaluate_edges

        evaluate_edges.main(argv[1:])
        return
    options = _parser().parse_args(argv[1:])
    protocols = list(PROTOCOLS) if options.protocol == "all" else [options.protocol]
    for kind, name, known in (("protocol", protocols[0], [*PROTOCOLS, "all"]), ("split", options.split, SPLITS)):
        if name not in known:
            raise UnknownNameError(kind, name, known)
    folder = Path(options.predictions)
    module = _data(options, folder)
    inside = folder / "predictions"
    found = evaluate(
        module, inside if inside.is_dir() else folder, options.tasks, protocols, options.split, options.workers
    )
    Console().print(screen_table(found, build_tasks(module.task_specs)))
    if options.json:
        write_json(Path(options.json), asdict(found))


def _parser() -> Parser:
    parser = Parser(prog="taskformer evaluate", description=__doc__)
    parser.add_argument("predictions", type=str, help="Folder with a folder of files for each task, named by the "
                        "images' identifiers; or a run's folder that has them in predictions.")  # fmt: skip
    parser.add_argument("--data", type=str | None, help="Short name of the data set, e.g. nyud; by default the run's.")
    parser.add_argument("--root", type=str | None, help="The data set's folder.")
    parser.add_argument("--config", type=str | None, help="Instead of a name: a YAML file with the data set's options.")
    parser.add_argument("--tasks", type=list[str] | None, help="The tasks, e.g. [semseg,depth]; by default all that "
                        "there are predictions for.")  # fmt: skip
    parser.add_argument("--protocol", type=str, default="standard", help=f"{', '.join(PROTOCOLS)}, or all.")
    parser.add_argument("--split", type=str, default="test", help="The split: train, val or test.")
    parser.add_argument("--workers", type=int | None, help="Number of processes; one per processor by default.")
    parser.add_argument("--json", type=str | None, help="Also write everything to this JSON file.")
    return parser


def _data(options: Namespace, folder: Path) -> "MultiTaskDataModule":
    """Build the data module that the command line names, or the one of the run that the predictions lie in."""
    if options.data is None and options.config is None:
        configs = [path for path in (folder / "config.yaml", folder.parent / "config.yaml") if path.is_file()]
        if not configs:
            msg = f"{folder} is not in a run's folder with a config.yaml; name the data set with --data NAME"
            raise ConfigError(msg)
        options.config = str(configs[0])
    options.name = options.data
    module, _ = open_data(options)
    return module


def evaluate(
    module: "MultiTaskDataModule",
    folder: Path,
    tasks: Sequence[str] | None = None,
    protocols: Sequence[str] = ("standard",),
    split: str = "test",
    workers: int | None = None,
) -> Evaluation:
    """Score files of predictions against a data set's labels.

    Args:
        module: The data set.
        folder: Folder with a folder for each task.
        tasks: The tasks; None takes those of the data set that have a folder.
        protocols: How to score, each any of :data:`taskformer.tasks.PROTOCOLS`.
        split: The split that was predicted.
        workers: Number of processes; None: one per processor.

    Raises:
        DatasetNotFoundError: If a task or an image has no prediction.
        CorruptFileError: If a file does not hold a prediction of its image.
    """
    folders = _folders(folder, tasks, module.task_names)
    module.task_names = list(folders)
    if is_only_padded(module.eval_transforms):
        module.eval_transforms = []  # files have the size of the image
    dataset: Any = module.evaluation_dataset(split)
    if not hasattr(dataset, "ids"):
        msg = f"{module.name} is a mixture of data sets, predictions are scored on one; name it with --data"
        raise ConfigError(msg)
    chosen = build_tasks(module.task_specs)
    files = {name: find_predictions(path, dataset.ids) for name, path in folders.items()}
    _refuse_missing(dataset, folders, files)
    _report_others(folders, files)
    metrics: Metrics = {
        name: {protocol: task.metrics(protocol, stage="test") for protocol in protocols}
        for name, task in chosen.items()
    }
    unreadable = []
    job = partial(_score, dataset=dataset, files=files, metrics=deepcopy(metrics))
    for outcome in run_jobs(range(len(dataset)), job, default_workers() if workers is None else workers, "evaluate"):
        if outcome.value is None:
            raise CorruptFileError(outcome.error)
        read, found = outcome.value
        unreadable += [] if read else [dataset.ids[outcome.item]]
        for name, protocol, metric, sums in found:
            _as_sums(metrics[name][protocol][metric]).add(sums)
    if len(unreadable) == len(dataset):
        msg = f"none of the {len(dataset)} images of the split {split!r} can be read; see the files logged above"
        raise DatasetNotFoundError(msg)
    results = {protocol: {name: _floats(metrics[name][protocol]) for name in chosen} for protocol in protocols}
    firsts = {name: next((path for path in paths if path), None) for name, paths in files.items()}
    taken = {name: taken_as(path, chosen[name]) for name, path in firsts.items() if path}
    return Evaluation(module.name, split, len(dataset) - len(unreadable), unreadable, results, taken)


def _floats(metrics: MetricCollection) -> dict[str, float]:
    return {key: float(value) for key, value in metrics.compute().items()}


def _folders(folder: Path, tasks: Sequence[str] | None, known: Sequence[str]) -> dict[str, Path]:
    """Find the folders of the tasks' predictions."""
    found = {name: path for name in tasks or known if (path := task_folder(folder, name))}
    missing = [name for name in tasks or () if name not in found]
    if missing or not found:
        msg = f"{folder} has no folder of predictions called {' or '.join(missing or known)}"
        raise DatasetNotFoundError(msg)
    return found


def _refuse_missing(dataset: "MultiTaskDataset", folders: dict[str, Path], files: dict[str, list[Path | None]]) -> None:
    """Refuse images that have a label and no prediction: other programs write none where there is no label."""
    for name, paths in files.items():
        empty = [index for index, path in enumerate(paths) if path is None]
        missing = [dataset.ids[index] for index in empty if _has_label(dataset[index], name)]
        if missing:
            names = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            msg = f"{folders[name]} lacks the predictions of {len(missing)} of {len(paths)} images: {names}"
            raise DatasetNotFoundError(msg)


def _has_label(sample: "Sample", name: str) -> bool:
    """Whether an image could be read and has a valid pixel of a task."""
    if "targets" not in sample:
        return False
    target = sample["targets"][name]
    return bool((target.isfinite() if target.is_floating_point() else target != 255).any())


def _report_others(folders: dict[str, Path], files: Files) -> None:
    """Say which files belong to no image of the split; they may be of another."""
    for name, folder in folders.items():
        others = sorted({path for path in folder.iterdir() if path.suffix in SUFFIXES} - set(files[name]))
        if others:
            msg = (
                f"{folder} has {len(others)} files of no image of this split, e.g. {others[0].name}; they do not count"
            )
            Console(stderr=True).print(msg, soft_wrap=True, markup=False, highlight=False)


def _score(index: int, dataset: "MultiTaskDataset", files: Files, metrics: Metrics) -> tuple[bool, Sums]:
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


def screen_table(found: Evaluation, tasks: dict[str, Task]) -> Table:
    """Build the table for the terminal: a column per protocol, the headline metrics first."""
    lacking = f", {len(found.unreadable)} more could not be read" if found.unreadable else ""
    taken = "; ".join(f"{name}: {what}" for name, what in found.taken.items())
    table = Table(title=f"{found.data}, {found.split}: {found.images} images{lacking}", caption=f"read {taken}")
    table.add_column("task")
    table.add_column("metric")
    for protocol in found.protocols:
        table.add_column(protocol, justify="right")
    table.add_column("unit")
    first = next(iter(found.protocols.values()))
    for name, result in first.items():
        task = tasks[name]
        for place, metric in enumerate(sorted(result, key=lambda key: key != task.headline)):
            unit = task.units.get(metric, "")
            values = [results[name][metric] for results in found.protocols.values()]
            cells = [f"{value * 100:.2f}" if unit == "%" else f"{value:.4g}" for value in values]
            table.add_row("" if place else name, metric, *cells, unit)
    return table
