"""The scores of every single image, for significance tests."""

import csv
import io
from collections.abc import Iterator, Mapping
from itertools import count
from operator import itemgetter
from pathlib import Path
from typing import Any

from torch import distributed
from torch.utils.data import IterableDataset

from taskformer.files import write_text
from taskformer.metrics.images import ImageResults
from taskformer.modules.evaluating import Batch

#: Position in the data set, image, task, metric, value.
Row = tuple[int, str, str, str, float]


class ImageScores:
    """Gather the scores of single images, of every process its own, in the data set's order.

    Args:
        loader: The loader of the images.
        rank: Number of this process.
        processes: How many there are.
    """

    def __init__(self, loader: Any, rank: int, processes: int) -> None:
        self._positions = _positions(loader, rank, processes)
        self._rows: list[Row] = []

    def update(self, batch: Batch, scores: Mapping[str, ImageResults]) -> None:
        """Add the images of a batch, those that could be read.

        Args:
            batch: The batch.
            scores: The metrics of each of its images by task.
        """
        unreadable = batch.get("unreadable", {})
        places = [next(self._positions) for _ in range(len(batch["meta"]["id"]) + len(unreadable))]
        positions = [position for place, position in enumerate(places) if place not in unreadable]
        for index, (position, image) in enumerate(zip(positions, batch["meta"]["id"], strict=True)):
            self._rows += [
                (position, str(image), task, metric, value)
                for task, images in scores.items()
                for metric, value in images[index].items()
            ]

    def gather(self) -> list[Row]:
        """Return the rows of all processes, which must all call this, in the data set's order."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return sorted(self._rows, key=itemgetter(0))
        parts: list[list[Row]] = [[] for _ in range(distributed.get_world_size())]
        distributed.all_gather_object(parts, self._rows)
        return sorted((row for part in parts for row in part), key=itemgetter(0))


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write the table ``id, task, metric, value``; the value is ``nan`` where an image has none."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["id", "task", "metric", "value"])
    table.writerows(row[1:] for row in rows)
    write_text(path, text.getvalue())


def _positions(loader: Any, rank: int, processes: int) -> Iterator[int]:
    """Iterate over the indices that a process loads; streamed images are counted as they come."""
    if isinstance(loader.dataset, IterableDataset):
        return count(rank, processes)
    return (index for batch in loader.batch_sampler for index in batch)
