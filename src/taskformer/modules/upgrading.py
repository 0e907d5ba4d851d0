"""Older checkpoints: without the parameters that networks no longer have.

A part of a network names them in its attribute ``obsolete``. Training goes on from such a checkpoint, too: what the
optimizer has learnt of the others is kept.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import chain, repeat, zip_longest
from typing import Any

from torch import nn


def obsolete_names(module: nn.Module) -> set[str]:
    """List the parameters that older versions of a module had and this one has not."""
    return {
        f"{path}.{name}" if path else name
        for path, part in module.named_modules()
        for name in getattr(part, "obsolete", ())
    }


def forget(content: dict[str, Any], obsolete: Collection[str], groups: Sequence[Collection[str]]) -> None:
    """Take obsolete parameters out of a checkpoint in place: weights, optimizer states, description of the optimizer.

    Args:
        content: The checkpoint, as Lightning restores it.
        obsolete: Names of the parameters.
        groups: Names of today's parameters in each group of the optimizer. An obsolete one was in the group of the
            parameter that preceded it in its own part of the network.
    """
    state: Mapping[str, Any] = content.get("state_dict", {})
    present = [name for name in state if name in obsolete]
    if not present:
        return
    group_of = {name: number for number, names in enumerate(groups) for name in names}
    before = [name for name in state if name in group_of or name in obsolete]  # parameters, in their order of then
    for name in present:
        part = name.rpartition(".")[0]
        group_of[name] = next(group_of[other] for other in before if other in group_of and other.startswith(f"{part}."))
    then = [[name for name in before if group_of[name] == number] for number in range(len(groups))]
    for optimizer in content.get("optimizer_states", ()):
        _renumber(optimizer, then, set(present))
    described = (content.get("optimisation") or {}).get("groups", ())
    for group, names in zip(described, then, strict=False):
        group["parameters"] -= sum(name in obsolete for name in names)
    content["state_dict"] = {name: value for name, value in state.items() if name not in obsolete}


def _renumber(optimizer: dict[str, Any], then: Sequence[Sequence[str]], gone: Collection[str]) -> None:
    """Take parameters out of an optimizer's state, which knows them by number, group after group.

    Groups behind the network's are a balancing method's own.
    """
    kept: dict[int, int] = {}
    for group, names in zip(optimizer["param_groups"], chain(then, repeat(())), strict=False):
        numbers = [number for number, name in zip_longest(group["params"], names) if name not in gone]
        group["params"] = [kept.setdefault(number, len(kept)) for number in numbers]
    optimizer["state"] = {kept[number]: value for number, value in optimizer["state"].items() if number in kept}
