"""How long calls take: they take turns, so that what slows the machine for a while slows all of them."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import numpy as np
import torch

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]  # a module has no type that None belongs to

#: Rounds that are not counted: they load what is only loaded when it is used, and fill the optimizer's state.
WARMUP = 2


class Reading(NamedTuple):
    """What the clocks say, or what has passed between two such moments.

    Attributes:
        wall: Seconds.
        cpu: Seconds that all threads of this process have computed.
        faults: Minor page faults: pages of memory that were fetched from the system. 0 where it does not count them.
    """

    wall: float
    cpu: float
    faults: int

    def since(self, earlier: "Reading") -> "Reading":
        """Return what has passed."""
        return Reading(self.wall - earlier.wall, self.cpu - earlier.cpu, self.faults - earlier.faults)


#: Reads the clocks.
Clock = Callable[[], Reading]


class Spread(NamedTuple):
    """A median and the quartiles around it.

    >>> Spread.of([4.0, 1.0, 2.0, 3.0, 5.0])
    Spread(median=3.0, low=2.0, high=4.0)

    Attributes:
        median: Half of the values are at most this.
        low: A quarter of them are at most this.
        high: Three quarters are.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Summarise one value or more."""
        low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
        return cls(median, low, high)

    @classmethod
    def of_ratios(cls, first: Sequence[float], second: Sequence[float]) -> Self:
        """Summarise the ratios of two series, pair by pair.

        >>> Spread.of_ratios([2.0, 20.0, 8.0], [1.0, 10.0, 4.0])
        Spread(median=2.0, low=2.0, high=2.0)
        """
        return cls.of([one / other for one, other in zip(first, second, strict=True)])


def clock_of(device: torch.device) -> Clock:
    """Return the clocks of a device, which wait until it has nothing more to do."""

    def read() -> Reading:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt if resource else 0
        return Reading(time.perf_counter(), time.process_time(), faults)

    return read


def take_turns(calls: Sequence[Callable[[], object]], rounds: int, clock: Clock) -> list[list[Reading]]:
    """Run calls in turn, A B A B ..., and read the clocks around each.

    Args:
        calls: What is measured.
        rounds: How often each runs, after :data:`WARMUP` rounds that do not count.
        clock: Reads the clocks.

    Returns:
        For each call what passed in each round; the entries of a round are pairs.
    """
    readings: list[list[Reading]] = [[] for _ in calls]
    for number in range(-WARMUP, rounds):
        for call, passed in zip(calls, readings, strict=True):
            before = clock()
            call()
            after = clock()
            if number >= 0:
                passed.append(after.since(before))
    return readings
