"""What a smaller network may learn from a larger one of the same tasks: to give its outputs."""

import torch
from torch import Tensor
from torch.nn import functional as F

from taskformer.tasks import Classification, Edges, LabelMapTask, Task

#: Vectors shorter than this have no direction to follow; the bound also limits gradients.
SHORTEST = 1e-3


def distillation_loss(task: Task, output: Tensor, teacher: Tensor) -> Tensor:
    """Compare raw outputs as the task understands them; no target is needed, so every pixel counts.

    Classes: Kullback-Leibler divergence of the class probabilities, in nats. Edges: the same for edge or no edge.
    Vectors: one minus the cosine of the angle. All else: mean absolute difference in the output's unit.

    Args:
        task: The task.
        output: Raw output ``(B, C, H, W)``, or ``(B, K)`` of a task about the whole image.
        teacher: The larger network's output, the same shape; it gets no gradient.

    Returns:
        A scalar in float32, 0 for equal outputs.
    """
    with torch.autocast(output.device.type, enabled=False):
        output, teacher = output.float(), teacher.detach().float()
        if isinstance(task, LabelMapTask | Classification):
            divergence = F.kl_div(output.log_softmax(1), teacher.log_softmax(1), reduction="none", log_target=True)
            return divergence.sum(dim=1).mean()
        if isinstance(task, Edges):
            edge = teacher.sigmoid()
            entropy = F.binary_cross_entropy_with_logits(teacher, edge)
            return F.binary_cross_entropy_with_logits(output, edge) - entropy
        if task.geometry == "vector":
            return 1 - F.cosine_similarity(output, teacher, dim=1, eps=SHORTEST).mean()
        return F.l1_loss(output, teacher)
