"""What the sub-networks of several supernets are worth with inherited weights, e.g. of samplers at equal time.

Usage: python benchmarks/inheritance.py RUN [RUN ...] [--networks 20] [--json FILE]

Each RUN is the folder of a supernet that ``taskformer fit`` has trained, all of them of one search space. The same
random sub-networks of each are scored on the validation images of the first run's data. The score is delta_m, the mean
relative improvement over the tasks' headline metrics, in percent of the first run's largest sub-network. How well such
scores order sub-networks, compared with their order after fine-tuning, is measured by ``supernet_study.py``.
"""

import argparse
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import taskformer
from taskformer.data.configured import data_module
from taskformer.files import write_json
from taskformer.search.evaluator import Evaluator
from taskformer.search.run import load_batches, supernet_of


def compare(runs: list[Path], networks: int) -> dict[str, Any]:
    """Score the same sub-networks of all runs."""
    models = [taskformer.load(run / "checkpoints" / "last.ckpt") for run in runs]
    images = load_batches(data_module(runs[0]), "val")
    space, rng = models[0].space, Random(0)
    drawn = [space.random(rng) for _ in range(networks)]
    record: dict[str, Any] = {"architectures": [architecture.to_dict() for architecture in drawn], "runs": {}}
    for run, model in zip(runs, models, strict=True):
        evaluator = Evaluator(supernet_of(model), dict(model.tasks), images, record.get("reference"))
        record.setdefault("reference", evaluator.reference)
        largest, smallest, *results = evaluator.evaluate([space.largest(), space.smallest(), *drawn])
        record["runs"][run.name] = {
            "largest": largest.delta_m,
            "smallest": smallest.delta_m,
            "inherited": [result.delta_m for result in results],
            "scores": [result.tasks for result in results],
        }
    return record


def show(record: dict[str, Any]) -> None:
    """Print one line per run."""
    headings = ["run", "largest", "smallest", "random: mean", "min", "max"]
    table = Table(*headings, title="delta_m in % of the first run's largest sub-network")
    for name, run in record["runs"].items():
        scores = np.array(run["inherited"])
        numbers = [run["largest"], run["smallest"], scores.mean(), scores.min(), scores.max()]
        table.add_row(name, *(f"{number:.2f}" for number in numbers))
    Console().print(table)


def main() -> None:
    """Parse the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of trained supernets of one search space")
    parser.add_argument("--networks", type=int, default=20, help="random sub-networks that are scored")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    options = parser.parse_args()
    record = compare(options.runs, options.networks)
    show(record)
    if options.json:
        write_json(options.json, record)


if __name__ == "__main__":
    main()
