"""How long a sub-network takes on this device, without running it: a table of its parts' measured times.

A prediction adds up the times of all calls of units, which depend on the width, on the heads or hidden channels, and on
how many activation streams run side by side. What else a network does, stem and heads, is what is left of the time of a
network of one layer when its two units are taken away. On their own parts find their weights and inputs in the
processor's caches; how much slower they are in a whole network is measured on a few of those.
"""

import json
import math
import platform
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from random import Random
from statistics import fmean, median
from typing import Any, Self

import torch
from torch import Tensor

from taskformer.errors import ConfigError
from taskformer.files import write_json
from taskformer.models.autotaskformer import Architecture, SearchSpace, Supernet
from taskformer.models.autotaskformer.architecture import DecoderSize
from taskformer.models.autotaskformer.layers import Grid
from taskformer.models.autotaskformer.subnet import Subnet, Unit, schedule
from taskformer.modules.timing import best_times
from taskformer.search.costs import LatencyOptions
from taskformer.search.study import SearchStudy

#: Whole networks that the sums of parts are scaled by.
WHOLE = 8
#: Entry of the table: time of a whole network over the sum of its parts.
SCALE = "scale"
#: Random sub-networks that are run as a whole to check a search's table.
CHECKED = 30


@dataclass(frozen=True)
class LatencyTable:
    """Predicts the time of sub-networks, once :meth:`measure` or :meth:`load` has filled it.

    Args:
        supernet: The supernet.
        space: The sub-networks that are predicted.
        batch: Images at a time.
        size: Height and width of the images.
        device: Where networks run.
        seconds: Time of each part by name.
    """

    supernet: Supernet
    space: SearchSpace
    batch: int
    size: tuple[int, int]
    device: torch.device
    seconds: Mapping[str, float]

    @classmethod
    def measure(
        cls, supernet: Supernet, space: SearchSpace, batch: int, size: tuple[int, int], device: str | torch.device
    ) -> Self:
        """Measure all parts, which takes seconds to a minute. Arguments as of the class."""
        table = cls(supernet, space, batch, size, torch.device(device), {})
        table = replace(table, seconds={SCALE: 1.0} | table._times(table._parts()))
        return replace(table, seconds={**table.seconds, SCALE: _ratio(table._compared(table._scaled_by()))})

    @classmethod
    def cached(
        cls,
        folder: Path,
        supernet: Supernet,
        space: SearchSpace,
        batch: int,
        size: tuple[int, int],
        device: str | torch.device,
    ) -> Self:
        """Load the table of these conditions from a folder, or measure it and save it there."""
        table = cls(supernet, space, batch, size, torch.device(device), {})
        path = folder / f"latency_{_digest(json.dumps(table.conditions()))}.json"
        if path.is_file():
            return table.load(path)
        measured = cls.measure(supernet, space, batch, size, device)
        measured.save(path)
        return measured

    def load(self, path: Path) -> Self:
        """Return this table with the times of a file.

        Raises:
            ConfigError: If they were measured under other conditions.
        """
        saved = json.loads(path.read_text(encoding="utf-8"))
        different = [key for key, value in self.conditions().items() if saved["conditions"].get(key) != value]
        if different:
            msg = f"the latencies in {path} are of another {', '.join(different)}; delete the file to measure again"
            raise ConfigError(msg)
        return replace(self, seconds=saved["seconds"])

    def save(self, path: Path) -> None:
        """Write times and conditions as JSON."""
        write_json(path, {"conditions": self.conditions(), "seconds": dict(self.seconds)})

    def conditions(self) -> dict[str, Any]:
        """Describe all that the times depend on, in plain types."""
        cuda = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name(self.device) if cuda else f"{self.device.type} of {platform.node()}",
            "dtype": str(self.supernet.norm.weight.dtype),
            "torch": str(torch.__version__),
            "threads": torch.get_num_threads(),
            "batch": self.batch,
            "size": list(self.size),
            "space": repr(self.space),
            "network": _digest(f"{self.supernet.patch_size} {self.supernet.tasks} {self.supernet}"),
        }

    def predict(self, architecture: Architecture) -> float:
        """Return the seconds that a sub-network takes for one batch.

        Raises:
            ConfigError: If it has a unit that the space does not have.
        """
        thin = self._thin(architecture.embed_dim, architecture.decoder)
        try:
            frame = self.seconds[_whole(thin)] - self._in_units(thin)
            return self.seconds[SCALE] * (frame + self._in_units(architecture))
        except KeyError as error:
            msg = f"the latency of {error} was not measured: only sub-networks of the search space are predicted"
            raise ConfigError(msg) from error

    def check(self, n: int = 30, seed: int = 0) -> float:
        """Compare with random sub-networks that are run as a whole.

        The machine may be slower for minutes than when the table was measured. The networks that the table was scaled
        by therefore run again beside the others, and predictions are taken at the speed of the moment.

        Args:
            n: How many.
            seed: Which ones.

        Returns:
            The mean absolute error of the predictions in percent.
        """
        rng = Random(seed)
        scaled_by = self._scaled_by()
        pairs = self._compared([*scaled_by, *(self.space.random(rng) for _ in range(n))])
        speed = _ratio(pairs[: len(scaled_by)])
        return 100 * fmean(abs(speed * predicted / seconds - 1) for predicted, seconds in pairs[len(scaled_by) :])

    def _scaled_by(self) -> list[Architecture]:
        """Return the sub-networks that run as a whole to scale the sums of parts."""
        rng = Random(1)
        return [self.space.random(rng) for _ in range(WHOLE)]

    def _compared(self, architectures: Sequence[Architecture]) -> list[tuple[float, float]]:
        """Predict and measure the seconds of sub-networks."""
        image = self._image()
        networks = [self._extract(architecture) for architecture in architectures]
        measured = self._times({str(index): partial(network, image) for index, network in enumerate(networks)})
        return [(self.predict(one), seconds) for one, seconds in zip(architectures, measured.values(), strict=True)]

    def _times(self, calls: Mapping[str, Callable[[], object]]) -> dict[str, float]:
        """Measure the seconds that each call takes, at best."""
        return best_times(calls, self.device)

    def _parts(self) -> dict[str, Callable[[], object]]:
        """Return what is measured: for each width and decoder a network of one layer, and every unit on its own."""
        image = self._image()
        parts: dict[str, Callable[[], object]] = {}
        for width in self.space.embed_dims:
            thin = self._thin(width, self.space.decoders()[0])
            tokens, grid = self._tokens(width)
            for decoder in self.space.decoders():
                network = self._thin(width, decoder)
                parts[_whole(network)] = partial(self._extract(network), image)
            attentions = [replace(thin, num_heads=(heads,)) for heads in self.space.num_heads]
            mlps = [replace(thin, mlp_ratio=(ratio,)) for ratio in self.space.mlp_ratios]
            for unit, layers in enumerate((attentions, mlps)):
                for layer in layers:
                    module = self._extract(layer).units[unit].get_submodule("0")
                    for streams in self._stream_counts():
                        parts[_unit(layer, unit, streams)] = partial(_run, module, tokens, streams, grid)
        return parts

    def _in_units(self, architecture: Architecture) -> float:
        """Add up the times of a sub-network's units."""
        return sum(
            self.seconds[_unit(architecture, unit, len(parents))]
            for unit, step in enumerate(schedule(architecture, len(self.supernet.tasks)))
            for _, parents in step.calls
        )

    def _thin(self, width: int, decoder: DecoderSize) -> Architecture:
        """Describe a sub-network of one layer."""
        return Architecture(width, 1, self.space.mlp_ratios[:1], self.space.num_heads[:1], (), *decoder)

    def _extract(self, architecture: Architecture) -> Subnet:
        return self.supernet.extract(architecture).to(self.device).eval()

    def _image(self) -> Tensor:
        dtype = self.supernet.norm.weight.dtype
        return torch.zeros(self.batch, 3, *self.size, device=self.device, dtype=dtype)

    def _tokens(self, width: int) -> tuple[Tensor, Grid]:
        """Return tokens of one stream and their grid."""
        rows, columns = (math.ceil(side / self.supernet.patch_size) for side in self.size)
        prefix = self.supernet.stem.prefix
        tokens = torch.randn(self.batch, prefix + rows * columns, width).to(self._image())
        return tokens, Grid.of(rows, columns, self.supernet.max_relative, like=tokens, prefix=prefix)

    def _stream_counts(self) -> Collection[int]:
        """Return how many streams may run through one copy of a unit: those of a tree never meet again."""
        tasks = len(self.supernet.tasks)
        return {"binary": {1, tasks}, "grouped": range(1, tasks + 1)}.get(self.space.sharing, {1})


def shared_table(
    memory: SearchStudy, supernet: Supernet, options: LatencyOptions, size: tuple[int, int], folder: Path
) -> tuple[LatencyTable, float | None]:
    """Return the one table of latencies that all processes of a search use.

    Args:
        memory: The study, in which the times are kept.
        supernet: The supernet.
        options: How latency is measured.
        size: Height and width of the validation images.
        folder: Where the table is kept, to be loaded again under the same conditions.

    Returns:
        The table, and its mean error on random sub-networks in percent if this call has measured it.
    """
    device = torch.device(options.device or next(supernet.parameters()).device)
    of = (supernet, supernet.space, options.batch_size, options.size or size, device)
    memory.agree("latency_of", [options.batch_size, list(options.size or size), device.type])
    errors: list[float] = []

    def measure() -> dict[str, float]:
        table = LatencyTable.cached(folder, *of)
        errors.append(table.check(CHECKED))
        return dict(table.seconds)

    table = LatencyTable(*of, memory.shared("latency", measure))
    return table, errors[0] if errors else None


def _run(unit: Unit, tokens: Tensor, streams: int, grid: Grid) -> object:
    """Run a unit on some streams side by side, as networks do."""
    return unit(tokens, grid) if streams == 1 else unit(torch.cat([tokens] * streams), grid).chunk(streams)


def _ratio(pairs: Sequence[tuple[float, float]]) -> float:
    """Return by how much measured times exceed predicted ones."""
    return median(seconds / predicted for predicted, seconds in pairs)


def _whole(architecture: Architecture) -> str:
    return f"network of one layer, width {architecture.embed_dim}, decoder {list(architecture.decoder)}"


def _unit(architecture: Architecture, unit: int, streams: int) -> str:
    """Name a call of a unit by all that its time depends on."""
    inner = f"{'hidden' if unit % 2 else 'heads'} {architecture.unit_widths[unit]}"
    return f"width {architecture.embed_dim}, {inner}, streams {streams}"


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:12]
