"""Learning-rate schedules over the whole of training, whatever its length."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class PolyLR(LambdaLR):
    """Polynomial decay to zero, ``(1 - progress) ** power``, after an optional linear warm-up.

    Args:
        optimizer: The optimizer.
        power: Exponent of the decay (0.9 in the MQTransformer recipe).
        warmup: Share of training spent on a linear warm-up from zero.
        total_steps: Optimizer steps of the whole training; filled in by the LightningModule when left out.
    """

    def __init__(
        self, optimizer: Optimizer, power: float = 0.9, warmup: float = 0.0, total_steps: int | None = None
    ) -> None:
        self.power = power
        self.warmup = warmup
        self.total_steps = total_steps
        super().__init__(optimizer, self._factor)

    def _factor(self, step: int) -> float:
        """Share of the peak learning rate at a step."""
        progress = min(step / self.total_steps, 1.0) if self.total_steps else 0.0
        if progress < self.warmup:
            # The first step is not wasted on a rate of zero.
            return max(progress, 1 / (self.total_steps or 1)) / self.warmup
        return float((1.0 - (progress - self.warmup) / (1.0 - self.warmup)) ** self.power)
