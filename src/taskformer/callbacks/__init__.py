"""What a run leaves behind: folder, checkpoints, curves, results table, gallery, predictions."""

from taskformer.callbacks.averaging import MovingAverage
from taskformer.callbacks.checkpoints import Checkpoints, WholeCheckpoints
from taskformer.callbacks.curves import Curves
from taskformer.callbacks.gallery import Gallery
from taskformer.callbacks.plots import Plots
from taskformer.callbacks.predictions import Predictions
from taskformer.callbacks.progress import ProgressBar
from taskformer.callbacks.results import ResultsTable
from taskformer.callbacks.run_folder import RunFolder
from taskformer.callbacks.stopping import Stopping
from taskformer.callbacks.stopwatch import Stopwatch
from taskformer.callbacks.tracking import Tracking

__all__ = [
    "Checkpoints",
    "Curves",
    "Gallery",
    "MovingAverage",
    "Plots",
    "Predictions",
    "ProgressBar",
    "ResultsTable",
    "RunFolder",
    "Stopping",
    "Stopwatch",
    "Tracking",
    "WholeCheckpoints",
]
