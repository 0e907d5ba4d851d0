"""Methods that look at the losses alone: one backward pass, like fixed weights.

All of them see the losses multiplied by the configured weights, from which they so begin.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from taskformer.errors import require
from taskformer.modules.balancing.base import FixedWeights, Weighting, mean_over_processes, torchjd

#: Keeps logarithms and quotients of losses finite.
EPSILON = 1e-8


class Uncertainty(Weighting):
    """Weights learnt as each task's uncertainty: the sum of ``exp(-s) / 2 * loss + s / 2`` with one ``s`` per task.

    The extra ``balancing``.

    >>> method = Uncertainty({"depth": 1.0, "normals": 10.0})
    >>> method({"depth": torch.tensor(2.0), "normals": torch.tensor(0.5)}).item()
    3.5

    Reference:
        Kendall, Gal, Cipolla. Multi-Task Learning Using Uncertainty to Weigh Losses. CVPR 2018.
    """

    scalarizer = "UW"

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__(weights)
        build = getattr(torchjd("scalarization"), self.scalarizer)
        # One for each task, so that a task without a label can be left out.
        self.learnt = nn.ModuleDict({task: build(()) for task in weights})

    def weigh(self, losses: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Weigh each task by what was learnt of it."""
        return {task: self.learnt[task](self.weights[task] * loss) for task, loss in losses.items()}


class IMTLL(Uncertainty):
    """Weights learnt so that all losses become as large: the sum of ``exp(s) * loss - s`` with one ``s`` per task.

    The extra ``balancing``.

    Reference:
        Liu et al. Towards Impartial Multi-task Learning (its loss balance, IMTL-L). ICLR 2021.
    """

    scalarizer = "IMTLL"


class LossBalancing(FixedWeights):
    """Weights that follow from how large the losses are.

    Under data-parallel training this is their mean over the processes, which so have the same weights.

    Example: losses of equal size.

    >>> class Equal(LossBalancing):
    ...     def factors(self, values):
    ...         return torch.where(values > 0, 1 / values, 0)
    >>> method = Equal({"depth": 1.0, "normals": 10.0})
    >>> method({"depth": torch.tensor(2.0), "normals": torch.tensor(0.5)}).item()
    2.0
    """

    @abstractmethod
    def factors(self, values: Tensor) -> Tensor:
        """Return factors ``(T,)`` of the T weighted losses, given their values ``(T,)``: 0 without a label."""

    def values(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the values ``(T,)`` of the weighted losses over all processes, 0 of a loss that is not there."""
        nothing = torch.zeros_like(next(iter(losses.values())))
        values = [weight * losses.get(task, nothing).detach() for task, weight in self.weights.items()]
        return mean_over_processes(torch.stack(values))

    def weigh(self, losses: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Multiply by the configured weights and the factors of this batch."""
        factors = dict(zip(self.weights, self.factors(self.values(losses)).unbind(), strict=True))
        return {task: factors[task] * loss for task, loss in super().weigh(losses).items()}

    def weights_in(self, total: Tensor, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weight of each task's loss in a total, for the log."""
        return super(FixedWeights, self).weights_in(total, losses)


class GeometricMean(LossBalancing):
    """The geometric mean of the losses of tasks with labels, on which the unit of a loss has no influence.

    >>> method = GeometricMean({"depth": 1.0, "normals": 1.0})
    >>> method({"depth": torch.tensor(8.0), "normals": torch.tensor(0.5)}).item()
    2.0

    Reference:
        Chennupati et al. MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss Strategy for Multi-Task
        Learning. CVPR Workshops 2019.
    """

    def factors(self, values: Tensor) -> Tensor:
        """Return the derivatives of the mean, which add up to it again."""
        present = values > 0
        count = present.sum().clamp(min=1)
        mean = (torch.where(present, values, 1).log().sum() / count).exp()
        return torch.where(present, mean / (count * values), 0)


class DWA(LossBalancing):
    """Dynamic weight average: tasks whose loss fell less from the epoch before last to the last one weigh more.

    The first two epochs have the configured weights, and so has a task that had no label in one of those two.

    Args:
        weights: The configured weight of each task's loss.
        temperature: The larger, the more equal the weights.

    Reference:
        Liu, Johns, Davison. End-to-End Multi-Task Learning with Attention. CVPR 2019.
    """

    def __init__(self, weights: Mapping[str, float], temperature: float = 2.0) -> None:
        require("(0, inf)", temperature=temperature)
        super().__init__(weights)
        self.temperature = temperature
        # Mean losses of the epoch before last and of the last one; sums and counts of batches of the present one.
        self.means: Tensor
        self.sums: Tensor
        self.counts: Tensor
        self.register_buffer("means", torch.full((2, len(weights)), torch.nan))
        self.register_buffer("sums", torch.zeros(len(weights)))
        self.register_buffer("counts", torch.zeros(len(weights)))

    def start_epoch(self) -> None:
        """Take the mean losses of the epoch that is over."""
        self.means.copy_(torch.stack([self.means[1], self.sums / self.counts]))
        self.sums.zero_()
        self.counts.zero_()

    def factors(self, values: Tensor) -> Tensor:
        """Return the weights of this epoch, which add up to the number of tasks; note the losses for those to come."""
        self.sums += values
        self.counts += values > 0
        rates = self.means[1] / self.means[0]
        rates = torch.where(rates.isfinite(), rates, 1)
        return len(values) * torch.softmax(rates / self.temperature, dim=0)


class FAMO(LossBalancing):
    """Fast adaptive multi-task optimization: weights under which the logarithms of all losses fall equally fast.

    They are learnt from what each step does to the losses of its own batch, which costs one more forward pass.

    >>> method = FAMO({"depth": 1.0, "normals": 1.0}, lr=0.1)
    >>> losses = {"depth": torch.tensor(2.0), "normals": torch.tensor(0.5)}
    >>> [round(factor, 2) for factor in method.factors(method.values(losses)).tolist()]  # in proportion to 1 / loss
    [0.2, 0.8]
    >>> method.after_step(lambda: losses | {"depth": torch.tensor(1.0)})  # depth gained, the other did not
    >>> [round(factor, 2) for factor in method.factors(method.values(losses)).tolist()]
    [0.17, 0.83]

    Args:
        weights: The configured weight of each task's loss.
        lr: Learning rate of the task weights (Adam).
        weight_decay: Pull of the task weights towards equal ones.

    Reference:
        Liu et al. FAMO: Fast Adaptive Multitask Optimization. NeurIPS 2023.
    """

    def __init__(self, weights: Mapping[str, float], lr: float = 0.025, weight_decay: float = 1e-3) -> None:
        require("[0, inf)", lr=lr, weight_decay=weight_decay)
        super().__init__(weights)
        self.lr = lr
        self.weight_decay = weight_decay
        # Logits of the task weights, Adam's moments of their gradients, and its steps.
        self.logits: Tensor
        self.moments: Tensor
        self.steps: Tensor
        self.register_buffer("logits", torch.zeros(len(weights)))
        self.register_buffer("moments", torch.zeros(2, len(weights)))
        self.register_buffer("steps", torch.zeros(()))
        self._before = torch.zeros(len(weights))

    def factors(self, values: Tensor) -> Tensor:
        """Return factors under which each step is a convex combination of the tasks' gradients."""
        self._before = values
        slopes = self._shares(values > 0) / (values + EPSILON)
        total = slopes.sum()
        return slopes / torch.where(total > 0, total, 1)

    def after_step(self, losses: Callable[[], Mapping[str, Tensor]]) -> None:
        """Lower the weights of the tasks that gained most."""
        before, after = self._before, self.values(losses())
        present = (before > 0) & (after > 0)
        gains = torch.where(present, ((before + EPSILON) / (after + EPSILON)).log(), 0)
        shares = self._shares(present)
        self._learn(shares * (gains - (shares * gains).sum()) + self.weight_decay * self.logits)

    def _shares(self, present: Tensor) -> Tensor:
        """Return the weights of the tasks with labels, which add up to 1."""
        return torch.softmax(self.logits.masked_fill(~present, -torch.inf), dim=0).nan_to_num(0)  # NaN: none has one

    def _learn(self, gradient: Tensor, betas: tuple[float, float] = (0.9, 0.999)) -> None:
        """Take a step of Adam whose state is in checkpoints."""
        self.steps += 1
        mean, square = self.moments
        mean.lerp_(gradient, 1 - betas[0])
        square.lerp_(gradient**2, 1 - betas[1])
        mean, square = mean / (1 - betas[0] ** self.steps), square / (1 - betas[1] ** self.steps)
        self.logits -= self.lr * mean / (square.sqrt() + EPSILON)
