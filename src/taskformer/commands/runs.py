"""Runs and their folders on the command line: which one is meant, whose it is, where its checkpoints are."""

import os
import re
import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from jsonargparse import Namespace
from lightning.fabric.utilities.rank_zero import rank_zero_only

from taskformer.callbacks.checkpoints import BEST, LAST
from taskformer.commands.parser import joined
from taskformer.errors import ConfigError, WeightsError
from taskformer.files import remove_unfinished

NAME_VARIABLE = "TASKFORMER_RUN_NAME"
#: What ``--ckpt`` takes besides files, and the file that each means; ``initial``: the weights a model starts from.
NAMED_CHECKPOINTS = {"best": BEST, "last": LAST}
INITIAL = "initial"


def spell_out(argv: Sequence[str]) -> list[str]:
    """Write ``fit --resume RUN``, ``test RUN``, ``validate RUN`` and ``search RUN`` as the flags that they stand for.

    Each flag becomes one word. The run's configuration comes first, so that what else the command line says wins.
    """
    command, words = argv[0], joined(argv[1:])
    given = {
        "fit": [word for word in words if word.startswith("--resume=")],
        "test": [word for word in words if not word.startswith("-")],
    }
    given["validate"] = given["search"] = given["test"]
    if not given.get(command):
        return [command, *words]
    run = given[command][-1]
    words.remove(run)
    run = run.removeprefix("--resume=")
    folder = Path(run)
    config = folder / "config.yaml"
    if not config.is_file():
        what = "is no run folder, it has no config.yaml" if folder.exists() else "does not exist"
        msg = f"the run {run!r} {what}; give the folder of a run that `taskformer fit` began, e.g. runs/demo"
        raise ConfigError(msg)
    place = [f"--name={folder.resolve().name}", f"--runs_dir={folder.resolve().parent}"]
    if not folder.is_absolute():
        place[1] = f"--runs_dir={os.path.relpath(folder.resolve().parent)}"
    if command == "fit":
        last = folder / "checkpoints" / LAST
        # A run that was stopped before its first checkpoint goes on from its beginning.
        place += [f"--resume={run}", *([f"--ckpt_path={last}"] if last.is_file() else [])]
    return [command, f"--config={config}", *place, *words]


def find_checkpoint(folder: Path, which: str) -> Path | None:
    """Return the checkpoint of a run that ``--ckpt`` means; None for the weights that a model starts from.

    Raises:
        WeightsError: If there is none.
    """
    if which == INITIAL:
        return None
    file = folder / "checkpoints" / NAMED_CHECKPOINTS[which] if which in NAMED_CHECKPOINTS else Path(which)
    if not file.is_file():
        there = [str(path) for path in sorted((folder / "checkpoints").glob("*.ckpt"))]
        hint = f"there are {', '.join(there)}" if there else f"{folder} has no checkpoint yet"
        msg = f"there is no checkpoint {str(file)!r}; {hint}"
        raise WeightsError(msg)
    return file


def name_run(command: str, config: Namespace) -> str:
    """Return the name of a run: the given one, that of its checkpoint's folder, or one of model, data and time.

    Raises:
        ConfigError: If the name would leave the folder of runs.
    """
    if config.name:
        require_inside(str(config.name), Path(config.runs_dir))
        return str(config.name)
    if config.ckpt_path and Path(config.ckpt_path).parent.name == "checkpoints":
        return Path(config.ckpt_path).absolute().parent.parent.name
    if _rank() and NAME_VARIABLE in os.environ:
        return os.environ[NAME_VARIABLE]  # processes that the first one started share its folder
    if _rank() or "TORCHELASTIC_RUN_ID" in os.environ:
        msg = f"processes that were started side by side cannot agree on a name: give `{command}` a --name"
        raise ConfigError(msg)
    name = "-".join([*subject(config), datetime.now().astimezone().strftime("%Y%m%d-%H%M%S-%f")[:-3]])
    os.environ[NAME_VARIABLE] = name
    return name


def subject(config: Namespace) -> list[str]:
    """Name the model and the data of a configuration, e.g. ``["mqtransformer", "rooms"]``."""
    names = [config[key].class_path.rsplit(".", 1)[-1] for key in ("model", "data")]
    return [re.sub("DataModule$", "", name).lower() for name in names]


def go_on_after_requeue(config: Namespace, folder: Path) -> None:
    """Let a job that SLURM starts again go on with its run: it has the command line that began it."""
    if int(os.environ.get("SLURM_RESTART_COUNT", "0")) and not config.ckpt_path and (folder / "config.yaml").is_file():
        last = folder / "checkpoints" / LAST
        config.resume = str(folder)
        config.ckpt_path = str(last) if last.is_file() else None


def require_inside(name: str, folder: Path) -> None:
    """Refuse names of runs that would lie anywhere but in the folder of runs.

    Raises:
        ConfigError: If the name is one of them.
    """
    place = (folder / name).resolve()
    if place == folder.resolve() or not place.is_relative_to(folder.resolve()):
        msg = f"--name is a folder below --runs_dir, {name!r} leaves {str(folder)!r}; use another name or --runs_dir"
        raise ConfigError(msg)


class Claim:
    """The right to write to a run's folder, which only one training has at a time; it ends with the process.

    Args:
        folder: The run folder; made if there is none.
        resumes: Whether the training goes on with what is there.

    Raises:
        ConfigError: If another training has the folder, or had it and this one is new.
    """

    def __init__(self, folder: Path, resumes: bool) -> None:
        self.folder = folder
        self._handle: int | None = None
        if _rank():
            return
        folder.mkdir(parents=True, exist_ok=True)
        if not self._lock():
            msg = f"the run folder {str(folder)!r} is in use by a training that runs now; choose another --name"
            raise ConfigError(msg)
        if not resumes and any((folder / name).exists() for name in ("config.yaml", "checkpoints")):
            self.release()
            msg = f"the run folder {str(folder)!r} is in use; choose another --name, delete the folder{_way_on(folder)}"
            raise ConfigError(msg)
        remove_unfinished(folder)

    def _lock(self) -> bool:
        """Lock the folder for this process; where the file system has no locks, believe that nobody else wants it."""
        try:
            import fcntl  # not on Windows
        except ImportError:
            return True
        self._handle = os.open(self.folder, os.O_RDONLY)
        os.register_at_fork(after_in_child=self._unlock)  # loader processes may outlive this one for a moment
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._unlock()
            return False
        except OSError:
            pass
        return True

    def release(self) -> None:
        """Give the folder up; one in which no file was written is removed."""
        self._unlock()
        if not _rank() and self.folder.is_dir() and not any(path.is_file() for path in self.folder.rglob("*")):
            shutil.rmtree(self.folder)

    def _unlock(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _way_on(folder: Path) -> str:
    """Say how to continue a run that can be continued."""
    last = folder / "checkpoints" / LAST
    return f", or continue the run with `taskformer fit --resume {folder}`" if last.is_file() else ""


def _rank() -> int:
    """Number of this process, as Lightning learns it from whoever started it."""
    return int(getattr(rank_zero_only, "rank", 0))
