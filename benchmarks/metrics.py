"""What the metrics cost: the update of each of NYUD-v2's four tasks with one image, next to the forward pass.

Usage: python benchmarks/metrics.py [--height 425] [--width 560] [--rounds 15] [--threads 1] [--json FILE]

The network is the demo's MQTransformer with random weights; it predicts 40 classes, depth, normals and edges for an
image of random pixels, which the metrics of every protocol then score against drawn labels of rectangles. Rounds are
interleaved; shown are medians and the fastest round in milliseconds. That is what every epoch of a training does; the
last row is the boundary benchmark of the test, once, for the true edges blurred and with noise. Its cost depends on the
prediction: flat ones, of a network that has learned nothing, take many times longer.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from taskformer.files import write_json
from taskformer.modules import MQTransformer
from taskformer.tasks import PROTOCOLS, Stage, Task, build_tasks

SPECS: dict[str, dict[str, Any]] = {
    "semseg": {"classes": [f"class {number}" for number in range(40)]},
    "depth": {},
    "normals": {},
    "edges": {},
}


def demo_network() -> nn.Module:
    """Build the network of ``configs/experiment/demo.yaml`` for the four tasks, without its pretrained weights."""
    torch.manual_seed(0)
    model = MQTransformer(
        SPECS,
        backbone="tf_efficientnet_lite0",
        weights="random",
        embed_dim=64,
        num_queries=32,
        num_heads=4,
        head_dim=32,
    )
    return model.network.eval()


def draw_targets(height: int, width: int) -> dict[str, Tensor]:
    """Draw rectangles of one class, depth and normal each, whose outlines are the edges; some pixels are invalid."""
    rng = np.random.default_rng(0)
    labels = torch.zeros(height, width, dtype=torch.int64)
    depth = torch.full((height, width), 5.0)
    normals = torch.tensor([0.0, 0.0, -1.0]).view(3, 1, 1).repeat(1, height, width)
    edges = torch.zeros(height, width)
    for _ in range(20):
        top, left = rng.integers(height - 20), rng.integers(width - 20)
        window = (slice(top, top + rng.integers(20, height)), slice(left, left + rng.integers(20, width)))
        labels[window] = int(rng.integers(40))
        depth[window] = float(rng.uniform(1, 9))
        direction = torch.from_numpy(rng.normal(size=3)).float()
        normals[(slice(None), *window)] = F.normalize(direction, dim=0).view(3, 1, 1)
        edges[window] = 0
        edges[window][0], edges[window][-1], edges[window][:, 0], edges[window][:, -1] = 1, 1, 1, 1
    labels[:5] = 255
    depth[:5] = torch.nan
    normals[:, :5] = torch.nan
    return {"semseg": labels[None], "depth": depth[None, None], "normals": normals[None], "edges": edges[None, None]}


def update(task: Task, protocol: str, output: Tensor, target: Tensor, stage: Stage = "val") -> Callable[[], None]:
    """Return the function that updates fresh metrics of a task."""
    metrics = task.metrics(protocol, stage)
    return lambda: metrics.update(output, task.check(target, output))


def blurred(edges: Tensor) -> Tensor:
    """Return logits ``(1, 1, H, W)`` that are highest at the edges, less so beside them, with noise."""
    near = F.avg_pool2d(F.pad(edges, (2, 2, 2, 2)), 5, stride=1)
    return 12 * near - 3 + 0.5 * torch.randn(edges.shape, generator=torch.Generator().manual_seed(0))


def measure(work: dict[tuple[str, str], Callable[[], Any]], rounds: int) -> dict[tuple[str, str], list[float]]:
    """Time every function once a round, after one call that does not count, in milliseconds."""
    times: dict[tuple[str, str], list[float]] = {key: [] for key in work}
    for index in range(rounds + 1):
        for key, function in work.items():
            start = time.perf_counter()
            function()
            if index:
                times[key].append((time.perf_counter() - start) * 1e3)
    return times


def run(height: int, width: int, rounds: int) -> dict[str, Any]:
    """Measure the forward pass and all updates."""
    network, image = demo_network(), torch.randn(1, 3, height, width)
    tasks, targets = build_tasks(SPECS), draw_targets(height, width)
    with torch.inference_mode():
        outputs = network(image)
        times = measure(
            {("forward pass", ""): lambda: network(image)}
            | {
                (name, protocol): update(task, protocol, outputs[name], targets[name])
                for name, task in tasks.items()
                for protocol in PROTOCOLS
            },
            rounds,
        )
        edges = targets["edges"]
        benchmark = {("edges, test", "standard"): update(tasks["edges"], "standard", blurred(edges), edges, "test")}
        times |= measure(benchmark, 1)
    rows = [
        {"what": what, "protocol": protocol, "median_ms": float(np.median(spent)), "best_ms": min(spent)}
        for (what, protocol), spent in times.items()
    ]
    return {"size": [height, width], "threads": torch.get_num_threads(), "rows": rows}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--height", type=int, default=425)
    parser.add_argument("--width", type=int, default=560)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = run(options.height, options.width, options.rounds)
    table = Table(title=f"{options.height}x{options.width}, {options.threads} threads, {options.rounds} rounds")
    for heading in ("what", "protocol", "median, ms", "best, ms"):
        table.add_column(heading, justify="right" if "ms" in heading else "left")
    for row in result["rows"]:
        table.add_row(row["what"], row["protocol"], f"{row['median_ms']:.1f}", f"{row['best_ms']:.1f}")
    Console().print(table)
    if options.json:
        write_json(options.json, result)


if __name__ == "__main__":
    main()
