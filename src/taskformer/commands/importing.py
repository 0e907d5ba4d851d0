"""``taskformer import``: weights of other programs, made ready for ours."""

from collections import Counter

from jsonargparse.typing import PositiveInt
from rich.console import Console

from taskformer.commands.data import choose
from taskformer.modules.importing import import_mqtransformer, import_vit
from taskformer.parsing import Parser


def main(argv: list[str]) -> None:
    """Parse the command line and import."""
    texts = {
        "mqtransformer": "a checkpoint of the released MQTransformer, for test, predict and export",
        "vit": "a plain ViT's weights, for a supernet to start from",
    }
    kind, args = choose(argv[1:], "taskformer import", "kind of import", texts)
    _mqtransformer(args) if kind == "mqtransformer" else _vit(args)


def _mqtransformer(args: list[str]) -> None:
    description = "Turn a checkpoint of the released MQTransformer into one that test, predict and export take."
    parser = Parser(prog="taskformer import mqtransformer", description=description)
    parser.add_argument("checkpoint", type=str, help="Its file: a whole checkpoint with encoder and head.")
    parser.add_argument("--out", type=str, default="mqtransformer.ckpt", help="File to write.")
    parser.add_argument("--backbone", type=str | None, help="timm's name of the encoder; by default the one that fits.")
    parser.add_argument("--data", type=str | None, help="nyud or pascal_context; by default the one that has the "
                        "checkpoint's tasks.")  # fmt: skip
    parser.add_argument("--tasks", type=list[str] | None, help="The tasks in the order in which the head was built; "
                        "only for a file with sorted names.")  # fmt: skip
    done = import_mqtransformer(**parser.parse_args(args).as_dict())
    console = Console()
    for reason, count in Counter(done.dropped.values()).items():
        console.print(f"left out {count} tensors, {reason}", soft_wrap=True)
    console.print(f"wrote {done.out}: {done.backbone}, {', '.join(done.tasks)} of {done.data}", soft_wrap=True)
    console.print(
        f"test it: taskformer test --config configs/data/{done.data}.yaml --data.tasks=[{','.join(done.tasks)}] "
        f"--model=MQTransformer --model.wiring=released --model.backbone={done.backbone} "
        f"--model.backbone_form=segmentation --ckpt={done.out}",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )


def _vit(args: list[str]) -> None:
    description = "Check a plain ViT's weights, sort its parts by importance, and write what a supernet starts from."
    parser = Parser(prog="taskformer import vit", description=description)
    parser.add_argument("weights", type=str, help="timm, hub:ORG/REPO, or a file with timm's names or those that timm "
                        "translates, such as a checkpoint of `taskformer fit`.")  # fmt: skip
    parser.add_argument("--backbone", type=str, required=True, help="timm's name of the ViT.")
    parser.add_argument("--images", type=str | None, help="Photographs, a folder, on which heads, hidden channels and "
                        "layers are sorted by importance: no labels, best none of the training.")  # fmt: skip
    parser.add_argument("--size", type=PositiveInt, nargs=2, metavar=("HEIGHT", "WIDTH"), help="Size that photographs "
                        "are brought to; by default the ViT's own.")  # fmt: skip
    parser.add_argument("--count", type=PositiveInt, default=64, help="Photographs at most.")
    parser.add_argument("--normalisation", type=list[list[float]] | None, help="Mean and deviation of the images that "
                        "the weights were trained on, e.g. [[0.5,0.5,0.5],[0.5,0.5,0.5]]; by default what timm or the "
                        "hub says.")  # fmt: skip
    parser.add_argument("--out", type=str, default="vit.pth", help="File to write.")
    options = parser.parse_args(args)
    vit = import_vit(**options.as_dict())
    print_ = Console(soft_wrap=True, markup=False, highlight=False).print
    if options.images:
        print_(f"layers, the most important first: {', '.join(str(1 + layer) for layer in vit.layer_order)}")
    print_(f"wrote {options.out}: {vit.name}")
    print_(
        "start from it: taskformer fit --config configs/model/autotaskformer.yaml --config configs/data/NAME.yaml "
        f"--model.space.preset=vit --model.space.vit={vit.name} --model.weights={options.out}"
    )
