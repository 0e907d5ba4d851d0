"""A comparison's files: tables for people and papers, numbers for programs."""

import csv
import io
from pathlib import Path
from typing import Any

from taskformer.evaluation.comparison.comparison import Comparison, Shown
from taskformer.evaluation.comparison.groups import COUNTS, Mean
from taskformer.files import write_text


def write(folder: Path, found: Comparison, metrics: Shown = "headline") -> None:
    """Write ``compare.md``, ``compare.tex`` and ``compare.csv``.

    Args:
        folder: Where to.
        found: The comparison.
        metrics: Which metrics the markdown shows; the CSV has all.
    """
    write_text(folder / "compare.md", found.markdown(metrics))
    write_text(folder / "compare.tex", found.latex())
    write_text(folder / "compare.csv", _csv(found))


def _csv(found: Comparison) -> str:
    """Write all numbers for programs, one a line, shares as fractions."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["run", "task", "metric", "value", "spread", "seeds"])
    for letter, group in found.groups.items():
        latency = found.latency.get(letter)
        for key in group.first.scores():
            if (mean := group.score(key)) is not None:
                table.writerow([group.name, *key, *mean])
        facts: dict[str, Any] = {name: group.count(name) for name in COUNTS}
        facts |= {"delta_m": group.delta_m, "latency": None if latency is None else latency.median}
        for name, value in facts.items():
            if value is not None:
                mean = value if isinstance(value, Mean) else Mean(value, None, len(group.runs))
                table.writerow([group.name, "", name, *mean])
    return text.getvalue()
