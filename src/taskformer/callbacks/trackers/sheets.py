"""Drawn samples and tables for loggers that know plain pictures and plain text."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from taskformer.evaluation.gallery import DrawnSample, gallery_sheet
from taskformer.evaluation.tables import markdown
from taskformer.tasks.colors import Picture


def sheet_of(sample: DrawnSample) -> Picture:
    """Lay out a sample: its image, and for each task the target above the prediction and its score, with legends."""
    return np.asarray(gallery_sheet([sample]))


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
