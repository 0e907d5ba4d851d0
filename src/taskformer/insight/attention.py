"""What the queries of a network attend to: recorded while it runs, without a change of what it computes.

A network with queries, an MQTransformer or a supernet with the query head, works in rounds of three attentions: each
task's queries gather from that task's tokens, exchange with other queries, and are read by the tokens.

Notation of the shape comments: B images, T tasks, S scales, h attention heads, N queries per task and scale, (y, x) the
grid of a scale's tokens.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from taskformer.errors import ConfigError
from taskformer.models.autotaskformer import Supernet
from taskformer.models.mqtransformer import MultiQueryDecoder
from taskformer.models.mqtransformer.attention import Gathering, normalise
from taskformer.models.mqtransformer.stages import CrossTaskAttention, Decoder, SelfAttention

Array: TypeAlias = NDArray[np.float32]
#: Every task's maps, finest scale first.
Maps: TypeAlias = dict[str, list[Array]]
#: What torch calls before a module, with its positional inputs.
Hook: TypeAlias = Callable[[nn.Module, tuple[Any, ...]], None]


@dataclass(frozen=True)
class Round:
    """The attention of one round.

    Attributes:
        gathering: How much each query gathers from each token, ``(B, h, N, y, x)``; sums to 1 over the grid.
        reading: How much each token reads of each query, ``(B, h, N, y, x)``; sums to 1 over the queries.
        between_tasks: How much each query reads of each task's queries, ``(B, S, T, h, N, T)``; sums to 1 over the
            last axis. None where tasks do not exchange.
        between_scales: The same of each scale's queries, ``(B, S, T, h, N, S)``. None where scales do not exchange.
    """

    gathering: Maps
    reading: Maps
    between_tasks: Array | None
    between_scales: Array | None


@dataclass(frozen=True)
class Attention:
    """What the queries did in one pass of a network.

    Attributes:
        tasks: Names of the tasks, in the order of the network.
        size: Height and width of the images in pixels.
        padded: Height and width in pixels of what the grids cover: the images and a border on the right and below.
        rounds: The rounds, the first one first.
    """

    tasks: list[str]
    size: tuple[int, int]
    padded: tuple[int, int]
    rounds: list[Round]


@contextmanager
def recorded(network: nn.Module, maps: bool = True) -> Iterator[list[Attention]]:
    """Record the attention of every pass of a network, whatever calls it.

    >>> from taskformer import create_model
    >>> model = create_model("mqtransformer", ["depth", "edges"], backbone="lcnet_050", embed_dim=16, num_queries=4)
    >>> with recorded(model.network) as passes:
    ...     _ = model.predict_image(torch.zeros(3, 64, 96))
    >>> (attention,) = passes
    >>> attention.rounds[0].gathering["depth"][0].shape  # 4 heads of 4 queries on a grid of stride 4
    (1, 4, 4, 16, 24)
    >>> attention.rounds[0].between_tasks.sum(-1).mean().item()
    1.0

    The weights are computed beside the pass, from the inputs of each attention: the pass itself runs as ever.

    Args:
        network: Image to outputs, with one query head in it. Of a supernet, see
            :func:`~taskformer.modules.exporting.plain_network`.
        maps: Whether to record what belongs to tokens; it takes ``2 * B * T * h * N`` numbers for each of them.

    Yields:
        A list that grows with every pass.

    Raises:
        ConfigError: If the network has no queries.
    """
    head = query_head(network)
    recorder = _Recorder(head, maps)
    hooked: list[tuple[nn.Module | None, Hook]] = [(network, recorder.start), (head, recorder.enter)]
    for exchange in cast("Iterable[CrossTaskAttention]", head.exchanges):
        hooked.append((exchange, recorder.on_exchange))
        hooked += [(exchange.between_tasks, recorder.on_tasks), (exchange.between_scales, recorder.on_scales)]
    if maps:
        hooked += [(part, recorder.on_gathering) for part in head.encoders.modules() if isinstance(part, Gathering)]
        hooked += [(part, recorder.on_reading) for part in head.decoders.modules() if isinstance(part, Decoder)]
    handles = [part.register_forward_pre_hook(hook) for part, hook in hooked if part is not None]
    handles.append(head.register_forward_hook(recorder.finish))
    try:
        yield recorder.passes
    finally:
        for handle in handles:
            handle.remove()


def query_head(network: nn.Module) -> MultiQueryDecoder:
    """Return the part of a network that has queries.

    Raises:
        ConfigError: If it has none, or is a supernet and no network yet.
    """
    if isinstance(network, Supernet):
        msg = "a supernet is many networks; take one of them, `taskformer.modules.exporting.plain_network(model)`"
        raise ConfigError(msg)
    heads = [part for part in network.modules() if isinstance(part, MultiQueryDecoder)]
    if not heads:
        msg = (
            "only an MQTransformer, or a supernet with the query head, has queries whose attention can be seen; this "
            f"{type(network).__name__} has none"
        )
        raise ConfigError(msg)
    return heads[0]


class _Recorder:
    """Collect the attention of one pass after the other.

    Args:
        head: Whose attention.
        maps: Whether to keep what belongs to tokens.
    """

    def __init__(self, head: MultiQueryDecoder, maps: bool) -> None:
        self.head = head
        self.maps = maps
        self.passes: list[Attention] = []

    def start(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Begin a pass over images ``(B, 3, H, W)``."""
        height, width = inputs[0].shape[-2:]
        self.size = (height, width)
        self.gathered: list[Array] = []
        self.read: list[Array] = []
        self.between: list[dict[str, Array]] = []

    def enter(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Note the shapes of the encoder's maps: a scale has as many tokens as one of them has places."""
        features, self.padded = inputs[:2]
        streams = features.values() if isinstance(features, Mapping) else [features]
        self.grids = {x.shape[-2] * x.shape[-1]: tuple(x.shape[-2:]) for maps in streams for x in maps}

    @torch.no_grad()
    def on_gathering(self, attention: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Keep the weights of queries over tokens."""
        assert isinstance(attention, Gathering)
        self.gathered.append(self._on_grid(attention.weights(*inputs)))

    @torch.no_grad()
    def on_reading(self, decoder: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Keep the weights of tokens over queries."""
        assert isinstance(decoder, Decoder)
        tokens, _, queries, positions, *_ = inputs
        weights = decoder.attention.weights(normalise(tokens), queries, positions)
        self.read.append(self._on_grid(weights.transpose(-2, -1)))

    def on_exchange(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Note how many queries ``(B, S, T, N, C)`` exchange."""
        self.queries = inputs[0].shape[:-1]
        self.between.append({})

    @torch.no_grad()
    def on_tasks(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Keep the weights among the queries of all tasks, of one scale or of all at once."""
        batch, scales, tasks, count = self.queries
        weights = cast(SelfAttention, layer).weights(*inputs)
        if weights.shape[0] == batch and scales > 1:  # jointly, (B, h, S*T*N, S*T*N)
            axes = (scales, tasks, count)
            joint = weights.unflatten(3, axes).unflatten(2, axes).permute(0, 2, 3, 1, 4, 5, 6, 7)
            self.between[-1] = {"tasks": _array(joint.sum((-3, -1))), "scales": _array(joint.sum((-2, -1)))}
        else:  # (B*S, h, T*N, T*N)
            apart = weights.unflatten(3, (tasks, count)).sum(-1).unflatten(2, (tasks, count))
            self.between[-1]["tasks"] = _array(apart.unflatten(0, (batch, scales)).transpose(2, 3))

    @torch.no_grad()
    def on_scales(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Keep the weights ``(B*T, h, S*N, S*N)`` among the queries of all scales of a task."""
        batch, scales, tasks, count = self.queries
        weights = cast(SelfAttention, layer).weights(*inputs)
        apart = weights.unflatten(3, (scales, count)).sum(-1).unflatten(2, (scales, count))
        # (B, T, h, S, N, S)
        self.between[-1]["scales"] = _array(apart.unflatten(0, (batch, tasks)).permute(0, 3, 1, 2, 4, 5))

    def finish(self, _: nn.Module, inputs: tuple[Any, ...], outputs: Mapping[str, Tensor]) -> None:
        """End a pass."""
        tasks = list(outputs)
        rounds = zip(self._by_round(self.gathered, tasks), self._by_round(self.read, tasks), self.between, strict=True)
        self.passes.append(
            Attention(
                tasks,
                self.size,
                self.padded,
                [Round(gathered, read, found.get("tasks"), found.get("scales")) for gathered, read, found in rounds],
            )
        )

    def _on_grid(self, weights: Tensor) -> Array:
        """Lay tokens ``(..., L)`` out as their map."""
        return _array(weights.unflatten(-1, self.grids[weights.shape[-1]]))

    def _by_round(self, found: Sequence[Array], tasks: Sequence[str]) -> list[Maps]:
        """Sort what was found: round by round, task by task, scale by scale."""
        if not self.maps:
            return [{} for _ in self.between]
        scales = self.head.num_scales
        of_tasks = [list(found[start : start + scales]) for start in range(0, len(found), scales)]
        starts = range(0, len(of_tasks), len(tasks))
        return [dict(zip(tasks, of_tasks[start : start + len(tasks)], strict=True)) for start in starts]


def _array(values: Tensor) -> Array:
    return values.float().cpu().numpy()
