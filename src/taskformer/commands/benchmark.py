"""``taskformer benchmark``: time, memory and cost of a network, also beside another one."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from jsonargparse.typing import PositiveInt
from rich.console import Console

from taskformer.errors import ConfigError
from taskformer.files import write_json
from taskformer.parsing import Parser, laid_on, read_layers

if TYPE_CHECKING:
    from taskformer.modules import MultiTaskModule

DESCRIPTION = (
    "Measure how long a network predicts and trains, its memory, parameters and multiply-accumulates. Flags of "
    "`taskformer fit` that begin with --model and --data change a configuration; written --against.model and "
    "--against.data they change the one that it is compared with."
)
#: A flag that changes a configuration, and whether it is that of the second network.
OVERRIDE = re.compile(r"--(against\.)?(?=(model|data)([.=+]|$))")


def main(argv: list[str]) -> None:
    """Measure, and print the tables."""
    words, first, second = _take_overrides(argv[1:])
    options = _parser().parse_args(words)
    from taskformer.evaluation.benchmark import benchmark

    sides = _sides([*options.subject, *(options.config or [])], options.against or [], first, second)
    models, sizes = zip(*(_opened(sources, overrides) for _, sources, overrides in sides), strict=True)
    found = benchmark(
        models[0],
        *models[1:],
        names=[name for name, _, _ in sides],
        size=tuple(options.size) if options.size else sizes[0],
        architecture=options.architecture,
        batch=options.batch,
        rounds=options.rounds,
        train=options.train,
        growth=options.growth,
        growth_tasks=options.growth_tasks,
        growth_task=options.growth_task,
        balancing=options.balancing,
        device=options.device,
        precision=options.precision,
        threads=options.threads,
        out=options.out,
    )
    console = Console()
    for table in (found.table(), *found.further_tables()):
        console.print(table)
    if options.out:
        console.print(f"wrote {options.out}", soft_wrap=True)
    if options.json:
        write_json(Path(options.json), found.as_dict())


def _parser() -> Parser:
    parser = Parser(prog="taskformer benchmark", description=DESCRIPTION)
    parser.add_argument("subject", type=str, nargs="*", help="Run folder, checkpoint, or YAML configurations of model "
                        "and data as `fit --config` takes them, e.g. configs/model/mqtransformer.yaml "
                        "configs/data/rooms.yaml.")  # fmt: skip
    parser.add_argument("--config", type=str, action="append", help="A YAML configuration; may be given several times.")
    parser.add_argument("--against", type=str, nargs="+", help="The same of another network, which takes turns with "
                        "the first; its data, if not given, are those of the first.")  # fmt: skip
    parser.add_argument("--architecture", type=str | None, help="Of a supernet: JSON file of the sub-network; by "
                        "default the largest.")  # fmt: skip
    parser.add_argument("--size", type=PositiveInt, nargs=2, metavar=("HEIGHT", "WIDTH"), help="Size of the images; "
                        "by default that of the training images.")  # fmt: skip
    parser.add_argument("--batch", type=PositiveInt, default=4, help="Images of a batch, beside single ones.")
    parser.add_argument("--rounds", type=PositiveInt, default=10, help="How often each call is timed.")
    parser.add_argument("--train", type=bool, default=True, help="Also measure a training step.")
    parser.add_argument("--growth", type=bool, default=False, help="Also measure more tasks and larger images.")
    parser.add_argument("--growth_tasks", type=list[int], default=[1, 2, 4, 8, 16], help="The numbers of tasks.")
    parser.add_argument("--growth_task", type=dict[str, Any], default={"type": "regression", "channels": 1},
                        help="What each of these tasks is.")  # fmt: skip
    parser.add_argument("--balancing", type=bool, default=False, help="Also measure a training step with every method "
                        "of balancing.")  # fmt: skip
    parser.add_argument("--device", type=str, default="cpu", help="Device to measure on, e.g. cuda.")
    parser.add_argument("--precision", type=Literal["32-true", "bf16-mixed"], default="32-true", help="As the "
                        "Trainer's.")  # fmt: skip
    parser.add_argument("--threads", type=PositiveInt | None, help="Threads on the processor; by default torch's own.")
    parser.add_argument("--out", type=str | None, help="Folder to write benchmark.json, .md and .png to.")
    parser.add_argument("--json", type=str | None, help="Also write everything to this JSON file.")
    return parser


def _take_overrides(argv: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Take the flags that change configurations out of a command line.

    Returns:
        The other words, the changes of the first network and those of the second.

    Example:
        >>> _take_overrides(["a.yaml", "--model.lr", "1", "--size", "2", "2", "--against.model.lr=2"])
        (['a.yaml', '--size', '2', '2'], ['--model.lr=1'], ['--model.lr=2'])
    """
    left: list[str] = []
    first: list[str] = []
    second: list[str] = []
    words = iter(argv)
    for word in words:
        if flag := OVERRIDE.match(word):
            text = word if "=" in word else f"{word}={next(words, '')}"
            (second if flag[1] else first).append(text.replace("--against.", "--", 1))
        else:
            left.append(word)
    return left, first, second


def _sides(
    sources: Sequence[str], against: Sequence[str], first: Sequence[str], second: Sequence[str]
) -> list[tuple[str, list[str], list[str]]]:
    """Say what the one or two networks are: name, sources and changes of each."""
    if not sources:
        msg = "what is to be measured? Give a run folder, a checkpoint or configurations of model and data"
        raise ConfigError(f"{msg}; see `taskformer benchmark --help`")
    sides = [(_name(sources, first), list(sources), list(first))]
    if against:
        of_data = [word for word in first if word.startswith("--data")] if _is_configuration(against) else []
        sides.append((_name(against, second), _with_data_of(against, sources), [*of_data, *second]))
    elif second:
        sides.append((" ".join(second), list(sources), [*first, *second]))
    return sides


def _opened(sources: Sequence[str], overrides: Sequence[str]) -> tuple["MultiTaskModule", tuple[int, int] | None]:
    """Return a model and the size of its training images, if it is known."""
    from taskformer.commands.trainer import from_config, silence_lightning  # Lightning, which takes seconds to import
    from taskformer.data.configured import training_size
    from taskformer.modules.loading import load

    if _is_configuration(sources):
        silence_lightning()
        _require_whole(sources, overrides)
        # What the weights are changes no figure, and some would be downloaded.
        model, data = from_config(*sources, overrides=["--model.weights=random", *overrides])
        return model, training_size(data)
    if overrides or len(sources) > 1:
        what = " ".join(overrides) or sources[1]
        msg = f"{sources[0]!r} is taken as it is, without {what}; only YAML configurations, e.g. a run's config.yaml, "
        raise ConfigError(msg + "lie on each other and are changed by flags")
    return load(sources[0]), None


def _require_whole(sources: Sequence[str], overrides: Sequence[str]) -> None:
    """Refuse configurations that lack a model, or data, which say what the tasks are."""
    blocks = _blocks(sources)
    for name in ("model", "data"):
        if name not in blocks and not any(word.startswith(f"--{name}=") for word in overrides):
            msg = f"{' and '.join(sources)} name no {name}; add a YAML file, e.g. of configs/{name}, or --{name} NAME"
            raise ConfigError(msg)


def _is_configuration(sources: Sequence[str]) -> bool:
    return any(map(_is_yaml, sources))


def _is_yaml(source: str) -> bool:
    return "\n" in source or Path(source).suffix in (".yaml", ".yml")


def _with_data_of(sources: Sequence[str], others: Sequence[str]) -> list[str]:
    """Complete configurations that name no data by the data block of others; what is no configuration stays."""
    missing = _is_configuration(sources) and "data" not in _blocks(sources)
    data = _blocks(others).get("data") if missing else None
    return [*([yaml.safe_dump({"data": data})] if data else []), *sources]


def _blocks(sources: Sequence[str]) -> dict[str, Any]:
    """Read configurations, files or text, on top of each other; of a run folder its own."""
    found: dict[str, Any] = {}
    for source in sources:
        if "\n" in source:
            found = laid_on(found, yaml.safe_load(source))
            continue
        file = Path(source, "config.yaml") if Path(source).is_dir() else Path(source)
        if _is_yaml(str(file)) and file.is_file():
            found = laid_on(found, read_layers(file))
    return found


def _name(sources: Sequence[str], overrides: Sequence[str]) -> str:
    """Name a network by its files and by what is changed."""
    files = " + ".join(Path(source).stem if _is_yaml(source) else source for source in sources)
    return " ".join([files, *overrides])
