"""Trained models out of run folders and checkpoints."""

from pathlib import Path

from taskformer.errors import ConfigError, TaskformerError, WeightsError
from taskformer.modules.base import MultiTaskModule
from taskformer.modules.checkpoints import Checkpoint, open_checkpoint, restore
from taskformer.parsing import subclasses


def load(path: str | Path, map_location: str = "cpu") -> MultiTaskModule:
    """Load a trained model, of whichever class it is, ready to predict.

    Args:
        path: A run folder (its best checkpoint is taken, or else the last) or a checkpoint file.
        map_location: Device to load to.

    Raises:
        ConfigError: If there is no such device.
        WeightsError: If there is no checkpoint, or it was not written by taskformer.
    """
    checkpoint = open_checkpoint(_checkpoint_file(path))
    name = checkpoint.class_name
    known = {f"{cls.__module__}.{cls.__qualname__}": cls for cls in subclasses(MultiTaskModule)}
    if name not in known:
        msg = (
            f"{checkpoint.source} names the model {name!r}, which is none of {', '.join(sorted(known))}; "
            "import the file of a model of your own first: loading a checkpoint never does"
        )
        raise WeightsError(msg)
    try:
        model = _built(known[name], checkpoint)
        restore(model, checkpoint)
        model.run_folder = run_folder(path)
    except (KeyError, TypeError, RuntimeError) as error:
        msg = f"{checkpoint.source} does not fit the model {name}: {' '.join(str(error).split())[:300]}"
        raise WeightsError(msg) from error
    try:
        return model.to(map_location).eval()
    except (RuntimeError, AssertionError) as error:  # torch's, of devices that do not exist or are not there
        msg = f"cannot use the device {map_location!r}: {str(error).splitlines()[0]}"
        raise ConfigError(msg) from error


def _built(kind: type[MultiTaskModule], checkpoint: Checkpoint) -> MultiTaskModule:
    """Build the model that a checkpoint fills.

    Raises:
        WeightsError: If the checkpoint leaves out an encoder whose weights are no longer there.
    """
    settings = kind.upgraded(checkpoint.hyper_parameters)
    if not checkpoint.left_out:  # it fills every tensor: nothing has to be downloaded or read first
        return kind(**settings | {"weights": "random"})
    try:
        return kind(**settings)
    except TaskformerError as error:
        msg = f"{checkpoint.source} leaves out its frozen encoder, which cannot be had again: {error}"
        raise WeightsError(msg) from error


def run_folder(path: str | Path) -> Path | None:
    """Return the run folder that a path means: itself, or the one that a checkpoint lies in, if it does."""
    if Path(path).is_dir():
        return Path(path)
    folder = Path(path).absolute().parent
    return folder.parent if folder.name == "checkpoints" else None


def _checkpoint_file(given: str | Path) -> Path:
    """Find the checkpoint that a path means."""
    path = Path(given)
    candidates = [path / "checkpoints" / name for name in ("best.ckpt", "last.ckpt")] if path.is_dir() else [path]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    if "://" in str(given):
        msg = f"{given} is an address; download the checkpoint yourself and give the file"
        raise WeightsError(msg)
    msg = f"no checkpoint at {str(path)!r}; expected a .ckpt file or a run folder with checkpoints/best.ckpt in it"
    raise WeightsError(msg)
