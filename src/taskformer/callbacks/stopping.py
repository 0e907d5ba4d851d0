"""How a training ends before its time: by a signal, a loss that is not finite, or the death of one of its processes."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from torch import Tensor

from taskformer.callbacks.checkpoints import LAST, Checkpoints, has_finite_weights
from taskformer.callbacks.progress import may_look
from taskformer.callbacks.run_folder import is_fitting
from taskformer.callbacks.watch import Watch, say
from taskformer.errors import TaskformerError, TrainingStoppedError
from taskformer.modules.evaluating import Batch

#: Seconds that a process whose training failed waits before it says so, in case another's failure was the cause: the
#: one that started the others waits longer, so that the one with the cause speaks.
PATIENCE = {"first": 6.0, "others": 3.0}


class Interrupted(SystemExit):
    """The end of a program that a signal asked for; its status is 128 and the signal's number, as of shells."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)


class Losses(NamedTuple):
    """What is kept of a training batch until its losses are looked at.

    Attributes:
        images: The images' identifiers.
        losses: Each task's loss and the total.
    """

    images: list[str]
    losses: dict[str, Tensor]


class Stopping(Callback):
    """End a training in good order: all processes, one status, and a checkpoint to go on from.

    >>> trainer = Trainer(callbacks=[Checkpoints(), Stopping()], accelerator="cpu", logger=False)

    SIGTERM (of a cluster that wants its machine back) and Ctrl-C end it after the optimizer step that is being made, or
    after the validation: ``last.ckpt`` is written and ``taskformer fit --resume`` goes on exactly there. The second
    signal ends it at once. Under SLURM with Lightning's automatic requeueing the signal for it does the same, and puts
    the job back into the queue.

    A loss or a weight that is not finite ends it with the tasks and images named. The losses are looked at in every
    batch on a CPU, and otherwise whenever they are logged, because to look is to wait for the device. With a gradient
    scaler (``16-mixed``) steps that overflow are skipped.

    When one of the processes that Lightning started dies, the others end too.

    Args:
        max_skipped_steps: Steps that the gradient scaler of ``16-mixed`` may skip in a row.
    """

    def __init__(self, max_skipped_steps: int = 50) -> None:
        self.max_skipped_steps = max_skipped_steps
        self._signal = 0
        self._ending = 0
        self._listening = False
        self._unchecked: list[Losses] = []
        self._steps = 0
        self._skipped = 0
        self._scale = 0.0
        self._watch: Watch | None = None
        self._processors: torch.distributed.ProcessGroup | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Watch the other processes."""
        self._watch_others(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to signals, and count steps from here."""
        self._listen(trainer)
        if trainer.world_size > 1:
            group = torch.distributed.new_group(backend="gloo")
            assert isinstance(group, torch.distributed.ProcessGroup)  # all processes are in it
            self._processors = group
        self._steps = trainer.global_step

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to signals."""
        self._listen(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to signals."""
        self._listen(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the training between epochs; the last state was written at the end of the one before."""
        (signum,) = self._largest(trainer, [self._signal])
        if signum:
            self._end(trainer, signum)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """End the training where its last state was written and the curves have its last step."""
        if self._ending:
            self._end(trainer, self._ending)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Look at the losses, and write the last state if the training is to end here."""
        images = [str(name) for name in batch["meta"].get("id", [])]
        self._unchecked.append(Losses(images, getattr(pl_module, "train_losses", {})))
        stepped, self._steps = trainer.global_step > self._steps, trainer.global_step
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        bad = None
        if scaler is not None:
            self._count_skipped(trainer, scaler.get_scale(), stepped)
        elif may_look(trainer, pl_module, batch_idx):
            bad = self._first_bad()
        any_bad, signum = self._largest(trainer, [int(bad is not None), self._signal])
        if any_bad:
            raise TrainingStoppedError(_sentence(trainer, _first(trainer, bad and _reason(bad))))
        # Gradients that wait for the rest of their step are in no checkpoint, and epochs have an end of their own.
        if signum and stepped and not trainer.is_last_batch:
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, Checkpoints):
                    callback.save_last(trainer)
            self._ending = signum

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse weights that the last steps have spoilt."""
        if not has_finite_weights(pl_module):
            reason = "weights are not finite although the losses were, because gradients were not"
            raise TrainingStoppedError(_sentence(trainer, reason))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """See to it that all processes end, and that the one whose error is the cause reports it."""
        watch = self._watch_others(trainer)
        if watch is None:
            return
        if watch.is_child:
            time.sleep(PATIENCE["others"])
            return
        if not isinstance(exception, TaskformerError | SystemExit | KeyboardInterrupt):
            time.sleep(PATIENCE["first"])
        watch.end_others()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the other processes alone: they end as this one does."""
        if self._watch is not None:
            self._watch.stop()

    def _listen(self, trainer: Trainer) -> None:
        """Take signals over from Lightning, which answers them in the middle of whatever a process is doing.

        It gives them back itself at the end.
        """
        if self._listening or threading.current_thread() is not threading.main_thread():
            return
        self._listening = True
        for signum in (signal.SIGTERM, signal.SIGINT, _requeue_signal(trainer)):
            if signum:
                signal.signal(signum, self._handler(trainer))

    def _handler(self, trainer: Trainer) -> Callable[[int, FrameType | None], None]:
        def handle(signum: int, _: FrameType | None) -> None:
            if self._signal or not is_fitting(trainer) or trainer.sanity_checking:
                raise Interrupted(signum)
            self._signal = signum
            if trainer.is_global_zero:
                name = signal.Signals(signum).name
                say(f"{name}: the training ends after this step or validation; once more to end it at once")

        return handle

    def _end(self, trainer: Trainer, signum: int) -> None:
        if trainer.is_global_zero:
            name, steps = signal.Signals(signum).name, trainer.global_step
            say(f"stopped by {name} after {steps} steps; go on with `taskformer fit --resume {_folder(trainer)}`")
            if signum == _requeue_signal(trainer):
                subprocess.run(["scontrol", "requeue", _job()], check=False)
        raise Interrupted(signum)

    def _first_bad(self) -> Losses | None:
        """Return the first batch since the last look whose loss was not finite."""
        batches, self._unchecked = [batch for batch in self._unchecked if batch.losses], []
        finite = torch.stack([batch.losses["total"] for batch in batches]).isfinite().tolist() if batches else []
        return None if all(finite) else batches[finite.index(False)]

    def _largest(self, trainer: Trainer, numbers: list[int]) -> list[int]:
        """Return the largest of all processes' numbers, place by place.

        Processors exchange them among themselves; in the devices' queue they would come after all work that is waiting.
        """
        if trainer.world_size == 1:
            return numbers
        largest = torch.tensor(numbers)
        torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX, group=self._processors)
        return largest.tolist()

    def _count_skipped(self, trainer: Trainer, scale: float, stepped: bool) -> None:
        """Raise if the gradient scaler skips one step after the other: its scale falls when it does."""
        (last,), self._unchecked = self._unchecked[-1:], []
        if not stepped:
            return
        self._skipped = self._skipped + 1 if scale < self._scale else 0
        self._scale = scale
        if self._skipped >= self.max_skipped_steps:
            reason = f"{self._skipped} steps in a row overflowed in 16 bits and were skipped ({_reason(last)})"
            raise TrainingStoppedError(_sentence(trainer, reason))

    def _watch_others(self, trainer: Trainer) -> Watch | None:
        """Start the watch where Lightning started processes; torchrun and SLURM watch theirs themselves."""
        launcher = trainer.strategy.launcher
        if self._watch is None and isinstance(launcher, _SubprocessScriptLauncher):
            others = list(launcher.procs)
            launcher.procs.clear()  # Lightning's own watch ends
            ours = isinstance(launcher.cluster_environment, LightningEnvironment)
            if others or (ours and trainer.local_rank > 0):
                self._watch = Watch(others, _folder(trainer))
                self._watch.start()
        return self._watch


def _first(trainer: Trainer, text: str | None) -> str:
    """Return what the first process that has something to say says."""
    texts = [text]
    if trainer.world_size > 1:
        texts *= trainer.world_size
        torch.distributed.all_gather_object(texts, text)
    return next(text for text in texts if text)


def _reason(batch: Losses) -> str:
    """Say which losses of a batch are not finite, and of which images."""
    bad = [f"{name} {loss.item()}" for name, loss in batch.losses.items() if not loss.isfinite()]
    tasks = [text for text in bad if not text.startswith("total ")] or bad
    found = f"the loss is not finite: {', '.join(tasks)}" if tasks else "the loss was finite"
    return f"{found}; the images were {', '.join(batch.images) or 'without names'}"


def _sentence(trainer: Trainer, reason: str) -> str:
    """Say why and where a training stops, and what to do."""
    last = _folder(trainer) / "checkpoints" / LAST
    kept = f"the last good state is {last}" if last.is_file() else "there was no checkpoint yet"
    return (
        f"training stopped in epoch {trainer.current_epoch} at step {trainer.global_step}: {reason}; {kept}; lower the "
        "learning rate, clip gradients (--trainer.gradient_clip_val 1) or look at the images (taskformer data verify)"
    )


def _requeue_signal(trainer: Trainer) -> int | None:
    """Return the signal by which SLURM asks a job to put itself back into the queue, if Lightning is set up for that.

    Lightning's own hook writes its checkpoint in the middle of a step, from where no training goes on exactly.
    """
    environment = trainer._accelerator_connector.cluster_environment  # there is no public way to it
    return (
        environment.requeue_signal if isinstance(environment, SLURMEnvironment) and environment.auto_requeue else None
    )


def _job() -> str:
    """Name of this SLURM job."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]


def _folder(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir)
