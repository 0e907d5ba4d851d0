"""``taskformer evaluate``: score predictions that lie in files, ours or other people's, under any protocol."""

from pathlib import Path

from rich.console import Console

from taskformer.errors import ConfigError
from taskformer.evaluation.scoring import evaluate
from taskformer.files import write_json
from taskformer.parsing import Parser
from taskformer.tasks import PROTOCOLS

DESCRIPTION = (
    "Score predictions that lie in files, ours or other people's, under any protocol. `taskformer evaluate edges "
    "--help` explains the boundary benchmark, `taskformer evaluate sequence --help` how steady predictions of a video "
    "are; they need no data set."
)


def main(argv: list[str]) -> None:
    """Score files of predictions, and print the table."""
    if argv[1:2] == ["edges"]:
        from taskformer.commands import evaluate_edges

        evaluate_edges.main(argv[1:])
        return
    if argv[1:2] == ["sequence"]:
        from taskformer.commands import evaluate_sequence

        evaluate_sequence.main(argv[1:])
        return
    parser = Parser(prog="taskformer evaluate", description=DESCRIPTION)
    parser.add_argument("predictions", type=str, help="Folder with a folder of files for each task, named by the "
                        "images' identifiers; or a run's folder that has them in predictions.")  # fmt: skip
    parser.add_argument("--data", type=str | None, help="Short name of the data set, e.g. nyud; by default the run's.")
    parser.add_argument("--root", type=str | None, help="The data set's folder.")
    parser.add_argument("--config", type=str | None, help="Instead of a name: a YAML file with the data set's options.")
    parser.add_argument("--tasks", type=list[str] | None, help="The tasks, e.g. [semseg,depth]; by default all that "
                        "there are predictions for.")  # fmt: skip
    parser.add_argument("--protocol", type=str, default="standard", help=f"{', '.join(PROTOCOLS)}, or all.")
    parser.add_argument("--split", type=str, default="test", help="The split: train, val or test.")
    parser.add_argument("--workers", type=int | None, help="Number of processes; one per processor by default.")
    parser.add_argument("--json", type=str | None, help="Also write everything to this JSON file.")
    options = parser.parse_args(argv[1:]).as_dict()
    out, config = options.pop("json"), options.pop("config")
    if config is not None and options["data"] is not None:
        msg = f"give --data {options['data']} or --config {config}, not both"
        raise ConfigError(msg)
    options["data"] = options["data"] or config
    found = evaluate(**options)
    for note in found.notes:
        Console(stderr=True).print(note, soft_wrap=True, markup=False, highlight=False)
    Console().print(found.table())
    if out:
        write_json(Path(out), found.as_dict())
