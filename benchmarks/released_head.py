"""MQTransformer's released head written out plainly, and how much time and memory ours takes next to it.

Usage: python benchmarks/released_head.py [restated released ...] [--channels swin_t] [--size 448 576] [--rounds 9]

:class:`ReleasedHead` re-states the published computation (arXiv 2205.14354, yangyangxu0/MQTransformer) from its
description, under the names of its state dict, tensors that are never used included. Every step is done as the
original does it: all maps are brought to the finest size and concatenated, tasks run one by one, and the decoder's
attention runs over the images of a batch. It shares no code with the library.

Compared are, interleaved in one process that keeps the memory it has freed, any of

* ``restated``: the re-statement;
* ``released``: our head in the released wiring, with the re-statement's weights;
* ``checkpointed``: the same with activation checkpointing;
* ``fused`` and ``scales``: our own wiring, on one scale and on all strides.

Shown are the median round with its quartiles, and the same of what the rounds give as ratio to the first
network. A training step is a forward pass, the sum of all squared outputs, and a backward pass. The *floor* is the time
of the bare matrix products of a forward pass, at the same shapes and into memory that is there. Memory is the most that
a fresh process holds above what it held before (Linux only).
"""

import argparse
import ctypes
import gc
import multiprocessing
import resource
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from taskformer.files import write_json
from taskformer.memory import keep_freed_memory
from taskformer.models.mqtransformer import MQTransformerHead, import_released

WIDTH, HEADS, QUERIES, HIDDEN = 256, 4, 64, 64
#: Channels of the encoders' maps.
CHANNELS: dict[str, tuple[int, ...]] = {
    "hrnet_w18": (18, 36, 72, 144),
    "hrnet_w48": (48, 96, 192, 384),
    "swin_t": (96, 192, 384, 768),
    "swin_b": (128, 256, 512, 1024),
    "swin_l": (192, 384, 768, 1536),
}
#: Channels of the tasks' outputs, under the names that they have in the original.
TASKS: dict[str, dict[str, int]] = {
    "nyud": {"semseg": 40, "depth": 1, "normals": 3, "edge": 1},
    "pascal": {"semseg": 21, "human_parts": 7, "sal": 2, "normals": 3, "edge": 1},
}


class ReleasedHead(nn.Module):
    """The head as it was published.

    Args:
        tasks: Task name to output channels.
        channels: Channels of the encoder's maps, the finest first.
    """

    def __init__(self, tasks: Mapping[str, int], channels: Sequence[int]) -> None:
        super().__init__()
        self.bottleneck = nn.ModuleDict({task: Bottleneck() for task in tasks})
        self.final_logits = nn.ModuleDict({task: nn.Conv2d(HIDDEN, out, kernel_size=1) for task, out in tasks.items()})
        self.parts_query_encoder_decoder_blocks = nn.ModuleList([Block(len(tasks))])
        self.patch_embed = PatchEmbed()  # its result is never used
        self.linears = nn.ModuleList(nn.Linear(sum(channels), WIDTH) for _ in tasks)
        for logits in self.final_logits.values():
            nn.init.normal_(logits.weight, std=0.01)
            nn.init.zeros_(logits.bias)

    def forward(self, features: Sequence[Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        """Turn maps ``(B, C_i, H_i, W_i)`` into ``{task: (B, C_task, *size)}``."""
        finest = features[0].shape[-2:]
        fused = torch.cat([upsample(x, finest) for x in features], dim=1).permute(0, 2, 3, 1)  # (B, h, w, sum C_i)
        tokens = [linear(fused).flatten(1, 2) for linear in self.linears]  # T x (B, L, C)
        for x in tokens:
            self.patch_embed(x.transpose(1, 2).unflatten(2, finest))
        for block in self.parts_query_encoder_decoder_blocks:
            tokens = block(tokens)
        maps = [x.transpose(1, 2).unflatten(2, finest) for x in tokens]  # T x (B, C, h, w)
        return {
            task: upsample(logits(self.bottleneck[task](x)), size)
            for (task, logits), x in zip(self.final_logits.items(), maps, strict=True)
        }


class Block(nn.Module):
    """Queries gather, exchange and give back.

    Args:
        num_tasks: Number of tasks T.
    """

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.rpn_tokens = nn.ParameterList(small(1, QUERIES, WIDTH) for _ in range(num_tasks))
        self.rpn_qpos = nn.ParameterList(small(1, QUERIES, 1, WIDTH // HEADS) for _ in range(num_tasks))
        self.rpn_kpos = nn.ParameterList(small(1, QUERIES, 1, WIDTH // HEADS) for _ in range(num_tasks))
        self.encoder1 = Encoder()
        self.decoder1 = Decoder()
        self.mhsa_1 = nn.MultiheadAttention(WIDTH, HEADS, dropout=0.1)
        self.drop_path = DropPath(0.5)
        self.norm_layer = nn.LayerNorm(WIDTH)
        self.ffn_mlp = Mlp(ratio=1)

    def forward(self, tokens: list[Tensor]) -> list[Tensor]:
        """Change every task's tokens ``(B, L, C)``."""
        batch = len(tokens[0])
        parts = [
            self.encoder1(x, query.expand(batch, -1, -1), position)
            for x, query, position in zip(tokens, self.rpn_tokens, self.rpn_qpos, strict=True)
        ]
        together = torch.cat(parts, dim=1).transpose(0, 1)  # (T*N, B, C)
        together = together + self.drop_path(self.mhsa_1(together, together, together)[0])
        together = together + self.drop_path(self.ffn_mlp(self.norm_layer(together)))  # the MLP has a norm of its own
        parts = list(together.transpose(0, 1).split(QUERIES, dim=1))
        return [
            F.gelu(self.decoder1(x, part, position))
            for x, part, position in zip(tokens, parts, self.rpn_kpos, strict=True)
        ]


class Encoder(nn.Module):
    """A task's queries attend to its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.enc_attn = Attention()
        self.drop_path = DropPath(0.1)
        self.reason = Reasoning()
        self.enc_ffn = Mlp(ratio=1)

    def forward(self, tokens: Tensor, queries: Tensor, position: Tensor) -> Tensor:
        """Change queries ``(B, N, C)`` by tokens ``(B, L, C)``."""
        queries = queries + self.drop_path(self.enc_attn(queries, tokens, query_position=position))
        queries = self.reason(queries)
        return queries + self.drop_path(self.enc_ffn(queries))


class Decoder(nn.Module):
    """A task's tokens attend to its queries, then each to the same place in the other images of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.attn1 = Attention()
        self.attn2 = Attention()  # never called
        self.rel_pos = RelativePosition()  # never called
        self.ffn1 = Mlp(ratio=3)
        self.ffn2 = Mlp(ratio=3)
        self.drop_path = DropPath(0.1)
        self.mhsa = nn.MultiheadAttention(WIDTH, HEADS)

    def forward(self, tokens: Tensor, queries: Tensor, position: Tensor) -> Tensor:
        """Change tokens ``(B, L, C)`` by queries ``(B, N, C)``."""
        first = tokens + self.drop_path(self.attn1(tokens, queries, key_position=position))
        first = first + self.drop_path(self.ffn1(first))
        across = self.mhsa(first, first, first)[0]  # dimension 0, the images, is the sequence
        second = tokens + self.drop_path(across)  # from the tokens again
        return second + self.drop_path(self.ffn2(second))


class Attention(nn.Module):
    """Attention with a norm each for queries, keys and values; positions are added before it, the same to each head."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_q, self.norm_k, self.norm_v = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.to_q = nn.Linear(WIDTH, WIDTH, bias=False)
        self.to_k = nn.Linear(WIDTH, WIDTH, bias=False)
        self.to_v = nn.Linear(WIDTH, WIDTH, bias=False)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(
        self, query: Tensor, memory: Tensor, query_position: Tensor | None = None, key_position: Tensor | None = None
    ) -> Tensor:
        """Read a memory ``(B, M, C)`` with queries ``(B, N, C)``; positions are ``(1, N or M, 1, C / heads)``."""
        q = heads(self.to_q(self.norm_q(placed(query, query_position))))  # (B, N, heads, d)
        k = heads(self.to_k(self.norm_k(placed(memory, key_position))))
        v = heads(self.to_v(self.norm_v(memory)))
        scores = torch.einsum("bnhd,bmhd->bnhm", q, k) * (WIDTH // HEADS) ** -0.5
        read = torch.einsum("bnhm,bmhd->bnhd", scores.softmax(dim=-1), v)
        return self.proj(read.flatten(2))


class Reasoning(nn.Module):
    """The same linear map for every query."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.linear = nn.Conv1d(WIDTH, WIDTH, kernel_size=1, bias=False)

    def forward(self, queries: Tensor) -> Tensor:
        """Change queries ``(B, N, C)``."""
        return queries + self.linear(self.norm(queries).transpose(1, 2)).transpose(1, 2)


class Mlp(nn.Module):
    """Norm, two layers and a GELU between them."""

    def __init__(self, ratio: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.fc1 = nn.Linear(WIDTH, ratio * WIDTH)
        self.fc2 = nn.Linear(ratio * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Change vectors ``(..., C)``."""
        return self.fc2(F.gelu(self.fc1(self.norm(x))))


class Bottleneck(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(WIDTH, HIDDEN, kernel_size=3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        """Turn ``(B, C, h, w)`` into ``(B, 64, h, w)``."""
        return F.relu(self.bn(self.conv(x)))


class PatchEmbed(nn.Module):
    """Patches of 4x4 tokens, which the original computes and drops."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Conv2d(WIDTH, WIDTH, kernel_size=4, stride=4)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Turn ``(B, C, h, w)`` into patches ``(B, P, C)``."""
        height, width = x.shape[-2:]
        patches = self.projection(F.pad(x, (0, -width % 4, 0, -height % 4)))
        return self.norm(patches.flatten(2).transpose(1, 2))


class RelativePosition(nn.Module):
    """Tables of relative positions in patches of 4x4 tokens, which nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.rel_emb_h = small(7, WIDTH // HEADS // 2)
        self.rel_emb_w = small(7, WIDTH // HEADS // 2)


def small(*shape: int) -> nn.Parameter:
    """Return a parameter of small random numbers."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02))


def heads(x: Tensor) -> Tensor:
    """Split channels into heads: ``(B, N, heads, d)``."""
    return x.unflatten(-1, (HEADS, -1))


def placed(x: Tensor, position: Tensor | None) -> Tensor:
    """Add positions ``(1, N, 1, d)`` to every head of ``(B, N, C)``."""
    return x if position is None else (heads(x) + position).flatten(2)


def upsample(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resample ``(B, C, h, w)`` bilinearly."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


@torch.no_grad()
def randomise(module: nn.Module, seed: int = 0) -> None:
    """Give a network numbers that hide nothing: no norm is the identity, no bias and no statistic at its start."""
    generator = torch.Generator().manual_seed(seed)
    for name, values in module.state_dict().items():
        if not values.is_floating_point():
            continue
        noise = torch.randn(values.shape, generator=generator)
        if name.endswith("running_var"):
            values.copy_(noise.abs() + 0.5)
        elif values.ndim == 1:
            values.copy_(0.3 * noise + ("bias" not in name and "mean" not in name))
        else:
            values.copy_(noise / values[0].numel() ** 0.5)


STRIDES = (4, 8, 16, 32)
WORK = ("forward", "step")
#: The networks that must give the same outputs.
EQUAL = ("restated", "released", "checkpointed")
METER_MB = 256


def clean(_state: Mapping[str, Tensor], tasks: Mapping[str, int], channels: Sequence[int], **options: Any) -> nn.Module:
    """Build our head in a wiring of its own; it cannot have the weights of the released one."""
    return MQTransformerHead(tasks, channels, STRIDES, **options)


def released(
    state: Mapping[str, Tensor], tasks: Mapping[str, int], channels: Sequence[int], **options: Any
) -> nn.Module:
    """Build our head in the released wiring with the weights of the re-statement."""
    imported = import_released(state, channels)
    names = dict(zip(imported.predict.logits, tasks.values(), strict=True))
    head = MQTransformerHead(names, channels, STRIDES, wiring="released", **options)
    head.load_state_dict(imported.state_dict())
    return head


def restated(state: Mapping[str, Tensor], tasks: Mapping[str, int], channels: Sequence[int]) -> nn.Module:
    """Build the re-statement with its weights."""
    head = ReleasedHead(tasks, channels)
    head.load_state_dict(state)
    return head


NETWORKS: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {
    "restated": (restated, {}),
    "released": (released, {}),
    "checkpointed": (released, {"checkpointing": True}),
    "fused": (clean, {}),
    "scales": (clean, {"scales": list(STRIDES)}),
}


class Problem(NamedTuple):
    """What the heads are given.

    Attributes:
        channels: The encoder, one of ``CHANNELS``.
        data: The data set whose tasks there are, one of ``TASKS``.
        size: Height and width of the images.
        batch: Number of images.
    """

    channels: str
    data: str
    size: tuple[int, int]
    batch: int


class Contender:
    """One head with its features, and what was measured of it.

    Args:
        name: Which of ``NETWORKS``.
        problem: What it is given.
    """

    def __init__(self, name: str, problem: Problem) -> None:
        torch.manual_seed(0)
        tasks, channels = TASKS[problem.data], CHANNELS[problem.channels]
        state = ReleasedHead(tasks, channels).state_dict()
        build, options = NETWORKS[name]
        self.head = build(state, tasks, channels, **options)
        self.size = problem.size
        height, width = problem.size
        generator = torch.Generator().manual_seed(1)  # the same features for every network
        self.features = [
            torch.randn(problem.batch, c, -(-height // s), -(-width // s), generator=generator)
            for c, s in zip(channels, STRIDES, strict=True)
        ]
        self.measured: dict[str, dict[str, list[float]]] = {work: {} for work in WORK}

    @torch.no_grad()
    def forward(self) -> dict[str, Tensor]:
        """Predict."""
        return self.head.eval()(self.features, self.size)

    def step(self) -> None:
        """Compute all gradients once, those of the features included, as an encoder needs them."""
        self.head.train().zero_grad()
        features = [x.detach().requires_grad_() for x in self.features]
        sum(x.square().sum() for x in self.head(features, self.size).values()).backward()

    def run(self) -> None:
        """Note what one prediction and one step take."""
        for work, measured in self.measured.items():
            before = clocks()
            getattr(self, work)()
            for key, value in clocks().items():
                measured.setdefault(key, []).append(value - before[key])


def clocks() -> dict[str, float]:
    """Return this process's time on the processors, the time of day, both in seconds, and its minor page faults."""
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    return {"cpu": time.process_time(), "wall": time.perf_counter(), "faults": faults}


def largest_difference(contenders: Mapping[str, Contender]) -> float:
    """Return by how much the outputs of the equal networks differ, relative to the largest of each task.

    Raises:
        SystemExit: If they are not equal within single precision.
    """
    outputs = [list(contender.forward().values()) for name, contender in contenders.items() if name in EQUAL]
    worst = max(
        (
            float((x - y).abs().max() / y.abs().max())
            for other in outputs[1:]
            for x, y in zip(other, outputs[0], strict=True)
        ),
        default=0.0,
    )
    if worst > 1e-4:
        msg = f"The outputs are not equal: they differ by {worst:.1e} of the largest."
        raise SystemExit(msg)
    return worst


class Products(TorchDispatchMode):
    """Notes the shapes ``(batch, rows, inner, columns)`` of all matrix products; convolutions are unfolded."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: Counter[tuple[int, int, int, int]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm", "bmm", "baddbmm"):
            left, right = args[1:3] if name.endswith("addmm") or name == "baddbmm" else args[:2]
            batch = left.shape[0] if left.ndim == 3 else 1
            self.shapes[(batch, left.shape[-2], left.shape[-1], right.shape[-1])] += 1
        elif name == "convolution":
            weight, groups = args[1], args[8]
            outputs = weight.shape[0] // groups
            self.shapes[(1, outputs, weight[0].numel(), result[0, 0].numel())] += groups * len(result)
        elif "scaled_dot_product" in name:
            query, key = args[:2]
            batch, queries, keys, width = query.shape[0] * query.shape[1], query.shape[2], key.shape[2], query.shape[3]
            self.shapes[(batch, queries, width, keys)] += 1
            self.shapes[(batch, queries, keys, width)] += 1
        return result


class Floor:
    """The bare matrix products of a network's forward pass.

    Args:
        contender: The network.
    """

    def __init__(self, contender: Contender) -> None:
        with Products() as products:
            contender.forward()
        self.shapes = products.shapes
        self.gmac = sum(b * m * k * n * count for (b, m, k, n), count in self.shapes.items()) / 1e9
        self.seconds: dict[str, list[float]] = {"cpu": [], "wall": []}

    def run(self) -> None:
        """Multiply all of them once; what is multiplied does not matter."""
        spent = dict.fromkeys(self.seconds, 0.0)
        for (batch, rows, inner, columns), count in self.shapes.items():
            left, right = torch.randn(batch, rows, inner), torch.randn(batch, inner, columns)
            result = torch.ones(batch, rows, columns)
            before = clocks()
            for _ in range(count):
                torch.bmm(left, right, out=result)
            after = clocks()
            spent = {key: spent[key] + after[key] - before[key] for key in spent}
        for key, value in spent.items():
            self.seconds[key].append(value)


def measure_time(names: Sequence[str], problem: Problem, rounds: int) -> tuple[dict[str, Contender], dict[str, Floor]]:
    """Time all networks and their floors, one prediction and one step each in turn."""
    contenders = {name: Contender(name, problem) for name in names}
    print(f"Largest relative difference of the outputs: {largest_difference(contenders):.1e}")
    floors = {name: Floor(contender) for name, contender in contenders.items()}
    for contender in contenders.values():
        contender.step()
    for _ in range(rounds):
        for name, contender in contenders.items():
            contender.run()
            floors[name].run()
    return contenders, floors


def gigamacs(contender: Contender) -> float:
    """Count the multiplications of a forward pass as torch does, in 1e9."""
    contender.head.requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        contender.forward()
    contender.head.requires_grad_(True)
    return counter.get_total_flops() / 2e9


def peak_memory(name: str, work: str, problem: Problem, threads: int) -> float:
    """Return the most that a prediction or step of this process needs, in MB above what it held before."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    contender = Contender(name, problem)
    whole = contender.features, contender.size
    contender.features, contender.size = [x[..., :2, :2].clone() for x in whole[0]], (8, 8)
    getattr(contender, work)()  # loads what torch only loads when it is used
    contender.features, contender.size = whole
    return above(getattr(contender, work))


def above(run: Callable[[], Any]) -> float:
    """Return by how much a call raises this process's peak memory, in MB."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free already, from building the network, would hide what is needed
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = memory("VmRSS")
    kept = run()
    peak = memory("VmHWM")
    del kept
    return peak - before


def memory(field: str) -> float:
    """Return a number of this process's memory in MB: ``VmRSS`` is what it holds now, ``VmHWM`` the most so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def metered() -> float:
    """Measure an allocation whose size is known."""
    return above(lambda: torch.ones(METER_MB << 18))


def measure_memory(names: Sequence[str], problem: Problem, threads: int) -> dict[str, dict[str, float]]:
    """Measure the peak memory of a prediction and of a training step, in a new process each.

    Raises:
        SystemExit: If the meter does not find what is known.
    """
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes=1, maxtasksperchild=1) as pool:
        known = pool.apply(metered)
        if abs(known - METER_MB) > 0.05 * METER_MB:
            msg = f"The meter is wrong: it finds {known:.0f} MB where {METER_MB} are."
            raise SystemExit(msg)
        return {
            name: {work: pool.apply(peak_memory, (name, work, problem, threads)) for work in WORK} for name in names
        }


def spread(values: Sequence[float]) -> list[float]:
    """Return the median, the first and the third quartile."""
    return [float(value) for value in np.quantile(values, (0.5, 0.25, 0.75))]


def report(
    contenders: Mapping[str, Contender], floors: Mapping[str, Floor], megabytes: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """Print all that was measured, and what part it is of the first network's; returns the numbers."""
    first = next(iter(contenders))
    results: dict[str, Any] = {}
    for work in WORK:
        table = Table(work, "cpu s", f"x {first}", "wall s", f"x {first}", "page faults", "MB", f"x {first}")
        for name, contender in contenders.items():
            measured, reference = contender.measured[work], contenders[first].measured[work]
            found: dict[str, Any] = {key: spread(values) for key, values in measured.items()}
            ratios = {key: spread(np.divide(measured[key], reference[key])) for key in ("cpu", "wall")}
            found |= {f"{key} ratio": values for key, values in ratios.items()}
            found |= {"MB": megabytes[name][work], "MB ratio": megabytes[name][work] / megabytes[first][work]}
            results.setdefault(name, {})[work] = found
            times = [text(found[key]) for key in ("cpu", "cpu ratio", "wall", "wall ratio")]
            table.add_row(name, *times, f"{found['faults'][0]:.0f}", f"{found['MB']:.0f}", f"{found['MB ratio']:.2f}")
        Console(width=150).print(table)
    table = Table("floor of a forward", "GMAC", "GMAC, torch's count", "cpu s", f"x {first}'s forward", "wall s")
    for name, floor in floors.items():
        found = {key: spread(values) for key, values in floor.seconds.items()}
        ratio = spread(np.divide(floor.seconds["cpu"], contenders[first].measured["forward"]["cpu"]))
        counted = gigamacs(contenders[name])
        results[name]["floor"] = found | {"cpu ratio": ratio, "GMAC": floor.gmac, "GMAC, torch's count": counted}
        table.add_row(name, f"{floor.gmac:.1f}", f"{counted:.1f}", text(found["cpu"]), text(ratio), text(found["wall"]))
    Console(width=150).print(table)
    return results


def text(values: Sequence[float]) -> str:
    """Write a median with its quartiles."""
    middle, low, high = values
    return f"{middle:.3f} ({low:.3f}-{high:.3f})"


def main() -> None:
    """Read the command line, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("networks", nargs="*", default=["restated", "released", "checkpointed"], metavar="network",
                        help=f"which to compare, the first with the others: {', '.join(NETWORKS)}")  # fmt: skip
    parser.add_argument(
        "--channels", choices=list(CHANNELS), default="swin_t", help="the encoder whose maps are decoded"
    )
    parser.add_argument("--tasks", choices=list(TASKS), default="nyud", help="the data set whose tasks there are")
    parser.add_argument("--size", type=int, nargs=2, default=[448, 576], help="height and width of the images")
    parser.add_argument("--batch", type=int, default=1, help="number of images")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    if unknown := set(options.networks) - set(NETWORKS):
        parser.error(f"unknown networks: {', '.join(sorted(unknown))}; there are {', '.join(NETWORKS)}")
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    problem = Problem(options.channels, options.tasks, tuple(options.size), options.batch)
    megabytes = measure_memory(options.networks, problem, options.threads)
    results = report(*measure_time(options.networks, problem, options.rounds), megabytes)
    if options.json:
        write_json(options.json, results)


if __name__ == "__main__":
    main()
