"""The files of a benchmark."""

from pathlib import Path

from taskformer.evaluation.benchmark.figures import Benchmark
from taskformer.evaluation.benchmark.picture import draw
from taskformer.evaluation.tables import markdown
from taskformer.files import write_json, write_text


def write(folder: Path, found: Benchmark) -> None:
    """Write ``benchmark.json``, ``benchmark.md`` and ``benchmark.png``."""
    write_json(folder / "benchmark.json", found.as_dict())
    tables = [markdown([found.header(), *found.rows()])]
    tables += [f"{each.name}\n\n{markdown([each.header(), *each.rows()])}" for each in found.further]
    write_text(folder / "benchmark.md", "\n".join([f"{found.title}\n", *tables]))
    draw(folder / "benchmark.png", found)
