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
    tables += [f"{grown.name}\n\n{markdown([grown.header(), *grown.rows()])}" for grown in found.growth]
    write_text(folder / "benchmark.md", "\n".join([f"{found.title}\n", *tables]))
    draw(folder / "benchmark.png", found)
