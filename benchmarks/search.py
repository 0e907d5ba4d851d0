"""How fast a search scores sub-networks, next to the plain way, and how well latencies and scores are foretold.

Usage: python benchmarks/search.py [--run RUN] [--population 50] [--naive 5] [--threads 1] [--json FILE]

The sub-networks are those of a search for delta_m and parameters: a random generation, then one bred from it, whose
sub-networks are alike and some of which are pruned. The plain way takes one at a time, some of the same ones: it
extracts the network, decodes the validation images anew and computes all metrics of ``validate``. Both run on the same
processor in the same process; the rates are per minute of processor time, because other programs may run beside.

Then the latency table is measured and compared with 30 random sub-networks that run as a whole, and the predictor's
rank correlation is computed from both generations. Without ``--run`` the supernet is random: nothing is learned then,
so scores, and with them the pruning, mean little.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console
from rich.table import Table

import taskformer
from taskformer.data import RoomsDataModule
from taskformer.files import write_json
from taskformer.models.autotaskformer import Architecture, Supernet
from taskformer.modules import AutoTaskFormer
from taskformer.modules.autotaskformer_args import Head, Space
from taskformer.search.evaluator import Evaluator
from taskformer.search.evolution import Evolution
from taskformer.search.latency import LatencyTable
from taskformer.search.objectives import Candidate, build_objectives, front
from taskformer.search.predictor import Predictor
from taskformer.search.pruning import DominatedPruner, Finished, History
from taskformer.tasks import Task

T = TypeVar("T")
TASKS = ["semseg", "depth", "normals", "edges"]
SIZE = (128, 160)
#: What random sub-networks are made of if no run is given.
SPACE = Space(
    "custom",
    embed_dims=[96, 128, 160],
    depths=[4, 5, 6],
    mlp_ratios=[2.0, 3.0, 4.0],
    num_heads=[3, 4, 5],
    head_dim=32,
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, help="run folder of a supernet trained on rooms with data.holdout")
    parser.add_argument("--population", type=int, default=50)
    parser.add_argument("--naive", type=int, default=5, help="sub-networks that are scored the plain way")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    data = RoomsDataModule("data/rooms", tasks=TASKS, batch_size=8, holdout=0.2)
    data.setup("validate")
    model = taskformer.load(arguments.run) if arguments.run else _untrained(data)
    assert isinstance(model, AutoTaskFormer)
    supernet = model.network.eval()
    assert isinstance(supernet, Supernet)
    results = _rates(supernet, dict(model.tasks), data, arguments.population, arguments.naive)
    for batch in (1, 8):
        table = LatencyTable.measure(supernet, supernet.space, batch, SIZE, "cpu")
        results[f"latency error, batch {batch} (%)"] = table.check(30)
    _show(results)
    if arguments.json:
        write_json(arguments.json, results)


def _untrained(data: RoomsDataModule) -> AutoTaskFormer:
    return AutoTaskFormer(data.task_specs, SPACE, Head("pup", width=64), image_size=SIZE)


def _rates(
    supernet: Supernet, tasks: dict[str, Task], data: RoomsDataModule, population: int, naive: int
) -> dict[str, float]:
    """Score two generations, and some of the first the plain way."""

    def costs(architecture: Architecture) -> tuple[float, ...]:
        return (float(supernet.count_parameters(architecture)),)

    objectives = build_objectives(["delta_m", "params"], tasks)
    evolution = Evolution(supernet.space, objectives, admits=lambda _: True, population=population)
    evaluator = Evaluator(supernet, tasks, list(data.val_dataloader()))
    first = evolution.generation(0, [], [])
    seconds, scored = _timed(lambda: evaluator.evaluate(first))
    step = len(first) // naive
    plain_seconds, plain = _timed(lambda: [_plainly(supernet, tasks, data, each) for each in first[::step]])
    differences = [
        abs(mine.tasks[name] / value - 1)
        for mine, values in zip(scored[::step], plain, strict=True)
        for name, value in values.items()
    ]
    candidates = [
        Candidate(each, {"delta_m": result.delta_m, "params": costs(each)[0]})
        for each, result in zip(first, scored, strict=True)
    ]
    finished = {each: Finished(result.course, costs(each)) for each, result in zip(first, scored, strict=True)}
    best = tuple(finished[one.architecture] for one in front(candidates, objectives))
    history = History(tuple(finished.values()), best)
    pruner = DominatedPruner()
    second = evolution.generation(1, candidates, first)
    bred_seconds, bred = _timed(
        lambda: evaluator.evaluate(second, lambda each, course: pruner.prune(course, costs(each), history))
    )
    plain_bred_seconds, _ = _timed(lambda: [_plainly(supernet, tasks, data, each) for each in second[::step]])
    whole = [
        Candidate(each, {"delta_m": result.delta_m})
        for each, result in zip(second, bred, strict=True)
        if result.complete
    ]
    results = {}
    for name, ours, plains in (
        ("random generation", seconds / len(first), plain_seconds / len(first[::step])),
        ("bred generation", bred_seconds / len(second), plain_bred_seconds / len(second[::step])),
    ):
        results[f"{name}: networks per minute, plain way"] = 60 / plains
        results[f"{name}: networks per minute, search"] = 60 / ours
        results[f"{name}: times the plain way"] = plains / ours
    return {
        **results,
        "pruned (%)": 100 * (1 - len(whole) / len(second)),
        "largest relative difference of a score": max(differences),
        "rank correlation of the predictor": Predictor(supernet.space).rank_correlation([*candidates, *whole]),
    }


@torch.inference_mode()
def _plainly(
    supernet: Supernet, tasks: dict[str, Task], data: RoomsDataModule, architecture: Architecture
) -> dict[str, float]:
    """Score one sub-network as ``validate`` would."""
    network = supernet.extract(architecture)
    metrics = {name: task.metrics() for name, task in tasks.items()}
    for batch in data.val_dataloader():
        outputs = network(batch["image"])
        for name, task in tasks.items():
            metrics[name].update(outputs[name], task.check(batch["targets"][name], outputs[name]))
    return {name: float(metrics[name].compute()[task.headline]) for name, task in tasks.items()}


def _timed(call: Callable[[], list[T]]) -> tuple[float, list[T]]:
    """Return the processor time of a call in seconds, and its result."""
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def _show(results: dict[str, float]) -> None:
    table = Table("what", "value")
    for name, value in results.items():
        table.add_row(name, f"{value:.3g}")
    Console().print(table)


if __name__ == "__main__":
    main()
