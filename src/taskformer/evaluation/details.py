"""What a test leaves in ``details.json`` beyond its scores, and what plots and people make of it.

``{task: details}``, each in plain types, see :meth:`taskformer.tasks.Task.details`. Which there are depends on the
task's metrics:

* ``confusion`` with ``classes``: pixels, a list for each true class with the predicted ones in it;
* ``ranges`` with ``pixels``, ``squared`` and ``absolute``: pixels and sums of errors by the true value; ``ranges`` says
  where each begins, the last has no end;
* ``angles``: pixels whose error is from 0 to 1 degree, from 1 to 2, ...;
* ``recall`` and ``precision`` at each of the ``thresholds``, and ``best``, the point ``[recall, precision]`` with the
  best F-measure of weight ``beta_squared``.
"""

import json
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from taskformer.errors import ConfigError

#: File of a run folder.
DETAILS = "details.json"

#: Details of one task.
Details: TypeAlias = dict[str, Any]
Floats: TypeAlias = NDArray[np.float64]


def read_details(folder: Path) -> dict[str, Details]:
    """Read the details of a run's test by task; none where it was not tested.

    Raises:
        ConfigError: If the file is broken.
    """
    path = folder / DETAILS
    if not path.is_file():
        return {}
    try:
        found: dict[str, Details] = dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        msg = f"{path} is broken ({error}); `taskformer test {folder}` writes it again"
        raise ConfigError(msg) from error
    return found


def class_ious(details: Details) -> Floats:
    """Compute the IoU of each class ``(K,)``, a fraction; NaN for one that never occurs.

    >>> class_ious({"confusion": [[3, 1, 0], [0, 4, 0], [0, 0, 0]]})
    array([0.75, 0.8 ,  nan])
    """
    confusion = np.asarray(details["confusion"], np.float64)
    overlap = confusion.diagonal()
    return ratios(overlap, confusion.sum(0) + confusion.sum(1) - overlap)


def range_errors(details: Details) -> tuple[Floats, Floats]:
    """Compute the RMSE and the mean absolute error of each range ``(R,)``; NaN for one without a pixel.

    >>> range_errors({"pixels": [2, 0], "squared": [8.0, 0.0], "absolute": [3.0, 0.0]})
    (array([ 2., nan]), array([1.5, nan]))
    """
    squared, absolute, pixels = (np.asarray(details[name], np.float64) for name in ("squared", "absolute", "pixels"))
    return np.sqrt(ratios(squared, pixels)), ratios(absolute, pixels)


def ratios(parts: Floats, wholes: Floats) -> Floats:
    """Divide elementwise; NaN where the whole is 0.

    >>> ratios(np.array([1.0, 0.0]), np.array([2.0, 0.0]))
    array([0.5, nan])
    """
    return np.where(wholes > 0, parts, np.nan) / np.where(wholes > 0, wholes, 1.0)


def f_measure(recall: float, precision: float, beta_squared: float) -> float:
    """Compute the F-measure of weight ``beta_squared``; 0 where recall and precision are.

    >>> f_measure(recall=0.5, precision=1.0, beta_squared=0.3)
    0.8125
    """
    total = beta_squared * precision + recall
    return (1 + beta_squared) * recall * precision / total if total else 0.0
