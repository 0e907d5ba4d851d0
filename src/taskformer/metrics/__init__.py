"""Metrics of dense prediction; they are fed raw outputs and ignore invalid pixels (255, or NaN in float maps)."""

from taskformer.metrics.classification import SoftLabelScores
from taskformer.metrics.delta import delta_m, improvement
from taskformer.metrics.depth import DepthErrors
from taskformer.metrics.edges import EdgeScores, TolerantFMeasure
from taskformer.metrics.grouping import PairScores
from taskformer.metrics.normals import AngularError
from taskformer.metrics.protocols import PROTOCOLS, Protocol
from taskformer.metrics.regression import MaskedMeanAbsoluteError
from taskformer.metrics.saliency import SaliencyScores
from taskformer.metrics.segmentation import MeanIoU, SegmentationScores

__all__ = [
    "PROTOCOLS",
    "AngularError",
    "DepthErrors",
    "EdgeScores",
    "MaskedMeanAbsoluteError",
    "MeanIoU",
    "PairScores",
    "Protocol",
    "SaliencyScores",
    "SegmentationScores",
    "SoftLabelScores",
    "TolerantFMeasure",
    "delta_m",
    "improvement",
]
