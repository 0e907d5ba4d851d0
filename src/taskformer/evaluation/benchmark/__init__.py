"""How fast a network predicts and trains, how much memory that needs, what it costs, and how all of it grows."""

from taskformer.evaluation.benchmark.figures import Benchmark, Figures, Growth, Methods, Timed
from taskformer.evaluation.benchmark.run import benchmark

__all__ = ["Benchmark", "Figures", "Growth", "Methods", "Timed", "benchmark"]
