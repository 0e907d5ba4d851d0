"""Data modules from what a person names: a data set, a YAML file, or the run that was trained on it."""

from pathlib import Path
from typing import Any

import yaml

from taskformer.data.datamodules import MultiTaskDataModule, data_modules
from taskformer.errors import ConfigError, UnknownNameError
from taskformer.parsing import Parser, read_layers


def data_module(source: str | Path, **chosen: Any) -> MultiTaskDataModule:
    """Build a data module.

    Args:
        source: Short name of a data set, e.g. ``"rooms"``; a YAML file with a ``data`` block, e.g.
            ``configs/data/nyud.yaml``; or a run folder, for the data that its model was trained on.
        **chosen: Options of the data module that win over those of a file, e.g. ``root`` or ``batch_size``.

    Returns:
        The data module, as ``taskformer fit`` would build it.

    Raises:
        UnknownNameError: If there is neither such a data set nor such a file.
        ConfigError: If a file has no ``data`` block, or an option is missing or wrong.

    Example:
        >>> data_module("rooms", batch_size=2).batch_size
        2
    """
    known = data_modules()
    if source not in known:
        return _from_yaml(_file(source), chosen)
    try:
        return known[str(source)](**chosen)
    except TypeError as error:
        msg = f"the data set {source!r} needs options that only a YAML file can give ({error})"
        raise ConfigError(msg) from error


def list_datasets() -> list[str]:
    """Return the short names of all data sets, those of your own too if their files have been imported.

    Example:
        >>> {"cityscapes", "nyud", "rooms"} <= set(list_datasets())
        True
    """
    return sorted(data_modules())


def training_size(data: MultiTaskDataModule) -> tuple[int, int] | None:
    """Return the height and width of the training images, if the options say them.

    Example:
        >>> training_size(data_module("rooms", size=(96, 128)))
        (96, 128)
    """
    sizes = [(getattr(step, "height", None), getattr(step, "width", None)) for step in data.train_transforms]
    known = [(height, width) for height, width in sizes if height and width]
    return known[-1] if known else data.size


def _file(source: str | Path) -> Path:
    """Return the YAML file that a source means."""
    path = Path(source)
    file = path / "config.yaml" if path.is_dir() else path
    if not path.exists() and len(path.parts) == 1 and not path.suffix:
        kind = "data set"
        raise UnknownNameError(kind, str(source), data_modules())
    if not file.is_file():
        msg = f"{file} does not exist; give the name of a data set, a YAML file with a `data` block, or a run folder"
        raise ConfigError(msg)
    return file


def _from_yaml(path: Path, chosen: dict[str, Any]) -> MultiTaskDataModule:
    """Build the data module of a configuration's ``data`` block."""
    try:
        block = read_layers(path)["data"]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError) as error:
        msg = f"{path} is not a YAML file with a `data` block ({type(error).__name__}: {' '.join(str(error).split())})"
        raise ConfigError(msg) from error
    block = {"class_path": block} if isinstance(block, str) else block
    block["init_args"] = (block.get("init_args") or {}) | chosen
    parser = Parser(prog="taskformer fit")  # whose --data.help explains the options
    parser.add_subclass_arguments(MultiTaskDataModule, "data")
    module: MultiTaskDataModule = parser.instantiate(parser.parse_object({"data": block})).data
    return module
