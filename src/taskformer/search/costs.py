"""What sub-networks cost: parameters, multiply-accumulates and, where a search asks for it, latency."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from taskformer.errors import ConfigError
from taskformer.models.autotaskformer import Architecture, Supernet
from taskformer.search.objectives import Constraint

#: What an architecture costs, by name.
Costs = Callable[[Architecture], dict[str, float]]


@dataclass(frozen=True)
class LatencyOptions:
    """How latency is measured, where an objective or a constraint needs it.

    >>> LatencyOptions(batch_size=8, size=(480, 640))  # eight images of 480x640 pixels where the search runs
    LatencyOptions(device=None, batch_size=8, size=(480, 640))

    Args:
        device: ``cpu``, ``cuda``, ...; null: where the search runs.
        batch_size: Images at a time.
        size: Height and width of the images; null: those of the validation images.
    """

    device: str | None = None
    batch_size: int = 1
    size: tuple[int, int] | None = None


def count_costs(
    supernet: Supernet, size: tuple[int, int], latency: Callable[[Architecture], float] | None = None
) -> Costs:
    """Return a function that counts the costs of a supernet's sub-networks, of each only once.

    Args:
        supernet: The supernet.
        size: Height and width of the images.
        latency: Predicts a sub-network's; None: it is not among the costs.
    """

    @cache
    def costs(architecture: Architecture) -> dict[str, float]:
        counted: dict[str, float] = {
            "params": supernet.count_parameters(architecture),
            "macs": supernet.count_macs(architecture, size),
        }
        return counted if latency is None else counted | {"latency": latency(architecture)}

    return costs


def require_possible(constraints: Sequence[Constraint], supernet: Supernet, costs: Costs) -> None:
    """Refuse constraints that neither the smallest nor the largest sub-network nor any between them can meet.

    Raises:
        ConfigError: Names the constraint and what there is.
    """
    smallest, largest = costs(supernet.space.smallest()), costs(supernet.space.largest())
    for each in constraints:
        low, high = smallest[each.name], largest[each.name]
        if each.high < low or each.low > high:
            msg = (
                f"no sub-network has {each.name} in [{each.low:.4g}, {each.high:.4g}]: "
                f"the smallest has {low:.4g}, the largest {high:.4g}"
            )
            raise ConfigError(msg)
