"""LightningModules: one per architecture, all alike but for the network they build."""

from taskformer.modules.autotaskformer import AutoTaskFormer
from taskformer.modules.balancing import (
    DWA,
    FAMO,
    IMTLL,
    AlignedMTL,
    Balancing,
    CAGrad,
    FixedWeights,
    GeometricMean,
    GradientBalancing,
    GramianBalancing,
    LossBalancing,
    NashMTL,
    NormalisedGradients,
    PCGrad,
    Uncertainty,
    UPGrad,
    Weighting,
)
from taskformer.modules.base import MultiTaskModule
from taskformer.modules.baseline import Baseline
from taskformer.modules.dense import DenseModule
from taskformer.modules.mqtransformer import MQTransformer
from taskformer.modules.schedules import PolyLR

__all__ = [
    "DWA",
    "FAMO",
    "IMTLL",
    "AlignedMTL",
    "AutoTaskFormer",
    "Balancing",
    "Baseline",
    "CAGrad",
    "DenseModule",
    "FixedWeights",
    "GeometricMean",
    "GradientBalancing",
    "GramianBalancing",
    "LossBalancing",
    "MQTransformer",
    "MultiTaskModule",
    "NashMTL",
    "NormalisedGradients",
    "PCGrad",
    "PolyLR",
    "UPGrad",
    "Uncertainty",
    "Weighting",
]
