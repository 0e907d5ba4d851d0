"""Trackers: what loggers can keep of a run beyond numbers, one file for each kind of logger."""

from taskformer.callbacks.trackers.base import Names, Tracker, close, tracker_of, trackers, tracks
from taskformer.callbacks.trackers.identity import recall, remember, settle
from taskformer.callbacks.trackers.mlflow import LocalMLFlowLogger, MlflowTracker
from taskformer.callbacks.trackers.tensorboard import TensorBoardTracker
from taskformer.callbacks.trackers.wandb import WandbTracker

__all__ = [
    "LocalMLFlowLogger",
    "MlflowTracker",
    "Names",
    "TensorBoardTracker",
    "Tracker",
    "WandbTracker",
    "close",
    "recall",
    "remember",
    "settle",
    "tracker_of",
    "trackers",
    "tracks",
]
