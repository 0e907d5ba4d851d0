"""The supernet: one set of weights in which every sub-network of a search space lies, trained together.

Reference:
    Liu et al. AutoTaskFormer: Searching Vision Transformers for Multi-task Learning. arXiv 2304.08756. No code and no
    search space were published: weights are entangled as in AutoFormer (arXiv 2107.00651), and each unit (the
    attention or the MLP of a layer, with its norm) is stored in several copies among which tasks choose.
"""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from math import ceil
from typing import Any, cast

import torch
from torch import Tensor, nn

from taskformer.errors import ConfigError
from taskformer.models.autotaskformer.architecture import Architecture
from taskformer.models.autotaskformer.cost import Cost
from taskformer.models.autotaskformer.heads import build_heads
from taskformer.models.autotaskformer.layers import (
    AUTOFORMER,
    MLP,
    Attention,
    SlicedNorm,
    SuperAttention,
    SuperMLP,
    SuperStem,
    Variant,
)
from taskformer.models.autotaskformer.space import SearchSpace
from taskformer.models.autotaskformer.subnet import Maps, Network, Route, Run, Subnet, schedule, side_by_side

#: What a state calls the order of the layers.
ORDER = "layer_order"


class Supernet(Network):
    """Image and architecture to one raw map per task.

    >>> import torch
    >>> space = SearchSpace((8, 16), (1, 2), (2.0, 3.0), (1, 2), head_dim=8, num_tasks=2, sharing="binary")
    >>> supernet = Supernet(space, {"depth": 1, "normals": 3}, image_size=(32, 32)).eval()
    >>> smallest = space.smallest()
    >>> {task: tuple(x.shape) for task, x in supernet(torch.zeros(1, 3, 32, 48), smallest).items()}
    {'depth': (1, 1, 32, 48), 'normals': (1, 3, 32, 48)}
    >>> subnet = supernet.extract(smallest)  # a plain model with the same outputs
    >>> supernet.count_parameters(smallest) == sum(parameter.numel() for parameter in subnet.parameters())
    True
    >>> supernet.set(smallest)  # or without a copy: it predicts from now on
    >>> supernet.active == smallest
    True

    Args:
        space: Sizes of the weights, copies, and where architectures are drawn from. Any architecture that fits the
            weights runs, whether its sizes are among the choices or not.
        tasks: Task name to output channels, in the order of the sharing genes.
        head: Kind of the dense heads, see :func:`~taskformer.models.autotaskformer.heads.head_kinds`.
        image_tasks: Those of the tasks that have one answer for the whole image.
        image_size: Height and width that positions are stored for; any other size gets them resampled.
        patch_size: Side of a patch in pixels.
        max_relative: Distance, in patches, from which on relative positions are equal; 0: there are none.
        drop_path: Stochastic depth rate of the last layer of the weights, rising linearly from 0 at the first.
        head_options: Further arguments of the dense heads. The query head is as large as the space's largest choices
            if they do not say.
        variant: In what transformers of these sizes differ.

    Attributes:
        layer_order: The layers from the most to the least important: a sub-network of depth d has the first d of them,
            each in its own place. Part of the state, like the weights.

    Raises:
        ConfigError: If the space is for another number of tasks, or for decoders that the head does not hold.
    """

    norm: SlicedNorm
    stem: SuperStem

    def __init__(
        self,
        space: SearchSpace,
        tasks: Mapping[str, int],
        head: str = "linear",
        image_tasks: Collection[str] = (),
        image_size: tuple[int, int] = (224, 224),
        patch_size: int = 16,
        max_relative: int = 14,
        drop_path: float = 0.1,
        head_options: Mapping[str, Any] | None = None,
        variant: Variant = AUTOFORMER,
    ) -> None:
        if space.sharing != "none" and space.num_tasks != len(tasks):
            msg = f"the search space shares among {space.num_tasks} tasks, got {len(tasks)}: {', '.join(tasks)}"
            raise ConfigError(msg)
        width = space.super_embed_dim
        largest = space.largest().decoder._asdict() if head == "query" else {}
        options = {name: size for name, size in largest.items() if size} | dict(head_options or {})
        heads = build_heads(head, tasks, image_tasks, width, **options)
        for decoder in space.decoders():
            heads.check(width, decoder)
        super().__init__(tasks, SlicedNorm(width, variant.norm_eps), heads, patch_size, max_relative)
        self.space = space
        self.layer_order = tuple(range(space.super_depth))
        self.stem = SuperStem(width, patch_size, self._grid(image_size), variant.prefix)
        units: list[Callable[[float], nn.Module]] = [
            partial(SuperAttention, width, space.super_heads, space.head_dim, max_relative, variant=variant),
            partial(SuperMLP, width, int(width * space.super_mlp_ratio), variant=variant),
        ]
        self.units = nn.ModuleList(
            nn.ModuleList(build(rate) for _ in range(space.num_copies))
            for rate in torch.linspace(0, drop_path, space.super_depth).tolist()
            for build in units
        )
        #: What :meth:`set` has chosen.
        self._chosen: Architecture | None = None

    @property
    def active(self) -> Architecture:
        """The sub-network that predicts where none is named: the one that was set, else the largest."""
        return self._chosen or self.space.largest()

    def set(self, architecture: Architecture | None) -> None:
        """Switch to a sub-network: from now on it predicts where none is named. Nothing is copied.

        It is no part of the state: what is saved and loaded is the whole supernet.

        Args:
            architecture: The sub-network; None: the largest, as at first.

        Raises:
            ConfigError: If the architecture does not fit the weights; then nothing has changed.
        """
        if architecture is not None:
            self._check(architecture)
        self._chosen = architecture

    def forward(
        self, image: Tensor, architecture: Architecture | None = None, run: Run = side_by_side
    ) -> dict[str, Tensor]:
        """Predict with one sub-network.

        Args:
            image: ``(B, 3, H, W)``, ImageNet-normalised, of any size.
            architecture: The sub-network; None: the active one.
            run: How each unit runs; the search keeps what sub-networks have in common.

        Returns:
            For each task ``(B, C_task, H, W)``, or ``(B, C_task)`` for an image task.

        Raises:
            ConfigError: If the architecture does not fit the weights.
        """
        return self._outputs(image, self._route(architecture or self.active), run)

    def features(self, image: Tensor, architecture: Architecture | None = None) -> Maps:
        """Encode ``(B, 3, H, W)``: every task's taps ``(B, E, h, w)``, as the heads read them."""
        return self._features(image, self._route(architecture or self.active))

    def extract(self, architecture: Architecture) -> Subnet:
        """Copy one sub-network into a plain model with the same outputs.

        Raises:
            ConfigError: If the architecture does not fit the weights.
        """
        self._check(architecture)
        width = architecture.embed_dim
        steps = schedule(architecture, len(self.tasks))
        units = (
            {copy: self._narrowed(unit, copy, architecture, place) for copy, _ in step.calls}
            for place, (unit, step) in enumerate(zip(self.units_of(architecture.depth), steps, strict=True))
        )
        subnet = Subnet(
            architecture,
            self.tasks,
            self.stem.narrowed(width),
            units,
            self.norm.narrowed(width),
            self.heads.narrowed(width, architecture.decoder),
            self.patch_size,
            self.max_relative,
        )
        return subnet.train(self.training)

    def count_parameters(self, architecture: Architecture) -> int:
        """Count the parameters of a sub-network, heads included: those of :meth:`extract`'s result.

        Raises:
            ConfigError: If the architecture does not fit the weights.
        """
        transformer = self._cost(architecture).parameters(self.stem.grid)
        return transformer + self.heads.count_parameters(architecture.embed_dim, architecture.decoder)

    def count_macs(self, architecture: Architecture, size: tuple[int, int]) -> int:
        """Count the multiply-accumulates of a sub-network, heads included, for one image.

        Args:
            architecture: The sub-network.
            size: Height and width of the image in pixels.

        Raises:
            ConfigError: If the architecture does not fit the weights.
        """
        grid = self._grid(size)
        transformer = self._cost(architecture).macs(grid)
        return transformer + self.heads.count_macs(architecture.embed_dim, grid, architecture.decoder)

    def units_of(self, depth: int) -> list[int]:
        """Return the numbers of the units that sub-networks of a depth run through: of the most important layers."""
        return [unit for layer in sorted(self.layer_order[:depth]) for unit in (2 * layer, 2 * layer + 1)]

    def take_order(self, state: Mapping[str, Tensor], prefix: str = "") -> None:
        """Take over the order of the layers from a state; one that does not name it has them as they come."""
        order = state.get(f"{prefix}{ORDER}", torch.arange(self.space.super_depth))
        self.layer_order = tuple(order.tolist())

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if list(self.layer_order) != sorted(self.layer_order):  # else the state is that of earlier versions
            destination[f"{prefix}{ORDER}"] = torch.tensor(self.layer_order)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.take_order(state_dict, prefix)
        weights = {name: values for name, values in state_dict.items() if name != f"{prefix}{ORDER}"}
        super()._load_from_state_dict(weights, prefix, *args)

    @torch.no_grad()
    def warm_start_copies(self) -> None:
        """Fill every specific copy of every unit with the shared one's weights."""
        for copies in self.units:
            shared, *specific = copies.children()
            for copy in specific:
                copy.load_state_dict(shared.state_dict())

    def _route(self, architecture: Architecture) -> Route:
        """Bind the architecture's widths to the layers, so that they run like plain ones."""
        self._check(architecture)
        steps = schedule(architecture, len(self.tasks))
        numbers, widths = self.units_of(architecture.depth), architecture.unit_widths
        units = [
            {copy: partial(self._copy(unit, copy), width=width) for copy, _ in step.calls}
            for unit, width, step in zip(numbers, widths, steps, strict=True)
        ]
        stem = partial(self.stem, embed_dim=architecture.embed_dim)
        return Route(stem, units, steps, partial(self.heads, decoder=architecture.decoder))

    def _cost(self, architecture: Architecture) -> Cost:
        self._check(architecture)
        steps = schedule(architecture, len(self.tasks))
        return Cost(architecture, steps, self.space.head_dim, self.patch_size, self.max_relative, self.stem.prefix)

    def _copy(self, unit: int, copy: int) -> SuperAttention | SuperMLP:
        return cast(SuperAttention | SuperMLP, cast(nn.ModuleList, self.units[unit])[copy])

    def _narrowed(self, unit: int, copy: int, architecture: Architecture, place: int) -> Attention | MLP:
        """Copy out one unit, which is in some place of a sub-network."""
        plain = self._copy(unit, copy).narrowed(architecture.embed_dim, architecture.unit_widths[place])
        # By its place and not by its number, which the sub-network's own checkpoints do not know.
        plain.drop_path.drop_prob = self._copy(place, 0).drop_path.drop_prob
        return plain

    def _grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Count the patches of an image from top to bottom and from left to right."""
        height, width = (ceil(side / self.patch_size) for side in size)
        return height, width

    def _check(self, architecture: Architecture) -> None:
        """Refuse what the weights are too small for."""
        space = self.space
        hidden = int(space.super_embed_dim * space.super_mlp_ratio)
        copies = 1 + max((copy for row in architecture.sharing for copy in row), default=0)
        for what, needed, available in (
            ("embed_dim", architecture.embed_dim, space.super_embed_dim),
            ("depth", architecture.depth, space.super_depth),
            ("heads", max(architecture.num_heads), space.super_heads),
            ("hidden channels of an MLP", max(architecture.hidden_widths), hidden),
            ("copies of a unit", copies, space.num_copies),
        ):
            if needed > available:
                msg = f"the architecture needs {needed} {what}, the supernet holds {available}"
                raise ConfigError(msg)
        if architecture.sharing and len(architecture.sharing[0]) != len(self.tasks):
            tasks = len(architecture.sharing[0])
            msg = f"the architecture shares among {tasks} tasks, the supernet has {len(self.tasks)}"
            raise ConfigError(msg)
        self.heads.check(architecture.embed_dim, architecture.decoder)
