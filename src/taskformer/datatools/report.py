"""The report of :func:`taskformer.datatools.verify.verify`: for JSON, and as a table and a summary."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from rich.table import Table

from taskformer.metrics.units import SHARE, factor

#: What kind of fault it is: a file is missing, cannot be decoded, or has another size than its image; wrong class ids,
#: normals or other values; an image in the wrong split; another number of images than published. Kinds of doubts: a
#: label is missing that other images have; a map is almost without labels, or in another unit; viewers show the image
#: turned; files belong to nothing.
Kind: TypeAlias = Literal[
    "missing", "corrupt", "size", "labels", "normals", "values", "split", "count", "few", "unit", "turned", "unused"
]

#: How many faults are written to the screen.
SHOWN = 30


@dataclass(frozen=True)
class Finding:
    """One fault, or doubt.

    Attributes:
        split: The split it is in.
        id: The image, empty if the fault is not one image's.
        task: ``"image"``, a task, or empty.
        file: The file, empty if the fault is not one file's.
        kind: What kind of fault, see :data:`Kind`.
        reason: One sentence.
        is_doubt: Whether it may be intended.
    """

    split: str
    id: str
    task: str
    file: str
    kind: Kind
    reason: str
    is_doubt: bool = False


@dataclass
class MapSummary:
    """What the opened maps of one task hold.

    Attributes:
        maps: Number of maps that were decoded.
        pixels: Number of their pixels.
        valid: Number of those with a label.
        low: Smallest valid value.
        high: Largest valid value.
    """

    maps: int = 0
    pixels: int = 0
    valid: int = 0
    low: float = np.inf
    high: float = -np.inf

    def add(self, other: "MapSummary") -> None:
        """Count another summary's maps too."""
        self.maps += other.maps
        self.pixels += other.pixels
        self.valid += other.valid
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    @property
    def valid_share(self) -> float:
        """Share of the pixels with a label; NaN without pixels."""
        return self.valid / self.pixels if self.pixels else np.nan


@dataclass
class SplitSummary:
    """One split.

    Attributes:
        images: Number of images.
        published: Number that there should be, None if it is not known.
        opened: Number of images whose files were opened.
        tasks: The image's and each task's maps.
    """

    images: int
    published: int | None
    opened: int = 0
    tasks: dict[str, MapSummary] = field(default_factory=dict)


@dataclass
class Report:
    """What :func:`~taskformer.datatools.verify.verify` found.

    >>> report = Report("nyud", "data/nyud", {"val": SplitSummary(images=654, published=654, opened=654)})
    >>> report.summary()
    'all 654 images of nyud in data/nyud are right'
    >>> report.findings.append(Finding("val", "7", "depth", "7.npy", "missing", "7.npy: cannot be read"))
    >>> print(report.summary())
    654 images of nyud in data/nyud: 1 fault
      missing  val    7.npy: cannot be read

    Attributes:
        dataset: Short name of the data set.
        root: Its folder.
        splits: What each split holds.
        findings: The faults: of the splits first, then in the order of the images.
        doubts: What may be intended, but seldom is: one entry for all images of a split that share it.
    """

    dataset: str
    root: str
    splits: dict[str, SplitSummary] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    doubts: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain types, for JSON."""
        splits = {name: asdict(summary) for name, summary in self.splits.items()}
        for split in splits.values():
            for summary in split["tasks"].values():
                if not summary["valid"]:  # JSON knows no infinity
                    summary["low"] = summary["high"] = None
        faults = {name: [asdict(found) for found in getattr(self, name)] for name in ("findings", "doubts")}
        return {"dataset": self.dataset, "root": self.root, "ok": self.ok, "splits": splits, **faults}

    def table(self) -> Table:
        """Build the table for the screen: one row per split and task."""
        table = Table("split", "task", title=f"{self.dataset} in {self.root}")
        for heading in ("images", "opened", "valid %"):
            table.add_column(heading, justify="right")
        table.add_column("values", no_wrap=True)
        for name, split in self.splits.items():
            count = str(split.images) if split.published is None else f"{split.images} of {split.published}"
            for row, (task, summary) in enumerate(split.tasks.items()):
                values = f"{summary.low:.4g} .. {summary.high:.4g}" if summary.valid else ""
                share = f"{factor(SHARE) * summary.valid_share:.1f}" if summary.pixels else ""
                head = (name, task, count) if row == 0 else ("", task, "")
                table.add_row(*head, str(summary.maps), share, values)
            table.add_section()
        return table

    def summary(self) -> str:
        """Say in a few lines whether the data set is right, or what is wrong with which files."""
        images = sum(split.images for split in self.splits.values())
        opened = sum(split.opened for split in self.splits.values())
        where = f"{self.dataset} in {self.root}"
        if self.ok and opened == images:
            return "\n".join([f"all {images} images of {where} are right", *self._doubt_lines()])
        what = (
            f"{opened} of {images} images of {where} were opened" if opened < images else f"{images} images of {where}"
        )
        if self.ok:
            return "\n".join([f"{what}; they are right", *self._doubt_lines()])
        faults = f"{len(self.findings)} fault{'s' if len(self.findings) > 1 else ''}"
        lines = [f"{what}: {faults}", *_lines(self.findings[:SHOWN])]
        left = len(self.findings) - SHOWN
        lines += [f"  and {left} more, all of them with --json FILE"] if left > 0 else []
        return "\n".join([*lines, *self._doubt_lines()])

    def _doubt_lines(self) -> list[str]:
        return ["have a look, this may or may not be intended:", *_lines(self.doubts)] if self.doubts else []


def _lines(findings: Sequence[Finding]) -> list[str]:
    return [f"  {finding.kind:<8} {finding.split:<6} {finding.reason}" for finding in findings]
