"""How the losses of several tasks become one.

A method is one short class: a :class:`Weighting` weighs the losses, a :class:`GradientBalancing` combines their
gradients, any other :class:`Balancing` makes one number of them. ``--model.balancing mypackage.MyMethod`` chooses it,
and ``--model.balancing.NAME`` sets its own arguments.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, distributed, nn


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
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.weights = dict(weights)

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

    def weights_in(self, total: Tensor, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weight of each task's loss in a total, for the log: 0 for a task without a label."""
        weights = torch.autograd.grad(total, list(losses.values()), retain_graph=True, materialize_grads=True)
        return dict(zip(losses, weights, strict=True))


class Weighting(Balancing):
    """The sum of weighted losses.

    Example: weights by each task's uncertainty (Kendall, Gal, Cipolla. CVPR 2018).

    >>> class Uncertainty(Weighting):
    ...     def __init__(self, weights, start: float = 0.0):
    ...         super().__init__(weights)
    ...         self.log_variance = nn.ParameterDict({task: torch.tensor(start) for task in weights})
    ...
    ...     def weigh(self, losses):
    ...         logs = self.log_variance
    ...         return {task: loss * torch.exp(-logs[task]) + logs[task] for task, loss in losses.items()}
    >>> Uncertainty({"depth": 1.0, "normals": 10.0})({"depth": torch.tensor(2.0), "normals": torch.tensor(0.5)}).item()
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


class GradientBalancing(FixedWeights):
    """Combine the tasks' gradients.

    Each is the gradient of a weighted loss. Parameters that one task alone reaches get its gradient as it is. Under
    data-parallel training every task's gradient is first averaged over the processes, which so combine the gradients of
    the whole batch, as one process would. Where gradients are accumulated, those of each batch are combined.

    Example: parameters move only where no task is against it.

    >>> class NoConflict(GradientBalancing):
    ...     def aggregate(self, gradients):
    ...         return torch.where((gradients > 0).all(0) | (gradients < 0).all(0), gradients.sum(0), 0)
    """

    @abstractmethod
    def aggregate(self, gradients: Tensor) -> Tensor:
        """Combine the gradients ``(T, P)`` of the T tasks with labels to one ``(P,)``, as torchjd's aggregators do."""

    def backward(self, loss: Tensor, losses: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]) -> None:
        """Add the combined gradients to those of the parameters."""
        # The weights, and what the total was scaled by.
        factors = torch.autograd.grad(loss, list(losses.values()), retain_graph=True)
        rows = [
            torch.autograd.grad(loss_of_task, parameters, factor, retain_graph=True, allow_unused=True)
            for loss_of_task, factor in zip(losses.values(), factors, strict=True)
        ]
        reached = [sum(gradient is not None for gradient in column) for column in zip(*rows, strict=True)]
        for shared in (False, True):
            chosen = [index for index, count in enumerate(reached) if (count > 1 if shared else count == 1)]
            if not chosen:
                continue
            members = [parameters[index] for index in chosen]
            gradients = _mean_over_processes(
                torch.stack([_flat([row[index] for index in chosen], members) for row in rows])
            )
            if shared:
                labelled = gradients[gradients.any(dim=1)]  # to count them is to wait for the device
                combined = self.aggregate(labelled) if len(labelled) else labelled.sum(dim=0)
            else:
                combined = gradients.sum(dim=0)
            _add(members, combined)


def _flat(gradients: Sequence[Tensor | None], parameters: Sequence[nn.Parameter]) -> Tensor:
    """Join gradients to one vector, with zeros for parameters without one."""
    filled = [
        torch.zeros_like(parameter) if gradient is None else gradient
        for gradient, parameter in zip(gradients, parameters, strict=True)
    ]
    return torch.cat([gradient.flatten() for gradient in filled])


def _add(parameters: Sequence[nn.Parameter], gradient: Tensor) -> None:
    """Add parts of one vector to the gradients of parameters."""
    for parameter, part in zip(parameters, gradient.split([p.numel() for p in parameters]), strict=True):
        # In the parameter's own layout, which fused optimizers rely on.
        part = torch.empty_like(parameter).copy_(part.view_as(parameter))
        parameter.grad = part if parameter.grad is None else parameter.grad + part


def _mean_over_processes(gradients: Tensor) -> Tensor:
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(gradients)
        gradients /= distributed.get_world_size()
    return gradients
