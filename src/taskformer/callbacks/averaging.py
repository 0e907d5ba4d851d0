"""The exponential moving average of the weights, which validates, is saved and is what a training ends with."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from taskformer.errors import require
from taskformer.modules.base import MultiTaskModule


class MovingAverage(WeightAveraging):
    """Keep the exponential moving average of all weights: ``decay * average + (1 - decay) * weights`` after each step.

    >>> trainer = Trainer(callbacks=[MovingAverage(decay=0.99)], accelerator="cpu", logger=False)

    It starts as the weights after the first step. Running statistics of norms are averaged too; counts and sizes are
    the present ones. The average validates, and it is what checkpoints hold as the model; the weights that train lie
    beside it, so that a training goes on from there exactly.

    The average is about as old as ``1 / (1 - decay)`` steps: of a short training it forgets the start only with a lower
    decay than the usual 0.999.

    Args:
        decay: Share of the average that a step keeps, in [0, 1); None: no average.
    """

    def __init__(self, decay: float | None = None) -> None:
        require("[0, 1)", **{"ema.decay": decay})
        super().__init__(avg_fn=self._averaged)
        self.decay = decay

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make room for the average where the weights will be: the module is not there yet."""
        if isinstance(pl_module, MultiTaskModule) and stage == "fit":
            pl_module.load_teachers()  # what trains with them is averaged too
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average in its place while others look at the validation's end, for instance to draw pictures."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the module back the weights that train; checkpoints come after this."""
        super().on_validation_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the weights that train in their place, for the last checkpoint."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the average as the model."""
        super().on_train_end(trainer, pl_module)

    def _averaged(self, average: Tensor, value: Tensor, count: Any) -> Tensor:
        """Move the average towards a value; what counts is not averaged."""
        assert self.decay is not None
        return average.lerp(value, 1 - self.decay) if average.is_floating_point() else value


def averages(checkpoint: dict[str, Any]) -> bool:
    """Tell whether the weights of a checkpoint's model are an average, and those that train lie beside it."""
    return "current_model_state" in checkpoint
