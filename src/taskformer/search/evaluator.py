"""Scoring many sub-networks of a supernet on the same images, each computation done once.

Images are decoded and moved to the device once, and what metrics need of the targets is computed once. In a
set of sub-networks those of one width that begin with the same units have the same activations there. Sub-networks are
therefore run in an order that puts them side by side, each keeping what the next one needs. Those that are hopeless
after some of the images are not run on the rest.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from taskformer.errors import ConfigError
from taskformer.metrics import delta_m
from taskformer.models.autotaskformer import Architecture, Supernet
from taskformer.models.autotaskformer.layers import Grid
from taskformer.models.autotaskformer.subnet import Passed, Run, Step, Unit, passed, schedule
from taskformer.search.headlines import Prepared, headline
from taskformer.tasks import Task

Batch = Mapping[str, Any]
#: Tells whether a sub-network stops, given its delta_m on the images of the first batch, of the first two, and so on.
Stop = Callable[[Architecture, Sequence[float]], bool]
#: For each task, its headline metric's sums over batches.
Sums = dict[str, Tensor]


def never(*_: object) -> bool:
    """Stop no sub-network."""
    return False


@dataclass(frozen=True)
class Result:
    """How one sub-network did.

    Attributes:
        tasks: Headline metric by task, on all images that were used.
        course: Mean relative improvement over the reference in percent, delta_m, on the images of the first batch, of
            the first two, and so on.
        complete: Whether all images were used.
    """

    tasks: dict[str, float]
    course: tuple[float, ...]
    complete: bool

    @property
    def delta_m(self) -> float:
        """delta_m on all images that were used."""
        return self.course[-1]


class _Memory:
    """Tokens of streams by what they have passed, kept as long as a sub-network needs them."""

    def __init__(self) -> None:
        self._tokens: dict[Passed, Tensor] = {}

    def runner(self, streams: Sequence[tuple[Passed, ...]], needed: Collection[Passed]) -> Run:
        """Return a function that runs a sub-network's units, only those that have not run before.

        Args:
            streams: What its streams have passed after the stem and after each unit.
            needed: What the next sub-network needs.
        """
        following = iter(streams)

        def run(copies: Mapping[int, Unit], step: Step, incoming: Sequence[Tensor], grid: Grid) -> list[Tensor]:
            outgoing = next(following)
            calls = [(copy, parent) for copy, parents in step.calls for parent in parents]
            for stream, (copy, parent) in zip(outgoing, calls, strict=True):
                # Alone, whichever others there are, so that its numbers are always the same.
                if stream not in self._tokens:
                    self._tokens[stream] = copies[copy](incoming[parent], grid)
            tokens = [self._tokens[stream] for stream in outgoing]
            done = len(outgoing[0])
            self._tokens = {each: x for each, x in self._tokens.items() if len(each) > done or each in needed}
            return tokens

        return run


class _Images(NamedTuple):
    """One batch, prepared.

    Attributes:
        image: ``(B, 3, H, W)``.
        targets: What is needed of each task's targets.
    """

    image: Tensor
    targets: dict[str, Prepared]


class Evaluator:
    """Measure sub-networks with the weights that they inherit.

    Results depend on the sub-network alone, to the bit, and not on which others are evaluated with it.

    Args:
        supernet: The trained supernet, on the device to use; it is put into evaluation mode.
        tasks: Its tasks by name.
        batches: Batches of the data module's validation loader; kept.
        reference: Headline metric of each task that delta_m is measured against; None: those of the largest
            sub-network.
        weights: Weights of tasks in delta_m; None: all 1.

    Attributes:
        reference: The reference.

    Raises:
        ConfigError: If there is no batch, or delta_m cannot be measured against the reference.
    """

    def __init__(
        self,
        supernet: Supernet,
        tasks: Mapping[str, Task],
        batches: Sequence[Batch],
        reference: Mapping[str, float] | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        if not batches:
            msg = "there are no validation images to score sub-networks on"
            raise ConfigError(msg)
        self.supernet = supernet.eval()
        self.tasks = dict(tasks)
        self.weights = weights
        self._headlines = {name: headline(task) for name, task in tasks.items()}
        self._batches = [self._prepared(batch) for batch in batches]
        self.reference = self._largest() if reference is None else dict(reference)
        self._delta_m(self.reference)  # complains if it cannot be computed

    @torch.inference_mode()
    def evaluate(self, architectures: Sequence[Architecture], stop: Stop = never) -> list[Result]:
        """Score sub-networks.

        Args:
            architectures: The sub-networks.
            stop: Asked after each batch but the last; a sub-network that stops is not run on the rest.

        Returns:
            Their results in the same order.

        Raises:
            ConfigError: If an architecture does not fit the supernet.
        """
        for architecture in architectures:
            self.supernet.count_parameters(architecture)  # refuses what does not fit
        sums: list[Sums] = [{} for _ in architectures]
        courses: list[list[float]] = [[] for _ in architectures]
        running = list(range(len(architectures)))
        for number, batch in enumerate(self._batches):
            if number:
                running = [index for index in running if not stop(architectures[index], courses[index])]
            self._add(sums, architectures, running, batch)
            for index in running:
                courses[index].append(self._delta_m(self._values(sums[index])))
        return [
            Result(self._values(each), tuple(course), complete=len(course) == len(self._batches))
            for each, course in zip(sums, courses, strict=True)
        ]

    def _prepared(self, batch: Batch) -> _Images:
        """Move a batch to the supernet's device, and do what its targets allow."""
        parameter = self.supernet.norm.weight
        image = batch["image"].to(parameter)
        targets = {}
        for name, scores in self._headlines.items():
            task = self.tasks[name]
            shape = () if task.geometry == "image" else image.shape[-2:]
            like = torch.empty(len(image), task.channels, *shape, device="meta")  # what an output would look like
            targets[name] = scores.prepare(task.check(batch["targets"][name].to(image.device), like))
        return _Images(image, targets)

    def _largest(self) -> dict[str, float]:
        """Score the largest sub-network."""
        sums: list[Sums] = [{}]
        with torch.inference_mode():
            for batch in self._batches:
                self._add(sums, [self.supernet.space.largest()], [0], batch)
        return self._values(sums[0])

    def _delta_m(self, values: Mapping[str, float]) -> float:
        senses = {name: task.higher_is_better for name, task in self.tasks.items()}
        try:
            return delta_m(values, self.reference, senses, self.weights)
        except ValueError as error:
            msg = f"delta_m needs the headline metric of every task to compare with: {error}"
            raise ConfigError(msg) from error

    def _add(
        self,
        sums: Sequence[Sums],
        architectures: Sequence[Architecture],
        chosen: Sequence[int],
        batch: _Images,
    ) -> None:
        """Add the metrics' sums on one batch for the chosen sub-networks."""
        order = sorted(chosen, key=lambda index: self._order(architectures[index]))
        outputs = self._outputs(batch, [architectures[index] for index in order])
        for index, maps in zip(order, outputs, strict=True):
            for name, scores in self._headlines.items():
                new = scores.sums(maps[name].float(), batch.targets[name])
                sums[index][name] = sums[index].get(name, 0) + new

    def _values(self, sums: Sums) -> dict[str, float]:
        return {name: float(scores.value(sums[name])) for name, scores in self._headlines.items()}

    def _outputs(self, batch: _Images, architectures: Sequence[Architecture]) -> Iterator[dict[str, Tensor]]:
        """Predict one batch with sub-networks in turn: ``(B, C_task, H, W)``, or ``(B, C_task)``."""
        memory = _Memory()
        tasks = len(self.supernet.tasks)
        streams = [passed(each, schedule(each, tasks), self.supernet.units_of(each.depth)) for each in architectures]
        for architecture, own, following in zip(architectures, streams, [*streams[1:], ()], strict=False):
            needed = set(chain.from_iterable(following))
            yield self.supernet(batch.image, architecture, memory.runner(own, needed))

    def _order(self, architecture: Architecture) -> tuple[Any, ...]:
        """Return the sort key that makes neighbours of sub-networks that begin alike."""
        numbers, rows = self.supernet.units_of(architecture.depth), architecture.rows(len(self.supernet.tasks))
        units = zip(numbers, architecture.unit_widths, rows, strict=True)
        return architecture.embed_dim, tuple(units), architecture.decoder
