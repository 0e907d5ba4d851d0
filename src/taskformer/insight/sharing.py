"""What tasks share in the encoder of a sub-network."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from taskformer.models.autotaskformer import Architecture


def shared_units(architecture: Architecture, tasks: Sequence[str]) -> NDArray[np.float64]:
    """Return the share of an encoder's units that two tasks have in common, ``(T, T)``.

    :func:`taskformer.search.drawings.draw_architecture` draws which units these are.

    >>> half = Architecture(64, 1, (2.0,), (1,), sharing=((0, 0, 0), (0, 1, 1)))  # all share the attention
    >>> shared_units(half, ["semseg", "depth", "normals"]).tolist()
    [[1.0, 0.5, 0.5], [0.5, 1.0, 1.0], [0.5, 1.0, 1.0]]

    Args:
        architecture: The sub-network; a unit is the attention or the MLP of a layer.
        tasks: Names of the supernet's tasks.
    """
    rows = np.array(architecture.rows(len(tasks)))  # (units, T)
    return np.asarray((rows[:, :, None] == rows[:, None, :]).mean(axis=0))
