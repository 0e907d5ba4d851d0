"""``taskformer import``: a checkpoint of another program as one of ours."""

from collections import Counter

from rich.console import Console

from taskformer.modules.importing import import_mqtransformer
from taskformer.parsing import Parser


def main(argv: list[str]) -> None:
    """Parse the command line and import."""
    description = "Turn a checkpoint of the released MQTransformer into one that test, predict and export take."
    parser = Parser(prog="taskformer import", description=description)
    parser.add_argument("kind", choices=["mqtransformer"], help="The program that wrote it.")
    parser.add_argument("checkpoint", type=str, help="Its file: a whole checkpoint with encoder and head.")
    parser.add_argument("--out", type=str, default="mqtransformer.ckpt", help="File to write.")
    parser.add_argument("--backbone", type=str | None, help="timm's name of the encoder; by default the one that fits.")
    parser.add_argument("--data", type=str | None, help="nyud or pascal_context; by default the one that has the "
                        "checkpoint's tasks.")  # fmt: skip
    parser.add_argument("--tasks", type=list[str] | None, help="The tasks in the order in which the head was built; "
                        "only for a file with sorted names.")  # fmt: skip
    options = parser.parse_args(argv[1:]).as_dict()
    del options["kind"]
    done = import_mqtransformer(**options)
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
