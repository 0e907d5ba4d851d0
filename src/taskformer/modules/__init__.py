"""LightningModules: one per architecture, all alike but for the network they build."""

from taskformer.modules.autotaskformer import AutoTaskFormer
from taskformer.modules.base import MultiTaskModule
from taskformer.modules.baseline import Baseline
from taskformer.modules.mqtransformer import MQTransformer
from taskformer.modules.schedules import PolyLR

__all__ = ["AutoTaskFormer", "Baseline", "MQTransformer", "MultiTaskModule", "PolyLR"]
