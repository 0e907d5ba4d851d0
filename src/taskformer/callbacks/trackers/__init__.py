"""Trackers: what loggers can keep of a run beyond numbers, one file for each kind of logger."""

from taskformer.callbacks.trackers.base import Tracker, trackers, tracks

__all__ = ["Tracker", "trackers", "tracks"]
