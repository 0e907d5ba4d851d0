"""``taskformer data``: prepare, check, look at, count, pack and imitate data sets.

What a command needs is imported when it runs, so that ``--help`` answers at once.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace, auto_cli
from rich.console import Console

from taskformer.errors import ConfigError, UnknownNameError
from taskformer.files import write_json
from taskformer.parsing import Parser

if TYPE_CHECKING:
    from taskformer.data import MultiTaskDataModule


def main(argv: list[str]) -> None:
    """Run one of the data commands."""
    name, rest = choose(argv[1:], "taskformer data", "data command", {key: text for key, (_, text) in COMMANDS.items()})
    COMMANDS[name][0](rest)


def _render(args: list[str]) -> None:
    from taskformer.datatools.rendering import render_rooms

    auto_cli(render_rooms, args=args, prog="taskformer data render", as_positional=False, parser_class=Parser)


def _prepare(args: list[str]) -> None:
    from taskformer.datatools.prepare import PREPARED, preparer

    texts = {name: f"explained by `taskformer data prepare {name} --help`" for name in PREPARED}
    name, rest = choose(args, "taskformer data prepare", "data set", texts)
    auto_cli(
        preparer(name), args=rest, prog=f"taskformer data prepare {name}", as_positional=False, parser_class=Parser
    )


def _miniature(args: list[str]) -> None:
    from taskformer.datatools.miniature import WRITERS, writer
    from taskformer.datatools.miniature.faults import FAULTS, write_miniature

    texts = {name: f"explained by `taskformer data miniature {name} --help`" for name in WRITERS}
    name, rest = choose(args, "taskformer data miniature", "data set", texts)
    parser = Parser(prog=f"taskformer data miniature {name}", description=f"Write a miniature copy of {name}.")
    parser.add_argument("--out", type=str, required=True, help="Folder to write to: a new or an empty one.")
    parser.add_argument("--fault", type=str | None, help=f"Also damage it: {', '.join(FAULTS)}.")
    parser.add_function_arguments(writer(name), skip={"root"})
    options = parser.parse_args(rest).as_dict()
    out, fault = Path(options.pop("out")), options.pop("fault")
    damaged = write_miniature(name, out, fault, **options)
    _say(f"wrote {out}" + (f", with the fault {fault!r} in {damaged}" if damaged else ""))


def _verify(args: list[str]) -> None:
    parser = _data_parser("verify", "Check a data set: counts, splits, and every file opened. Status 1 if it is wrong.")
    parser.add_argument("--sample", type=int | None, help="Open only this many images of each split, spread evenly.")
    parser.add_argument("--partial", action="store_true", help="Accept fewer images and splits than published.")
    _add_common(parser)
    options = parser.parse_args(args)
    module, tasks = open_data(options)
    from taskformer.datatools.verify import verify

    report = verify(module, options.sample, options.workers, tasks, options.partial)
    Console().print(report.table())
    _say(report.summary())
    if options.json:
        write_json(Path(options.json), report.as_dict())
    if not report.ok:
        sys.exit(1)


def _stats(args: list[str]) -> None:
    parser = _data_parser("stats", "Count classes, values and labelled pixels of a split.")
    parser.add_argument("--split", type=str, default="train", help="The split.")
    parser.add_argument("--sample", type=int | None, help="Look at only this many images, spread evenly.")
    _add_common(parser)
    options = parser.parse_args(args)
    module, tasks = open_data(options)
    from taskformer.datatools.stats import statistics

    counted = statistics(module, options.split, options.sample, options.workers, tasks)
    for table in counted.tables():
        Console().print(table)
    if options.json:
        write_json(Path(options.json), counted.as_dict())


def _preview(args: list[str]) -> None:
    parser = _data_parser("preview", "Draw samples of a data set, raw and augmented, with every task, as one PNG.")
    parser.add_argument("--out", type=str, required=True, help="The PNG to write.")
    parser.add_argument("--split", type=str, default="train", help="The split.")
    parser.add_argument("--count", type=int, default=4, help="Number of samples, spread evenly over the split.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the augmentations.")
    parser.add_argument("--width", type=int, default=160, help="Width of each picture in pixels.")
    options = parser.parse_args(args)
    module, tasks = open_data(options)
    from taskformer.datatools.preview import preview

    _say(
        f"wrote {preview(module, Path(options.out), options.split, options.count, options.seed, tasks, options.width)}"
    )


def _shard(args: list[str]) -> None:
    parser = _data_parser("shard", "Pack a data set into shards that are streamed from a disk or object storage.")
    parser.add_argument("--out", type=str, required=True, help="Folder to write to.")
    parser.add_argument("--splits", type=list[str] | None, help="The splits, e.g. [train,val]; all by default.")
    parser.add_argument("--chunk_mb", type=int, default=64, help="Size of a chunk in megabytes.")
    parser.add_argument("--workers", type=int | None, help="Number of processes; one per processor by default.")
    options = parser.parse_args(args)
    module, tasks = open_data(options)
    from taskformer.data.shards import write_shards

    module.task_names = module.available() if tasks is None else tasks
    write_shards(module, Path(options.out), options.splits, options.chunk_mb, options.workers)
    _say(f"wrote {options.out}")


#: Name of each data command to its function and one line of help.
COMMANDS: dict[str, tuple[Callable[[list[str]], None], str]] = {
    "prepare": (_prepare, "make a data set's folder from what its owners publish"),
    "verify": (_verify, "check a data set: counts, splits, every file"),
    "preview": (_preview, "draw samples, raw and augmented"),
    "stats": (_stats, "class frequencies, ranges of values, labelled pixels"),
    "miniature": (_miniature, "write a small drawn copy in the real layout, for tests and bug reports"),
    "shard": (_shard, "pack a large data set for streaming"),
    "render": (_render, "render more of the embedded rooms"),
}


def choose(args: list[str], prog: str, kind: str, texts: dict[str, str]) -> tuple[str, list[str]]:
    """Take the first word of a command line as one of several names; without one, list them and end."""
    if not args or args[0] in ("-h", "--help"):
        lines = [f"  {name:<14} {text}" for name, text in texts.items()]
        sys.stdout.write("\n".join([f"usage: {prog} NAME ...", "", *lines, "", f"{prog} NAME --help explains one", ""]))
        sys.exit(0)
    if args[0] not in texts:
        raise UnknownNameError(kind, args[0], texts)
    return args[0], args[1:]


def _data_parser(command: str, description: str) -> Parser:
    """Build a parser with the arguments that name a data set."""
    parser = Parser(prog=f"taskformer data {command}", description=description)
    parser.add_argument("name", type=str | None, nargs="?", help="Short name of the data set, e.g. nyud or rooms.")
    parser.add_argument("--config", type=str | None, help="Instead of a name: a YAML file with the data set's options, "
                        "e.g. configs/data/nyud.yaml, or config.yaml of a run.")  # fmt: skip
    parser.add_argument(
        "--root", type=str | None, help="The data set's folder; data/NAME, or the config's, by default."
    )
    parser.add_argument("--tasks", type=list[str] | None, help="The tasks, e.g. [semseg,depth]; by default the "
                        "config's, or all that there are files for.")  # fmt: skip
    return parser


def _add_common(parser: Parser) -> None:
    parser.add_argument("--workers", type=int | None, help="Number of processes; one per processor by default.")
    parser.add_argument("--json", type=str | None, help="Also write everything to this JSON file.")


def open_data(options: Namespace) -> "tuple[MultiTaskDataModule, list[str] | None]":
    """Build the data module that the command line names; the tasks are None where nobody has chosen any."""
    from taskformer.data.configured import data_module
    from taskformer.data.datamodules import data_modules

    if (options.name is None) == (options.config is None):
        msg = f"give the name of a data set ({', '.join(sorted(data_modules()))}) or --config FILE"
        raise ConfigError(msg)
    if options.name is not None and options.name not in data_modules():
        kind = "data set"
        raise UnknownNameError(kind, options.name, data_modules())
    chosen = {key: options[key] for key in ("root", "tasks") if options[key] is not None}
    module = data_module(options.name or options.config, **chosen)
    return module, options.tasks if options.name else module.task_names


def _say(text: str) -> None:
    """Print text as it is: no wrapping, and brackets are no markup."""
    Console().print(text, soft_wrap=True, markup=False, highlight=False)
