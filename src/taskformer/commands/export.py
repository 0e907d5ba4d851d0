"""``taskformer export``: a trained network, or one sub-network of a supernet, as an ONNX file."""

from rich.console import Console

from taskformer.modules.exporting import export
from taskformer.parsing import Parser


def main(argv: list[str]) -> None:
    """Parse the command line and export."""
    description = "Write a trained network, or one sub-network of a supernet, as an ONNX file."
    parser = Parser(prog="taskformer export", description=description)
    parser.add_argument("model", type=str, help="Run folder (e.g. runs/demo) or checkpoint file.")
    parser.add_argument("--out", type=str, default="model.onnx", help="File to write.")
    parser.add_argument("--architecture", type=str | None, help="Of a supernet: JSON file of the sub-network; by "
                        "default the largest.")  # fmt: skip
    parser.add_argument("--size", type=tuple[int, int] | None, help="Height and width of the images, e.g. [480,640]; "
                        "by default those of training.")  # fmt: skip
    done = export(**parser.parse_args(argv[1:]).as_dict())
    text = f"wrote {done.out}: {', '.join(done.tasks)}; differs from the network by {done.difference:.1e}"
    Console().print(text, soft_wrap=True)
