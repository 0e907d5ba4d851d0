"""LightningModules: one per architecture, all alike but for the network they build."""

from taskformer.modules.autotaskformer import AutoTaskFormer
from taskformer.modules.balancing import Balancing, FixedWeights, GradientBalancing, Weighting
from taskformer.modules.base import MultiTaskModule
from taskformer.modules.baseline import Baseline
from taskformer.modules.dense import DenseModule
from taskformer.modules.mqtransformer import MQTransformer
from taskformer.modules.schedules import PolyLR

__all__ = [
    "AutoTaskFormer",
    "Balancing",
    "Baseline",
    "DenseModule",
    "FixedWeights",
    "GradientBalancing",
    "MQTransformer",
    "MultiTaskModule",
    "PolyLR",
    "Weighting",
]
