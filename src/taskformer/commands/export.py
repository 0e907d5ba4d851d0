"""``taskformer export``: a trained network, or one sub-network of a supernet, as ONNX or a program of torch's."""

from rich.console import Console

from taskformer.modules.exporting import Format, export
from taskformer.parsing import Parser

DESCRIPTION = (
    "Write a trained network, or one sub-network of a supernet, as a file that other programs run. The file takes any "
    "batch of images of any height and width and gives each task's raw output by name; docs/export.md shows how to use "
    "it. It is compared with the network before it gets its name."
)


def main(argv: list[str]) -> None:
    """Parse the command line and export."""
    parser = Parser(prog="taskformer export", description=DESCRIPTION)
    parser.add_argument("model", type=str, help="Run folder (e.g. runs/demo) or checkpoint file.")
    parser.add_argument("--format", type=Format, default="onnx", help="onnx, or torch: a program of torch.export.")
    parser.add_argument("--out", type=str | None, help="File to write; by default model.onnx, or model.pt2 of torch.")
    parser.add_argument("--architecture", type=str | None, help="Of a supernet: JSON file of the sub-network; by "
                        "default the largest.")  # fmt: skip
    parser.add_argument("--size", type=tuple[int, int] | None, help="The one height and width that the file takes, "
                        "e.g. [480,640]; by default any.")  # fmt: skip
    done = export(**parser.parse_args(argv[1:]).as_dict())
    size = "any size" if done.size is None else "x".join(map(str, done.size))
    text = (
        f"wrote {done.out}: {', '.join(done.tasks)}, images of {size}; "
        f"differs from the network by {done.difference:.1e}"
    )
    Console().print(text, soft_wrap=True)
