"""What TensorBoard keeps of a run: hyper-parameters, text, and pictures with a slider."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from taskformer.callbacks.trackers.base import NOTHING, Names, Tracker, tracks
from taskformer.callbacks.trackers.text import is_picture, text_table
from taskformer.errors import MissingExtraError
from taskformer.evaluation.gallery import DrawnSample, gallery_sheet
from taskformer.tasks.colors import Picture

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@tracks(TensorBoardLogger)
class TensorBoardTracker(Tracker):
    """Write to the logger's event files.

    The configuration is in the tabs HParams, beside the values that rate the run, and Text. TensorBoard keeps no files:
    of an artifact it has the path.

    >>> from taskformer.callbacks.trackers import trackers
    >>> [tracker] = trackers([TensorBoardLogger("runs/demo", name="", version="tensorboard")])
    """

    kind = "tensorboard"

    @classmethod
    def arguments(cls, names: Names, known: Mapping[str, str]) -> dict[str, Any]:  # noqa: ARG003  # as of all trackers
        """Leave the arguments alone: what follows from the run folder is in ``configs/logger/tensorboard.yaml``.

        Raises:
            MissingExtraError: If TensorBoard is not installed.
        """
        try:
            import tensorboard  # noqa: F401  # only to see whether it is there
        except ImportError as error:
            package = extra = "tensorboard"
            raise MissingExtraError(package, extra) from error
        return {}

    @property
    def writer(self) -> "SummaryWriter":
        """The writer of the event files."""
        writer: SummaryWriter = self.logger.experiment
        return writer

    def describe(self, config: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Keep what the run is as text."""
        self.logger.log_hyperparams(dict(config))  # kept by the logger for HParams, see `define`
        for name, values in {"config": config, "facts": facts}.items():
            self.writer.add_text(name, text_table(["name", "value"], list(values.items())))

    def define(self, senses: Mapping[str, str]) -> None:
        """Let HParams compare runs by the best of these values."""
        from torch.utils.tensorboard.summary import hparams

        config = {name: _plain(value) for name, value in self.logger.hparams.items()}
        for summary in hparams(config, {f"best/{name}": sense for name, sense in senses.items()}):
            self.writer._get_file_writer().add_summary(summary)  # `add_hparams` would make another run
        self.writer.add_text("better", text_table(["value", "better"], list(senses.items())))

    def best(self, values: Mapping[str, float], senses: Mapping[str, str]) -> None:
        """Keep the best values so far beside the values themselves."""
        self.values({f"best/{name}": value for name, value in values.items()})

    def gallery(self, key: str, samples: Sequence[DrawnSample], epoch: int) -> None:
        """Keep a sheet of each image, which has a slider over the epochs."""
        for sample in samples:
            self._add(f"{key}/{sample.name}", np.asarray(gallery_sheet([sample])), epoch)

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Keep the table as text and its pictures, named after their row and column, as pictures."""
        self.writer.add_text(key, text_table(columns, rows))
        for row in rows:
            for column, cell in zip(columns, row, strict=True):
                if is_picture(cell):
                    self._add(f"{key}/{row[0]}/{column}", cell, 0)

    def picture(self, key: str, path: Path, step: int | None = None) -> None:
        """Keep a picture."""
        with Image.open(path) as image:
            self._add(key, np.asarray(image.convert("RGB")), step or 0)

    def values(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Keep numbers."""
        self.logger.log_metrics(dict(values), step or 0)

    def artifact(self, path: Path, name: str, kind: str, metadata: Mapping[str, Any] = NOTHING) -> None:
        """Keep where a file lies, and its metadata."""
        rows = [("file", path), ("kind", kind), *metadata.items()]
        self.writer.add_text(f"artifact/{name}", text_table(["name", "value"], rows))

    def _add(self, key: str, picture: Picture, step: int) -> None:
        self.writer.add_image(key, picture, step, dataformats="HWC")


def _plain(value: Any) -> bool | int | float | str:
    """Return a value as HParams has it."""
    return value if isinstance(value, bool | int | float | str) else str(value)
