"""What every way to balance tasks has in common, and the plainest one."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, distributed, nn

from taskformer.errors import MissingExtraError


class Balancing(nn.Module, ABC):
    """Make one loss of the tasks' losses.

    Example: the largest loss alone, so that the task that is worst trains.

    >>> class Largest(Balancing):
    ...     def forward(self, losses):
    ...         return torch.stack(list(losses.values())).max()
    >>> Largest({"depth": 1.0, "normals": 10.0})({"depth": torch.tensor(2.0), "normals": torch.tensor(0.5)}).item()
    2.0

    Every training batch calls it once, with one loss per task. Where several sub-networks train, this is the mean over
    what each has to learn, from labels and from a larger network. Losses of validation have the configured weights
    whatever the method, so that they stay comparable.

    Its parameters train with the network's, without weight decay; its state is in checkpoints.

    Args:
        weights: The configured weight of each task's loss. A method may ignore them.

    Attributes:
        compilable: Whether it works with a compiled network, which is differentiated once and as a whole.
    """

    compilable: ClassVar[bool] = True

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.weights = dict(weights)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move to a device or type, but never to fewer digits: small steps would vanish in bfloat16."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.element_size() >= tensor.element_size() else tensor.to(moved.device)

        applied: Self = super()._apply(move, recurse)  # type: ignore[no-untyped-call]  # torch says no types here
        return applied

    @abstractmethod
    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the total, a scalar, of the tasks' losses, scalars too.

        A task without a label in the batch has a loss of exactly 0 and is to add exactly 0.
        """

    def backward(self, loss: Tensor, losses: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]) -> None:
        """Add to the gradients of all parameters.

        Args:
            loss: The total, scaled where gradients are accumulated or of half precision.
            losses: The tasks' losses that it was made of.
            parameters: The network's parameters that train.
        """
        loss.backward()

    def start_epoch(self) -> None:  # most methods have nothing to do
        """Take note that the first batch of an epoch comes next."""

    def after_step(self, losses: Callable[[], Mapping[str, Tensor]]) -> None:  # nor here
        """Learn from what a step of the optimizer has changed.

        Args:
            losses: Computes the losses of the step's last batch with the new weights, which costs a forward pass.
        """

    def weights_in(self, total: Tensor, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weight of each task's loss in a total, for the log: 0 for a task without a label."""
        weights = torch.autograd.grad(total, list(losses.values()), retain_graph=True, materialize_grads=True)
        return dict(zip(losses, weights, strict=True))

    def found(self) -> dict[str, float]:
        """Return what the last backward pass has found out, by name, for the log."""
        return {}


class Weighting(Balancing):
    """The sum of weighted losses.

    Example: weights by each task's uncertainty (Kendall, Gal, Cipolla. CVPR 2018).

    >>> class Learned(Weighting):
    ...     def __init__(self, weights, start: float = 0.0):
    ...         super().__init__(weights)
    ...         self.log_variance = nn.ParameterDict({task: torch.tensor(start) for task in weights})
    ...
    ...     def weigh(self, losses):
    ...         logs = self.log_variance
    ...         return {task: loss * torch.exp(-logs[task]) + logs[task] for task, loss in losses.items()}
    >>> Learned({"depth": 1.0, "normals": 10.0})({"depth": torch.tensor(2.0), "normals": torch.tensor(0.5)}).item()
    2.5
    """

    @abstractmethod
    def weigh(self, losses: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return each task's part of the total."""

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Add the weighted losses of the tasks with labels; the others get a gradient of 0."""
        weighted = self.weigh(losses)
        parts = [torch.where(loss == 0, 0, weighted[task]) for task, loss in losses.items()]
        return sum(parts, start=torch.zeros(()))


#: Builds a method from the configured weights of the tasks.
BalancingCallable = Callable[[Mapping[str, float]], Balancing]


class FixedWeights(Weighting):
    """The weighted sum of the losses.

    >>> FixedWeights({"depth": 1.0, "normals": 10.0})({"depth": torch.tensor(2.0), "normals": torch.tensor(0.5)}).item()
    7.0
    """

    def weigh(self, losses: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Multiply by the configured weights."""
        return {task: self.weights[task] * loss for task, loss in losses.items()}

    def weights_in(self, total: Tensor, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return nothing: the configuration says them."""
        return {}


def mean_over_processes(values: Tensor) -> Tensor:
    """Average a tensor in place over the processes of a data-parallel training, all of which call this."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(values)
        values /= distributed.get_world_size()
    return values


def torchjd(part: str) -> Any:
    """Import a part of torchjd.

    Raises:
        MissingExtraError: If it is not installed.
    """
    try:
        return import_module(f"torchjd.{part}")
    except ImportError as error:
        package, extra = "torchjd", "balancing"
        raise MissingExtraError(package, extra) from error
