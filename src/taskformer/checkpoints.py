"""Loading trained models."""

import importlib
from pathlib import Path

from taskformer.errors import WeightsError
from taskformer.files import read_checkpoint
from taskformer.modules import MultiTaskModule


def load(path: str | Path, map_location: str = "cpu") -> MultiTaskModule:
    """Load a trained model, of whichever class it is, ready to predict.

    Args:
        path: A run folder (its best checkpoint is taken, or else the last) or a checkpoint file.
        map_location: Device to load to.

    Raises:
        WeightsError: If there is no checkpoint, or it was not written by taskformer.
    """
    file = _checkpoint_file(Path(path))
    checkpoint = read_checkpoint(file)
    module_name, _, class_name = str(checkpoint.get("taskformer_class", "")).rpartition(".")
    if not module_name:
        msg = f"{file} does not name its model's class; only checkpoints of `taskformer fit` can be loaded"
        raise WeightsError(msg)
    cls = getattr(importlib.import_module(module_name), class_name, None)
    if not (isinstance(cls, type) and issubclass(cls, MultiTaskModule)):
        msg = f"{file} names {module_name}.{class_name}, which is not a model of taskformer; load files you trust"
        raise WeightsError(msg)
    hyper_parameters = checkpoint["hyper_parameters"]
    # The checkpoint fills every tensor: nothing has to be downloaded or read first.
    model = cls(**(hyper_parameters | {"weights": "random"}))
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"])
    return model.to(map_location).eval()


def _checkpoint_file(path: Path) -> Path:
    """Find the checkpoint that a path means."""
    candidates = [path / "checkpoints" / name for name in ("best.ckpt", "last.ckpt")] if path.is_dir() else [path]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    msg = f"no checkpoint at {str(path)!r}; expected a .ckpt file or a run folder with checkpoints/best.ckpt in it"
    raise WeightsError(msg)
