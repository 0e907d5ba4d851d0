"""From a configuration to an optimizer and its schedule, and back to them when a training goes on.

A checkpoint holds what the optimizer has learnt (its moments) and how it was configured. When a training goes on, the
first is restored, the second is what the command line says *now*: torch and Lightning would restore both.
"""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from taskformer.errors import ConfigError
from taskformer.modules.schedules import set_closed_form

#: Which parameters decay: matrices and kernels only, or all, as in some published recipes.
DecayOn = Literal["weights", "all"]


def parameter_groups(
    parameters: Iterable[tuple[str, nn.Parameter]], rates: Mapping[str, float], spared: Iterable[str], decay_on: DecayOn
) -> list[dict[str, Any]]:
    """Split parameters by learning rate and weight decay.

    Args:
        parameters: Names and parameters.
        rates: Learning rate of each over the optimizer's, where it is not 1.
        spared: Names of parameters that never decay whatever their shape: queries, positions, tokens, tables.
        decay_on: ``"weights"``: neither norms nor biases (vectors) nor those ``spared`` decay; ``"all"``: all decay.

    Returns:
        Groups as optimizers take them, with their rate over the optimizer's as ``lr_scale``.
    """
    spared = frozenset(spared)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        decays = decay_on == "all" or (parameter.ndim >= 2 and name not in spared)
        groups.setdefault((rates.get(name, 1.0), decays), []).append(parameter)
    return [
        {"params": members, "lr_scale": rate, **({} if decays else {"weight_decay": 0.0})}
        for (rate, decays), members in groups.items()
    ]


def rates_by_name(optimizer: Optimizer) -> dict[str, float]:
    """Return the present learning rates: ``lr`` of the groups at the optimizer's own, ``lr/x0.3`` of others."""
    scales = [(group.get("lr_scale", 1.0), group["lr"]) for group in optimizer.param_groups]
    return {"lr" if scale == 1.0 else f"lr/x{scale:.3g}": rate for scale, rate in scales}


def configuration(optimizer: Optimizer, scheduler: LRScheduler | None) -> dict[str, Any]:
    """Describe a fresh optimizer and schedule in plain types: their classes and the settings of their constructors."""
    names = set(_arguments(optimizer)) - {"params", "lr"}
    return {
        "optimizer": type(optimizer).__name__,
        "groups": [
            {key: _plain(value) for key, value in group.items() if key in names}
            | {"lr": group.get("initial_lr", group["lr"]), "parameters": len(group["params"])}
            for group in optimizer.param_groups
        ],
        "lr_scheduler": type(scheduler).__name__ if scheduler else None,
        "schedule": {
            key: _plain(getattr(scheduler, key))
            for key in (_arguments(scheduler) if scheduler else ())
            if key not in ("optimizer", "last_epoch", "lr_lambda") and hasattr(scheduler, key)
        },
    }


def require_same_kind(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with another optimizer, schedule or grouping of parameters than the training began with.

    Raises:
        ConfigError: If they differ; what was learnt would not fit.
    """
    for key in ("optimizer", "lr_scheduler"):
        if saved[key] != now[key]:
            msg = (
                f"the training was begun with the {key} {saved[key]}, the configuration now says {now[key]}; go on "
                "with the same, or begin a new run from its weights"
            )
            raise ConfigError(msg)
    sizes = [[group["parameters"] for group in each["groups"]] for each in (saved, now)]
    if sizes[0] != sizes[1]:
        msg = (
            f"the training was begun with groups of {sizes[0]} parameters, the configuration now makes {sizes[1]}; "
            "rate scales, weight_decay_on and balancing cannot change within a run"
        )
        raise ConfigError(msg)


def reconfigure(
    optimizer: Optimizer, scheduler: LRScheduler | None, saved: Mapping[str, Any], now: Mapping[str, Any]
) -> list[str]:
    """Give a restored optimizer and schedule the present configuration where it differs from the one saved.

    Returns:
        What changed, one phrase each; nothing is touched where nothing differs.
    """
    changes: dict[str, tuple[Any, Any]] = {}
    for group, old, new in zip(optimizer.param_groups, saved["groups"], now["groups"], strict=True):
        for key in new:
            if new[key] != old.get(key):
                changes[key] = (old.get(key), new[key])
                group["initial_lr" if key == "lr" and scheduler else key] = new[key]
    for key, value in now["schedule"].items():
        if value != saved["schedule"].get(key):
            changes[key] = (saved["schedule"].get(key), value)
            setattr(scheduler, key, value)
    if changes and scheduler:
        bases = [group["lr"] for group in now["groups"]]
        _set_rates(scheduler, list(map(float, scheduler.base_lrs)), bases)
    return [f"{key} {old} -> {new}" for key, (old, new) in changes.items()]


def lay_out_as_parameters(optimizer: Optimizer) -> None:
    """Let restored moments lie in memory as their parameters do, and step counts where a fused step looks for them.

    They come from a checkpoint as they were there; a fused step takes moments in another order for its own, or refuses.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            for key, value in state.items():
                if key == "step" and group.get("fused"):
                    state[key] = value.to(parameter.device)
                elif (
                    isinstance(value, Tensor)
                    and value.shape == parameter.shape
                    and value.stride() != parameter.stride()
                ):
                    state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _set_rates(scheduler: LRScheduler, old: Sequence[float], new: Sequence[float]) -> None:
    """Set the rates of the schedule's present step for other peak rates."""
    scheduler.base_lrs = list(new)
    if isinstance(scheduler, LambdaLR):
        set_closed_form(scheduler)
        return
    # The others are computed from the rate before.
    for group, before, after in zip(scheduler.optimizer.param_groups, old, new, strict=True):
        group["lr"] = group["lr"] * after / before if before else after


def _arguments(instance: object) -> list[str]:
    """Names of the arguments of an object's constructor."""
    return list(inspect.signature(type(instance)).parameters)


def _plain(value: Any) -> Any:
    """Return a value that a checkpoint can hold: plain, or else its text."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
