"""Finished candidates that new ones are compared with image batch by image batch, so that hopeless ones stop early."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch

#: By how many standard deviations of what can still change a candidate must be behind to stop.
MARGIN = 0.5


@dataclass(frozen=True)
class Rival:
    """A finished candidate.

    Args:
        course: Its delta_m in percent on the images of the first batch, of the first two, and so on.
        costs: Its other objectives, less is better.
    """

    course: tuple[float, ...]
    costs: tuple[float, ...] = ()


@dataclass(frozen=True)
class Rivals:
    """The finished candidates that a new one is compared with.

    Args:
        best: They.
        margins: How far behind one of them a candidate must be to stop, by number of batches.
    """

    best: tuple[Rival, ...] = ()
    margins: tuple[float, ...] = ()

    @classmethod
    def of(cls, best: Sequence[Rival], courses: Sequence[Sequence[float]]) -> Self:
        """Compare with the best; margins follow from how much delta_m differed from its value on all images.

        What early images do to all candidates alike does not count, only how unlike they do it.

        Args:
            best: Whom to compare with.
            courses: delta_m of all finished candidates, see :class:`Rival`; fewer than two tell nothing, and nobody
                stops then.
        """
        if len(courses) < 2:
            return cls()
        deltas = torch.tensor(courses, dtype=torch.float64)  # (candidates, batches)
        margins: list[float] = (MARGIN * (deltas - deltas[:, -1:]).std(dim=0)).tolist()
        return cls(tuple(best), tuple(margins))

    def beat(self, course: Sequence[float], costs: Sequence[float]) -> bool:
        """Tell whether one of them costs no more than a candidate and is clearly better on the images so far.

        Args:
            course: The candidate's delta_m on the images so far, last on all of them.
            costs: Its other objectives.
        """
        done = len(course) - 1
        return any(
            rival.course[done] > course[done] + self.margins[done]
            and all(theirs <= mine for theirs, mine in zip(rival.costs, costs, strict=True))
            for rival in self.best
        )


#: Nobody to compare with.
NOBODY = Rivals()
