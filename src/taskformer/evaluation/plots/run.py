"""The door of the plots: which there are, and where they go."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

from matplotlib.figure import Figure

from taskformer.errors import ConfigError, UnknownNameError
from taskformer.evaluation.details import Details
from taskformer.evaluation.plots import Format, Kind
from taskformer.evaluation.plots.classes import draw_classes, draw_confusion
from taskformer.evaluation.plots.curves import draw_curves
from taskformer.evaluation.plots.errors import draw_angles, draw_precision_recall, draw_ranges
from taskformer.evaluation.plots.sources import CURVES, Run, read_runs
from taskformer.plots import save

#: Names of pictures and the pictures.
Pictures: TypeAlias = Iterator[tuple[str, Figure]]

#: Folder of the plots of a test in the run's folder, and of those of several runs.
FOLDER = "plots"


def _curves(runs: Sequence[Run]) -> Pictures:
    """Draw the curves of the runs that were trained."""
    if trained := [run for run in runs if run.curves]:
        yield "curves", draw_curves(trained)


def _tasks(
    runs: Sequence[Run], name: str, needed: str, draw: Callable[[str, Mapping[str, Details]], Figure]
) -> Pictures:
    """Draw a picture for each task of which there is what the plot needs."""
    for task in dict.fromkeys(task for run in runs for task in run.details):
        subjects = {run.name: run.details[task] for run in runs if needed in run.details.get(task, {})}
        if subjects:
            yield f"{task}_{name}", draw(task, subjects)


#: Every kind of plot by its name.
PLOTS: dict[Kind, Callable[[Sequence[Run]], Pictures]] = {
    "curves": _curves,
    "classes": partial(_tasks, name="classes", needed="confusion", draw=draw_classes),
    "confusion": partial(_tasks, name="confusion", needed="confusion", draw=draw_confusion),
    "ranges": partial(_tasks, name="ranges", needed="ranges", draw=draw_ranges),
    "angles": partial(_tasks, name="angles", needed="angles", draw=draw_angles),
    "precision_recall": partial(_tasks, name="precision_recall", needed="recall", draw=draw_precision_recall),
}


def plot(
    runs: Sequence[str | Path],
    what: Sequence[Kind] | None = None,
    out: str | Path | None = None,
    format: Format = "png",
) -> list[Path]:
    """Draw one run, or several on one axis: learning curves, and what the test found.

    Args:
        runs: Run folders. Curves need a training, the others a test.
        what: Some of :data:`PLOTS`; by default all that there is something for.
        out: Folder of the pictures. By default ``curves.png`` and ``plots/TASK_PLOT.png`` in the folder of a single
            run, and ``plots`` for several.
        format: ``"png"``, twice 800 pixels wide, or ``"svg"``.

    Returns:
        The pictures.

    Raises:
        UnknownNameError: If there is no such plot.
        ConfigError: If a folder is no run, or no run has what a chosen plot needs.

    Example:
        >>> plot(["runs/demo"], what=["curves", "confusion"])  # doctest: +SKIP
        [PosixPath('runs/demo/curves.png'), PosixPath('runs/demo/plots/semseg_confusion.png')]
    """
    for name in what or ():
        if name not in PLOTS:
            kind = "plot"
            raise UnknownNameError(kind, name, PLOTS)
    found = read_runs(runs)
    drawn = {name: _draw(found, name, out, format) for name in what or PLOTS}
    for name in what or ():
        if not drawn[name]:
            command = "fit" if name == "curves" else "test"
            msg = f"no run has what the plot {name!r} shows; `taskformer {command}` leaves it if the tasks have it"
            raise ConfigError(msg)
    return [path for paths in drawn.values() for path in paths]


def draw_training(folder: Path) -> None:
    """Draw a run's learning curves, if it has any, into its folder."""
    if (folder / CURVES).is_file():
        _draw(read_runs([folder]), "curves")


def draw_test(folder: Path) -> None:
    """Draw what a run's test found into its folder."""
    runs = read_runs([folder])
    for name in PLOTS:
        if name != "curves":
            _draw(runs, name)


def _draw(runs: Sequence[Run], name: Kind, out: str | Path | None = None, format: Format = "png") -> list[Path]:
    """Draw all pictures of a kind that there is something for."""
    if out is None:
        alone = runs[0].folder if name == "curves" else runs[0].folder / FOLDER
        out = alone if len(runs) == 1 else FOLDER
    paths = []
    for label, figure in PLOTS[name](runs):
        path = Path(out) / f"{label}.{format}"
        save(figure, path)
        paths.append(path)
    return paths
