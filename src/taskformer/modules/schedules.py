"""Learning-rate schedules over the whole of training, whatever its length."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from taskformer.errors import ConfigError


class PolyLR(LambdaLR):
    """Polynomial decay to zero, ``(1 - progress) ** power``, after an optional linear warm-up.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    >>> PolyLR(optimizer, power=1.0, warmup=0.2, total_steps=10).factor(6)  # halfway from the peak to the end
    0.5

    With N steps in all, W of them warm-up, the step s = 0, 1, ... has the peak rate times ``max(s, 1) / W``, at most
    1, while s < W, and ``((N - s) / (N - W)) ** power`` from then on.

    Args:
        optimizer: The optimizer.
        power: Exponent of the decay (0.9 in the MQTransformer recipe).
        warmup: Share of training spent on a linear warm-up, in [0, 1).
        total_steps: Optimizer steps of the whole training; the LightningModule fills it in (:meth:`span`).

    Raises:
        ConfigError: If a value is impossible.
    """

    def __init__(
        self, optimizer: Optimizer, power: float = 0.9, warmup: float = 0.0, total_steps: int | None = None
    ) -> None:
        if not 0 <= warmup < 1:
            msg = f"PolyLR: warmup is the share of training before the peak rate, at least 0 and below 1; got {warmup}"
            raise ConfigError(msg)
        if not 0 <= power < float("inf"):
            msg = f"PolyLR: power is at least 0 and finite; got {power}"
            raise ConfigError(msg)
        if total_steps is not None and total_steps < 1:
            msg = f"PolyLR: total_steps is at least 1, or null for the length of the training; got {total_steps}"
            raise ConfigError(msg)
        self.power = power
        self.warmup = warmup
        self.total_steps = total_steps
        super().__init__(optimizer, self.factor)

    def span(self, total_steps: int) -> None:
        """Spread the schedule over so many steps, and set the rates of the step that the training is at."""
        self.total_steps = total_steps
        set_closed_form(self)

    def factor(self, step: int) -> float:
        """Return the share of the peak rate that a step has."""
        if self.total_steps is None:
            if step == 0:  # LambdaLR asks when it is built, before the length is known
                return 0.0
            msg = "PolyLR does not know how long the training is: give it total_steps, or call span()"
            raise ConfigError(msg)
        progress = min(step / self.total_steps, 1.0)
        if progress < self.warmup:
            # The first step is not wasted on a rate of zero.
            return min(max(progress, 1 / self.total_steps) / self.warmup, 1.0)
        return float((1.0 - (progress - self.warmup) / (1.0 - self.warmup)) ** self.power)


def set_closed_form(scheduler: LambdaLR) -> None:
    """Give every parameter group the rate that the schedule's functions have for its step."""
    groups = zip(scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    rates = [base * factor(scheduler.last_epoch) for _, base, factor in groups]
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    scheduler._last_lr = rates  # what get_last_lr returns
