"""What tasks may share: how the genes of each kind of sharing are drawn, changed, mixed and checked.

A unit is the attention or the MLP of one layer, with its norm. Its row holds, for every task, the id of the stored copy
of the unit's weights that the task uses. Copy 0 is the shared one.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import pairwise
from random import Random

Row = tuple[int, ...]
Rows = tuple[Row, ...]
#: Chance of new units and branches to be split.
EVEN = 0.5
#: Genes of a tree: for every task after the first, an earlier task and the unit at which it leaves that task's copies.
Branches = list[tuple[int, int]]


def first_appearance(row: Iterable[int]) -> Row:
    """Rename ids by the order in which they appear: equal partitions get equal rows."""
    names: dict[int, int] = {}
    return tuple(names.setdefault(copy, len(names)) for copy in row)


class Sharing(ABC):
    """One kind of sharing among a number of tasks.

    Args:
        num_tasks: How many tasks.
        num_copies: Stored copies of every unit.

    Attributes:
        shared: The row of a unit that all tasks share.
        split: The row of a unit that is shared as little as this kind allows.
    """

    split: Row

    def __init__(self, num_tasks: int, num_copies: int) -> None:
        self.num_tasks = num_tasks
        self.num_copies = num_copies
        self.shared: Row = (0,) * num_tasks

    @abstractmethod
    def random(self, units: int, rng: Random, probability: float) -> Rows:
        """Draw rows; ``probability`` is each unit's (in a tree: each task's) chance of being split."""

    @abstractmethod
    def mutate(self, rows: Rows, rng: Random, probability: float) -> Rows:
        """Change each gene with a probability."""

    @abstractmethod
    def grow(self, rows: Rows, units: int, rng: Random) -> Rows:
        """Append rows until there are ``units`` of them."""

    def crossover(self, first: Rows, second: Rows, rng: Random) -> Rows:
        """Take each unit's row from either parent."""
        return tuple(rng.choice(pair) for pair in zip(first, second, strict=True))

    def canonical(self, rows: Rows) -> Rows:
        """Rename interchangeable copies so that equal sharing has equal rows."""
        return tuple(map(first_appearance, rows))

    @abstractmethod
    def contains(self, rows: Rows) -> bool:
        """Tell whether canonical rows are of this kind."""


class BinarySharing(Sharing):
    """Each unit is shared by all tasks, or every task has its own copy: copy 1 + t for task t."""

    def __init__(self, num_tasks: int, num_copies: int) -> None:
        super().__init__(num_tasks, num_copies)
        self.split = tuple(range(1, num_tasks + 1))

    def random(self, units: int, rng: Random, probability: float) -> Rows:
        """Split each unit with a probability."""
        return tuple(self.split if rng.random() < probability else self.shared for _ in range(units))

    def mutate(self, rows: Rows, rng: Random, probability: float) -> Rows:
        """Flip each unit's bit with a probability."""
        return tuple(self._flipped(row) if rng.random() < probability else row for row in rows)

    def grow(self, rows: Rows, units: int, rng: Random) -> Rows:
        """Append random units."""
        return rows + self.random(units - len(rows), rng, EVEN)

    def canonical(self, rows: Rows) -> Rows:
        """Return the rows: no two copies are interchangeable."""
        return rows

    def contains(self, rows: Rows) -> bool:
        """Tell whether every unit is shared or split."""
        return all(row in (self.shared, self.split) for row in rows)

    def _flipped(self, row: Row) -> Row:
        return self.shared if row == self.split else self.split


class GroupedSharing(Sharing):
    """Every task may use any copy of any unit."""

    def __init__(self, num_tasks: int, num_copies: int) -> None:
        super().__init__(num_tasks, num_copies)
        self.split = tuple(task * num_copies // num_tasks for task in range(num_tasks))

    def random(self, units: int, rng: Random, probability: float) -> Rows:
        """With a probability give every task of a unit any copy, else share the unit."""
        rows = (self._any(rng) if rng.random() < probability else self.shared for _ in range(units))
        return self.canonical(tuple(rows))

    def mutate(self, rows: Rows, rng: Random, probability: float) -> Rows:
        """Give each task of each unit any copy with a probability."""
        return self.canonical(
            tuple(
                tuple(rng.randrange(self.num_copies) if rng.random() < probability else copy for copy in row)
                for row in rows
            )
        )

    def grow(self, rows: Rows, units: int, rng: Random) -> Rows:
        """Append random units."""
        return rows + self.random(units - len(rows), rng, EVEN)

    def contains(self, rows: Rows) -> bool:
        """Tell whether every copy exists."""
        return all(copy < self.num_copies for row in rows for copy in row)

    def _any(self, rng: Random) -> Row:
        return tuple(rng.randrange(self.num_copies) for _ in range(self.num_tasks))


class TreeSharing(GroupedSharing):
    """Tasks that part never meet again: from unit to unit the partition of the tasks is only refined.

    Its genes are branches: every task after the first leaves an earlier task at some unit, or never (the number of
    units). Any branches make a tree and any tree has branches, so that nothing has to be tried and thrown away.
    """

    def random(self, units: int, rng: Random, probability: float) -> Rows:
        """Let every task leave an earlier one with a probability, at any unit."""
        branches = [self._branch(task, units, rng, probability) for task in range(1, self.num_tasks)]
        return self._rows(self._pruned(branches, units, rng), units)

    def mutate(self, rows: Rows, rng: Random, probability: float) -> Rows:
        """Draw each branch anew with a probability."""
        units = len(rows)
        branches = [
            self._branch(task, units, rng, EVEN) if rng.random() < probability else branch
            for task, branch in enumerate(_branches(rows), start=1)
        ]
        return self._rows(self._pruned(branches, units, rng), units)

    def grow(self, rows: Rows, units: int, rng: Random) -> Rows:
        """Repeat the last row: new layers split nobody."""
        return rows + rows[-1:] * (units - len(rows))

    def crossover(self, first: Rows, second: Rows, rng: Random) -> Rows:
        """Take each branch from either parent."""
        units = len(first)
        branches = [rng.choice(pair) for pair in zip(_branches(first), _branches(second), strict=True)]
        return self._rows(self._pruned(branches, units, rng), units)

    def contains(self, rows: Rows) -> bool:
        """Tell whether every copy exists and the rows only refine."""
        return super().contains(rows) and all(
            len(set(zip(before, row, strict=True))) == len(set(row)) for before, row in pairwise(rows)
        )

    def _branch(self, task: int, units: int, rng: Random, probability: float) -> tuple[int, int]:
        """Draw whom a task leaves, and when."""
        return rng.randrange(task), rng.randrange(units) if rng.random() < probability else units

    def _pruned(self, branches: Branches, units: int, rng: Random) -> Branches:
        """Undo random splits beyond the number of copies."""
        splits = [index for index, (_, unit) in enumerate(branches) if unit < units]
        undone = rng.sample(splits, max(len(splits) - self.num_copies + 1, 0))
        return [(parent, units if index in undone else unit) for index, (parent, unit) in enumerate(branches)]

    def _rows(self, branches: Branches, units: int) -> Rows:
        """Build the rows: a task follows its earlier task until it leaves."""
        rows = []
        for unit in range(units):
            row = [0]
            for task, (parent, leaves) in enumerate(branches, start=1):
                row.append(row[parent] if unit < leaves else task)
            rows.append(first_appearance(row))
        return tuple(rows)


def _branches(rows: Rows) -> Branches:
    """Find for every task the earlier task that it leaves last, and the unit at which it does."""
    branches = []
    for task in range(1, len(rows[0])):
        leaves = [_first_difference(rows, task, other) for other in range(task)]
        branches.append((leaves.index(max(leaves)), max(leaves)))
    return branches


def _first_difference(rows: Sequence[Row], first: int, second: int) -> int:
    """Return the first unit at which two tasks use different copies."""
    return next((unit for unit, row in enumerate(rows) if row[first] != row[second]), len(rows))


KINDS: dict[str, type[Sharing]] = {"binary": BinarySharing, "grouped": GroupedSharing, "tree": TreeSharing}
