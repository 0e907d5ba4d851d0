"""How long a training takes."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Stopwatch(Callback):
    """Keep in every checkpoint how long the training to it took, also where it was stopped and went on.

    What a killed process did after its last checkpoint is done again and not counted twice.

    >>> watch = Stopwatch()
    >>> watch.load_state_dict({"seconds": 3.5, "processor_seconds": 7.0})
    >>> watch.state_dict()
    {'seconds': 3.5, 'processor_seconds': 7.0}

    The seconds are those on the wall, validations included, and of the processors on which the training's own process
    and its threads ran, without the processes that load images.
    """

    def __init__(self) -> None:
        self._before = (0.0, 0.0)
        self._start: tuple[float, float] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start."""
        self._start = _clocks()

    def state_dict(self) -> dict[str, Any]:
        """Return the time so far."""
        start, now = self._start or (0.0, 0.0), _clocks() if self._start else (0.0, 0.0)
        wall, processor = (sum(parts) for parts in zip(self._before, now, (-each for each in start), strict=True))
        return {"seconds": wall, "processor_seconds": processor}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the time of a checkpoint."""
        self._before = (state_dict["seconds"], state_dict["processor_seconds"])


def _clocks() -> tuple[float, float]:
    return time.monotonic(), time.process_time()
