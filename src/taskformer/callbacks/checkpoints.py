"""Checkpoints: ``last.ckpt`` is the last state of a training, ``best.ckpt`` the best; each is whole or not there."""

import inspect
import math
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info
from torchmetrics import MetricCollection

from taskformer.callbacks.results import why_no_delta_m
from taskformer.callbacks.run_folder import is_fitting
from taskformer.errors import ConfigError, TaskformerError, UnknownNameError
from taskformer.files import replacing
from taskformer.modules.base import MultiTaskModule
from taskformer.modules.checkpoints import open_checkpoint

BEST, LAST = "best.ckpt", "last.ckpt"
DELTA_M = "val/delta_m"


class Checkpoints(Checkpoint):
    """Write ``checkpoints/last.ckpt`` and ``checkpoints/best.ckpt`` below the run folder.

    >>> trainer = Trainer(callbacks=[Checkpoints("val/semseg/mIoU")], accelerator="cpu", logger=False)

    The last state is written at the end of every epoch. The best is the one whose validation was best by ``monitor``;
    where no validation gave a number, or none is asked for, it is the last one. Training goes on from either exactly.

    Args:
        monitor: Logged value that decides which state is best, e.g. ``val/loss``, ``val/semseg/mIoU`` or
            ``val/delta_m``. Whether higher or lower is better is known. None: the last state counts as the best, as in
            published protocols whose validation images are those of the test.
        every_n_train_steps: Write the last state within epochs too, once in this many optimizer steps; 0: only at their
            ends.

    Raises:
        ConfigError: If ``every_n_train_steps`` is negative.
    """

    def __init__(self, monitor: str | None = "val/loss", every_n_train_steps: int = 0) -> None:
        if every_n_train_steps < 0:
            msg = f"checkpoint.every_n_train_steps is 0 (at the ends of epochs only) or more, got {every_n_train_steps}"
            raise ConfigError(msg)
        self.monitor = monitor
        self.every_n_train_steps = every_n_train_steps
        self.best_score: float | None = None
        self._higher_is_better = False
        self._steps = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a value that nobody will log."""
        if not isinstance(pl_module, MultiTaskModule) or self.monitor is None:
            return
        known = monitors(pl_module)
        if reason := why_no_delta_m(trainer, pl_module):
            if self.monitor == DELTA_M:
                msg = f"checkpoint.monitor is {DELTA_M}, which this training does not log: {reason}"
                raise ConfigError(msg)
        else:
            known[DELTA_M] = True
        if self.monitor not in known:
            kind = "value to monitor"
            raise UnknownNameError(kind, self.monitor, known)
        self._higher_is_better = known[self.monitor]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let callbacks be what the command line says now; from the checkpoint they only learn what happened."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set in its constructor
            state = checkpoint["callbacks"].get(callback.state_key, {})
            arguments = inspect.signature(type(callback)).parameters
            state |= {key: getattr(callback, key) for key in state if key in arguments and hasattr(callback, key)}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count steps from here."""
        self._steps = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Write the last state now and then: where a step was made, but not at the end of an epoch, which does so."""
        stepped, self._steps = trainer.global_step > self._steps, trainer.global_step
        due = self.every_n_train_steps and trainer.global_step % self.every_n_train_steps == 0
        if stepped and due and not trainer.is_last_batch:
            self.save_last(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the best state if this is it."""
        if self.monitor is None or trainer.sanity_checking or not is_fitting(trainer):
            return
        score = float(trainer.callback_metrics.get(self.monitor, math.nan))
        if self._is_better(score) and has_finite_weights(pl_module):
            self.best_score = score
            self._save(trainer, BEST)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last state."""
        self.save_last(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the last state for the best where none was."""
        if self.best_score is None and has_finite_weights(pl_module):
            if self.monitor is not None:
                rank_zero_info(f"no validation gave a number for {self.monitor}: {BEST} is the last state")
            self._save(trainer, BEST)

    def save_last(self, trainer: Trainer) -> None:
        """Write the last state; all processes must call this. Weights that are not finite leave the one before."""
        if has_finite_weights(trainer.lightning_module):
            self._save(trainer, LAST)

    def state_dict(self) -> dict[str, Any]:
        """Return what the best state's score was."""
        return {"monitored": self.monitor, "best_score": self.best_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score, unless another value is monitored now."""
        if state_dict["monitored"] == self.monitor:
            self.best_score = state_dict["best_score"]

    def _is_better(self, score: float) -> bool:
        if not math.isfinite(score):
            return False
        best = self.best_score
        return best is None or (score > best if self._higher_is_better else score < best)

    def _save(self, trainer: Trainer, name: str) -> None:
        if not getattr(trainer, "fast_dev_run", False):
            path = Path(trainer.default_root_dir) / "checkpoints" / name
            trainer.save_checkpoint(path, weights_only=False)


def monitors(module: MultiTaskModule) -> dict[str, bool]:
    """Return the values that validation logs and that rate a model, and whether more of them is better."""
    found = {}
    for stage in (name for name in module.metrics if name != "test"):
        found[f"{stage}/loss"] = False
        for name, task in module.tasks.items():
            found[f"{stage}/loss/{name}"] = False
            senses = {metric: task.better(metric) for metric in _metric_names(task.metrics(module.protocol))}
            found |= {f"{stage}/{name}/{metric}": sense == "higher" for metric, sense in senses.items() if sense}
    return found


def _metric_names(metrics: MetricCollection) -> list[str]:
    """Return the names of what fresh metrics compute, which one metric may have several of."""
    for metric in metrics.values():
        metric.sync_on_compute = False
    with warnings.catch_warnings():  # of images there are none yet
        warnings.simplefilter("ignore")
        return list(metrics.compute())


def has_finite_weights(module: LightningModule) -> bool:
    """Tell whether every number of a module's state is finite."""
    tensors = module.state_dict().values()
    return all(bool(values.isfinite().all()) for values in tensors if values.is_floating_point())


class WholeCheckpoints(TorchCheckpointIO):
    """Lightning's reading and writing of checkpoints, whole or not at all.

    >>> from tempfile import TemporaryDirectory
    >>> content = {"taskformer_class": "taskformer.modules.baseline.Baseline", "global_step": 7}
    >>> with TemporaryDirectory() as folder:
    ...     WholeCheckpoints().save_checkpoint(content, f"{folder}/last.ckpt")
    ...     WholeCheckpoints().load_checkpoint(f"{folder}/last.ckpt")["global_step"]
    7

    A checkpoint is written beside its place and renamed, so that a full disk or a killed process leaves the one before.
    What is read is compared with its checksums and loaded as tensors and plain values only.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            TaskformerError: If the file cannot be written.
        """
        try:
            with replacing(Path(path)) as temporary, temporary.open("wb") as stream:
                torch.save(checkpoint, stream)
                stream.flush()
                os.fsync(stream.fileno())
        except (OSError, RuntimeError) as error:  # torch's writer raises the latter on a full disk
            cause = error if isinstance(error, OSError) else error.__context__
            reason = cause.strerror if isinstance(cause, OSError) else str(error).splitlines()[0]
            msg = f"the checkpoint {path} cannot be written ({reason}); the one before is kept, go on with --resume"
            raise TaskformerError(msg) from error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read a checkpoint, see :func:`taskformer.modules.checkpoints.open_checkpoint`."""
        return open_checkpoint(path).content
