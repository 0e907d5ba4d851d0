"""What a sub-network's transformer costs, in closed form; heads count themselves.

Parameters are counted once for every copy that is used, multiply-accumulates once for every activation stream: tasks
that have parted run on their own even through a copy that they share. Counted are the operations that run here, the
products of matrices and the patch convolution, as torch's FlopCounterMode counts them (two operations each).
"""

from dataclasses import dataclass

from taskformer.models.autotaskformer.architecture import Architecture
from taskformer.models.autotaskformer.subnet import Step

COLOURS = 3


@dataclass(frozen=True)
class Cost:
    """Counts for one architecture.

    Args:
        architecture: What is counted.
        steps: Its streams (:func:`~taskformer.models.autotaskformer.subnet.schedule`).
        head_dim: Channels of one attention head.
        patch_size: Side of a patch in pixels.
        max_relative: Distance from which on relative positions are equal; 0: there are none.
        prefix: Tokens before the patches.
    """

    architecture: Architecture
    steps: list[Step]
    head_dim: int
    patch_size: int
    max_relative: int
    prefix: int

    def parameters(self, grid: tuple[int, int]) -> int:
        """Count the parameters; ``grid`` is the one that positions are stored for."""
        width = self.architecture.embed_dim
        stem = width * (COLOURS * self.patch_size**2 + 1) + width * (2 * self.prefix + grid[0] * grid[1])
        units = sum(len(step.calls) * self._unit_parameters(unit) for unit, step in enumerate(self.steps))
        return stem + units + 2 * width

    def macs(self, grid: tuple[int, int]) -> int:
        """Count the multiply-accumulates for one image of ``grid`` = (rows, columns) patches."""
        stem = grid[0] * grid[1] * COLOURS * self.patch_size**2 * self.architecture.embed_dim
        return stem + sum(len(set(step.streams)) * self._unit_macs(unit, grid) for unit, step in enumerate(self.steps))

    def _unit_parameters(self, unit: int) -> int:
        width, inner = self.architecture.embed_dim, self._inner(unit)
        norm = 2 * width
        if unit % 2:
            return norm + 2 * width * inner + inner + width
        tables = 4 * (2 * self.max_relative + 2) * self.head_dim if self.max_relative else 0
        return norm + 4 * width * inner + 3 * inner + width + tables

    def _unit_macs(self, unit: int, grid: tuple[int, int]) -> int:
        width, inner = self.architecture.embed_dim, self._inner(unit)
        tokens = self.prefix + grid[0] * grid[1]
        if unit % 2:
            return 2 * tokens * width * inner
        if not self.max_relative:
            return 4 * tokens * width * inner + 2 * tokens**2 * inner
        places = 1 + grid[0] + grid[1]
        heads = inner // self.head_dim
        products = 2 * tokens**2 * (self.head_dim + places)  # logits and mixture, with the places as channels
        vectors = 2 + 2 * (2 * self.max_relative + 1)  # by distance, the class token's and none
        positions = 2 * tokens * vectors * self.head_dim  # of the keys and of the values
        return 4 * tokens * width * inner + heads * (products + positions)

    def _inner(self, unit: int) -> int:
        """Width inside a unit: all heads' channels, or the hidden layer's."""
        return self.architecture.unit_widths[unit] * (1 if unit % 2 else self.head_dim)
