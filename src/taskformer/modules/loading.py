"""Trained models out of run folders and checkpoints."""

from pathlib import Path

from taskformer.modules.base import MultiTaskModule
from taskformer.modules.restoring import restored


def load(path: str | Path, map_location: str = "cpu") -> MultiTaskModule:
    """Load a trained model, of whichever class it is, ready to predict.

    Args:
        path: A run folder (its best checkpoint is taken, or else the last) or a checkpoint file.
        map_location: Device to load to.

    Raises:
        ConfigError: If there is no such device.
        WeightsError: If there is no checkpoint, or it was not written by taskformer.
    """
    model = restored(MultiTaskModule, path, map_location)
    model.run_folder = run_folder(path)
    return model


def run_folder(path: str | Path) -> Path | None:
    """Return the run folder that a path means: itself, or the one that a checkpoint lies in, if it does."""
    if Path(path).is_dir():
        return Path(path)
    folder = Path(path).absolute().parent
    return folder.parent if folder.name == "checkpoints" else None
