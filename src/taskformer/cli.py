"""The command line: ``taskformer fit|validate|test`` on any model and data set, and the other commands.

Nothing heavy is imported before it is known which command runs, so that ``--help`` answers at once.
"""

import importlib
import os
import re
import sys
import traceback

from taskformer._version import __version__
from taskformer.errors import ConfigError, UnknownNameError, mistake

#: Status of a program that Ctrl-C ended, as shells have it.
INTERRUPTED = 130

#: Flags that only ask for an explanation, of a command or of a class.
HELP = re.compile(r"-h|--help|--[\w.]+\.help(=.*)?")

#: Name of each command to its module in ``taskformer.commands`` and one line of help.
COMMANDS = {
    "fit": ("trainer", "train a model on a data set"),
    "validate": ("trainer", "evaluate on the validation split"),
    "test": ("trainer", "evaluate on the test split: results table, gallery, metrics.json"),
    "export": ("export", "a trained network, or a supernet's sub-network, as an ONNX file"),
    "search": ("search", "find a trained supernet's best sub-networks for any budget; `search pick` takes one"),
    "predict": ("predict", "maps and pictures for your own photographs"),
    "import": ("importing", "a checkpoint of the released MQTransformer as one of ours"),
    "evaluate": ("evaluate", "score saved predictions, ours or other people's, under any protocol"),
    "compare": ("compare", "is one run better than another, or was it chance: paired bootstrap intervals"),
    "sweep": ("sweep", "train many settings, models or data sets of one sweep file: here, or checked for wandb"),
    "plot": ("plot", "pictures of one run or several: learning curves, classes, errors, precision and recall"),
    "explain": ("explain", "see inside: attention, affinity of tasks, gradients at odds, worst images"),
    "benchmark": ("benchmark", "time, memory, parameters and multiply-accumulates of a network, also beside another"),
    "baselines": ("baselines", "train the single-task references that delta_m needs"),
    "data": ("data", "prepare, verify, preview, count, shard and imitate data sets"),
}

#: The modules whose parser is LightningCLI's.
LIGHTNING = ("search", "trainer")


def main(args: list[str] | None = None) -> None:
    """Run a command; an error that the user can mend is one sentence on standard error and exit status 2.

    Any other error is a bug of ours: it keeps its traceback, which asks to be reported.

    Args:
        args: Command line without the program's name; None takes it from ``sys.argv``.
    """
    argv = sys.argv[1:] if args is None else args
    if args is None and not sys.flags.safe_path and os.getcwd() not in sys.path:  # noqa: PTH109  # sys.path holds text
        sys.path.insert(0, os.getcwd())  # noqa: PTH109  # the user's own classes, as `python -m taskformer` finds them
    try:
        _run(argv)
    except KeyboardInterrupt:
        sys.stderr.write("taskformer: stopped by Ctrl-C\n")
        sys.exit(INTERRUPTED)
    except Exception as error:
        sentence = mistake(error)
        if sentence is None:
            error.add_note("taskformer: this is a bug, not a mistake of yours; please report all lines above")
            raise
        sys.stderr.write(f"taskformer: {sentence}\n")
        sys.exit(2)


def _run(argv: list[str]) -> None:
    """Import the user's modules, then run the command."""
    modules, argv = take_imports(argv)
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(overview())
        return
    if argv[0] == "--version":
        sys.stdout.write(f"taskformer {__version__}\n")
        return
    if argv[0] not in COMMANDS:
        kind = "command"
        raise UnknownNameError(kind, argv[0], COMMANDS)
    for module in modules:
        import_module_of_user(module)
    module, _ = COMMANDS[argv[0]]
    if module in LIGHTNING and not modules and any(HELP.fullmatch(word) for word in argv):
        importlib.import_module("taskformer.commands.light").import_lightning()
    importlib.import_module(f"taskformer.commands.{module}").main(argv)


def take_imports(argv: list[str]) -> tuple[list[str], list[str]]:
    """Take ``--import MODULE``, which any command may have in any place and several times, out of a command line.

    Returns:
        The modules, and the other words.

    Raises:
        ConfigError: If a module's name is missing.

    Example:
        >>> take_imports(["fit", "--import", "my.tasks", "--name=x", "--import=my.data"])
        (['my.tasks', 'my.data'], ['fit', '--name=x'])
    """
    modules: list[str] = []
    left: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--import" or word.startswith("--import="):
            modules.append(word.partition("=")[2] or next(words, ""))
        else:
            left.append(word)
    if "" in modules:
        msg = "--import needs the name of a module, e.g. --import mypackage.mytasks"
        raise ConfigError(msg)
    return modules, left


def import_module_of_user(name: str) -> None:
    """Import a module that registers tasks, or defines models, data sets and other classes.

    Raises:
        ConfigError: If that fails, whatever the module does.
    """
    try:
        importlib.import_module(name)
    except Exception as error:
        inside = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
        where = f", {inside[-1].filename}:{inside[-1].lineno}" if len(inside) > 1 else ""
        msg = (
            f"cannot import the module {name!r}: {type(error).__name__}: {error}{where}; it must be on Python's path "
            "or in the current folder, and named as in an import, e.g. mypackage.mytasks"
        )
        raise ConfigError(msg) from error


def overview() -> str:
    """List every command with one line each."""
    commands = [f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            f"taskformer {__version__}: multi-task dense prediction transformers",
            "",
            "usage: taskformer COMMAND ...",
            "",
            *commands,
            "",
            "taskformer COMMAND --help            explains a command",
            "taskformer COMMAND --import MODULE   first imports your module of tasks, data sets, models, ...",
            "taskformer fit --model.help NAME     explains a model's settings, e.g. MQTransformer or Baseline",
            "taskformer fit --data.help NAME      explains a data set's settings, e.g. RoomsDataModule",
            "",
        ]
    )
