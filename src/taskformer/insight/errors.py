"""Where a model is wrong: by class, and by the value that it should have predicted; from the details of its test."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from taskformer.evaluation.details import Details, class_ious, range_errors


@dataclass(frozen=True)
class ClassError:
    """How well one class is found.

    Attributes:
        name: The class.
        iou: Its IoU, a fraction; NaN if it occurs neither in the targets nor in the predictions.
        share: Its share of the labelled pixels.
        taken_for: The class that most of its pixels are taken for where they are taken for another; empty if none is.
        taken: The share of its pixels that are.
    """

    name: str
    iou: float
    share: float
    taken_for: str
    taken: float


@dataclass(frozen=True)
class RangeError:
    """How wrong a value is where the true one lies in a range.

    Attributes:
        low: Where the range begins, in the task's unit.
        high: Where it ends; None: the last one does not.
        share: Its share of the labelled pixels.
        rmse: Root of the mean squared error in it, NaN without a pixel.
        absolute: Mean absolute error in it.
    """

    low: float
    high: float | None
    share: float
    rmse: float
    absolute: float


def class_errors(details: Details) -> list[ClassError]:
    """List the classes of a task, the worst first; those that never occur come last.

    >>> details = {"classes": ["wall", "floor", "lamp"], "confusion": [[80, 10, 0], [0, 8, 0], [2, 0, 0]]}
    >>> [(error.name, round(error.iou, 2), error.taken_for) for error in class_errors(details)]
    [('lamp', 0.0, 'wall'), ('floor', 0.44, ''), ('wall', 0.87, 'floor')]

    Args:
        details: The task's, see :mod:`taskformer.evaluation.details`; with ``confusion`` and ``classes``.
    """
    names = details["classes"]
    confusion = np.asarray(details["confusion"], np.float64)
    pixels = confusion.sum(axis=1)
    wrong = confusion - np.diag(confusion.diagonal())
    found = []
    for index, iou in enumerate(class_ious(details)):
        other = int(wrong[index].argmax())
        taken = float(wrong[index, other] / pixels[index]) if pixels[index] else 0.0
        share = float(pixels[index] / pixels.sum())
        found.append(ClassError(names[index], float(iou), share, names[other] if taken else "", taken))
    return sorted(found, key=lambda error: (np.isnan(error.iou), error.iou))


def errors_by_range(details: Details) -> list[RangeError]:
    """List the errors of a task by the range of the true value.

    >>> details = {"ranges": [0.0, 2.0], "pixels": [3, 1], "squared": [12.0, 9.0], "absolute": [6.0, 3.0]}
    >>> [(error.low, error.high, error.rmse, error.share) for error in errors_by_range(details)]
    [(0.0, 2.0, 2.0, 0.75), (2.0, None, 3.0, 0.25)]

    Args:
        details: The task's, see :mod:`taskformer.evaluation.details`; with ``ranges``.
    """
    pixels = np.asarray(details["pixels"], np.float64)
    columns = zip(
        pairwise([*details["ranges"], None]), pixels / max(pixels.sum(), 1), *range_errors(details), strict=True
    )
    return [RangeError(low, high, *map(float, values)) for (low, high), *values in columns]
