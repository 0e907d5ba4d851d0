"""Runs beside each other: what their models achieve and cost, and which differences are more than chance."""

from taskformer.evaluation.comparison.comparison import Comparison
from taskformer.evaluation.comparison.differences import Difference
from taskformer.evaluation.comparison.run import compare

__all__ = ["Comparison", "Difference", "compare"]
