"""``taskformer evaluate sequence``: how steady the predictions of a video are."""

from pathlib import Path

from rich.console import Console

from taskformer.evaluation.sequences import evaluate_sequence
from taskformer.files import write_json
from taskformer.parsing import Parser

DESCRIPTION = (
    "Measure how steady predictions are over time, without labels: each map against the one before it, moved along by "
    "optical flow, where both show the same."
)


def main(argv: list[str]) -> None:
    """Compare neighbouring frames, and print the table."""
    parser = Parser(prog="taskformer evaluate sequence", description=DESCRIPTION)
    parser.add_argument("predictions", type=str, help="The folder that `taskformer predict --raw true` wrote.")
    parser.add_argument("sequence", type=str, help="The video that was predicted, or the folder of its frames.")
    parser.add_argument("--tasks", type=list[str] | None, help="The tasks, e.g. [semseg,depth]; by default all.")
    parser.add_argument("--json", type=str | None, help="Also write everything, of each pair too, to this JSON file.")
    options = parser.parse_args(argv[1:]).as_dict()
    out = options.pop("json")
    found = evaluate_sequence(**options)
    Console().print(found.table())
    if out:
        write_json(Path(out), found.as_dict())
