"""How fast the supernet trains and predicts, and in how much memory, next to a plain AutoFormer and a plain ViT.

Usage: python benchmarks/supernet.py [--size tiny] [--batch 8] [--rounds 15] [--threads 2] [--json FILE]

Four networks classify the same images of 224x224 pixels as AutoFormer's published sub-network of a size does:

* ``plain``: the original computation, step by step (``autoformer_plain.py``);
* ``supernet``: this library's supernet, run as that sub-network;
* ``extracted``: what the supernet extracts for it;
* ``vit``: timm's vision transformer of the same width, depth and mean MLP ratio, without relative positions: the floor.

The first three get the same weights; that their outputs are equal is checked first. A training step is forward,
backward and AdamW. Rounds are interleaved; shown are the median round, the median of what the rounds give as ratio, and
the ratio of the best rounds, which other programs on the machine disturbed least. Memory is the most that a fresh
process holds in two steps or predictions, above what it held before it built the network (*total*) and above what it
holds between them, which is the weights and the optimizer's state (*work*; Linux only).
"""

import argparse
import gc
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from autoformer_plain import HEAD_DIM, PUBLISHED, SUPERNETS, PlainAutoFormer
from rich.console import Console
from rich.table import Table
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from taskformer.files import write_json
from taskformer.models.autotaskformer import Architecture, SearchSpace, Supernet, import_autoformer

TASK = "imagenet"
WORK = ("step", "forward")  # methods of Contender
DROP_PATH = 0.1
IMAGE_SIZE = 224


class Plain(nn.Module):
    """The plain re-statement as the published sub-network."""

    def __init__(self, size: str) -> None:
        super().__init__()
        self.sub = PUBLISHED[size]
        self.network = PlainAutoFormer(**SUPERNETS[size], image_size=IMAGE_SIZE, drop_path=DROP_PATH)

    def forward(self, image: Tensor) -> Tensor:
        """Classify images."""
        return self.network(image, self.sub)


class Sampled(nn.Module):
    """Our supernet as the published sub-network."""

    def __init__(self, size: str) -> None:
        super().__init__()
        self.architecture = Architecture(**vars(PUBLISHED[size]))
        self.network = Supernet(
            SearchSpace.preset(size), {TASK: 1000}, image_tasks=(TASK,), image_size=(IMAGE_SIZE, IMAGE_SIZE)
        )

    def forward(self, image: Tensor) -> Tensor:
        """Classify images."""
        return self.network(image, self.architecture)[TASK]


class Extracted(nn.Module):
    """What our supernet extracts as the published sub-network."""

    def __init__(self, size: str) -> None:
        super().__init__()
        sampled = Sampled(size)
        self.network = sampled.network.extract(sampled.architecture)

    def forward(self, image: Tensor) -> Tensor:
        """Classify images."""
        return self.network(image)[TASK]


def vit(size: str) -> VisionTransformer:
    """Build a plain vision transformer of the published sub-network's width, depth and mean MLP ratio."""
    sub = PUBLISHED[size]
    return VisionTransformer(
        embed_dim=sub.embed_dim,
        depth=sub.depth,
        num_heads=sub.embed_dim // HEAD_DIM,
        mlp_ratio=sum(sub.mlp_ratio) / sub.depth,
        img_size=IMAGE_SIZE,
        global_pool="avg",
        fc_norm=False,
        drop_path_rate=DROP_PATH,
    )


NETWORKS: dict[str, Callable[[str], nn.Module]] = {
    "plain": Plain,
    "supernet": Sampled,
    "extracted": Extracted,
    "vit": vit,
}


class Contender:
    """One network with its optimizer, and what was measured of it.

    Args:
        name: Which of ``NETWORKS``.
        size: Which published sub-network.
        batch: Number of images.
    """

    def __init__(self, name: str, size: str, batch: int) -> None:
        self.network = NETWORKS[name](size)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4, weight_decay=0.05)
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(batch, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
        self.labels = torch.arange(batch)
        self.milliseconds: dict[str, list[float]] = {work: [] for work in WORK}

    def step(self) -> None:
        """Train on the images once."""
        self.network.train()
        self.optimizer.zero_grad()
        F.cross_entropy(self.network(self.images), self.labels).backward()
        self.optimizer.step()

    @torch.no_grad()
    def forward(self) -> Tensor:
        """Classify the images."""
        return self.network.eval()(self.images)

    def run(self) -> None:
        """Note how long one step and one prediction take."""
        for work, times in self.milliseconds.items():
            started = time.perf_counter()
            getattr(self, work)()
            times.append(1000 * (time.perf_counter() - started))


def give_weights(contenders: dict[str, Contender], num_heads: int) -> None:
    """Give our networks the plain one's weights; relative positions ten times as strong as initialised."""
    plain, sampled, extracted = (contenders[name].network for name in ("plain", "supernet", "extracted"))
    state = plain.network.state_dict()
    for name, value in state.items():
        if "rel_pos_embed" in name:
            value.mul_(10)
    supernet = import_autoformer(state, num_heads)
    sampled.network.load_state_dict(supernet.state_dict())
    extracted.network.load_state_dict(supernet.extract(sampled.architecture).state_dict())


def largest_difference(contenders: dict[str, Contender]) -> float:
    """Return by how much our networks' logits differ from the plain ones, relative to the largest of these.

    Raises:
        SystemExit: If they are not equal within single precision.
    """
    logits = {name: contender.forward() for name, contender in contenders.items() if name != "vit"}
    scale = logits["plain"].abs().max()
    difference = max(float((other - logits["plain"]).abs().max() / scale) for other in logits.values())
    if difference > 1e-4:
        msg = f"The outputs are not equal: they differ by {difference:.1e} of the largest."
        raise SystemExit(msg)
    return difference


def measure_time(size: str, batch: int, rounds: int) -> dict[str, Contender]:
    """Time all networks, one step and one prediction each in turn."""
    contenders = {name: Contender(name, size, batch) for name in NETWORKS}
    give_weights(contenders, SUPERNETS[size]["num_heads"])
    print(f"Largest relative difference of the outputs: {largest_difference(contenders):.1e}")
    for contender in contenders.values():
        contender.step()
    for _ in range(rounds):
        for contender in contenders.values():
            contender.run()
    return contenders


def peak_memory(name: str, work: str, size: str, batch: int, threads: int) -> dict[str, float]:
    """Return in MB the most that this process needs to train or predict: in total, and beyond what it keeps."""
    torch.set_num_threads(threads)
    getattr(Contender(name, size, batch=1), work)()  # loads what torch only loads when it is used
    gc.collect()
    before = memory("VmRSS")
    contender = Contender(name, size, batch)
    getattr(contender, work)()
    contender.optimizer.zero_grad()
    kept = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    for _ in range(2):
        getattr(contender, work)()
    peak = memory("VmHWM")
    return {"total": peak - before, "work": peak - kept}


def memory(field: str) -> float:
    """Return a number of this process's memory in MB: ``VmRSS`` is what it holds now, ``VmHWM`` the most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def measure_memory(size: str, batch: int, threads: int) -> dict[str, dict[str, float]]:
    """Measure the peak memory of a training step and of a prediction, in a new process each."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # glibc then returns what is freed, and the peak is what is needed
    context = multiprocessing.get_context("spawn")
    megabytes: dict[str, dict[str, float]] = {name: {} for name in NETWORKS}
    with context.Pool(processes=1, maxtasksperchild=1) as pool:
        for name, peaks in megabytes.items():
            for work in WORK:
                peak = pool.apply(peak_memory, (name, work, size, batch, threads))
                peaks |= {f"{work} {kind}": value for kind, value in peak.items()}
    return megabytes


def report_time(contenders: dict[str, Contender]) -> dict[str, Any]:
    """Print medians and what part they are of the plain network's; returns the numbers."""
    table = Table("", *(column for work in WORK for column in (f"{work} ms", "x plain", "best x")))
    results: dict[str, Any] = {}
    for name, contender in contenders.items():
        results[name], cells = {}, []
        for work, times in contender.milliseconds.items():
            plain = contenders["plain"].milliseconds[work]
            ratio, best = float(np.median(np.divide(times, plain))), min(times) / min(plain)
            results[name] |= {f"{work} ms": times, f"{work} of plain": ratio, f"{work} of plain, best": best}
            cells += [f"{np.median(times):.0f}", f"{ratio:.2f}", f"{best:.2f}"]
        table.add_row(name, *cells)
    Console(width=120).print(table)
    return results


def report_memory(megabytes: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Print peaks and what part they are of the plain network's; returns the numbers."""
    plain = megabytes["plain"]
    table = Table("", *(column for kind in plain for column in (f"{kind} MB", "x plain")))
    results: dict[str, Any] = {}
    for name, peaks in megabytes.items():
        results[name], cells = {}, []
        for kind, peak in peaks.items():
            results[name] |= {f"{kind} MB": peak, f"{kind} MB of plain": peak / plain[kind]}
            cells += [f"{peak:.0f}", f"{peak / plain[kind]:.2f}"]
        table.add_row(name, *cells)
    Console(width=120).print(table)
    return results


def main() -> None:
    """Read the command line, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=list(SUPERNETS), default="tiny")
    parser.add_argument("--batch", type=int, default=8, help="images per batch")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    times = report_time(measure_time(options.size, options.batch, options.rounds))
    memory_used = report_memory(measure_memory(options.size, options.batch, options.threads))
    if options.json:
        write_json(options.json, {"time": times, "memory": memory_used})


if __name__ == "__main__":
    main()
