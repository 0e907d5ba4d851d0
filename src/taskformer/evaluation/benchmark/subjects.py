"""What is measured: a network of a run, of a checkpoint or of a model, and the calls that are made of it."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from taskformer.errors import ConfigError
from taskformer.evaluation.benchmark.cost import Cost, count
from taskformer.models.adapting import merged
from taskformer.models.autotaskformer import Architecture, Supernet
from taskformer.models.autotaskformer.sharing import first_appearance
from taskformer.modules import MultiTaskModule
from taskformer.modules.balancing import BalancingCallable
from taskformer.modules.loading import load
from taskformer.tasks import Task

#: Seed of the images and targets, which are noise.
SEED = 0


@dataclass(frozen=True)
class Subject:
    """A network, and what it takes to train it.

    >>> import taskformer
    >>> model = taskformer.create_model("baseline", ["depth", "normals"], backbone="lcnet_050", embed_dim=8)
    >>> subject = Subject.open(model, "ours", size=(32, 48), device=torch.device("cpu"))
    >>> {task: tuple(output.shape) for task, output in subject.inference(batch=2)().items()}
    {'depth': (2, 1, 32, 48), 'normals': (2, 3, 32, 48)}

    Attributes:
        name: What tables and pictures call it.
        module: The model, which is left as it is.
        network: A copy of its network, or of a supernet one sub-network, on the device.
        architecture: That sub-network's; None of any other network.
        size: Height and width of the images.
        device: Where it runs.
        mixed: Whether it computes in mixed precision, bfloat16 where that is exact enough.
    """

    name: str
    module: MultiTaskModule
    network: nn.Module
    architecture: Architecture | None
    size: tuple[int, int]
    device: torch.device
    mixed: bool = False

    @classmethod
    def open(
        cls,
        source: str | Path | MultiTaskModule,
        name: str,
        size: tuple[int, int] | None,
        device: torch.device,
        architecture: str | None = None,
        mixed: bool = False,
    ) -> Self:
        """Take a network out of a run folder, a checkpoint or a model.

        Args:
            source: Where it is.
            name: What to call it.
            size: Height and width of the images; None: those of its training.
            device: Where it is to run.
            architecture: JSON file of a supernet's sub-network; None: the active one, at first the largest.
            mixed: Whether it computes in mixed precision.

        Raises:
            ConfigError: If an architecture is given for a model that has none to choose, or no size is known.
            WeightsError: If there is no such run or checkpoint.
        """
        module = source if isinstance(source, MultiTaskModule) else load(source)
        height, width = size or (int(side) for side in module.train_size)
        if min(height, width) < 1:
            msg = f"how large are the images of {name}? It was not trained; give their height and width with --size"
            raise ConfigError(msg)
        chosen = _chosen(module, architecture)
        return cls(name, module, _network(module, chosen).to(device), chosen, (height, width), device, mixed)

    def resized(self, zoom: float) -> Self:
        """Return the same network for images whose sides are longer or shorter."""
        height, width = (round(zoom * side) for side in self.size)
        return replace(self, name=f"{height}x{width}", size=(height, width))

    def with_tasks(self, specs: Mapping[str, Mapping[str, Any]]) -> Self:
        """Return a network of the same settings for other tasks; weights are random.

        Raises:
            ConfigError: If a sub-network was chosen, which says what each of its tasks shares.
        """
        architecture = self.architecture
        if architecture is not None and architecture.sharing:
            if architecture != _largest(self.module):
                msg = f"{self.name} is a sub-network for its own tasks; growth is measured without --architecture"
                raise ConfigError(msg)
            architecture = None
        return self._rebuilt(specs, architecture)

    def without(self, task: str) -> Self:
        """Return the network that lacks one of several tasks; weights are random."""
        names = list(self.module.tasks)
        place = names.index(task)
        specs = {name: self.module.hparams["tasks"][name] for name in names if name != task}
        architecture = self.architecture
        if architecture is not None:
            rows = [first_appearance(row[:place] + row[place + 1 :]) for row in architecture.sharing]
            architecture = replace(architecture, sharing=tuple(rows) if len(specs) > 1 else ())
        return self._rebuilt(specs, architecture)

    def _rebuilt(self, specs: Mapping[str, Mapping[str, Any]], architecture: Architecture | None) -> Self:
        """Build the same model for other tasks."""
        settings = dict(self.module.hparams) | {"tasks": dict(specs), "weights": "random"}
        if settings.get("architecture"):  # a model of one sub-network
            settings["architecture"] = None
        if isinstance(settings.get("loss_weights"), dict):  # a recipe has a name, and weights of all tasks
            settings["loss_weights"] = {key: value for key, value in settings["loss_weights"].items() if key in specs}
        module = type(self.module)(**settings)
        module.optimizer, module.compiles = self.module.optimizer, self.module.compiles
        chosen = architecture or _largest(module)
        network = _network(module, chosen).to(self.device)
        name = f"{len(specs)} task{'s' if len(specs) > 1 else ''}"
        return replace(self, name=name, module=module, network=network, architecture=chosen)

    def images(self, batch: int) -> Tensor:
        """Return noise ``(batch, 3, H, W)``."""
        return torch.randn(batch, 3, *self.size, generator=_generator()).to(self.device)

    def inference(self, batch: int) -> Callable[[], dict[str, Tensor]]:
        """Return what predicts a batch of images; adapters are in the weights, as in exported files."""
        forward, images = self._forward(merged(self.network.eval())), self.images(batch)
        return torch.inference_mode()(lambda: forward(images))

    def training(self, batch: int, method: BalancingCallable | None = None) -> Callable[[], None]:
        """Return what trains on a batch: forward, losses, balancing, backward, the optimizer's step.

        Nothing but the states of optimizer and balancing is left behind.

        Args:
            batch: Number of images.
            method: How the losses are balanced; None: as the model does.
        """
        self.network.train()
        forward, images = self._forward(self.network), self.images(batch)
        tasks = self.module.tasks
        targets = {name: noise(task, batch, self.size).to(self.device) for name, task in tasks.items()}
        own = self.module.balancing
        balancing = (method(own.weights) if method else deepcopy(own)).to(self.device)
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        optimizer = self.module.optimizer([{"params": [*parameters, *balancing.parameters()]}])

        def task_losses() -> dict[str, Tensor]:
            return self.module.task_losses(forward(images), targets)

        def step() -> None:
            losses = task_losses()
            balancing.backward(balancing(losses), losses, parameters)
            optimizer.step()
            balancing.after_step(torch.no_grad()(task_losses))
            optimizer.zero_grad()

        return step

    def _forward(self, network: nn.Module) -> Callable[[Tensor], dict[str, Tensor]]:
        """Return a network as a Trainer runs it: compiled where the model asks for it, in its precision."""
        run = torch.compile(network.forward) if self.module.compiles else network
        forward: Callable[[Tensor], dict[str, Tensor]]
        forward = torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed)(run)
        return forward


def noise(task: Task, batch: int, size: tuple[int, int]) -> Tensor:
    """Make targets ``(batch, ...)`` of a task in which every pixel has a label: any class, or any value.

    >>> from taskformer.tasks import build_task
    >>> noise(build_task("depth", {}), batch=2, size=(4, 6)).shape
    torch.Size([2, 1, 4, 6])
    """
    blank = task.invalid(*size)
    if not blank.is_floating_point():
        return torch.randint(task.channels, (batch, *blank.shape), generator=_generator())
    return task.decode(torch.rand((batch, *blank.shape), generator=_generator()))


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def _largest(module: MultiTaskModule) -> Architecture | None:
    """Return the largest sub-network of a supernet."""
    return module.network.space.largest() if isinstance(module.network, Supernet) else None


def _chosen(module: MultiTaskModule, source: str | None) -> Architecture | None:
    """Return which sub-network is meant; None where there is none to choose."""
    if isinstance(module.network, Supernet):
        return module.network.active if source is None else Architecture.read(source, len(module.tasks))
    if source is not None:
        msg = f"only a supernet has sub-networks, and this is a {type(module).__name__}; leave out --architecture"
        raise ConfigError(msg)
    return getattr(module.network, "architecture", None)


def _network(module: MultiTaskModule, architecture: Architecture | None) -> nn.Module:
    """Return a network that may train without a change to the model."""
    network = module.network
    if isinstance(network, Supernet) and architecture is not None:
        network = network.extract(architecture)
    return deepcopy(network)


def deployed_cost(module: MultiTaskModule, size: tuple[int, int]) -> Cost:
    """Count the network that evaluations score: of a supernet its active sub-network.

    Args:
        module: The model, which is left as it is but for its mode, evaluation.
        size: Height and width of the image.
    """
    network = module.network
    if isinstance(network, Supernet):
        network = network.extract(network.active)
    parameter = next(network.parameters())
    image = torch.zeros(1, 3, *size, dtype=parameter.dtype, device=parameter.device)
    return count(network, image)["total"]


def alike(count: int, spec: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Describe as many tasks of one kind.

    >>> alike(2, {"type": "depth"})
    {'task_1': {'type': 'depth'}, 'task_2': {'type': 'depth'}}
    """
    return {f"task_{number}": dict(spec) for number in range(1, count + 1)}
