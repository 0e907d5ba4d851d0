"""How the losses of several tasks become one.

A method is one short class: a :class:`Weighting` weighs the losses, a :class:`GradientBalancing` combines their
gradients, any other :class:`Balancing` makes one number of them. ``--model.balancing Uncertainty`` chooses one of those
here, ``--model.balancing mypackage.MyMethod`` one's own; ``--model.balancing.NAME`` sets its own arguments.
"""

from taskformer.modules.balancing.base import Balancing, BalancingCallable, FixedWeights, Weighting
from taskformer.modules.balancing.gradients import (
    AlignedMTL,
    CAGrad,
    GradientBalancing,
    GramianBalancing,
    NashMTL,
    NormalisedGradients,
    PCGrad,
    UPGrad,
)
from taskformer.modules.balancing.losses import DWA, FAMO, IMTLL, GeometricMean, LossBalancing, Uncertainty

#: The methods, those that weigh losses before those that combine gradients.
METHODS: tuple[type[Balancing], ...] = (
    FixedWeights,
    Uncertainty,
    IMTLL,
    DWA,
    GeometricMean,
    FAMO,
    NormalisedGradients,
    PCGrad,
    UPGrad,
    CAGrad,
    NashMTL,
    AlignedMTL,
)

__all__ = [
    "DWA",
    "FAMO",
    "IMTLL",
    "METHODS",
    "AlignedMTL",
    "Balancing",
    "BalancingCallable",
    "CAGrad",
    "FixedWeights",
    "GeometricMean",
    "GradientBalancing",
    "GramianBalancing",
    "LossBalancing",
    "NashMTL",
    "NormalisedGradients",
    "PCGrad",
    "UPGrad",
    "Uncertainty",
    "Weighting",
]
