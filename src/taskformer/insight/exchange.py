"""Which task's queries read which others': of one image, and over many."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor

from taskformer.errors import ConfigError
from taskformer.insight.attention import Attention, recorded
from taskformer.insight.networks import evaluating
from taskformer.metrics.units import shown
from taskformer.modules.base import MultiTaskModule


@dataclass(frozen=True)
class Affinity:
    """How the queries of each task spread their attention over the tasks.

    >>> shares = np.array([[[0.8, 0.2], [0.5, 0.5]], [[0.6, 0.4], [0.5, 0.5]]])  # two images
    >>> found = Affinity(["depth", "edges"], shares)
    >>> found.mean.round(2).tolist()
    [[0.7, 0.3], [0.5, 0.5]]

    Attributes:
        tasks: Names of the tasks.
        per_image: Shares ``(images, T, T)``: the row's task reads of the column's, and the sum of each row is 1. Means
            over rounds, scales, heads and queries. An attention that does not tell queries apart has ``1 / T``
            everywhere.
    """

    tasks: list[str]
    per_image: NDArray[np.float64]

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean over the images, ``(T, T)``."""
        return np.asarray(self.per_image.mean(axis=0))

    @property
    def spread(self) -> NDArray[np.float64]:
        """Standard deviation over the images, ``(T, T)``."""
        return np.asarray(self.per_image.std(axis=0))

    def as_dict(self) -> dict[str, Any]:
        """Return mean and spread as plain types, for JSON."""
        values = {"mean": self.mean.tolist(), "spread": self.spread.tolist()}
        return {"tasks": self.tasks, "images": len(self.per_image)} | values

    def table(self) -> Table:
        """Build the table for the terminal."""
        images = len(self.per_image)
        table = Table(title=f"who reads whom, %, {images} image{'s' * (images > 1)}")
        for heading in ("queries of", *(f"read {task}" for task in self.tasks)):
            table.add_column(heading, justify="right")
        for task, row in zip(self.tasks, self.mean, strict=True):
            table.add_row(task, *map(shown, row))
        return table


def affinity_of(passes: Sequence[Attention]) -> Affinity:
    """Summarise recorded passes.

    Raises:
        ConfigError: If tasks do not exchange, or there is no pass.
    """
    rounds = [[found.between_tasks for found in attention.rounds] for attention in passes]
    shares = [
        np.mean([shares.mean(axis=(1, 3, 4), dtype=np.float64) for shares in of_pass if shares is not None], axis=0)
        for of_pass in rounds
        if of_pass[0] is not None  # all rounds exchange, or none does
    ]
    if not shares:
        msg = "no queries exchange between tasks: the network has cross_attention='none', or saw no image"
        raise ConfigError(msg)
    return Affinity(passes[0].tasks, np.concatenate(shares))


@torch.no_grad()
def affinity(module: MultiTaskModule, images: Iterable[Tensor], architecture: str | None = None) -> Affinity:
    """Measure which task's queries read which others' over many images.

    >>> from taskformer import create_model
    >>> model = create_model("mqtransformer", ["depth", "edges"], backbone="lcnet_050", embed_dim=16, num_queries=4)
    >>> affinity(model, torch.zeros(2, 1, 3, 64, 96)).mean.shape
    (2, 2)

    Args:
        module: The model.
        images: Batches ``(B, 3, H, W)``, ImageNet-normalised.
        architecture: JSON file of a supernet's sub-network; None: the largest.

    Raises:
        ConfigError: If the network has no queries, or they do not exchange between tasks.
    """
    with evaluating(module, architecture) as network, recorded(network, maps=False) as passes:
        for batch in images:
            network(batch.to(module.device))
    return affinity_of(passes)
