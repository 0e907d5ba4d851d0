"""Parameters and multiply-accumulates of every row of the tables of NYUD-v2 and PASCAL-Context, for docs/models.md.

Usage: python benchmarks/model_costs.py [--page docs/models.md]

Networks and images lie on torch's meta device, where tensors have shapes and no numbers: a minute, and little memory.
Without ``--page`` the tables are printed.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from pages import print_or_replace
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from taskformer.commands.trainer import from_config
from taskformer.models import DenseNetwork

ROOT = Path(__file__).parent.parent
EXPERIMENTS = ROOT / "configs" / "experiment"
BEGIN = "<!-- begin: benchmarks/model_costs.py -->\n"
DATA = {"nyud": "NYUD-v2", "pascal": "PASCAL-Context"}
ENCODERS = {
    "hrnet18": "HRNet18",
    "hrnet48": "HRNet48",
    "swin_t": "Swin-T",
    "swin_s": "Swin-S",
    "swin_b": "Swin-B",
    "swin_l": "Swin-L",
    "vit_b": "ViT-B",
    "vit_l": "ViT-L",
}
#: Heads by name: flags of the command line.
HEADS = {
    "released": ["--model.wiring=released"],
    "clean": ["--model.wiring=clean"],
    "plain": ["--model=Baseline"],
}
#: Parameters in millions and billions of "FLOPs", as the READMEs of MQTransformer, DeMT and InvPT state them.
PUBLISHED = {
    "hrnet18": "DeMT 4.76 / 22.07",
    "swin_t": "DeMT 32.07 / 100.70",
    "swin_s": "DeMT 53.03 / 121.05",
    "swin_b": "DeMT 90.9 / 153.65",
    "swin_l": "MQTransformer 204.3 / 365.25, DeMT 201.64 / -",
    "vit_l": "InvPT 402.1 / 555.57",
}
HEADER = ["network", "image", "encoder", "head, released", "head, clean", "plain heads", "whole, released", "published"]


@dataclass(frozen=True)
class Cost:
    """What a part of a network costs.

    Attributes:
        parameters: How many numbers it has.
        macs: Multiply-accumulates for one image.
    """

    parameters: int
    macs: int

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.parameters + other.parameters, self.macs + other.macs)

    def __str__(self) -> str:
        return f"{self.parameters / 1e6:.2f} / {self.macs / 1e9:.1f}"


def count(experiment: Path, flags: list[str]) -> tuple[tuple[int, int], Cost, Cost]:
    """Return height and width of an experiment's training images, and the costs of its encoder and its head."""
    with torch.device("meta"):
        model, data = from_config(experiment, overrides=["--model.weights=random", *flags])
    network = model.network.eval()
    assert isinstance(network, DenseNetwork)
    height, width = data.train_transforms[-1].height, data.train_transforms[-1].width
    step = network.backbone.step
    size = (height + -height % step, width + -width % step)  # as the network pads
    with torch.device("meta"), torch.no_grad():
        with FlopCounterMode(display=False) as encoder:
            features = network.backbone(torch.empty(1, 3, *size))
        with FlopCounterMode(display=False) as head:
            network.head(features, size)
    return (height, width), _cost(network.backbone, encoder), _cost(network.head, head)


def _cost(part: nn.Module, counter: FlopCounterMode) -> Cost:
    # The counter has two operations for each multiply-accumulate.
    return Cost(sum(parameter.numel() for parameter in part.parameters()), counter.get_total_flops() // 2)


def table_row(data: str, encoder: str) -> str:
    """Make a row of a data set's table in markdown."""
    experiment = EXPERIMENTS / f"{data}_mqtransformer_{encoder}.yaml"
    counted = [count(experiment, flags) for flags in HEADS.values()]
    (height, width), backbone, released = counted[0]
    heads = [str(head) for _, _, head in counted]
    published = PUBLISHED.get(encoder, "") if data == "nyud" else ""
    cells = [ENCODERS[encoder], f"{height}x{width}", str(backbone), *heads, str(backbone + released), published]
    return f"| {' | '.join(cells)} |"


def tables() -> str:
    """Make the tables of both data sets."""
    sections = []
    for data, title in DATA.items():
        lines = [f"| {' | '.join(HEADER)} |", f"|{'---|' * len(HEADER)}"]
        lines += [table_row(data, encoder) for encoder in ENCODERS]
        sections.append(f"### {title}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(sections)


if __name__ == "__main__":
    print_or_replace(__doc__ or "", BEGIN, tables)
