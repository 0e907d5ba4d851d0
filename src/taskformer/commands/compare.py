"""``taskformer compare``: is one run better than another, or was it the choice of images?"""

from pathlib import Path

from jsonargparse.typing import NonNegativeInt, PositiveInt
from rich.console import Console

from taskformer.evaluation.significance import compare
from taskformer.files import write_json
from taskformer.parsing import Parser


def main(argv: list[str]) -> None:
    """Compare runs image by image, and print the table."""
    parser = Parser(
        prog="taskformer compare",
        description="Compare tested runs image by image, each with the first: mean differences with paired bootstrap "
        "95 % intervals.",
    )
    parser.add_argument("runs", type=str, nargs="+", metavar="run", help="Two run folders or more, tested on the same "
                        "images with --results.per_image true.")  # fmt: skip
    parser.add_argument("--json", type=str | None, help="Also write the table to this JSON file.")
    parser.add_argument("--resamples", type=PositiveInt, default=10_000, help="Number of bootstrap samples.")
    parser.add_argument("--seed", type=NonNegativeInt, default=0, help="Seed of the bootstrap.")
    options = parser.parse_args(argv[1:])
    found = compare(options.runs, options.resamples, options.seed)
    Console().print(found.table())
    if options.json:
        write_json(Path(options.json), found.as_dict())
