"""Predictions for photographs, where the loggers of a run keep what the run has learnt."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from taskformer.callbacks.trackers.base import Tracker
from taskformer.errors import CorruptFileError, DatasetNotFoundError
from taskformer.modules.photographs import ROWS, Predicted
from taskformer.pictures import read_picture
from taskformer.tasks.colors import Picture

#: Longer side in pixels of what is kept.
LONGEST = 512


def keep_photographs(trackers: Iterable[Tracker], done: Predicted) -> None:
    """Keep the first photographs with a picture of every task, as a table, and the overview.

    Args:
        trackers: Where to keep them.
        done: What :func:`taskformer.predict` has done.
    """
    tasks = [name for name in done.tasks if (done.out / name).is_dir()]  # others have one value for an image
    rows = []
    for name, file in [each for each in done.files.items() if each[0] not in done.frames][:ROWS]:
        try:
            photograph = _read(file)
        except (CorruptFileError, DatasetNotFoundError):  # which was said when it was to be predicted
            continue
        rows.append([name, photograph, *(_read(done.out / task / f"{name}.png") for task in tasks)])
    if not rows:
        return
    for tracker in trackers:
        tracker.table("predict/photographs", ["name", "image", *tasks], rows)
        tracker.picture("predict/overview", done.out / "overview.png")


def _read(file: Path) -> Picture:
    """Read a picture and shrink it to what loggers need."""
    image = Image.fromarray(read_picture(file))
    image.thumbnail((LONGEST, LONGEST))
    return np.asarray(image)
