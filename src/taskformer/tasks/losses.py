"""Losses of dense prediction, as pure functions of float32 outputs and targets.

Invalid pixels (255 in labels, not finite in values) get no gradient, whatever stands in the output there: outputs
and targets are replaced before they meet, because NaN times 0 is NaN. Without a valid pixel every loss is exactly 0
and has a gradient path. Nothing here waits for the device.

The sums and weights follow the multi-task literature on NYUD-v2 and PASCAL-Context (ASTMT, Maninis et al., CVPR 2019;
ATRC, Bruggemann et al., ICCV 2021; MQTransformer, Xu et al., 2022).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from taskformer.metrics.normals import unit_vectors
from taskformer.tasks.base import IGNORE_INDEX

#: Length below which vectors have no direction. Dividing by at least this bounds the gradient where a fresh network
#: still gives vectors of almost no length.
SHORTEST = 1e-3


def cross_entropy(logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Compute the softmax cross entropy: the sum over valid pixels divided by their number.

    Args:
        logits: ``(B, C, H, W)``.
        labels: ``(B, H, W)`` int64, 255 where invalid.
        class_weights: ``(C,)`` factors of the pixels' losses; the denominator stays the number of pixels.

    Returns:
        A scalar.
    """
    valid = labels != IGNORE_INDEX
    logits = torch.where(valid.unsqueeze(1), logits, 0.0)
    total = F.cross_entropy(logits, labels, weight=class_weights, ignore_index=IGNORE_INDEX, reduction="sum")
    return total / number(valid)


def class_weighted_cross_entropy(logits: Tensor, labels: Tensor, class_weights: Tensor) -> Tensor:
    """Compute the weighted mean of the softmax cross entropy: each valid pixel counts by the weight of its class.

    Args:
        logits: ``(B, C, H, W)``.
        labels: ``(B, H, W)`` int64, 255 where invalid.
        class_weights: ``(C,)``, above 0.

    Returns:
        A scalar.
    """
    valid = labels != IGNORE_INDEX
    weights = torch.where(valid, class_weights[torch.where(valid, labels, 0)], 0.0)
    # Without a valid pixel both are 0.
    mean_weight = weights.sum() / number(valid)
    return cross_entropy(logits, labels, class_weights) / torch.where(mean_weight > 0, mean_weight, 1.0)


def balanced_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute a two-class cross entropy balanced over the batch.

    Background pixels are weighted by the share of salient ones among the batch's valid pixels, and the other way
    round (holistically-nested edge detection, Xie and Tu, ICCV 2015, equation 2, applied to saliency by ASTMT). A
    batch of one class only therefore has a loss of 0.

    Args:
        logits: ``(B, 2, H, W)`` of background and salient.
        labels: ``(B, H, W)`` int64: 0, 1, or 255 where invalid.

    Returns:
        A scalar.
    """
    salient = (labels == 1).sum() / number(labels != IGNORE_INDEX)
    background = (labels == 0).sum() / number(labels != IGNORE_INDEX)
    return cross_entropy(logits, labels, torch.stack([salient, background]).to(logits.dtype))


def l1(output: Tensor, target: Tensor) -> Tensor:
    """Compute the mean absolute error over the valid values.

    Args:
        output: ``(B, C, H, W)``, e.g. depth in metres.
        target: The same shape, not finite where invalid.

    Returns:
        A scalar in the unit of the target.
    """
    valid = torch.isfinite(target)
    difference = torch.where(valid, output, 0.0) - torch.where(valid, target, 0.0)
    return difference.abs().sum() / number(valid)


def normals_l1(output: Tensor, target: Tensor) -> Tensor:
    """Compute the L1 distance of the normalised output to unit normals: channels are summed, valid pixels averaged.

    Args:
        output: Vectors of any length ``(B, 3, H, W)``.
        target: Unit vectors of the same shape, not finite (or of length 0) where invalid.

    Returns:
        A scalar.
    """
    valid = _has_direction(target)
    direction = unit_vectors(torch.where(valid, output, 0.0), eps=SHORTEST)
    difference = direction - torch.where(valid, target, 0.0)
    return difference.abs().sum() / number(valid)


def normals_cosine(output: Tensor, target: Tensor) -> Tensor:
    """Compute one minus the cosine of the angle between output and unit normals, averaged over valid pixels.

    Args:
        output: Vectors of any length ``(B, 3, H, W)``.
        target: Unit vectors of the same shape, not finite (or of length 0) where invalid.

    Returns:
        A scalar in [0, 2].
    """
    valid = _has_direction(target)
    direction = unit_vectors(torch.where(valid, output, 0.0), eps=SHORTEST)
    cosine = (direction * torch.where(valid, target, 0.0)).sum(dim=1, keepdim=True)
    return torch.where(valid, 1 - cosine, 0.0).sum() / number(valid)


def _has_direction(target: Tensor) -> Tensor:
    """Find the pixels ``(B, 1, H, W)`` of normals ``(B, 3, H, W)`` that are finite and not of length 0."""
    return (torch.isfinite(target).all(dim=1) & (target != 0).any(dim=1)).unsqueeze(1)


def edge_cross_entropy(logits: Tensor, target: Tensor, positive_weight: float) -> Tensor:
    """Compute the binary cross entropy with a fixed weight on edges: the mean over valid pixels.

    Args:
        logits: ``(B, 1, H, W)``.
        target: Edge maps in [0, 1] of the same shape, not finite where invalid.
        positive_weight: Weight of edges; the rest has ``1 - positive_weight`` (0.8 on NYUD-v2, 0.95 on
            PASCAL-Context in the literature).

    Returns:
        A scalar.
    """
    valid = torch.isfinite(target)
    logits = torch.where(valid, logits, 0.0)
    edge = torch.where(valid, target, 0.0)
    missed = positive_weight * edge * F.softplus(-logits)
    false = (1 - positive_weight) * (1 - edge) * F.softplus(logits)
    return torch.where(valid, missed + false, 0.0).sum() / number(valid)


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Compute the cross entropy against soft labels, averaged over the labelled images.

    This is the distillation loss of Hinton et al. (2015) at temperature 1, which Taskonomy's class labels call for.

    Args:
        logits: ``(B, K)``.
        target: Probabilities ``(B, K)``; a row that is not finite has no label.

    Returns:
        A scalar in nats.
    """
    valid = torch.isfinite(target).all(dim=1)
    logits = torch.where(valid[:, None], logits, 0.0)
    target = torch.where(valid[:, None], target, 0.0)
    return -(target * logits.log_softmax(dim=1)).sum() / number(valid)


def kl_divergence(output: Tensor, teacher: Tensor) -> Tensor:
    """Compute the Kullback-Leibler divergence of two networks' class probabilities, averaged over pixels.

    Args:
        output: Logits ``(B, C, ...)``.
        teacher: Logits of the same shape, from which the probabilities are to be learned.

    Returns:
        A scalar in nats.
    """
    divergence = F.kl_div(output.log_softmax(1), teacher.log_softmax(1), reduction="none", log_target=True)
    return divergence.sum(dim=1).mean()


def binary_kl_divergence(output: Tensor, teacher: Tensor) -> Tensor:
    """Compute :func:`kl_divergence` for binary logits ``(B, 1, H, W)``."""
    probability = teacher.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(teacher, probability)
    return F.binary_cross_entropy_with_logits(output, probability) - entropy


def cosine_distance(output: Tensor, teacher: Tensor) -> Tensor:
    """Compute one minus the mean cosine similarity of vectors ``(B, 3, H, W)`` of any length."""
    return 1 - F.cosine_similarity(output, teacher, dim=1, eps=SHORTEST).mean()


def number(valid: Tensor) -> Tensor:
    """Count the valid pixels, but at least 1 so that the sum of none stays 0."""
    return valid.sum().clamp(min=1)
