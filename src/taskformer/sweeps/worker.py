"""The runs of a sweep as processes of their own: begun, gone on with, watched, and ended before their time."""

import csv
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from taskformer.errors import suggest
from taskformer.sweeps.expansion import command_line
from taskformer.sweeps.study import Run, SweepStudy, TakenRun, best

#: Seconds between looks at a run.
POLL = 1.0
#: What a run prints and where it logs its numbers, in its folder.
LOG, CURVES = "output.log", "logs/fit/metrics.csv"
#: Statuses of processes that were ended from outside, as Python and as shells have them.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
INTERRUPTED = {-number for number in SIGNALS} | {128 + number for number in SIGNALS}


class Stop:
    """A request to end, which all workers look at: the first ends runs in good order, the second at once.

    Attributes:
        signals: The signals that asked.
    """

    def __init__(self) -> None:
        self.signals: list[int] = []

    def ask(self, signum: int, frame: FrameType | None = None) -> None:
        """Ask once more; a handler of signals."""
        self.signals.append(signum)


class Verdict(NamedTuple):
    """Why a run is ended before its time, if it is.

    Attributes:
        lags: It is among the worst of those that have come as far.
        reason: In words, why its training is of no use.
    """

    lags: bool = False
    reason: str | None = None


class Worker:
    """Take one run of a sweep after the other and train it, until there is none left to take.

    Args:
        study: The sweep's memory.
        folder: The sweep's folder, in which each run gets its own.
        count: How many runs there are to be.
        environment: Environment variables of the trainings.
        stop: Whether to end.
        tried: Numbers of the runs that were taken since the sweep was called, which are not taken again; all workers
            share it.
        on_change: Told of every run that begins or ends.
    """

    def __init__(
        self,
        study: SweepStudy,
        folder: Path,
        count: int,
        environment: Mapping[str, str],
        stop: Stop,
        tried: set[int],
        on_change: Callable[[Run], None],
    ) -> None:
        self.study = study
        self.folder = folder
        self.count = count
        self.environment = environment
        self.stop = stop
        self.tried = tried
        self.on_change = on_change
        self.metric = study.sweep.metric

    def work(self) -> None:
        """Train until there is nothing left to do."""
        while not self.stop.signals and (taken := self.study.take(self.count, but=self.tried)):
            self.tried.add(taken.number)
            self._tell(taken.number)
            with suppress(UpdateFinishedTrialError):  # we seemed to be gone, and another process has taken the run
                self._train(taken)
            self._tell(taken.number)

    def _tell(self, number: int) -> None:
        """Tell of a run what has become of it."""
        self.on_change(next(run for run in self.study.runs() if run.number == number))

    def _train(self, taken: TakenRun) -> None:
        """Train a run, or go on with it, and note what has become of it."""
        folder = run_folder(self.folder, taken.number)
        folder.mkdir(parents=True, exist_ok=True)
        self._wait_for_orphan(taken, folder)
        words = command_line(self.study.sweep, taken.settings, place_of(folder))
        if (folder / "config.yaml").is_file():
            words = resuming(words, folder)
        with (folder / LOG).open("ab") as log:
            log.write(f"$ {shlex.join(words)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,  # the terminal's Ctrl-C is for this process, which passes it on
            )
        try:
            verdict = self._watch(process, taken, folder)
        finally:
            process.kill()
            process.wait()
        self._close(taken, process.returncode, verdict, folder)

    def _watch(self, process: "subprocess.Popen[bytes]", taken: TakenRun, folder: Path) -> Verdict:
        """Wait until a training has ended, by itself or because it is asked to."""
        verdict, asked = Verdict(), 0
        while True:
            if not any(verdict):
                verdict = self._look(taken, folder)
            if asked < max(len(self.stop.signals), any(verdict)):
                process.terminate()
                asked += 1
            try:
                process.wait(POLL)
            except subprocess.TimeoutExpired:
                continue
            return verdict if any(verdict) else self._look(taken, folder)

    def _look(self, taken: TakenRun, folder: Path) -> Verdict:
        """Note what a training has logged, and judge it."""
        metric = self.metric.name
        names, values = read_metric(folder / CURVES, metric)
        validated = any(name.startswith("val/") for name in names)
        if metric.startswith("val/") and validated and metric not in names:
            reason = f"it logs no {metric}{suggest(metric, names)}, by which the sweep compares its runs"
            return Verdict(reason=reason)
        return Verdict(lags=taken.report(values))

    def _close(self, taken: TakenRun, status: int, verdict: Verdict, folder: Path) -> None:
        """Note what has become of a run whose training has ended."""
        _, values = read_metric(folder / CURVES, self.metric.name)
        value = best(values, self.metric.goal)
        if status == 0 and value is not None:
            taken.close(TrialState.COMPLETE, value)
        elif verdict.lags:
            taken.close(TrialState.PRUNED)
        elif verdict.reason is None and status in INTERRUPTED:
            taken.close(TrialState.FAIL)
        else:
            nothing = f"it logged no number for {self.metric.name}"
            reason = verdict.reason or (nothing if status == 0 else last_line(folder / LOG))
            taken.close(TrialState.FAIL, reason=f"{reason}; see {folder / LOG}")

    def _wait_for_orphan(self, taken: TakenRun, folder: Path) -> None:
        """Wait for a training that goes on although the process that began it was killed."""
        while is_locked(folder) and not self.stop.signals:
            taken.report(())
            time.sleep(POLL)


def run_folder(sweep_folder: Path, number: int) -> Path:
    """Return the folder of a run."""
    return sweep_folder / f"{number:04d}"


def place_of(folder: Path) -> list[str]:
    """Write the flags by which a run gets its folder.

    Example:
        >>> place_of(Path("runs/rooms_models/0003"))
        ['--name=rooms_models/0003', '--runs_dir=runs']
    """
    return [f"--name={folder.parent.name}/{folder.name}", f"--runs_dir={folder.parent.parent}"]


def resuming(words: Sequence[str], folder: Path) -> list[str]:
    """Write the command line that goes on with a run, whose configuration lies in its folder.

    Example:
        >>> words = "python -m taskformer fit --import my.tasks --config=x.yaml --model.lr=1".split()
        >>> " ".join(resuming(words, Path("runs/x/0003")))
        'python -m taskformer fit --resume=runs/x/0003 --name=x/0003 --runs_dir=runs --import my.tasks'
    """
    start = words.index("fit") + 1
    pairs = zip(words[start - 1 :], words[start:], strict=False)
    imports = [word for before, word in pairs if "--import" in (before, word.partition("=")[0])]
    return [*words[:start], f"--resume={folder}", *place_of(folder), *imports]


def read_metric(file: Path, name: str) -> tuple[set[str], list[float]]:
    """Read what a training has logged so far.

    Args:
        file: Its curves.
        name: A metric.

    Returns:
        The names of all that it has logged, and the metric's values in their order.
    """
    if not file.is_file():
        return set(), []
    text = file.read_text(encoding="utf-8")
    rows = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())  # the last line may still be being written
    values = [float(row[name]) for row in rows if row.get(name)]
    return set(rows.fieldnames or ()), values


def last_line(log: Path) -> str:
    """Return the last line of what a run printed, which says why it failed."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "").removeprefix("taskformer: ")


def is_locked(folder: Path) -> bool:
    """Tell whether a training has claimed a run folder and still runs."""
    try:
        import fcntl  # not on Windows
    except ImportError:
        return False
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(handle)
    return False
