"""Metrics of dense prediction; they are fed raw outputs and ignore invalid pixels (255, or NaN in float maps)."""

from taskformer.metrics.classification import SoftLabelScores
from taskformer.metrics.delta import delta_m, improvement
from taskformer.metrics.depth import DepthErrors
from taskformer.metrics.edges import TolerantFMeasure
from taskformer.metrics.grouping import PairScores
from taskformer.metrics.normals import AngularError
from taskformer.metrics.regression import MaskedMeanAbsoluteError
from taskformer.metrics.saliency import SaliencyScores
from taskformer.metrics.segmentation import MeanIoU, SegmentationScores

__all__ = [
    "AngularError",
    "DepthErrors",
    "MaskedMeanAbsoluteError",
    "MeanIoU",
    "PairScores",
    "SaliencyScores",
    "SegmentationScores",
    "SoftLabelScores",
    "TolerantFMeasure",
    "delta_m",
    "improvement",
]
