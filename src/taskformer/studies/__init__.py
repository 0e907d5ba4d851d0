"""Studies: arms x seeds of one data set and budget, what each run achieved as one JSON file, and a report of those."""

from taskformer.studies.report import write_report
from taskformer.studies.running import run_study
from taskformer.studies.schema import Study, read_study

__all__ = ["Study", "read_study", "run_study", "write_report"]
