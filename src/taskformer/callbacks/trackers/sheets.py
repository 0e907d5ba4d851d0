"""Drawn samples and tables for loggers that know plain pictures and plain text."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from taskformer.evaluation.gallery import DrawnSample
from taskformer.evaluation.tables import markdown
from taskformer.tasks.colors import Picture, contact_sheet

#: Width in pixels of each picture of a sheet.
WIDTH = 200


def sheet_of(sample: DrawnSample) -> Picture:
    """Lay out a sample: its image, and below each task's name the target above the prediction and its score."""
    panels = sample.panels.values()
    headings = ["image", *(f"{name} {panel.caption}" for name, panel in sample.panels.items())]
    rows = [
        [sample.image, *(panel.target_picture for panel in panels)],
        [sample.image, *(panel.prediction_picture for panel in panels)],
    ]
    return np.asarray(contact_sheet(headings, rows, WIDTH, ["target", "prediction"]))


def is_picture(cell: Any) -> bool:
    """Tell whether a table's cell is a picture."""
    return isinstance(cell, np.ndarray)


def text_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Format a table as markdown, without its pictures.

    >>> print(text_table(["id", "mIoU"], [["a", 0.123456], ["b", None]]), end="")
    | id | mIoU |
    | --- | --- |
    | a | 0.1235 |
    | b |  |
    """
    return markdown([list(columns), *([_text(cell) for cell in row] for row in rows)])


def _text(cell: Any) -> str:
    if cell is None or is_picture(cell):
        return ""
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell).replace("|", "\\|")
