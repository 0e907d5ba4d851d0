"""Little and partial labels: which images train, and which of their labels they keep.

Both follow from the images' places in the split alone, so they are the same for every seed, model and number of tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from taskformer.data.names import uniform_hash

GOLDEN_RATIO = (1 + 5**0.5) / 2


def evenly(count: int) -> NDArray[np.int64]:
    """Order places so that every beginning of the order is spread evenly over all of them.

    They are ordered by the fractional part of their multiples of the golden ratio: the gaps between those at the
    beginning then have at most three lengths (the three-distance theorem, Sos 1958), and no period of the split, such
    as two views of each room, decides which are among them.

    >>> sorted(evenly(16)[:4].tolist())
    [0, 5, 10, 13]

    Args:
        count: How many places there are.

    Returns:
        The places ``(count,)``.
    """
    return np.argsort(np.arange(count) * GOLDEN_RATIO % 1)


@dataclass(frozen=True)
class LabelTurns:
    """Which one of several tasks has its label on an image.

    Attributes:
        tasks: The tasks.
        owners: For each image of the split the number of the task whose label it keeps ``(images,)``.
    """

    tasks: Sequence[str]
    owners: NDArray[np.uint8]

    @classmethod
    def over(cls, order: NDArray[np.int64], tasks: Sequence[str]) -> Self:
        """Give every image to a task: of as many successive ones as there are tasks each gets one, at random.

        >>> turns = LabelTurns.over(evenly(6), ["depth", "edges", "semseg"])
        >>> [turns.tasks[owner] for owner in turns.owners]
        ['edges', 'depth', 'depth', 'semseg', 'edges', 'semseg']

        Args:
            order: The images, see :func:`evenly`: those at its beginning are divided evenly too.
            tasks: The tasks; their order does not matter.
        """
        names = sorted(tasks)
        draws = [[uniform_hash(f"{start} {name}") for name in names] for start in range(0, len(order), len(names))]
        owners = np.empty(len(order), np.uint8)
        owners[order] = np.argsort(np.reshape(draws, (-1, len(names)))).ravel()[: len(order)]
        return cls(names, owners)

    def withheld(self, image: int) -> list[str]:
        """Return the tasks whose labels an image of the split does not keep."""
        return [task for number, task in enumerate(self.tasks) if number != self.owners[image]]
