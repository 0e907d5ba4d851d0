"""``taskformer compare``: which run is better, at what cost, and is it more than chance?"""

from pathlib import Path
from typing import Literal

from jsonargparse.typing import NonNegativeInt, PositiveInt
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from taskformer.files import write_json
from taskformer.parsing import Parser

#: Most characters of a line.
WIDEST = 1000


def main(argv: list[str]) -> None:
    """Compare runs, and print the tables."""
    options = _parser().parse_args(argv[1:])
    from taskformer.evaluation.comparison import compare  # torch, which takes seconds to import

    found = compare(
        options.runs,
        options.resamples,
        options.seed,
        split=options.split,
        metrics=options.metrics,
        latency=options.latency,
        device=options.device,
        out=options.out,
    )
    for table in found.tables(options.metrics):
        _print_whole(table)
    console = Console()
    for line in (*found.notes, *([f"wrote {options.out}"] if options.out else [])):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    if options.json:
        write_json(Path(options.json), found.as_dict())


def _print_whole(table: Table) -> None:
    """Print a table at its own width where the terminal's is too small: nothing is cut off."""
    console = Console()
    needed = Measurement.get(console, console.options.update(max_width=WIDEST), table).maximum
    Console(width=max(console.width, needed)).print(table, "")


def _parser() -> Parser:
    parser = Parser(
        prog="taskformer compare",
        description="Compare what evaluated runs achieve and cost, and say which differences to the first are more "
        "than chance. Runs that differ in their seed alone are one row.",
    )
    parser.add_argument("runs", type=str, nargs="+", metavar="run", help="Run folders, folders of local sweeps, or "
                        "runs of wandb, wandb:ENTITY/PROJECT/ID.")  # fmt: skip
    parser.add_argument("--split", type=Literal["test", "val"] | None, help="Which evaluations are compared; by "
                        "default test, or val if no run was tested.")  # fmt: skip
    parser.add_argument("--metrics", type=Literal["headline", "all"], default="headline", help="Show the metric that "
                        "stands for each task, or all.")  # fmt: skip
    parser.add_argument("--latency", type=bool, default=False, help="Also measure here how long each network takes for "
                        "one image; all take turns.")  # fmt: skip
    parser.add_argument("--device", type=str, default="cpu", help="Device for that, e.g. cuda.")
    parser.add_argument("--out", type=str | None, help="Folder to write compare.md, .csv and .tex to.")
    parser.add_argument("--json", type=str | None, help="Also write everything to this JSON file.")
    parser.add_argument("--resamples", type=PositiveInt, default=10_000, help="Number of bootstrap samples.")
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="Seed of the bootstrap.")
    return parser
