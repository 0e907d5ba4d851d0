"""The progress bar of a training that does not hold it up."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from torch import Tensor


class ProgressBar(RichProgressBar):
    """Lightning's bar with the training loss, on a GPU that of the last step at which losses are looked at.

    >>> trainer = Trainer(callbacks=[ProgressBar()], accelerator="cpu", logger=False, enable_checkpointing=False)

    To read a loss is to wait for the device, and Lightning does so at every step for what modules log to its bar.
    """

    def __init__(self) -> None:
        super().__init__()
        self._loss: dict[str, float] = {}

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return the numbers beside the bar."""
        total: Tensor | None = getattr(pl_module, "train_losses", {}).get("total")
        if trainer.training and total is not None and may_look(trainer, pl_module, trainer.fit_loop.batch_idx):
            self._loss = {"train/loss": total.item()}
        return super().get_metrics(trainer, pl_module) | self._loss


def may_look(trainer: Trainer, pl_module: LightningModule, batch_idx: int) -> bool:
    """Whether to read numbers after a training batch costs nothing: on a CPU, or where the logger reads them too."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # the Trainer gets it when it is built
    logs = every > 0 and batch_idx % every == 0
    return logs or pl_module.device.type == "cpu" or trainer.is_last_batch
