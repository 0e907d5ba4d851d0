"""What a run leaves behind: its folder, its results table, its gallery, its predictions."""

from taskformer.callbacks.gallery import Gallery
from taskformer.callbacks.predictions import Predictions
from taskformer.callbacks.results import ResultsTable
from taskformer.callbacks.run_folder import RunFolder

__all__ = ["Gallery", "Predictions", "ResultsTable", "RunFolder"]
