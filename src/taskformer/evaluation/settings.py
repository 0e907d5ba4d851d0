"""How the settings in which runs differ are written where people read them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

#: The setting that tells runs of the same settings apart.
SEED = "seed_everything"


def without_seed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that runs of different seeds have in common."""
    return {name: value for name, value in settings.items() if name != SEED}


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Return the last parts of each name, as many as tell it apart; settings of a class go by their own names.

    Example:
        >>> short_names(["model.init_args.optimizer.init_args.lr", "model.init_args.scales", "config"])
        {'model.init_args.optimizer.init_args.lr': 'lr', 'model.init_args.scales': 'scales', 'config': 'config'}
        >>> list(short_names(["model.lr", "head.lr"]).values())
        ['model.lr', 'head.lr']
    """
    parts = {name: [part for part in name.split(".") if part != "init_args"] for name in names}
    longest = max(map(len, parts.values()), default=0)
    for length in range(1, longest + 1):
        short = {name: ".".join(own[-length:]) for name, own in parts.items()}
        if len(set(short.values())) == len(short):
            return short
    return {name: name for name in names}


def text_of(value: Any) -> str:
    """Write a setting's value in a table: numbers short, files by their names.

    Example:
        >>> text_of(0.00123456), text_of("configs/model/mqtransformer.yaml"), text_of(["a/b.yaml", "c.yaml"])
        ('0.001235', 'mqtransformer', 'b + c')
        >>> text_of({"scales": [4, 8]})
        'scales=[4, 8]'
    """
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str) and value.endswith((".yaml", ".yml")):
        return Path(value).stem
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return " + ".join(map(text_of, value))
    if isinstance(value, dict):
        return ", ".join(f"{name}={text_of(item)}" for name, item in value.items())
    return str(value)
