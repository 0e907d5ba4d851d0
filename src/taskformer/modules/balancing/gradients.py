"""Methods that look at each task's gradient: one backward pass per task.

Some papers add what they make of the gradients, some take its mean; each is here as published.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from taskformer.errors import require
from taskformer.modules.balancing.base import FixedWeights, mean_over_processes, torchjd
from taskformer.modules.balancing.solvers import bargain, conflict_averse, without_conflict
from taskformer.seeds import derive


class GradientBalancing(FixedWeights):
    """Combine the tasks' gradients.

    Each is the gradient of a weighted loss. Parameters that one task alone reaches get its gradient as it is. Under
    data-parallel training every task's gradient is first averaged over the processes, which so combine the gradients of
    the whole batch, as one process would. Where gradients are accumulated, those of each batch are combined.

    Example: parameters move only where no task is against it.

    >>> class NoConflict(GradientBalancing):
    ...     def aggregate(self, gradients):
    ...         return torch.where((gradients > 0).all(0) | (gradients < 0).all(0), gradients.sum(0), 0)

    Attributes:
        labelled: Names of the tasks whose gradients :meth:`aggregate` gets.
    """

    compilable = False

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__(weights)
        self.labelled: list[str] = []

    @abstractmethod
    def aggregate(self, gradients: Tensor) -> Tensor:
        """Combine the gradients ``(T, P)`` of the T tasks with labels to one ``(P,)``, as torchjd's aggregators do.

        They are those of the losses as they are, whatever the total is scaled by.
        """

    def backward(self, loss: Tensor, losses: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]) -> None:
        """Add the combined gradients to those of the parameters."""
        # The weights, and what the total was scaled by.
        factors = torch.autograd.grad(loss, list(losses.values()), retain_graph=True)
        scale = self._scale(dict(zip(losses, factors, strict=True)))
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
            gradients = mean_over_processes(
                torch.stack([_flat([row[index] for index in chosen], members) for row in rows])
            )
            if shared:
                present = gradients.any(dim=1).tolist()  # to look at them is to wait for the device
                self.labelled = [task for task, has in zip(losses, present, strict=True) if has]
                rows_of = [index for index, has in enumerate(present) if has]
                labelled = gradients if all(present) else gradients[rows_of]
                labelled /= scale
                combined = self.aggregate(labelled) * scale if self.labelled else gradients.sum(dim=0)
            else:
                combined = gradients.sum(dim=0)
            _add(members, combined)

    def _scale(self, factors: Mapping[str, Tensor]) -> Tensor:
        """Return what the total was scaled by, given the factors of the tasks' losses in it."""
        scales = [factor / self.weights[task] for task, factor in factors.items() if self.weights[task]]
        scale = torch.stack(scales or list(factors.values())).max()
        return torch.where(scale > 0, scale, 1)  # 0: no task has a label


class GramianBalancing(GradientBalancing):
    """Combine the tasks' gradients with weights that follow from the products of each two.

    Example: the mean of the gradients' directions.

    >>> class Directions(GramianBalancing):
    ...     def gradient_weights(self, gramian):
    ...         return gramian.diagonal().rsqrt() / len(gramian)
    >>> method = Directions({"depth": 1.0, "normals": 1.0})
    >>> method.aggregate(torch.tensor([[0.0, 3.0], [4.0, 0.0]])).tolist()
    [0.5, 0.5]
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__(weights)
        self._found: dict[str, float] = {}

    @abstractmethod
    def gradient_weights(self, gramian: Tensor) -> Tensor:
        """Return the weights ``(T,)`` of T gradients with labels, given their products ``(T, T)``.

        Both are float64 on the processor. Not called where a gradient is not finite, as it is when a loss scaled for
        half precision overflows.
        """

    def aggregate(self, gradients: Tensor) -> Tensor:
        """Add the gradients with their weights."""
        gramian = products(gradients).double().cpu()
        self._found = {}
        if not gramian.isfinite().all():
            return gradients.sum(dim=0)
        weights = self.gradient_weights(gramian)
        self._note(gramian, weights)
        return weights.to(gradients) @ gradients

    def found(self) -> dict[str, float]:
        """Return each task's weight and the cosine between the gradients of each two tasks."""
        return self._found

    def _note(self, gramian: Tensor, weights: Tensor) -> None:
        lengths = gramian.diagonal().sqrt()
        cosines = gramian / lengths / lengths[:, None]
        for task, weight in zip(self.labelled, weights.tolist(), strict=False):
            self._found[f"weight/{task}"] = weight * self.weights[task]
        for (one, first), (other, second) in combinations(enumerate(self.labelled), 2):
            self._found[f"cosine/{first}/{second}"] = cosines[one, other].item()


class NormalisedGradients(GramianBalancing):
    """Gradients of equal lengths, each as long as all are on average. The losses' weights do not matter.

    >>> method = NormalisedGradients({"depth": 1.0, "normals": 1.0})
    >>> method.aggregate(torch.tensor([[0.0, 3.0], [1.0, 0.0]])).tolist()
    [2.0, 2.0]

    Reference:
        Guo et al. Revisit the Imbalance Optimization in Multi-task Learning: An Experimental Analysis. arXiv
        2509.23915, which scales losses by the norms of their gradients. The common length is ours.
    """

    def gradient_weights(self, gramian: Tensor) -> Tensor:
        """Divide by the lengths."""
        lengths = gramian.diagonal().sqrt()
        return lengths.mean() / lengths


class PCGrad(GramianBalancing):
    """Take off each gradient its part against each other one, in random order, and add what is left.

    The extra ``balancing``. The orders are a function of the run's seed and of the batches that were trained.

    >>> method = PCGrad({"depth": 1.0, "normals": 1.0})
    >>> method.aggregate(torch.tensor([[1.0, 0.0], [-1.0, 1.0]])).tolist()
    [0.5, 1.5]

    Reference:
        Yu et al. Gradient Surgery for Multi-Task Learning. NeurIPS 2020.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__(weights)
        self._weighting = torchjd("aggregation").PCGradWeighting()
        self._batches = 0

    def gradient_weights(self, gramian: Tensor) -> Tensor:
        """Project; orders are the same in all processes and after a resume."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive("PCGrad", self._batches))
            self._batches += 1
            weights: Tensor = self._weighting(gramian)
        return weights

    def get_extra_state(self) -> Tensor:
        """Return what checkpoints keep: the number of batches."""
        return torch.tensor(self._batches)

    def set_extra_state(self, state: Tensor) -> None:
        """Go on from a checkpoint."""
        self._batches = int(state)


class UPGrad(GramianBalancing):
    """The mean of the gradients, each projected to the nearest one that is against no task: a small step harms none.

    >>> method = UPGrad({"depth": 1.0, "normals": 1.0})
    >>> [round(value, 6) for value in method.aggregate(torch.tensor([[1.0, 0.0], [-1.0, 1.0]])).tolist()]
    [0.25, 0.75]

    Reference:
        Quinton, Rey. Jacobian Descent for Multi-Objective Optimization. arXiv 2406.16232.
    """

    def gradient_weights(self, gramian: Tensor) -> Tensor:
        """Average the weights of the projections of all gradients."""
        own = np.eye(len(gramian))
        return torch.from_numpy(np.mean([without_conflict(gramian.numpy(), row) for row in own], axis=0))


class CAGrad(GramianBalancing):
    """Near the mean gradient, take what does most for the task that gains least.

    Args:
        weights: The configured weight of each task's loss.
        c: How far from the mean gradient, in lengths of it; 0: the mean itself.

    Reference:
        Liu et al. Conflict-Averse Gradient Descent for Multi-task Learning. NeurIPS 2021, which takes 0.4 for NYUD-v2
        and 0.2 for Cityscapes.
    """

    def __init__(self, weights: Mapping[str, float], c: float = 0.4) -> None:
        require("[0, inf)", c=c)
        super().__init__(weights)
        self.c = c

    def gradient_weights(self, gramian: Tensor) -> Tensor:
        """Return the weights of that vector."""
        return torch.from_numpy(conflict_averse(gramian.numpy(), self.c))


class NashMTL(GramianBalancing):
    """The tasks' bargain: the direction in which the product of what all of them gain is largest.

    The losses' weights do not matter.

    Args:
        weights: The configured weight of each task's loss.
        max_norm: Largest length of the combined gradient.

    Reference:
        Navon et al. Multi-Task Learning as a Bargaining Game. ICML 2022; with the length of the published code.
    """

    def __init__(self, weights: Mapping[str, float], max_norm: float = 1.0) -> None:
        require("(0, inf)", max_norm=max_norm)
        super().__init__(weights)
        self.max_norm = max_norm

    def gradient_weights(self, gramian: Tensor) -> Tensor:
        """Bargain, for gradients divided by the root of their Gramian's norm, and limit the length."""
        weights: Tensor = torch.from_numpy(bargain(gramian.numpy())) * gramian.norm().sqrt()
        length = (weights @ gramian @ weights).clamp(min=0).sqrt()
        return weights * (self.max_norm / length).clamp(max=1)


class AlignedMTL(GramianBalancing):
    """The mean of the gradients, made orthogonal and equally long with as little change as can be.

    The extra ``balancing``.

    Args:
        weights: The configured weight of each task's loss.
        scale_mode: Their length: the ``min`` (the paper), ``median`` or root mean square (``rmse``, the published code)
            of the singular values of all gradients.

    Reference:
        Senushkin et al. Independent Component Alignment for Multi-Task Learning. CVPR 2023.
    """

    def __init__(self, weights: Mapping[str, float], scale_mode: Literal["min", "median", "rmse"] = "min") -> None:
        super().__init__(weights)
        self._weighting = torchjd("aggregation").AlignedMTLWeighting(scale_mode=scale_mode)

    def gradient_weights(self, gramian: Tensor) -> Tensor:
        """Align."""
        weights: Tensor = self._weighting(gramian)
        return weights


def products(gradients: Tensor) -> Tensor:
    """Multiply each two of some vectors: ``(T, P)`` to ``(T, T)``.

    Not as a product of matrices, which a GPU may compute in few digits, and in at least single precision.

    >>> products(torch.tensor([[1.0, 2.0], [3.0, 0.0]])).tolist()
    [[5.0, 3.0], [3.0, 9.0]]
    """
    rows = [row.to(torch.promote_types(row.dtype, torch.float32)) for row in gradients]
    return torch.stack([torch.stack([(one * other).sum() for other in rows]) for one in rows])


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
