"""One sub-network as a plain model, and the forward pass that it has in common with the supernet.

Tasks that have agreed on the copy of every unit so far have the same activations: they are one *stream*, computed once.
Where tasks part, their stream branches; streams that use the same copy later run through it side by side in the batch.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from math import ceil
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from taskformer.models.autotaskformer.architecture import Architecture
from taskformer.models.autotaskformer.heads import Heads
from taskformer.models.autotaskformer.layers import Grid, RelativePositions, Stem
from taskformer.models.layers import pad_to_multiples

#: What a stream has passed: the width of the stem, then the number, the copy and the inner width of each unit.
Passed = tuple[Any, ...]
#: One copy of a unit: tokens ``(B, N, E)`` and their grid to updated tokens.
Unit = Callable[[Tensor, Grid], Tensor]
Maps = dict[str, list[Tensor]]


class Step(NamedTuple):
    """What happens at one unit.

    Attributes:
        calls: Each copy that runs, with the incoming streams that it runs on. The outputs, in this order, are the
            outgoing streams; a stream that branches is the input of several calls.
        streams: The outgoing stream of each task.
    """

    calls: tuple[tuple[int, tuple[int, ...]], ...]
    streams: tuple[int, ...]


def schedule(architecture: Architecture, num_tasks: int) -> list[Step]:
    """Plan the streams: one step per unit."""
    streams = (0,) * num_tasks
    steps = []
    for row in architecture.rows(num_tasks):
        branches = sorted(set(zip(row, streams, strict=True)))  # (copy, incoming stream)
        calls = tuple(
            (copy, tuple(parent for _, parent in group)) for copy, group in groupby(branches, key=itemgetter(0))
        )
        streams = tuple(map(branches.index, zip(row, streams, strict=True)))
        steps.append(Step(calls, streams))
    return steps


def passed(architecture: Architecture, steps: Sequence[Step], units: Sequence[int]) -> list[tuple[Passed, ...]]:
    """Return what each stream has passed after the stem and after each step: equal prefixes have equal activations.

    Args:
        architecture: What is run.
        steps: Its streams.
        units: Which of the supernet's units each step is.
    """
    streams: tuple[Passed, ...] = ((architecture.embed_dim,),)
    found = [streams]
    for step, unit, width in zip(steps, units, architecture.unit_widths, strict=True):
        streams = tuple((*streams[parent], (unit, copy, width)) for copy, parents in step.calls for parent in parents)
        found.append(streams)
    return found


class Route(NamedTuple):
    """One sub-network as functions: plain modules, or slices of the supernet's.

    Attributes:
        stem: Image to tokens.
        units: The copies of each unit that run, attention and MLP in turn.
        steps: Which stream runs through which copy.
        heads: Every task's taps, and the height and width of the maps, to outputs.
    """

    stem: Callable[[Tensor], Tensor]
    units: Iterable[Mapping[int, Unit]]
    steps: Sequence[Step]
    heads: Callable[[Maps, tuple[int, int]], dict[str, Tensor]]


#: Runs one step: the copies of its unit, the step, the incoming streams and their grid to the outgoing streams.
Run: TypeAlias = Callable[[Mapping[int, Unit], Step, Sequence[Tensor], Grid], list[Tensor]]


def side_by_side(copies: Mapping[int, Unit], step: Step, streams: Sequence[Tensor], grid: Grid) -> list[Tensor]:
    """Run the streams that use the same copy through it as one batch."""
    outputs: list[Tensor] = []
    for copy, parents in step.calls:
        if len(parents) == 1:
            outputs.append(copies[copy](streams[parents[0]], grid))
        else:
            together = copies[copy](torch.cat([streams[parent] for parent in parents]), grid)
            outputs += together.unflatten(0, (len(parents), -1)).unbind()
    return outputs


class Network(nn.Module):
    """What a sub-network and the supernet have in common: the way from the image to one raw map per task.

    Args:
        tasks: Task name to output channels, in the order of the sharing genes.
        norm: The norm of all features that the heads read.
        heads: The tasks' heads.
        patch_size: Side of a patch in pixels.
        max_relative: Distance from which on relative positions are equal; 0: there are none.
    """

    stem: Stem
    units: nn.ModuleList

    def __init__(
        self, tasks: Mapping[str, int], norm: nn.LayerNorm, heads: Heads, patch_size: int, max_relative: int
    ) -> None:
        super().__init__()
        self.tasks = dict(tasks)
        self.norm = norm
        self.heads = heads
        self.patch_size = patch_size
        self.max_relative = max_relative

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that are free of weight decay: tokens and positions, also relative."""
        return {f"heads.{name}" for name in self.heads.no_weight_decay()} | {
            f"{path}.{name}"
            for path, module in self.named_modules()
            if isinstance(module, Stem | RelativePositions)
            for name, _ in module.named_parameters(recurse=False)
        }

    def layers_to_heads(self) -> dict[str, int]:
        """Return how many layers lie between each parameter and the heads: 0 for theirs, 1 for the last layer's."""
        depth = len(self.units) // 2  # each layer is an attention and an MLP
        parts = [(self.stem, depth + 1)] + [(unit, depth - index // 2) for index, unit in enumerate(self.units)]
        layers = {parameter: number for part, number in parts for parameter in part.parameters()}
        return {name: layers.get(parameter, 0) for name, parameter in self.named_parameters()}

    def _outputs(self, image: Tensor, route: Route, run: Run = side_by_side) -> dict[str, Tensor]:
        """Predict from ``(B, 3, H, W)``: ``(B, C_task, H, W)``, or ``(B, C_task)`` for image tasks."""
        height, width = image.shape[-2:]
        padded = pad_to_multiples(image, self.patch_size)
        outputs = route.heads(self._features(padded, route, run), (padded.shape[-2], padded.shape[-1]))
        return {task: x[..., :height, :width] if x.ndim == 4 else x for task, x in outputs.items()}

    def _features(self, image: Tensor, route: Route, run: Run = side_by_side) -> Maps:
        """Encode ``(B, 3, H, W)``: every task's taps ``(B, E, h, w)``."""
        padded = pad_to_multiples(image, self.patch_size)
        grid = [side // self.patch_size for side in padded.shape[-2:]]
        return {
            task: [x[:, self.stem.prefix :].transpose(1, 2).unflatten(2, grid) for x in taps]
            for task, taps in self._tokens(padded, route, run).items()
        }

    def _tokens(self, image: Tensor, route: Route, run: Run) -> Maps:
        """Encode ``(B, 3, H, W)``, whole patches: every task's taps ``(B, P + h*w, E)``, the patches last."""
        height, width = (side // self.patch_size for side in image.shape[-2:])
        grid = Grid.of(height, width, self.max_relative, like=image, prefix=self.stem.prefix)
        # The stem is like a unit of one copy, on a stream that is the image.
        units = [{0: lambda image, _: route.stem(image)}, *route.units]
        steps = [Step(((0, (0,)),), (0,) * len(self.tasks)), *route.steps]
        streams = [image]
        depth = len(route.steps) // 2
        ends = [2 * ceil(fraction * depth) for fraction in self.heads.fractions]  # units before each tap
        tapped: dict[int, list[Tensor]] = {}
        for done, (copies, step) in enumerate(zip(units, steps, strict=True)):
            streams = run(copies, step, streams, grid)
            if done in ends:
                normed = [self.norm(x) for x in streams]
                tapped[done] = [normed[stream] for stream in step.streams]
        return {task: [tapped[end][index] for end in ends] for index, task in enumerate(self.tasks)}


class Subnet(Network):
    """One sub-network: plain layers, nothing sliced, only the copies that its tasks use.

    Built by :meth:`~taskformer.models.autotaskformer.supernet.Supernet.extract`.

    Args:
        architecture: What the network is.
        tasks: Task name to output channels, in the order of the sharing genes.
        stem: Image to tokens.
        units: For each unit its copies by id, those that the architecture uses.
        norm: The norm of all features that the heads read.
        heads: The tasks' heads.
        patch_size: Side of a patch in pixels.
        max_relative: Distance from which on relative positions are equal; 0: there are none.
    """

    def __init__(
        self,
        architecture: Architecture,
        tasks: Mapping[str, int],
        stem: Stem,
        units: Iterable[Mapping[int, nn.Module]],
        norm: nn.LayerNorm,
        heads: Heads,
        patch_size: int,
        max_relative: int,
    ) -> None:
        super().__init__(tasks, norm, heads, patch_size, max_relative)
        self.architecture = architecture
        self.steps = schedule(architecture, len(tasks))
        self.stem = stem
        self.units = nn.ModuleList(
            nn.ModuleDict({str(copy): unit for copy, unit in copies.items()}) for copies in units
        )

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Predict from ``(B, 3, H, W)`` ImageNet-normalised: ``(B, C_task, H, W)``, or ``(B, C_task)``."""
        return self._outputs(image, self._route())

    def features(self, image: Tensor) -> Maps:
        """Encode ``(B, 3, H, W)``: every task's taps ``(B, E, h, w)``, as the heads read them."""
        return self._features(image, self._route())

    def _route(self) -> Route:
        units = [{int(copy): unit for copy, unit in copies.named_children()} for copies in self.units]
        return Route(self.stem, units, self.steps, self.heads)
