"""The command line: ``taskformer fit|validate|test`` on any model and data set, and the other commands.

Nothing heavy is imported before it is known which command runs, so that ``--help`` answers at once.
"""

import importlib
import sys

from taskformer._version import __version__
from taskformer.errors import TaskformerError, UnknownNameError

#: Name of each command to its module in ``taskformer.commands`` and one line of help.
COMMANDS = {
    "fit": ("trainer", "train a model on a data set"),
    "validate": ("trainer", "evaluate on the validation split"),
    "test": ("trainer", "evaluate on the test split: results table, gallery, metrics.json"),
    "export": ("export", "a trained network, or a supernet's sub-network, as an ONNX file"),
    "search": ("search", "find a trained supernet's best sub-networks for any budget; `search pick` takes one"),
    "predict": ("predict", "maps and pictures for your own photographs"),
    "evaluate": ("evaluate", "score saved predictions, ours or other people's, under any protocol"),
    "compare": ("compare", "is one run better than another, or was it chance: paired bootstrap intervals"),
    "baselines": ("baselines", "train the single-task runs that delta_m needs"),
    "data": ("data", "prepare, verify, preview, count, shard and imitate data sets"),
}


def main(args: list[str] | None = None) -> None:
    """Run a command; an error that the user can mend is one sentence on standard error and exit status 2.

    Args:
        args: Command line without the program's name; None takes it from ``sys.argv``.
    """
    argv = sys.argv[1:] if args is None else args
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(overview())
        return
    if argv[0] == "--version":
        sys.stdout.write(f"taskformer {__version__}\n")
        return
    try:
        if argv[0] not in COMMANDS:
            raise UnknownNameError("command", argv[0], COMMANDS)
        module, _ = COMMANDS[argv[0]]
        importlib.import_module(f"taskformer.commands.{module}").main(argv)
    except Exception as error:
        reason = _reason(error)
        if reason is None:
            raise
        sys.stderr.write(f"taskformer: {_sentence(reason)}\n")
        sys.exit(2)


def _reason(error: BaseException | None) -> TaskformerError | None:
    """Find the error meant for the user, which configuration parsers wrap in their own."""
    while error is not None and not isinstance(error, TaskformerError):
        error = error.__cause__ or error.__context__
    return error


def _sentence(error: TaskformerError) -> str:
    """The error's message; one from a loader process comes wrapped in that process's traceback, as its last line."""
    text = str(error)
    return text.rstrip().splitlines()[-1].split(": ", 1)[1] if "\nOriginal Traceback" in text else text


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
            "taskformer fit --model.help NAME     explains a model's settings, e.g. MQTransformer or Baseline",
            "taskformer fit --data.help NAME      explains a data set's settings, e.g. RoomsDataModule",
            "",
        ]
    )
