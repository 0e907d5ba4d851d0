"""Lightning's loop over epochs, corrected where a training that goes on would become another one."""

from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.loop import _Loop


class EpochLoop(_FitLoop):
    """The loop over epochs, which counts each of them once.

    Lightning's own restarts an epoch that had ended when the Trainer has ``max_steps``: it is counted twice, so that
    the training has fewer epochs and other orders of images than one that was not stopped.
    """

    @property
    def restarting(self) -> bool:
        """Whether the training goes on in the middle of an epoch."""
        return self._restarting

    @restarting.setter
    def restarting(self, restarting: bool) -> None:
        epochs = self.epoch_progress.current
        _Loop.restarting.fset(self, restarting and epochs.processed < epochs.ready)  # type: ignore[attr-defined]  # a property has it
