"""How much of a model's scores its queries are responsible for: attention shows who is read, not that it matters."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table
from torch import nn

from taskformer.insight.attention import query_head
from taskformer.insight.networks import evaluating
from taskformer.metrics.units import shown
from taskformer.models.mqtransformer.attention import Reading
from taskformer.models.mqtransformer.stages import CrossTaskAttention
from taskformer.modules.base import MultiTaskModule
from taskformer.modules.evaluating import Batch
from taskformer.tasks import Task

#: What is switched off: the stage that then gives back its first input.
WITHOUT: dict[str, type[nn.Module] | None] = {
    "whole": None,
    "without exchange": CrossTaskAttention,
    "without queries": Reading,
}


@dataclass(frozen=True)
class Influence:
    """What a model's scores are with and without its queries.

    Attributes:
        tasks: The tasks by name.
        scores: For each of :data:`WITHOUT` the headline metric of each task, shares as fractions.
    """

    tasks: Mapping[str, Task]
    scores: dict[str, dict[str, float]]

    def table(self) -> Table:
        """Build the table for the terminal."""
        table = Table(title="what the queries are responsible for")
        table.add_column("", no_wrap=True)
        for name, task in self.tasks.items():
            table.add_column(f"{name} {task.headline}, {task.units[task.headline]}", justify="right")
        for name, scores in self.scores.items():
            units = (task.units[task.headline] for task in self.tasks.values())
            table.add_row(name, *map(shown, scores.values(), units))
        return table


@torch.no_grad()
def influence(module: MultiTaskModule, batches: Iterable[Batch], architecture: str | None = None) -> Influence:
    """Score a model whole, with queries that exchange nothing, and with pixels that read no queries.

    Nothing is trained again: a model that was trained without them may do better. Small differences on few images are
    chance.

    Args:
        module: The model.
        batches: Batches with ``"image"`` and ``"targets"``, as data modules load them.
        architecture: JSON file of a supernet's sub-network; None: the largest.

    Raises:
        ConfigError: If the network has no queries.
    """
    metrics = {
        name: {task: module.tasks[task].metrics(module.protocol).to(module.device) for task in module.tasks}
        for name in WITHOUT
    }
    with evaluating(module, architecture) as network:
        query_head(network)
        for batch in batches:
            for name, kind in WITHOUT.items():
                with _switched_off(network, kind):
                    outputs = network(batch["image"].to(module.device))
                for task, of_task in metrics[name].items():
                    target = batch["targets"][task].to(module.device)
                    of_task.update(outputs[task].float(), module.tasks[task].check(target, outputs[task]))
    scores = {
        name: {task: float(of_task.compute()[module.tasks[task].headline]) for task, of_task in of_tasks.items()}
        for name, of_tasks in metrics.items()
    }
    return Influence(module.tasks, scores)


@contextmanager
def _switched_off(network: nn.Module, kind: type[nn.Module] | None) -> Iterator[None]:
    """Let all parts of a kind give back their first input: queries that did not exchange, tokens that read nothing."""

    def bypass(_: nn.Module, inputs: tuple[Any, ...], __: object) -> Any:
        return inputs[0]

    parts = [part for part in network.modules() if kind is not None and isinstance(part, kind)]
    handles = [part.register_forward_hook(bypass) for part in parts]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
