"""``taskformer predict``: maps and pictures of every task for photographs."""

import sys

from taskformer.modules.photographs import predict
from taskformer.parsing import Parser


def main(argv: list[str]) -> None:
    """Parse the command line and predict; status 1 if a photograph could not be read."""
    description = "Predict maps and pictures of every task for photographs."
    parser = Parser(prog="taskformer predict", description=description)
    parser.add_argument("model", type=str, help="Run folder (e.g. runs/demo) or checkpoint file.")
    parser.add_argument("images", type=str, nargs="+", help="Image files, or folders of them.")
    parser.add_argument("--out", type=str, default="predictions", help="Folder to write to.")
    parser.add_argument("--raw", type=bool, default=True, help="Also write the values, as raw/TASK/NAME.npy.")
    parser.add_argument("--device", type=str, default="cpu", help="Device to predict on, e.g. cuda.")
    parser.add_argument("--log", type=bool, default=False, help="Also log the first ones to the run, e.g. in wandb.")
    settings = parser.parse_args(argv[1:]).as_dict()
    if settings.pop("log"):
        from taskformer.commands.logged import predict_and_log  # imports all of a training, which takes a while

        done = predict_and_log(**settings)
    else:
        done = predict(**settings)
    sys.stdout.write(f"{done.summary()}\n")
    if done.failed:
        sys.exit(1)
