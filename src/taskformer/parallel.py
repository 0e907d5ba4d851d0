"""One function over many items, in several processes, with a progress bar."""

import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from taskformer.errors import ConfigError, TaskformerError

Item = TypeVar("Item")
Result = TypeVar("Result")

#: How processes start. A fork would copy the threads of torch and OpenCV in an unknown state.
START_METHOD = "spawn"
#: Seconds of work before other processes are started, which takes them about as long.
PATIENCE_S = 5.0
#: Items handed out ahead of their results, per process: enough to keep all busy, few enough to stay small.
AHEAD = 8

_job: Callable[[Any], Any]


@dataclass(frozen=True)
class Outcome(Generic[Item, Result]):
    """What came of one item: a value, or the reason why there is none."""

    item: Item
    value: Result | None
    error: str | None


def default_workers() -> int:
    """Return the number of processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_jobs(
    items: Sequence[Item], job: Callable[[Item], Result], workers: int, label: str = ""
) -> Iterator[Outcome[Item, Result]]:
    """Apply a function to every item; what it raises becomes the item's error and the others go on.

    On an interrupt, running jobs are finished and no others are started.

    Args:
        items: What to work on; items and results must be picklable.
        job: A function of a module's top level, or a ``partial`` of one; each process gets it once.
        workers: Number of processes; they are only started for work that takes more than a few seconds.
        label: The label of the progress bar; without one, no bar is shown.

    Yields:
        The outcomes, in the order of the items.

    Raises:
        ConfigError: If the number of processes is negative.
        TaskformerError: If a process dies.
    """
    if workers < 0:
        msg = f"workers={workers} is not possible; expected 0 (this process) or more"
        raise ConfigError(msg)
    with progress_bar(label, len(items)) as advance:
        for outcome in _run(items, job, workers):
            advance()
            yield outcome


def _run(items: Sequence[Item], job: Callable[[Item], Result], workers: int) -> Iterator[Outcome[Item, Result]]:
    """Work in this process, and in others if that takes long and much is left."""
    start = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield Outcome(item, *_attempt(job, item))
        spent = time.monotonic() - start
        left = spent / done * (len(items) - done)
        if workers > 1 and spent > PATIENCE_S and left > 2 * PATIENCE_S:
            yield from _in_pool(iter(items[done:]), job, workers)
            return


@contextmanager
def progress_bar(label: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a progress bar on standard error; yields the function that moves it by one."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not label or not total) as bar:
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)


def _in_pool(items: Iterator[Item], job: Callable[[Item], Result], workers: int) -> Iterator[Outcome[Item, Result]]:
    # No max_tasks_per_child, which can hang in Python 3.11 (python/cpython#115634).
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context(START_METHOD), _start, (job,))
    waiting: deque[tuple[Item, Future[tuple[Result | None, str | None]]]] = deque()
    try:
        for item in items:
            waiting.append((item, pool.submit(_work, item)))
            if len(waiting) >= AHEAD * workers:
                yield _oldest(waiting)
        while waiting:
            yield _oldest(waiting)
    except BrokenProcessPool as error:
        msg = "a process died (often: too little memory); run the same command again, perhaps with fewer workers"
        raise TaskformerError(msg) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _oldest(
    waiting: deque[tuple[Item, Future[tuple[Result | None, str | None]]]],
) -> Outcome[Item, Result]:
    item, future = waiting.popleft()
    return Outcome(item, *future.result())


def _start(job: Callable[[Any], Any]) -> None:
    """Prepare a process: the terminal's Ctrl-C is for the parent, which lets jobs finish what they write."""
    global _job
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _job = job


def _work(item: Any) -> tuple[Any, str | None]:
    return _attempt(_job, item)


def _attempt(job: Callable[[Item], Result], item: Item) -> tuple[Result | None, str | None]:
    """Return the job's value, or its error as text: exceptions with arguments of their own do not travel."""
    try:
        return job(item), None
    except Exception as error:
        return None, str(error) if isinstance(error, TaskformerError) else f"{type(error).__name__}: {error}"
