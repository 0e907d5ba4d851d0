"""Pruning: sub-networks that are hopeless after some of the images are not run on the rest.

A rule is a class below :class:`Pruner` with one method. One of your own, in any module that Python finds, is chosen
by its import path, ``taskformer search --pruner mypackage.MyPruner``, as those here are by their names.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from taskformer.errors import require


@dataclass(frozen=True)
class Finished:
    """A sub-network that was evaluated on all images.

    Args:
        course: Its delta_m in percent on the images of the first batch, of the first two, and so on.
        costs: Its objectives beside delta_m, e.g. parameters; less is better.
    """

    course: tuple[float, ...]
    costs: tuple[float, ...] = ()


@dataclass(frozen=True)
class History:
    """What earlier generations achieved: all that a decision may depend on, so that every process decides alike.

    Args:
        finished: All sub-networks that were evaluated on all images, at least one.
        best: Those that a new one must not be worse than: the front, or of a single objective the last of those that
            become parents.
    """

    finished: tuple[Finished, ...]
    best: tuple[Finished, ...]

    @cached_property
    def deviations(self) -> tuple[float, ...]:
        """By number of batches, the standard deviation of what the remaining images changed in delta_m.

        A change that all sub-networks have in common does not count. NaN where there is a single one.
        """
        deltas = torch.tensor([one.course for one in self.finished], dtype=torch.float64)  # (sub-networks, batches)
        changes = deltas - deltas[:, -1:]
        return tuple(changes.std(dim=0).tolist()) if len(deltas) > 1 else (float("nan"),) * deltas.shape[1]


class Pruner(ABC):
    """Decides which sub-networks stop before they have been run on all images.

    >>> class AtLeast(Pruner):
    ...     def __init__(self, delta_m: float) -> None:
    ...         self.delta_m = delta_m
    ...
    ...     def prune(self, course, costs, history):
    ...         return course[-1] < self.delta_m
    >>> str(AtLeast(-50.0))
    'AtLeast(delta_m=-50.0)'
    """

    @abstractmethod
    def prune(self, course: Sequence[float], costs: Sequence[float], history: History) -> bool:
        """Tell whether a sub-network stops here; one that does is no result of the search.

        Called after each batch of images but the last, as soon as an earlier generation has finished. The answer must
        follow from the arguments and the settings alone.

        Args:
            course: Its delta_m in percent on the images of the first batch, of the first two, ..., of all so far.
            costs: Its objectives beside delta_m, in the order of :attr:`Finished.costs`; less is better.
            history: What earlier generations achieved on the same batches of images.
        """

    def __str__(self) -> str:
        """Name the class and its public settings, on which a study's results depend."""
        public = sorted((name, value) for name, value in vars(self).items() if not name.startswith("_"))
        settings = ", ".join(f"{name}={value!r}" for name, value in public)
        return f"{type(self).__qualname__}({settings})"


class DominatedPruner(Pruner):
    """Stops those that one of the best sub-networks, which costs no more, clearly beats on the images so far.

    After the first of two batches the best is 2 ahead, four times what counts as clear: half of a standard deviation.

    >>> best = Finished(course=(3.0, 1.0), costs=(5e6,))
    >>> history = History((best, Finished(course=(0.0, 0.0), costs=(2e6,))), best=(best,))
    >>> DominatedPruner().prune([1.0], [6e6], history), DominatedPruner().prune([1.0], [4e6], history)
    (True, False)

    Args:
        margin: How much is clear, in standard deviations of what the remaining images can still change.

    Raises:
        ConfigError: If the margin is negative.
    """

    def __init__(self, margin: float = 0.5) -> None:
        require("[0, inf)", margin=margin)
        self.margin = margin

    def prune(self, course: Sequence[float], costs: Sequence[float], history: History) -> bool:
        """See :meth:`Pruner.prune`; a history of one sub-network tells nothing of what may change and stops nobody."""
        done = len(course) - 1
        margin = self.margin * history.deviations[done]
        return any(
            one.course[done] > course[done] + margin
            and all(theirs <= mine for theirs, mine in zip(one.costs, costs, strict=True))
            for one in history.best
        )


class NopPruner(Pruner):
    """Never stops a sub-network.

    >>> NopPruner().prune([-100.0], [], History((Finished((0.0,)),), ()))
    False
    """

    def prune(self, course: Sequence[float], costs: Sequence[float], history: History) -> bool:
        """See :meth:`Pruner.prune`."""
        return False


#: The pruner of a search that names none.
DOMINATED = DominatedPruner()
