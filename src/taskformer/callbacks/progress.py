"""The progress bar of a training that does not hold it up."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar


class ProgressBar(RichProgressBar):
    """Lightning's bar, which on a GPU shows the loss of the last step that was logged.

    >>> trainer = Trainer(callbacks=[ProgressBar()], accelerator="cpu", logger=False, enable_checkpointing=False)

    To read a loss is to wait for the device, and Lightning's own bar does so at every step.
    """

    def __init__(self) -> None:
        super().__init__()
        self._shown: dict[str, Any] = {}

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the numbers beside the bar."""
        if not trainer.training or may_look(trainer, pl_module, trainer.fit_loop.epoch_loop.batch_idx):
            self._shown = super().get_metrics(trainer, pl_module)
        return self._shown


def may_look(trainer: Trainer, pl_module: LightningModule, batch_idx: int) -> bool:
    """Whether to read numbers after a training batch costs nothing: on a CPU, or where the logger reads them too."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # the Trainer gets it when it is built
    logs = every > 0 and batch_idx % every == 0
    return logs or pl_module.device.type == "cpu" or trainer.is_last_batch
