"""What a network costs whatever the machine: parameters and multiply-accumulates."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

#: Names that networks have for what turns features into maps; all the rest is the backbone.
HEADS = ("head", "heads")


class Cost(NamedTuple):
    """Counts of a network or of a part of it.

    Attributes:
        params: Parameters.
        macs: Multiply-accumulates for one image: of convolutions, products of matrices and attention, as torch's
            ``FlopCounterMode`` counts them (two operations each).
    """

    params: int
    macs: int

    def without(self, part: "Cost") -> "Cost":
        """Return what is left without a part."""
        return Cost(self.params - part.params, self.macs - part.macs)


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
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network.eval()(image)
    by_module = {name: sum(counts.values()) // 2 for name, counts in counter.get_flop_counts().items()}
    total = Cost(_parameters(network), by_module.get("Global", 0))
    for name in HEADS:
        if isinstance(part := getattr(network, name, None), nn.Module):
            head = Cost(_parameters(part), _within(part, f"{type(network).__name__}.{name}", by_module))
            return {"total": total, "backbone": total.without(head), "head": head}
    return {"total": total}


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _within(module: nn.Module, path: str, by_module: Mapping[str, int]) -> int:
    """Return the multiply-accumulates of a module; of a container that is not called itself, of what is in it."""
    if path in by_module:
        return by_module[path]
    return sum(_within(child, f"{path}.{name}", by_module) for name, child in module.named_children())
