"""``taskformer search pick``: the best network that a search has found for a budget."""

from pathlib import Path

from rich.console import Console

from taskformer.errors import ConfigError
from taskformer.files import inside, write_json
from taskformer.modules.loading import load
from taskformer.modules.quantities import COSTS, describe
from taskformer.parsing import Parser
from taskformer.search.results import load_search, measured_here, name_of, pick, write_architecture
from taskformer.search.run import supernet_of


def main(argv: list[str]) -> None:
    """Pick a network and write its architecture."""
    parser = Parser(
        prog="taskformer search pick",
        description="Print the best network for a budget of all that a search has evaluated, also while it runs, and "
        "the file that `taskformer fit --model.architecture` takes. Nothing is searched.",
    )
    parser.add_argument("run", type=str, help="Run folder of the supernet.")
    parser.add_argument("--params", type=float | None, help="Largest number of parameters.")
    parser.add_argument("--macs", type=float | None, help="Largest number of multiply-accumulates for one image.")
    parser.add_argument(
        "--latency", type=float | None, help="Largest latency of one batch in seconds, as the search measured it."
    )
    parser.add_argument(
        "--measure",
        type=str | None,
        help="Measure the latency of some networks now, of one image on this device (cpu, cuda), "
        "instead of taking what the search measured.",
    )
    parser.add_argument(
        "--json", type=str | None, help="Also write all that is known of the network to this JSON file."
    )
    parser.add_argument("--study", type=str, default="search", help="Name of the study.")
    parser.add_argument("--storage", type=str | None, help="Where the study is kept, if not in its folder.")
    options = parser.parse_args(argv[1:])
    run = Path(options.run)
    if not run.is_dir():
        msg = f"there is no run folder {options.run!r}"
        raise ConfigError(msg)
    folder = inside(run, options.study, "the study")
    objectives, records = load_search(folder, options.storage)
    limits = {name: options[name] for name in COSTS if options[name] is not None}
    if options.measure:
        module = load(run, options.measure)
        others = {name: most for name, most in limits.items() if name != "latency"}
        records = measured_here(records, objectives, others, supernet_of(module), module.hparams["image_size"])
    chosen = pick(records, objectives, limits)
    candidate = chosen.candidate
    path = write_architecture(folder, name_of(chosen), candidate.architecture)
    console = Console(highlight=False)
    console.print(f"{name_of(chosen)}: {describe(candidate.values)}", soft_wrap=True)
    console.print(str(path), soft_wrap=True)
    if options.json:
        about = {"name": name_of(chosen), "file": str(path), "values": dict(candidate.values)}
        write_json(Path(options.json), about | {"architecture": candidate.architecture.to_dict()})
