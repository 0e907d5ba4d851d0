"""What a network costs whatever the machine: parameters and multiply-accumulates."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from taskformer.models.adapting import merged

#: Names that networks have for what turns features into maps; all the rest is the backbone.
HEADS = ("head", "heads")


class Cost(NamedTuple):
    """Counts of a network or of a part of it.

    Attributes:
        params: Parameters, with those of adapters.
        macs: Multiply-accumulates for one image: of convolutions, products of matrices and attention, as torch's
            ``FlopCounterMode`` counts them (two operations each); adapters are in the weights, as in exported files.
        frozen: Parameters that do not train.
    """

    params: int
    macs: int
    frozen: int = 0

    @property
    def trained(self) -> int:
        """Parameters that train."""
        return self.params - self.frozen

    def without(self, part: "Cost") -> "Cost":
        """Return what is left without a part."""
        return Cost(self.params - part.params, self.macs - part.macs, self.frozen - part.frozen)


def count(network: nn.Module, image: torch.Tensor) -> dict[str, Cost]:
    """Count a network and its two parts by running it once.

    >>> class Tiny(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.backbone, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1)
    ...
    ...     def forward(self, image):
    ...         return self.head(self.backbone(image))
    >>> for part, cost in count(Tiny(), torch.zeros(1, 3, 10, 20)).items():  # 200 pixels
    ...     print(part, cost.params, cost.macs)
    total 242 46400
    backbone 224 43200
    head 18 3200

    Args:
        network: The network.
        image: One image ``(1, 3, H, W)``.

    Returns:
        ``total``, and ``backbone`` and ``head`` where the network has a part of such a name.
    """
    deployed = merged(network.eval())
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        deployed(image)
    by_module = {name: sum(counts.values()) // 2 for name, counts in counter.get_flop_counts().items()}
    total = _cost(network, by_module.get("Global", 0))
    for name in HEADS:
        if isinstance(part := getattr(network, name, None), nn.Module):
            head = _cost(part, _within(part, f"{type(network).__name__}.{name}", by_module))
            return {"total": total, "backbone": total.without(head), "head": head}
    return {"total": total}


def counts(cost: Cost) -> dict[str, int]:
    """Name a network's counts as results do; how many parameters train is said where not all do.

    >>> counts(Cost(5_000_000, 2_000_000_000, frozen=4_000_000))
    {'parameters': 5000000, 'macs': 2000000000, 'trained_parameters': 1000000}
    """
    trained = {"trained_parameters": cost.trained} if cost.frozen else {}
    return {"parameters": cost.params, "macs": cost.macs} | trained


def _cost(module: nn.Module, macs: int) -> Cost:
    """Count a module's parameters beside its multiply-accumulates."""
    parameters = list(module.parameters())
    frozen = sum(parameter.numel() for parameter in parameters if not parameter.requires_grad)
    return Cost(sum(parameter.numel() for parameter in parameters), macs, frozen)


def _within(module: nn.Module, path: str, by_module: Mapping[str, int]) -> int:
    """Return the multiply-accumulates of a module; of a container that is not called itself, of what is in it."""
    if path in by_module:
        return by_module[path]
    return sum(_within(child, f"{path}.{name}", by_module) for name, child in module.named_children())
