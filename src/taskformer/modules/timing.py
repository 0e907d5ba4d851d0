"""How long networks take on this machine, on which other programs run too."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from timeit import Timer

import torch

from taskformer.models.autotaskformer import Architecture, Supernet

#: Seconds that each call runs in a round of measurements, at least once.
BLOCK = 0.02
#: Rounds whose times must be close to the best one, see :func:`_settled`.
ROUNDS = 3
#: How close, relative.
CLOSE = 0.03
#: Seconds after which rounds end, settled or not.
PATIENCE = 60.0
#: The same where somebody waits for the answer.
QUICKLY = 10.0


@torch.inference_mode()
def best_times(
    calls: Mapping[str, Callable[[], object]], device: torch.device, patience: float | None = None
) -> dict[str, float]:
    """Measure the seconds that each call takes, at best.

    Other programs, and on a rented machine other people's, make everything slower by tens of percent for seconds
    or minutes; nothing makes it faster. All calls therefore take turns until their best times have settled.

    Args:
        calls: What is measured, by name.
        device: Where the calls compute.
        patience: Seconds after which rounds end, settled or not; None: :data:`PATIENCE`.
    """
    timers = {name: Timer(call, timer=_clock(device)) for name, call in calls.items()}
    for timer in timers.values():
        timer.timeit(1)  # loads what is only loaded when it is used
    counts = {name: math.ceil(BLOCK / timer.timeit(1)) for name, timer in timers.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.monotonic() + (PATIENCE if patience is None else patience)
    while not all(map(_settled, times.values())):
        for name, timer in timers.items():
            times[name].append(timer.timeit(counts[name]) / counts[name])
        if time.monotonic() > end:
            break
    return {name: min(seconds) for name, seconds in times.items()}


def latencies(supernet: Supernet, architectures: Sequence[Architecture], size: tuple[int, int]) -> list[float]:
    """Measure the seconds that sub-networks take for one image, where the supernet is and as it runs them.

    Args:
        supernet: The supernet; afterwards it is in the mode in which it was.
        architectures: The sub-networks; they take turns.
        size: Height and width of the image.

    Raises:
        ConfigError: If an architecture does not fit the supernet.
    """
    like = supernet.norm.weight
    image = torch.zeros(1, 3, *size, device=like.device, dtype=like.dtype)
    training = supernet.training
    supernet.eval()
    calls = {str(index): partial(supernet, image, architecture) for index, architecture in enumerate(architectures)}
    times = best_times(calls, like.device, QUICKLY)
    supernet.train(training)
    return list(times.values())


def _clock(device: torch.device) -> Callable[[], float]:
    """Return what tells the seconds that a device has worked for."""
    if device.type == "cpu":
        # The time of a single thread is its own, whatever else the processor does meanwhile.
        return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter

    def finished() -> float:
        torch.accelerator.synchronize(device)
        return time.perf_counter()

    return finished


def _settled(seconds: Sequence[float]) -> bool:
    """Tell whether the best of some times has been reached again, so that it is what an undisturbed call takes."""
    return len(seconds) >= 2 * ROUNDS and sorted(seconds)[ROUNDS - 1] <= (1 + CLOSE) * min(seconds)
