"""How what was measured is shown: names, units and scales."""

from collections.abc import Mapping
from typing import NamedTuple

from taskformer.metrics.units import factor
from taskformer.tasks import Task

#: What a network costs, by name; all of it is known without running the network on images.
COSTS = ("params", "macs", "latency")


class Unit(NamedTuple):
    """How a quantity is shown.

    Attributes:
        label: Its name on an axis, with the unit.
        short: What follows the number in a text.
        scale: What one of the unit is.
    """

    label: str
    short: str
    scale: float


#: Every quantity that is not of a task.
UNITS = {
    "delta_m": Unit("delta_m, %", "% delta_m", 1.0),
    "params": Unit("parameters, millions", "M params", 1e6),
    "macs": Unit("multiply-accumulates per image, billions", "G MACs", 1e9),
    "latency": Unit("latency of one batch, ms", "ms", 1e-3),
}


def unit_of(name: str, tasks: Mapping[str, Task]) -> Unit:
    """Return how a quantity is shown; a task's is its headline metric, of which shares are shown in percent."""
    if name in UNITS:
        return UNITS[name]
    metric = tasks[name].headline
    unit = tasks[name].units.get(metric, "")
    label = f"{name} {metric}, {unit}" if unit else f"{name} {metric}"
    return Unit(label, f"{unit} {name}", 1 / factor(unit))


def describe(values: Mapping[str, float]) -> str:
    """Put what is known of a network's costs and its delta_m into words."""
    known = [(UNITS[name], value) for name, value in values.items() if name in UNITS]
    return ", ".join(f"{value / unit.scale:.4g} {unit.short}" for unit, value in known)
