"""What a run leaves behind: its folder, its results table, its gallery."""

from taskformer.callbacks.gallery import Gallery
from taskformer.callbacks.results import ResultsTable
from taskformer.callbacks.run_folder import RunFolder

__all__ = ["Gallery", "ResultsTable", "RunFolder"]
