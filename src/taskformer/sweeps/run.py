"""The door of local sweeps: ``taskformer.sweep(FILE, local=N)``."""

import json
import os
import signal
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import torch
import yaml

from taskformer.errors import ConfigError, require
from taskformer.files import inside, write_text
from taskformer.parallel import default_workers
from taskformer.search.storage import open_storage
from taskformer.sweeps.results import SweepResult
from taskformer.sweeps.schema import Sweep, make_sweep, read_sweep
from taskformer.sweeps.study import Run, SweepStudy
from taskformer.sweeps.worker import Stop, Worker

#: Processors for each training where there is no GPU.
PROCESSORS = 2
#: What of a sweep's file decides what its runs are.
DECISIVE = ("method", "metric", "parameters", "early_terminate", "command", "program")
#: What two grids of which one is the beginning of the other need not have in common.
NO_GRID: dict[str, Any] = {"name": "", "parameters": {}, "groups": (), "run_cap": None}


def sweep(
    file: str | Path,
    local: int,
    workers: int | None = None,
    name: str | None = None,
    runs_dir: str | Path = "runs",
    storage: str | None = None,
    on_change: Callable[[Run], None] | None = None,
    but: Collection[int] = (),
) -> SweepResult:
    """Run a sweep on this machine, without an account or a network.

    Each run is a process of the sweep's own command, in a run folder of its own below the sweep's. A sweep that was
    stopped goes on where it was when it is called again: what is finished, or was stopped early, is not run again, what
    was interrupted or has failed goes on from its last checkpoint. Several machines may call it at once, with one
    storage and, to go on with each other's runs, one disk.

    >>> found = taskformer.sweep("configs/sweeps/rooms_models.yaml", local=6)  # doctest: +SKIP
    >>> found.best.settings, found.best.mean, found.best.spread  # doctest: +SKIP

    Args:
        file: The sweep, in wandb's schema.
        local: How many runs there are to be in all; of a grid at most one for each combination.
        workers: How many of them at a time; None: one for each GPU, without one for each two processors.
        name: Name of the sweep's folder; None: that of the sweep.
        runs_dir: Folder of all runs.
        storage: Where the sweep's memory is kept: the URL of a database that Optuna can use, or a file; None:
            study.journal in its folder, which machines with a common disk can share.
        on_change: Told of every run that begins or ends, by the worker that has it, which waits.
        but: Numbers of runs to leave alone.

    Returns:
        What was found, which is also written into the sweep's folder.

    Raises:
        ConfigError: If the file is wrong, or the folder is that of another sweep.
    """
    plan = read_sweep(file)
    require("[1, inf)", local=local, workers=workers)
    require_training(plan)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder = inside(Path(runs_dir), name or plan.name, "the sweep")
    study = SweepStudy(plan, open_storage(storage or str(folder / "study.journal")), folder.name)
    _agree(study, plan, folder)
    count = study.size(local)
    told = threading.Lock()

    def changed(run: Run) -> None:
        with told:
            SweepResult(plan, folder, study.runs(), count).write_trials()
        if on_change:
            on_change(run)

    stop, tried = Stop(), set(but)
    shares = environments(min(count, workers or _default_workers()))
    with listening(stop), ThreadPoolExecutor(len(shares)) as pool:
        jobs = [
            pool.submit(Worker(study, folder, count, environment, stop, tried, changed).work) for environment in shares
        ]
        try:
            for job in as_completed(jobs):
                job.result()
        except BaseException:
            stop.ask(signal.SIGTERM)
            raise
    runs = study.runs()
    found = SweepResult(plan, folder, runs, max(count, len(runs)))
    found.write()
    if stop.signals:  # ends as it would have if nobody had listened
        signal.raise_signal(stop.signals[0])
    return found


def require_training(plan: Sweep) -> None:
    """Refuse sweeps of anything but trainings.

    Raises:
        ConfigError: If the command has no ``fit``.
    """
    if "fit" not in plan.command:
        msg = (
            f"{plan.path}: a local sweep runs `taskformer fit`, the command is {' '.join(plan.command)}; "
            "make `fit` a word of its own in it"
        )
        raise ConfigError(msg)


@contextmanager
def listening(stop: Stop) -> Iterator[None]:
    """Take SIGTERM and Ctrl-C for requests to stop; only a program's main thread can."""
    numbers = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, stop.ask) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _agree(study: SweepStudy, plan: Sweep, folder: Path) -> None:
    """Note what the sweep is, or compare it with what was noted when it began; a grid may have grown since."""
    text = plan.path.read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    now = json.dumps({key: content.get(key) for key in DECISIVE}, default=str)
    begun: Any = study.study.user_attrs.get("sweep")
    if begun not in (None, now) and not _has_grown(json.loads(begun), plan):
        msg = (
            f"the sweep {folder} was begun with another {plan.path.name}, see {folder / 'sweep.yaml'}; go on with that "
            "file, or give this one another --name"
        )
        raise ConfigError(msg)
    if begun != now:
        study.study.set_user_attr("sweep", now)
    if begun != now or not (folder / "sweep.yaml").exists():
        write_text(folder / "sweep.yaml", text)


def _has_grown(begun: dict[str, Any], plan: Sweep) -> bool:
    """Tell whether a grid has more runs than when it began, and those of before keep their numbers."""
    before = make_sweep(plan.path, {key: value for key, value in begun.items() if value is not None})
    if (before.method, plan.method) != ("grid", "grid") or replace(before, **NO_GRID) != replace(plan, **NO_GRID):
        return False
    grid = before.grid()
    return plan.grid()[: len(grid)] == grid


def _default_workers() -> int:
    return torch.cuda.device_count() or max(1, default_workers() // PROCESSORS)


def environments(workers: int) -> list[dict[str, str]]:
    """Return the environment variables of each worker's trainings: its GPU, its share of the processors, no account."""
    common = {"WANDB_MODE": "offline", "OMP_NUM_THREADS": str(max(1, default_workers() // workers)), **os.environ}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count()))))
    devices = [device for device in visible.split(",") if device]
    if workers == 1 or not devices:
        return [common] * workers
    return [{**common, "CUDA_VISIBLE_DEVICES": devices[worker % len(devices)]} for worker in range(workers)]
