"""``taskformer evaluate edges``: the boundary benchmark (ODS, OIS, AP) on files, no MATLAB needed."""

from rich.console import Console

from taskformer.evaluation.edges import evaluate_edges
from taskformer.parsing import Parser

DESCRIPTION = (
    "Score edge maps in files by the boundary benchmark (ODS, OIS, AP), no MATLAB needed. The file of --json keeps "
    "what every image scored: the same command again goes on where it was stopped, and scores only images whose files "
    "have changed."
)


def main(argv: list[str]) -> None:
    """Score edge maps, and print the table."""
    parser = Parser(prog="taskformer evaluate edges", description=DESCRIPTION)
    parser.add_argument("--pred", type=str, required=True, help="Folder of the predictions: ID.png (grey levels) or "
                        "ID.npy (probabilities in [0, 1]), of the size of the true edges.")  # fmt: skip
    parser.add_argument("--gt", type=str, required=True, help="Folder of the true edges: ID.png (an edge is what is "
                        "not 0), or ID.mat as BSDS has them, with all annotators; or with one array.")  # fmt: skip
    parser.add_argument("--thresholds", type=str, default="99", help="How many thresholds, spread evenly inside "
                        "(0, 1), or a text file with one on each line.")  # fmt: skip
    parser.add_argument("--max-dist", type=float, default=0.0075, help="Tolerance as a fraction of the image diagonal: "
                        "0.0075 for BSDS and PASCAL-Context, 0.011 for NYUD-v2.")  # fmt: skip
    parser.add_argument("--nms", type=bool, default=True, help="Whether predictions are first thinned by "
                        "non-maximum suppression; false if they are already.")  # fmt: skip
    parser.add_argument("--thin-truth", action="store_true", help="Also thin the true edges.")
    parser.add_argument("--json", type=str, required=True, help="JSON file to write, and to go on from if it exists.")
    parser.add_argument("--workers", type=int | None, help="Number of processes; one per processor by default.")
    found = evaluate_edges(**parser.parse_args(argv[1:]).as_dict())
    Console().print(found.table())
