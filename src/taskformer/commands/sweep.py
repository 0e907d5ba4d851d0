"""``taskformer sweep``: run a sweep here, or check it and say how it is run."""

import sys
from pathlib import Path
from typing import Any

from jsonargparse.typing import PositiveInt
from rich.console import Console

from taskformer.files import write_json
from taskformer.parsing import Parser


def main(argv: list[str]) -> None:
    """Run a sweep and print its table, or only check it."""
    parser = Parser(
        prog="taskformer sweep",
        description="Run a sweep, a YAML file in wandb's schema, on this machine: without account or network, and "
        "stopped at any time, for the same command goes on. Without --local, only check the command line of every run.",
    )
    parser.add_argument("file", type=str, help="The sweep, e.g. configs/sweeps/rooms_models.yaml.")
    parser.add_argument("--local", type=PositiveInt | None, help="Run it here: this many runs in all.")
    parser.add_argument("--workers", type=PositiveInt | None, help="How many of them at a time; by default one for "
                        "each GPU, without one for each two processors.")  # fmt: skip
    parser.add_argument("--name", type=str | None, help="Name of its folder below RUNS_DIR, by default the sweep's.")
    parser.add_argument("--runs_dir", type=str, default="runs", help="Folder of all runs.")
    parser.add_argument("--storage", type=str | None, help="Where its memory is kept: the URL of a database that "
                        "Optuna can use, or a file; by default study.journal in its folder.")  # fmt: skip
    parser.add_argument("--json", type=str | None, help="Also write the table to this JSON file.")
    options = parser.parse_args(argv[1:])
    from taskformer.commands.sweep_check import check  # takes seconds to import
    from taskformer.sweeps.run import sweep
    from taskformer.sweeps.study import State

    console = Console()
    runs = check(options.file)
    if options.local is None:
        here = f"here:       taskformer sweep {options.file} --local N"
        wandb = f"with wandb: wandb sweep {options.file}, then `wandb agent ...` on each machine"
        console.print("\n".join([runs, here, wandb]), soft_wrap=True, highlight=False)
        return

    def tell(run: Any) -> None:
        settings = ", ".join(f"{name}={value}" for name, value in run.settings.items())
        value = "" if run.value is None else f" {run.value:.4g}"
        reason = f": {run.reason}" if run.reason else ""
        console.print(f"{run.number:04d} {run.state}{value} ({settings}){reason}", soft_wrap=True, markup=False)

    given = {name: value for name, value in vars(options).items() if name not in ("file", "json")}
    found = sweep(options.file, **given, on_change=tell)
    console.print(found.table())
    console.print(f"wrote {found.folder}", soft_wrap=True)
    if found.command:
        console.print(f"train the best: {found.command}", soft_wrap=True, markup=False, highlight=False)
    if options.json:
        write_json(Path(options.json), found.as_dict())
    if failed := [run for run in found.runs if run.state == State.FAILED]:
        sys.stderr.write(f"taskformer: {len(failed)} of the runs failed; the same command tries them again\n")
        sys.exit(1)
