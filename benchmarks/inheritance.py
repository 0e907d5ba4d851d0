"""How well a supernet ranks its sub-networks, and what its sampler is worth.

Usage: python benchmarks/inheritance.py RUN [RUN ...] [--networks 20] [--tuned 8] [--epochs 3] [--json FILE]

Each RUN is the folder of a supernet that ``taskformer fit`` has trained. The same random sub-networks of all runs, with
the weights they inherit, are scored on the validation images. Some of them, evenly spread over the ranks in the first
run, are then fine-tuned by ``taskformer fit`` and scored again: a supernet is good for searching if the two orders
agree (Spearman's rank correlation). The score is delta_m, the mean relative improvement over the tasks' headline
metrics, against the first run's largest sub-network.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import spearmanr

import taskformer
from taskformer.data import MultiTaskDataModule
from taskformer.files import write_json, write_text
from taskformer.metrics import delta_m
from taskformer.models.autotaskformer import Architecture
from taskformer.modules import AutoTaskFormer

Values = dict[str, float]


def checkpoint(run: Path) -> Path:
    """Return the weights at the end of the training."""
    return run / "checkpoints" / "last.ckpt"


@torch.inference_mode()
def score(model: AutoTaskFormer, data: MultiTaskDataModule, architectures: Sequence[Architecture]) -> list[Values]:
    """Measure the headline metric of every task for sub-networks with inherited weights."""
    metrics = [{name: task.metrics() for name, task in model.tasks.items()} for _ in architectures]
    for batch in track(data.val_dataloader(), description="score"):
        for architecture, meters in zip(architectures, metrics, strict=True):
            outputs = model.network(batch["image"], architecture)
            for name, meter in meters.items():
                meter.update(outputs[name], batch["targets"][name])
    return [
        {name: float(meter.compute()[model.tasks[name].headline]) for name, meter in meters.items()}
        for meters in metrics
    ]


def fine_tune(run: Path, architecture: Architecture, epochs: int, rate: float, folder: Path, name: str) -> Values:
    """Train one sub-network on from its inherited weights through the command line; return its headline metrics."""
    write_text(folder / f"{name}.json", architecture.to_json())
    command = [
        *(sys.executable, "-m", "taskformer", "fit", f"--config={run / 'config.yaml'}"),
        *(f"--runs_dir={folder}", f"--name={name}", f"--model.architecture={folder / f'{name}.json'}"),
        *(f"--model.weights={checkpoint(run)}", f"--model.optimizer.init_args.lr={rate}"),
        *(f"--trainer.max_epochs={epochs}", f"--trainer.check_val_every_n_epoch={epochs}"),
        "--trainer.enable_progress_bar=false",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    results = json.loads((folder / name / "metrics.json").read_text())["val"]["tasks"]
    tasks = taskformer.load(folder / name).tasks
    return {task: values[tasks[task].headline] for task, values in results.items()}


def study(runs: list[Path], networks: int, tuned: int, epochs: int, rate: float, jobs: int) -> dict[str, Any]:
    """Score, fine-tune and correlate."""
    models = [taskformer.load(checkpoint(run)) for run in runs]
    _, data = taskformer.from_config(runs[0] / "config.yaml")
    data.setup("validate")
    space = models[0].space
    rng = Random(0)
    drawn = [space.random(rng) for _ in range(networks)]
    extremes = [space.largest(), space.smallest()]
    values = [score(model, data, [*extremes, *drawn]) for model in models]
    reference, senses = values[0][0], {name: task.higher_is_better for name, task in models[0].tasks.items()}

    def gain(result: Values) -> float:
        return delta_m(result, reference, senses)

    record: dict[str, Any] = {"reference": reference, "runs": {}}
    order = np.argsort([gain(result) for result in values[0][2:]])
    chosen = order[np.linspace(0, networks - 1, tuned).round().astype(int)].tolist()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        for run, model, results in zip(runs, models, values, strict=True):
            largest, smallest, *inherited = [gain(result) for result in results]
            jobs_done = pool.map(
                lambda index, run=run: fine_tune(run, drawn[index], epochs, rate, Path(folder), f"{run.name}_{index}"),
                chosen,
            )
            after = [gain(result) for result in track(jobs_done, description="fine-tune", total=tuned)]
            correlation = rank_correlation([inherited[index] for index in chosen], after)
            sizes = [parameters(model, drawn[index]) for index in chosen]
            record["runs"][run.name] = {
                "largest": largest,
                "smallest": smallest,
                "inherited": inherited,
                "values": results,
                "chosen": chosen,
                "fine_tuned": after,
                "spearman": correlation[0],
                "p_value": correlation[1],
                "spearman_inherited_parameters": rank_correlation([inherited[index] for index in chosen], sizes)[0],
            }
    record["architectures"] = [architecture.to_dict() for architecture in drawn]
    return record


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """Return Spearman's correlation and its p-value; NaN of less than three pairs."""
    if len(first) < 3:
        return math.nan, math.nan
    found = spearmanr(first, second)
    return float(found.statistic), float(found.pvalue)


def parameters(model: AutoTaskFormer, architecture: Architecture) -> int:
    """Count a sub-network's parameters."""
    return int(model.network.count_parameters(architecture))  # type: ignore[operator]  # it is a Supernet


def show(record: dict[str, Any]) -> None:
    """Print one line per run."""
    headings = ["run", "largest", "smallest", "random: mean", "min", "max", "fine-tuned: mean", "Spearman", "p"]
    table = Table(*headings, title="delta_m in % of the first run's largest sub-network")
    for name, run in record["runs"].items():
        scores = np.array(run["inherited"])
        numbers = [run["largest"], run["smallest"], scores.mean(), scores.min(), scores.max()]
        numbers += [np.mean(run["fine_tuned"] or [math.nan]), run["spearman"]]
        table.add_row(name, *(f"{number:.2f}" for number in numbers), f"{run['p_value']:.3f}")
    Console().print(table)


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of trained supernets of one search space")
    parser.add_argument("--networks", type=int, default=20, help="random sub-networks that are scored")
    parser.add_argument("--tuned", type=int, default=8, help="how many of them are fine-tuned; 0: none")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of fine-tuning")
    parser.add_argument("--rate", type=float, default=3e-4, help="learning rate of fine-tuning")
    parser.add_argument("--jobs", type=int, default=2, help="fine-tunings at a time")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    options = parser.parse_args()
    record = study(options.runs, options.networks, options.tuned, options.epochs, options.rate, options.jobs)
    show(record)
    if options.json:
        write_json(options.json, record)


if __name__ == "__main__":
    main()
