"""``taskformer baselines``: train a configuration's tasks one by one, the references of delta_m."""

from argparse import ArgumentParser
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from taskformer.errors import ConfigError
from taskformer.evaluation.reference_runs import Plan, entry_name, make_entry, refuse_other
from taskformer.files import write_json


class BaselinesParser(ArgumentParser):
    """A parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        """Raise the reason as a :class:`ConfigError`."""
        msg = f"{message}; see `{self.prog} --help`"
        raise ConfigError(msg)


def main(argv: list[str]) -> None:
    """Train and test each task with each seed and write their results as one entry."""
    parser = BaselinesParser(
        prog="taskformer baselines",
        usage="taskformer baselines [--seeds N ...] [--out FILE] --config FILE ...",
        description="Train a configuration's tasks one by one, test them, and write the entry that `taskformer test` "
        "and `validate` compute delta_m from: for each task mean and standard deviation over the seeds. Finished runs "
        "are kept, interrupted ones go on. All other flags are those of `taskformer fit`; --name and --runs_dir say "
        "where the runs are, --results.protocol how they are scored.",
        allow_abbrev=False,
    )
    parser.add_argument("--out", type=Path, help="file to write; by default in configs/baselines, named after the "
                        "runs' facts")  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="seeds to train every task with, e.g. 0 1 2; "
                        "by default only --seed_everything")  # fmt: skip
    options, flags = parser.parse_known_args(argv[1:])
    if options.seeds and (min(options.seeds) < 0 or len(set(options.seeds)) < len(options.seeds)):
        msg = f"--seeds must be different whole numbers, 0 or above, got {options.seeds}"
        raise ConfigError(msg)
    entry = make_entry(make_plan(flags, options.seeds))
    path = options.out or Path("configs") / "baselines" / f"{entry_name(entry['facts'])}.json"
    if not options.out:
        refuse_other(path, entry["facts"])
    write_json(path, entry)
    Console().print(f"wrote {path}", soft_wrap=True)


def make_plan(flags: list[str], seeds: list[int] | None = None) -> Plan:
    """Read a command line of ``taskformer fit``; without seeds its own is taken."""
    from taskformer.commands.trainer import TaskformerCLI  # Lightning, which takes seconds to import

    cli = TaskformerCLI(flags, run=False)
    model, config = type(cli.model).__name__, cli.config
    name = config.name or f"{model.lower()}-{cli.datamodule.name}"
    seeds = seeds or [config.seed_everything if type(config.seed_everything) is int else 0]
    return Plan(flags, model, cli.model.tasks, name, Path(config.runs_dir), config.results.protocol, seeds)
