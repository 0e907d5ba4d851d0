"""Where tasks pull shared weights in different directions: cosines between the gradients of their losses."""

import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from taskformer.errors import ConfigError
from taskformer.insight.networks import evaluating
from taskformer.modules.base import MultiTaskModule
from taskformer.modules.evaluating import Batch

#: The layer that a module belongs to: all up to the first number, or numbers, in its path.
LAYER = re.compile(r".*?\.\d+(\.\d+)*(?=\.|$)")


@dataclass(frozen=True)
class Conflicts:
    """How well the gradients of tasks agree in every layer that several tasks train.

    >>> found = Conflicts(["depth", "edges"], ["blocks.0"], np.array([[[[1.0, -0.5], [-0.5, 1.0]]]]))
    >>> found.mean[0, 0, 1].item(), found.conflicting[0, 0, 1].item()
    (-0.5, 1.0)

    Attributes:
        tasks: Names of the tasks.
        layers: Names of the layers, in the order in which they run.
        cosines: Cosine of two tasks' gradients, ``(batches, layers, T, T)``: 1 where they agree, below 0 where a step
            for one is a step against the other. NaN where one has none: the batch holds no label of the task, or the
            layer does not serve it.
    """

    tasks: list[str]
    layers: list[str]
    cosines: NDArray[np.float64]

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean over the batches that have both gradients, ``(layers, T, T)``."""
        return self._mean(self.cosines)

    @property
    def conflicting(self) -> NDArray[np.float64]:
        """Share of those batches in which the cosine is below 0, ``(layers, T, T)``."""
        return self._mean(self.cosines < 0)

    def as_dict(self) -> dict[str, Any]:
        """Return the means over the batches as plain types, for JSON."""
        values = {"mean": self.mean.tolist(), "conflicting": self.conflicting.tolist()}
        return {"tasks": self.tasks, "layers": self.layers, "batches": len(self.cosines)} | values

    def _mean(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Mean over the batches with a cosine, NaN where there is none."""
        known = np.isfinite(self.cosines)
        with np.errstate(invalid="ignore"):
            return np.asarray(np.where(known, values, 0).sum(axis=0) / known.sum(axis=0))


def conflicts(module: MultiTaskModule, batches: Iterable[Batch], architecture: str | None = None) -> Conflicts:
    """Compare the gradients of the tasks' losses, layer by layer and batch by batch.

    The network runs as in evaluation, so that dropout and the statistics of other images do not add noise. Weights of
    the losses do not matter: a cosine does not depend on lengths.

    Args:
        module: The model.
        batches: Batches with ``"image"`` and ``"targets"``, as data modules load them. The size of a batch matters: the
            gradients of single images agree less than those of large batches.
        architecture: JSON file of a supernet's sub-network; None: the largest.

    Raises:
        ConfigError: If there is no batch, or no layer trains for several tasks.
    """
    found = []
    tasks = list(module.tasks)
    with evaluating(module, architecture) as network, _calls_noted(network, tasks) as calls:
        named = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
        members: dict[str, list[int]] = {}
        for index, name in enumerate(named):
            members.setdefault(layer_of(name, tasks), []).append(index)
        for batch in batches:
            gradients = _gradients(module, network, batch, list(named.values()))
            found.append({layer: _cosines(gradients, own) for layer, own in members.items()})
    # What is added to tokens, such as positions, is no module and is not called; it comes first.
    layers = sorted(members, key=lambda layer: calls.get(layer, -1))
    return _between_tasks(Conflicts(tasks, layers, np.array([[one[layer] for layer in layers] for one in found])))


def layer_of(parameter: str, tasks: Collection[str] = ()) -> str:
    """Name the layer of a parameter: its block where blocks are numbered, or else its module.

    What has a part for each task is one layer.

    >>> layer_of("backbone.encoder.blocks.3.1.conv_pw.weight"), layer_of("backbone.encoder.conv_stem.weight")
    ('backbone.encoder.blocks.3.1', 'backbone.encoder.conv_stem')
    >>> layer_of("heads.project.depth.0.weight", tasks=["depth", "edges"])
    'heads.project'
    """
    owner = parameter.rpartition(".")[0] or parameter
    common = list(takewhile(lambda part: part not in tasks, owner.split(".")))
    path = ".".join(common) or owner
    numbered = LAYER.match(path)
    return numbered[0] if numbered else path


@contextmanager
def _calls_noted(network: nn.Module, tasks: Collection[str]) -> Iterator[dict[str, int]]:
    """Note in which order the layers of a network are first called."""
    order: dict[str, int] = {}

    def note(layer: str, *_: object) -> None:
        order.setdefault(layer, len(order))

    parts = [(layer_of(f"{path}.weight", tasks), part) for path, part in network.named_modules() if path]
    handles = [part.register_forward_pre_hook(partial(note, layer)) for layer, part in parts]
    try:
        yield order
    finally:
        for handle in handles:
            handle.remove()


def _between_tasks(found: Conflicts) -> Conflicts:
    """Keep the layers in which gradients of two tasks meet.

    Raises:
        ConfigError: If there is none.
    """
    others = ~np.eye(len(found.tasks), dtype=bool)
    met = [] if not found.cosines.size else (np.nan_to_num(found.cosines)[..., others] != 0).any(axis=(0, 2))
    if not np.any(met):
        msg = f"no gradients of two tasks meet: {len(found.tasks)} tasks, {len(found.cosines)} batches"
        raise ConfigError(msg)
    layers = [name for name, several in zip(found.layers, met, strict=True) if several]
    return Conflicts(found.tasks, layers, found.cosines[:, met])


def _gradients(
    module: MultiTaskModule, network: nn.Module, batch: Batch, parameters: list[nn.Parameter]
) -> list[tuple[Tensor, ...]]:
    """Return each task's gradient of each parameter, zeros where there is none."""
    targets = {name: target.to(module.device) for name, target in batch["targets"].items()}
    with torch.enable_grad():
        losses = module.task_losses(network(batch["image"].to(module.device)), targets)
        return [
            torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True, allow_unused=True)
            for loss in losses.values()
        ]


def _cosines(gradients: list[tuple[Tensor, ...]], members: list[int]) -> NDArray[np.float64]:
    """Return the cosines ``(T, T)`` of the tasks' gradients of some parameters."""
    rows = torch.stack([torch.cat([of_task[index].flatten() for index in members]) for of_task in gradients])
    unit = F.normalize(rows.double(), eps=0)  # 0 / 0, NaN, without a gradient
    return (unit @ unit.T).cpu().numpy()
