"""``taskformer explain``: what a trained model looks at, what its tasks tell each other, and where it is wrong."""

import sys
from pathlib import Path

from jsonargparse.typing import NonNegativeInt
from rich.console import Console

from taskformer.files import write_json
from taskformer.insight.explain import Split, explain
from taskformer.parsing import Parser


def main(argv: list[str]) -> None:
    """Look inside a model, print the tables and say what could not be seen."""
    parser = Parser(
        prog="taskformer explain",
        description="Draw what the queries of a trained model attend to on photographs, which task's queries read "
        "which others', where the tasks' gradients are at odds, and the images on which each task is worst.",
    )
    parser.add_argument("run", type=str, help="Run folder, e.g. runs/demo, or a checkpoint in one.")
    parser.add_argument("photographs", type=str, nargs="*", help="Image files, or folders of them.")
    parser.add_argument("--out", type=str | None, help="Folder to write to; by default `insight` in the run folder.")
    parser.add_argument("--split", type=Split, default="test", help="Which of the run's images affinity and gradients "
                        "are measured on.")  # fmt: skip
    parser.add_argument("--images", type=NonNegativeInt, default=64, help="How many of them; 0: none.")
    parser.add_argument("--worst", type=NonNegativeInt, default=4, help="How many of the worst test images of each "
                        "task are drawn.")  # fmt: skip
    parser.add_argument("--architecture", type=str | None, help="Of a supernet: JSON file of the sub-network; by "
                        "default the largest.")  # fmt: skip
    parser.add_argument("--device", type=str, default="cpu", help="Device to compute on, e.g. cuda.")
    parser.add_argument("--json", type=str | None, help="Also write everything to this JSON file.")
    options = parser.parse_args(argv[1:]).as_dict()
    out = options.pop("json")
    found = explain(**options)
    for table in found.tables():
        Console().print(table)
    sys.stdout.write(f"wrote {len(found.files)} pictures to {found.out}\n")
    for note in found.notes:
        sys.stderr.write(f"taskformer: {note}\n")
    if out:
        write_json(Path(out), found.as_dict())
