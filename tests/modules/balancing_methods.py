"""Three methods of balancing as a user would write them: learned weights, combined gradients, another sum."""

import torch
from torch import nn

from taskformer.modules import Balancing, GradientBalancing, Weighting


class Learned(Weighting):
    """Kendall, Gal, Cipolla. Multi-Task Learning Using Uncertainty to Weigh Losses. CVPR 2018.

    Args:
        weights: Not used.
        start: First logarithm of each task's variance.
    """

    def __init__(self, weights, start: float = 0.0):
        super().__init__(weights)
        self.log_variance = nn.ParameterDict({task: torch.tensor(start) for task in weights})

    def weigh(self, losses):
        logs = self.log_variance
        return {task: loss * torch.exp(-logs[task]) + logs[task] for task, loss in losses.items()}


class Surgery(GradientBalancing):
    """Yu et al. Gradient Surgery for Multi-Task Learning. NeurIPS 2020; the tasks' order is fixed."""

    def aggregate(self, gradients):
        combined = gradients.clone()
        for own in combined:
            for other in gradients:
                own -= (own @ other).clamp(max=0) / (other @ other) * other
        return combined.sum(dim=0)


class Geometric(Balancing):
    """The geometric mean of the losses of tasks with labels."""

    def forward(self, losses):
        present = [loss for loss in losses.values() if loss > 0]
        return torch.stack(present).log().mean().exp()
