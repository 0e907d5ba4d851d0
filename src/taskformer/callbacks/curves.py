"""The curves of a training as ``metrics.csv``, which go on where the training does."""

import csv
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers.csv_logs import CSVLogger, ExperimentWriter

from taskformer.files import replacing


class Curves(CSVLogger):
    """Lightning's CSV logger, which writes every row at once and keeps what was written before.

    A training is killed after its third step and goes on from its second:

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     for first_step, losses in ((0, [0.5, 0.4, 0.3]), (2, [0.3, 0.2])):
    ...         curves = Curves(Path(folder), "fit", first_step)
    ...         for step, loss in enumerate(losses, start=first_step):
    ...             curves.log_metrics({"loss": loss}, step)
    ...             curves.save()
    ...     [row["loss"] for row in read_curves(Path(folder, "fit", "metrics.csv"))]
    ['0.5', '0.4', '0.3', '0.2']

    Args:
        folder: Folder of the logs.
        version: Folder in it, e.g. ``"fit"``.
        first_step: Optimizer step that the training goes on from. Rows of later ones, which a killed process left, are
            dropped: they come again.
    """

    def __init__(self, folder: Path, version: str, first_step: int = 0) -> None:
        super().__init__(folder, name="", version=version, flush_logs_every_n_steps=1)
        self.first_step = first_step

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """Return the writer of the file."""
        if self._experiment is None:
            self._experiment = CurvesWriter(self.log_dir, self.first_step)
        assert isinstance(self._experiment, ExperimentWriter)
        return self._experiment


class CurvesWriter(ExperimentWriter):
    """Lightning's writer of ``metrics.csv`` for files that exist.

    Args:
        log_dir: Folder of the file.
        first_step: Rows before this step are kept.
    """

    def __init__(self, log_dir: str, first_step: int) -> None:
        self.first_step = first_step
        super().__init__(log_dir)
        file = Path(self.metrics_file_path)
        if file.is_file():
            rows = [row for row in read_curves(file) if row["step"] and int(row["step"]) < first_step]
            self.metrics_keys = sorted({key for row in rows for key in row}) if rows else []
            if rows:
                self._rewrite(rows)
            else:
                file.unlink()

    def _check_log_dir_exists(self) -> None:
        """Keep what is there; Lightning's own would delete it."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """Write the file again for new columns, so that a process that is killed meanwhile loses nothing."""
        self._rewrite(read_curves(Path(self.metrics_file_path)))

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        with replacing(Path(self.metrics_file_path)) as temporary, temporary.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, self.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)


def read_curves(file: Path) -> list[dict[str, str]]:
    """Read the rows, without one that was cut when its process was killed."""
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [row for row in rows if None not in row.values() and None not in row]
