"""``taskformer predict``: maps and pictures of every task for photographs and videos."""

import sys

from taskformer.modules.augmented import TTA
from taskformer.modules.photographs import predict
from taskformer.modules.prediction import View
from taskformer.parsing import Parser


def main(argv: list[str]) -> None:
    """Parse the command line and predict; status 1 if something could not be read."""
    description = "Predict maps and pictures of every task for photographs and videos."
    parser = Parser(prog="taskformer predict", description=description)
    parser.add_argument("model", type=str, help="Run folder (e.g. runs/demo) or checkpoint file.")
    parser.add_argument("images", type=str, nargs="+", help="Image files, videos, or folders of images.")
    parser.add_argument("--out", type=str, default="predictions", help="Folder to write to.")
    parser.add_argument("--raw", type=bool | None, help="Also write the values, as raw/TASK/NAME.npy, and of videos as "
                        "raw/TASK/NAME/FRAME.npy; by default of photographs only.")  # fmt: skip
    parser.add_argument("--device", type=str, default="cpu", help="Device to predict on, e.g. cuda.")
    parser.add_argument("--scale", type=float | None, help="How large the network sees a photograph, over its own "
                        "size: 1 keeps all details; by default as large as those of the training.")  # fmt: skip
    parser.add_argument("--tile", type=int | None, help="Side in pixels of the tiles that the network sees one at a "
                        "time, for photographs too large for the memory; by default it sees everything.")  # fmt: skip
    parser.add_argument("--overlap", type=float, default=View.overlap, help="Share of a tile that the next one shows "
                        "too; there one fades into the other.")  # fmt: skip
    parser.add_argument("--every", type=int, default=1, help="Of so many frames of a video the first is predicted.")
    parser.add_argument("--frames", type=int | None, help="How many frames of a video are predicted at most.")
    parser.add_class_arguments(TTA, "tta")
    parser.add_argument("--params", type=float | None, help="Of a supernet: the best sub-network that a search of the "
                        "run has found (else the nearest of random ones) with at most these parameters.")  # fmt: skip
    parser.add_argument("--macs", type=float | None, help="The same for multiply-accumulates of a training image.")
    parser.add_argument("--latency", type=float | None, help="The same for seconds per image, measured now and here.")
    parser.add_argument("--log", type=bool, default=False, help="Also log the first ones to the run, e.g. in wandb.")
    settings = parser.parse_args(argv[1:]).as_dict()
    settings["tta"] = TTA(**settings["tta"])
    if settings.pop("log"):
        from taskformer.commands.logged import predict_and_log  # imports all of a training, which takes a while

        done = predict_and_log(**settings)
    else:
        done = predict(**settings)
    sys.stdout.write(f"{done.summary()}\n")
    if done.failed:
        sys.exit(1)
