"""Sweeps: one YAML in the schema of Weights & Biases, run by wandb's agents or here."""

from taskformer.sweeps.expansion import command_line
from taskformer.sweeps.parameters import Choice, Distribution, Parameter
from taskformer.sweeps.schema import Hyperband, Metric, Sweep, read_sweep

__all__ = ["Choice", "Distribution", "Hyperband", "Metric", "Parameter", "Sweep", "command_line", "read_sweep"]
