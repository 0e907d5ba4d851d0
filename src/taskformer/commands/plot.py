"""``taskformer plot``: pictures of one run, or of several on one axis."""

from typing import get_args

from rich.console import Console

from taskformer.evaluation.plots import Format, Kind
from taskformer.parsing import Parser


def main(argv: list[str]) -> None:
    """Draw runs, and print where the pictures are."""
    parser = Parser(
        prog="taskformer plot",
        description="Draw one run, or several on one axis: learning curves, and what the test found. `fit` and `test` "
        "draw into the run's folder by themselves.",
    )
    parser.add_argument("runs", type=str, nargs="+", metavar="run", help="Run folders. Curves need a training, the "
                        "others a test.")  # fmt: skip
    parser.add_argument("--what", type=str | None, help=f"Some of {','.join(get_args(Kind))}; by default all that "
                        "there is something for.")  # fmt: skip
    parser.add_argument("--out", type=str | None, help="Folder of the pictures; by default the run's own, and `plots` "
                        "for several runs.")  # fmt: skip
    parser.add_argument("--format", type=Format, default="png", help="png, twice 800 pixels wide, or svg.")
    options = parser.parse_args(argv[1:]).as_dict()
    if options["what"] is not None:
        options["what"] = [name.strip() for name in options["what"].strip("[]").split(",")]
    from taskformer.evaluation.plots import plot  # matplotlib takes a while to import

    for path in plot(**options):
        Console().print(str(path), soft_wrap=True, markup=False, highlight=False)
