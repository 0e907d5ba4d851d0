"""Scoring many sub-networks of a supernet on the same images, each computation done once.

Images are decoded, padded and moved to the device once, and what metrics need of the targets is computed once. In a
set of sub-networks those of one width that begin with the same units have the same activations there. Sub-networks are
therefore run in an order that puts them side by side, each keeping what the next one needs. Those that are hopeless
after some of the images are not run on the rest.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from math import ceil
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taskformer.errors import ConfigError
from taskformer.metrics import delta_m
from taskformer.models.autotaskformer import Architecture, Supernet
from taskformer.models.autotaskformer.architecture import DecoderSize
from taskformer.models.autotaskformer.layers import Grid
from taskformer.search.headlines import Prepared, headline
from taskformer.tasks import Task

Batch = Mapping[str, Any]
#: What a stream has passed: the width of the stem, then the copy and the inner width of each unit.
Passed = tuple[Any, ...]
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


class Plan(NamedTuple):
    """What a sub-network computes.

    Attributes:
        width: Width of the tokens.
        units: For each unit its inner width (heads, or hidden channels) and the copy that each task uses.
        decoder: Sizes of the query decoder.
    """

    width: int
    units: tuple[tuple[int, tuple[int, ...]], ...]
    decoder: DecoderSize

    @classmethod
    def of(cls, architecture: Architecture, num_tasks: int) -> Self:
        """Describe a sub-network."""
        units = zip(architecture.unit_widths, architecture.rows(num_tasks), strict=True)
        return cls(architecture.embed_dim, tuple(units), architecture.decoder)

    def paths(self, units: int) -> list[Passed]:
        """Return what each task's stream has passed after some units."""
        passed = [[(row[task], inner) for inner, row in self.units[:units]] for task in range(len(self.units[0][1]))]
        return [(self.width, *steps) for steps in passed]

    def beginnings(self) -> set[Passed]:
        """Return what streams have passed at any time."""
        return {path for units in range(len(self.units) + 1) for path in self.paths(units)}


class _Images(NamedTuple):
    """One batch, prepared.

    Attributes:
        image: ``(B, 3, H, W)``, padded to whole patches.
        size: Height and width before.
        targets: What is needed of each task's targets.
        grid: The patches.
    """

    image: Tensor
    size: tuple[int, int]
    targets: dict[str, Prepared]
    grid: Grid


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
        """Move a batch to the supernet's device, pad it, and do what its targets allow."""
        parameter = self.supernet.norm.weight
        image = batch["image"].to(parameter)
        size = (image.shape[-2], image.shape[-1])
        side = self.supernet.patch_size
        padded = F.pad(image, (0, -size[1] % side, 0, -size[0] % side))
        grid = Grid.of(padded.shape[-2] // side, padded.shape[-1] // side, self.supernet.max_relative, like=image)
        targets = {}
        for name, scores in self._headlines.items():
            task = self.tasks[name]
            shape = () if task.geometry == "image" else size
            like = torch.empty(len(image), task.channels, *shape, device="meta")  # what an output would look like
            targets[name] = scores.prepare(task.check(batch["targets"][name].to(image.device), like))
        return _Images(padded, size, targets, grid)

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
        plans = {index: Plan.of(architectures[index], len(self.supernet.tasks)) for index in chosen}
        order = sorted(chosen, key=plans.__getitem__)  # those that begin alike are neighbours
        outputs = self._outputs(batch, [plans[index] for index in order])
        for index, maps in zip(order, outputs, strict=True):
            for name, scores in self._headlines.items():
                new = scores.sums(maps[name].float(), batch.targets[name])
                sums[index][name] = sums[index].get(name, 0) + new

    def _values(self, sums: Sums) -> dict[str, float]:
        return {name: float(scores.value(sums[name])) for name, scores in self._headlines.items()}

    def _outputs(self, batch: _Images, plans: Sequence[Plan]) -> Iterator[dict[str, Tensor]]:
        """Predict one batch with sub-networks in turn: ``(B, C_task, H, W)``, or ``(B, C_task)``."""
        kept: dict[Passed, Tensor] = {}
        height, width = batch.size
        for plan, following in zip_longest(plans, plans[1:]):
            needed = following.beginnings() if following else set()
            features = self._features(batch, plan, kept, needed)
            maps = self.supernet.heads(features, (batch.image.shape[-2], batch.image.shape[-1]), plan.decoder)
            yield {task: x[..., :height, :width] if x.ndim == 4 else x for task, x in maps.items()}

    def _features(
        self, batch: _Images, plan: Plan, kept: dict[Passed, Tensor], needed: Collection[Passed]
    ) -> dict[str, list[Tensor]]:
        """Encode one batch: every task's taps ``(B, E, h, w)``.

        Args:
            batch: The batch.
            plan: The sub-network.
            kept: Tokens by what they have passed; on return those that are needed later.
            needed: What is needed later.
        """
        depth = len(plan.units) // 2
        ends = [2 * ceil(fraction * depth) for fraction in self.supernet.heads.fractions]  # units before each tap
        tapped: dict[int, list[Tensor]] = {}
        for done in range(len(plan.units) + 1):
            paths = plan.paths(done)
            for path in paths:
                if path not in kept:
                    kept[path] = self._step(batch, path, kept)
            if done in ends:
                maps = {path: self._map(batch, kept[path]) for path in paths}
                tapped[done] = [maps[path] for path in paths]
            for path in [path for path in kept if len(path) <= done and path not in needed]:
                del kept[path]
        for path in [path for path in kept if path not in needed]:
            del kept[path]
        return {task: [tapped[end][index] for end in ends] for index, task in enumerate(self.supernet.tasks)}

    def _step(self, batch: _Images, path: Passed, kept: Mapping[Passed, Tensor]) -> Tensor:
        """Compute the tokens ``(B, 1 + h*w, E)`` at the end of a path from those before.

        Each stream runs alone, whichever others there are, so that its numbers are always the same.
        """
        if len(path) == 1:
            return cast(Tensor, self.supernet.stem(batch.image, path[0]))
        copy, inner = path[-1]
        unit = cast(nn.ModuleList, self.supernet.units[len(path) - 2])[copy]
        return cast(Tensor, unit(kept[path[:-1]], batch.grid, inner))

    def _map(self, batch: _Images, tokens: Tensor) -> Tensor:
        """Turn tokens into what heads read, ``(B, E, h, w)``."""
        patches = cast(Tensor, self.supernet.norm(tokens))[:, 1:]  # (B, h*w, E)
        return cast(Tensor, patches.transpose(1, 2).unflatten(2, (batch.grid.height, batch.grid.width)))
