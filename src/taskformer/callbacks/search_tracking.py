"""What the loggers of a supernet's run keep of its search."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from lightning.pytorch.loggers import Logger
from optuna.trial import TrialState
from PIL import Image

from taskformer.callbacks.trackers import close, remember, trackers
from taskformer.callbacks.trackers.base import NOTHING
from taskformer.metrics.units import SHARE, factor
from taskformer.modules.quantities import unit_of
from taskformer.search.hypervolume import hypervolume_curves
from taskformer.search.results import SearchResult
from taskformer.tasks.colors import Picture

#: What the progress of a search is counted in: networks, also those that were stopped early.
EVALUATED = "search/evaluated"


class SearchTracking:
    """Give loggers that keep more than numbers the progress of a search and its front: wandb, TensorBoard, MLflow.

    >>> with SearchTracking([], Path("runs/supernet")) as tracking:  # doctest: +SKIP
    ...     found = taskformer.search("runs/supernet", on_progress=tracking.update)
    ...     tracking.finish(found)

    While the search runs they get the best of each objective, the size of the front and, from the second generation on,
    the hypervolume as a share of what is known to be possible by then. At its end come the front and the curve of the
    hypervolume, as tables and as pictures.

    Args:
        loggers: The loggers.
        folder: The run folder of the supernet.
        config: What the run is, by the command line's dotted names.
        architectures: Whether to keep the architectures of the front, as an artifact.
    """

    def __init__(
        self, loggers: Iterable[Logger], folder: Path, config: Mapping[str, Any] = NOTHING, architectures: bool = False
    ) -> None:
        self.folder = folder
        self.config = config
        self.architectures = architectures
        self._trackers = trackers(loggers)
        self._evaluated = 0

    def __enter__(self) -> Self:
        """Open the run."""
        for tracker in self._trackers:
            tracker.describe(self.config, {})
        remember(self.folder, self._trackers)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the run."""
        close(self._trackers, failed=error is not None)

    def update(self, found: SearchResult) -> None:
        """Log how far the search is, if that is news."""
        evaluated = sum(record.state != TrialState.RUNNING for record in found.records)
        if evaluated == self._evaluated or not found.front:
            return
        self._evaluated = evaluated
        values = {EVALUATED: float(evaluated), "search/front_size": float(len(found.front))}
        for one in found.objectives:
            best = (max if one.direction == "maximize" else min)(network.values[one.name] for network in found.front)
            values[f"search/best/{one.name}"] = best
        if any(record.key[:2] > ("evolution", 0) for record in found.records):  # the first generation is the measure
            curves = hypervolume_curves(found.records, found.objectives).curves
            values["search/hypervolume"] = curves["evolution"].shares[-1]
        for tracker in self._trackers:
            tracker.progress(values, EVALUATED)

    def finish(self, found: SearchResult) -> None:
        """Keep what the search has found, from the files that it has written."""
        front = _read(found.folder / "pareto.json")["front"]
        curves = _read(found.folder / "hypervolume.json")["progress"]
        units = [unit_of(name, found.tasks) for name in front[0]["values"]]
        networks = [
            [
                row["name"],
                *(value / unit.scale for value, unit in zip(row["values"].values(), units, strict=True)),
                _picture(found.folder / Path(row["file"]).with_suffix(".png")),
            ]
            for row in front
        ]
        shares = [
            [origin, evaluated, share * factor(SHARE)]
            for origin, curve in curves.items()
            for evaluated, share in zip(curve["evaluations"], curve["shares"], strict=True)
        ]
        for tracker in self._trackers:
            tracker.table("search/front", ["name", *(unit.label for unit in units), "architecture"], networks)
            tracker.table("search/hypervolume_curve", ["origin", "networks evaluated", "hypervolume, %"], shares)
            tracker.picture("search/front_picture", found.folder / "pareto.png")
            tracker.picture("search/hypervolume_picture", found.folder / "hypervolume.png")
            if self.architectures:
                name = f"{self.folder.resolve().name}-{found.folder.name}"
                tracker.artifact(found.folder / "architectures", name, "architectures", {"front": front})


def _read(file: Path) -> dict[str, Any]:
    """Read a file of the search's results."""
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _picture(file: Path) -> Picture:
    """Read a drawing."""
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))
