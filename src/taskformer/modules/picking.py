"""Which sub-network of a supernet fits a budget: the best that a search has found, else the nearest of random ones."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, TypeVar

from taskformer.errors import ConfigError, CorruptFileError, require
from taskformer.models.autotaskformer import Architecture, SearchSpace, Supernet
from taskformer.modules.base import MultiTaskModule
from taskformer.modules.quantities import COSTS, describe
from taskformer.modules.timing import latencies

#: Random sub-networks among which one is chosen where nothing was searched.
DRAWN = 1000
#: Sub-networks of which latency is measured.
MEASURED = 16

Item = TypeVar("Item")


class Choice(NamedTuple):
    """A sub-network that was chosen.

    >>> print(Choice("random-0007", Architecture(64, 1, (2.0,), (1,)), {"params": 1.2e6, "macs": 3.4e8}))
    random-0007: 1.2 M params, 0.34 G MACs

    Attributes:
        name: Its name in the search's front, or which random one it is.
        architecture: What it is.
        costs: Its parameters, multiply-accumulates for one image of the training's size and, if it was measured, the
            seconds that this takes here, by their names in :data:`~taskformer.modules.quantities.COSTS`.
    """

    name: str
    architecture: Architecture
    costs: Mapping[str, float]

    def __str__(self) -> str:
        return f"{self.name}: {describe(self.costs)}"


def choose(
    module: MultiTaskModule,
    run: str | Path | None = None,
    params: float | None = None,
    macs: float | None = None,
    latency: float | None = None,
) -> Choice:
    """Choose a sub-network that costs no more than a budget, and switch the supernet to it.

    Where a search of the run has left a front, ``RUN/search/pareto.json``, it is the best network on it by what the
    search improved. Else it is the one of :data:`DRAWN` random ones that comes nearest to what limits it most.

    Args:
        module: A supernet.
        run: The run folder whose search is asked; None: the one that the model was loaded from, if it was.
        params: Most parameters.
        macs: Most multiply-accumulates for one image of the training's size.
        latency: Most seconds for one such image, measured now, where the model is, on up to :data:`MEASURED` networks
            that keep the other limits.

    Raises:
        ConfigError: If the model is no supernet, or no candidate keeps the limits.
        CorruptFileError: If the front cannot be read.
    """
    limits = {name: most for name, most in zip(COSTS, (params, macs, latency), strict=True) if most is not None}
    require("(0, inf)", **limits)
    supernet = module.network
    if not isinstance(supernet, Supernet):
        msg = f"only a supernet has sub-networks to choose from, and this is a {type(module).__name__} of one size"
        raise ConfigError(msg)
    size: tuple[int, int] = tuple(module.hparams["image_size"])
    folder = module.run_folder if run is None else Path(run)
    searched = {} if folder is None else _front(folder, len(module.tasks))
    choices = [
        Choice(name, each, {"params": supernet.count_parameters(each), "macs": supernet.count_macs(each, size)})
        for name, each in (searched or _drawn(supernet.space)).items()
    ]
    if not searched:
        choices.sort(key=lambda choice: choice.costs["macs"])
    fitting = _within(limits, choices)
    if latency is not None:
        fitting = _within(limits, _measured(supernet, size, spread(fitting, MEASURED)))

    def nearness(choice: Choice) -> float:
        return max((choice.costs[name] / most for name, most in limits.items()), default=choice.costs["macs"])

    chosen = fitting[0] if searched else max(fitting, key=nearness)
    supernet.set(chosen.architecture)
    return chosen


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """Choose up to ``count`` items, evenly in their order: the first, and with two or more also the last.

    >>> spread("abcdefg", 3)
    ['a', 'd', 'g']
    """
    last = len(items) - 1
    places = {round(place * last / max(count - 1, 1)) for place in range(count)}
    return [items[place] for place in sorted(places)] if items else []


def _front(run: Path, num_tasks: int) -> dict[str, Architecture]:
    """Return the networks of a search's front by name, the best first; none where nothing was searched."""
    file = run / "search" / "pareto.json"
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        objectives: dict[str, str] = content["objectives"]
        rows: list[dict[str, Any]] = content["front"]
        quality = next((name for name in objectives if name not in COSTS), "delta_m")
        best_first = objectives.get(quality, "maximize") == "maximize"
        rows.sort(key=lambda row: row["values"][quality], reverse=best_first)
        files = {row["name"]: file.parent / row["file"] for row in rows}
    except (KeyError, TypeError, ValueError) as error:
        msg = f"{file} is not the front that `taskformer search` writes ({error!r}); search again, or remove it"
        raise CorruptFileError(msg) from error
    return {name: Architecture.read(str(path), num_tasks) for name, path in files.items()}


def _drawn(space: SearchSpace) -> dict[str, Architecture]:
    """Draw random sub-networks, always the same ones: those that share much, little and all between; and the ends."""
    rng = Random(0)
    drawn = {f"random-{number:04d}": space.random(rng, split=rng.random()) for number in range(DRAWN)}
    return {"smallest": space.smallest(), **drawn, "largest": space.largest()}


def _measured(supernet: Supernet, size: tuple[int, int], choices: Sequence[Choice]) -> list[Choice]:
    """Measure the latency of sub-networks."""
    seconds = latencies(supernet, [each.architecture for each in choices], size)
    return [each._replace(costs={**each.costs, "latency": time}) for each, time in zip(choices, seconds, strict=True)]


def _within(limits: Mapping[str, float], choices: Sequence[Choice]) -> list[Choice]:
    """Return the choices that keep the limits on all costs that are known.

    Raises:
        ConfigError: If there is none; says what the least would be.
    """
    known = [name for name in limits if name in choices[0].costs]
    fitting = [each for each in choices if all(each.costs[name] <= limits[name] for name in known)]
    if not fitting:
        least = {name: min(each.costs[name] for each in choices) for name in known}
        msg = f"no sub-network has at most {describe(limits)}; the least of {len(choices)} are {describe(least)}"
        raise ConfigError(msg)
    return fitting
