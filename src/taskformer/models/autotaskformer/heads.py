"""Heads that follow the sampled width: the taps of a vision transformer in, one raw map per task out.

Only the layers that touch the transformer's tokens depend on its width. They are stored at the full width and use the
first columns of their weights, as many as their input has; everything behind them has one size and is shared by all
sub-networks. Where such a head normalises, it uses group or layer norm, whose statistics belong to the image at hand:
nothing has to be recalibrated for a sub-network, and an image's output does not depend on its batch.
"""

import copy
import inspect
from collections.abc import Collection, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode, flop_registry, register_flop_formula, sdpa_flop

from taskformer.errors import ConfigError, UnknownNameError
from taskformer.models.autotaskformer.architecture import FULL, DecoderSize
from taskformer.models.autotaskformer.layers import SlicedConv2d, SlicedLinear
from taskformer.models.autotaskformer.query import QUARTERS, QueryHead
from taskformer.models.decoders import DECODERS, Maps, SeparateHead, TaskDecoder
from taskformer.models.layers import near_zero, undecayed

# torch's operation counter knows the fused attention of GPUs only, and counts that of CPUs as free.
if (_FUSED := torch.ops.aten._scaled_dot_product_flash_attention_for_cpu) not in flop_registry:
    register_flop_formula(_FUSED, get_raw=True)(sdpa_flop)

LAST = (1.0,)
#: The stride that decoders are built for, whatever the patches: their weights do not depend on the size of these.
STRIDE = 16
#: Arguments of decoders that are not settings.
GIVEN = ("channels", "strides", "outputs", "conv", "embed_dim", "tasks")


class Heads(nn.Module):
    """Every task's head: a dense head for tasks with a map, a linear classifier for tasks with one answer per image.

    Args:
        dense: The dense head of all tasks that have a map, or None if there is no such task.
        image: Task name to its classifier.
        embed_dim: Largest width of the transformer.

    Attributes:
        fractions: Depth fractions of the taps that are read, ascending, the last one 1: tap i is the output after
            layer ``ceil(fractions[i] * depth)``.
        image: The classifiers by task name.
    """

    def __init__(
        self,
        dense: SeparateHead | QueryHead | None,
        image: Mapping[str, nn.Module] | nn.ModuleDict,
        embed_dim: int,
    ) -> None:
        super().__init__()
        self.dense = dense
        self.image = nn.ModuleDict(dict(image.items()))
        self.fractions = _fractions(dense)
        self.embed_dim = embed_dim
        self._macs: dict[tuple[int, tuple[int, int], DecoderSize], int] = {}

    def forward(
        self, features: Mapping[str, Maps], size: tuple[int, int], decoder: DecoderSize = FULL
    ) -> dict[str, Tensor]:
        """Predict every task from its taps ``(B, E, h, w)``.

        Args:
            features: Task name to its taps, one per fraction, E at most ``embed_dim`` and the same for all.
            size: Height and width of the maps, in pixels.
            decoder: Sizes of the query decoder, as :meth:`check` allows.

        Returns:
            ``(B, K, *size)`` for each dense task with K channels, ``(B, K)`` for each image task.
        """
        sizes = (decoder,) if any(decoder) else ()  # only the query head can have any
        outputs: dict[str, Tensor] = {} if self.dense is None else self.dense(features, size, *sizes)
        outputs |= {task: layer(features[task][-1].mean((2, 3))) for task, layer in self.image.items()}
        return {task: outputs[task] for task in features}

    def narrowed(self, embed_dim: int, decoder: DecoderSize = FULL) -> "Heads":
        """Return a stand-alone copy for one width, with plain layers only and the same outputs.

        Raises:
            ConfigError: See :meth:`check`.
        """
        self.check(embed_dim, decoder)
        dense = self.dense.narrowed(decoder) if isinstance(self.dense, QueryHead) else self.dense
        heads = Heads(dense, self.image, embed_dim)
        # A deep copy takes what the memo holds for an object: the narrowed layers in the places of the sliced ones.
        memo = {id(layer): layer.narrowed(embed_dim, len(layer.weight)) for layer in _sliced(heads)}
        return copy.deepcopy(heads, memo).train(self.training)

    def count_parameters(self, embed_dim: int, decoder: DecoderSize = FULL) -> int:
        """Count the parameters that a sub-network of width ``embed_dim`` uses."""
        self.check(embed_dim, decoder)
        heads = self._sized(decoder)
        unused = sum(layer.weight[:, embed_dim:].numel() for layer in _sliced(heads))
        return sum(parameter.numel() for parameter in heads.parameters()) - unused

    def count_macs(self, embed_dim: int, grid: tuple[int, int], decoder: DecoderSize = FULL) -> int:
        """Count the multiply-accumulates for one image of ``grid`` = (rows, columns) patches at width ``embed_dim``.

        Torch's operation counter sees the heads run, without numbers; the same sizes are counted once.
        """
        self.check(embed_dim, decoder)
        key = (embed_dim, grid, decoder)
        if key not in self._macs:
            self._macs[key] = _count_macs(self._sized(decoder), embed_dim, grid)
        return self._macs[key]

    def check(self, embed_dim: int, decoder: DecoderSize) -> None:
        """Refuse sizes that these heads do not have.

        Raises:
            ConfigError: If ``embed_dim`` is not between 1 and the largest width, or there is no such query decoder.
        """
        if not 1 <= embed_dim <= self.embed_dim:
            msg = f"embed_dim must be between 1 and {self.embed_dim}, the width of these heads, got {embed_dim}"
            raise ConfigError(msg)
        if isinstance(self.dense, QueryHead):
            self.dense.check(decoder)
        elif any(decoder):
            msg = "queries, scales and decoder width are sizes of the head 'query', which this network does not have"
            raise ConfigError(msg)

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters that the heads declare as free of weight decay."""
        return undecayed(self)

    def _sized(self, decoder: DecoderSize) -> "Heads":
        """Return what is counted: these heads, or those with a smaller decoder."""
        if isinstance(self.dense, QueryHead) and any(decoder):
            return Heads(self.dense.smaller(decoder), self.image, self.embed_dim)
        return self


def head_kinds() -> dict[str, type[TaskDecoder | QueryHead]]:
    """Return the kinds of dense head: one decoder per task, but for ``query``, which lets tasks exchange."""
    separate = {name: decoder for name, decoder in DECODERS.items() if issubclass(decoder, TaskDecoder)}
    return separate | {"query": QueryHead}


def build_heads(
    kind: str, tasks: Mapping[str, int], image_tasks: Collection[str], embed_dim: int, **options: Any
) -> Heads:
    """Build the heads of all tasks.

    Args:
        kind: One of :func:`head_kinds`, for the tasks that have a map.
        tasks: Task name to output channels.
        image_tasks: Those of the tasks that have one answer for the whole image.
        embed_dim: Largest width of the transformer.
        options: Keyword arguments of the dense head of this kind.

    Raises:
        UnknownNameError: If there is no such kind, option or task.
        ConfigError: If a decoder of this kind cannot follow the width.
    """
    kinds = head_kinds()
    if kind not in kinds:
        what = "head"
        raise UnknownNameError(what, kind, kinds)
    head = kinds[kind]
    parameters = inspect.signature(head).parameters
    if issubclass(head, TaskDecoder) and "conv" not in parameters:
        msg = f"the decoder {kind!r} takes no 'conv', the class of what reads the maps: it cannot follow their width"
        raise ConfigError(msg)
    known = [
        name for name in parameters if name not in ("channels", "strides", "outputs", "conv", "embed_dim", "tasks")
    ]
    for names, what, allowed in ((options, f"option of the head {kind!r}", known), (image_tasks, "image task", tasks)):
        for name in names:
            if name not in allowed:
                raise UnknownNameError(what, name, allowed)
    classifiers = {task: near_zero(SlicedLinear(embed_dim, tasks[task])) for task in tasks if task in image_tasks}
    maps = {task: channels for task, channels in tasks.items() if task not in image_tasks}
    if not maps:
        return Heads(None, classifiers, embed_dim)
    if issubclass(head, QueryHead):
        return Heads(head(embed_dim, maps, **options), classifiers, embed_dim)
    count = len(LAST if head.last_only else QUARTERS)
    build: Any = head  # which a decoder's subclass gives its own settings
    decoders = {
        task: build([embed_dim] * count, [STRIDE] * count, outputs, conv=SlicedConv2d, **options)
        for task, outputs in maps.items()
    }
    return Heads(SeparateHead(decoders), classifiers, embed_dim)


def _fractions(dense: SeparateHead | QueryHead | None) -> tuple[float, ...]:
    """Return the depth fractions of the taps that a head reads."""
    if isinstance(dense, QueryHead):
        return dense.fractions
    if dense is None or all(cast(TaskDecoder, decoder).last_only for decoder in dense.decoders.values()):
        return LAST
    return QUARTERS


def _count_macs(heads: Heads, embed_dim: int, grid: tuple[int, int]) -> int:
    """Run heads on one image's taps on torch's meta device, where tensors have shapes and no numbers."""
    weights = {name: torch.empty(entries.shape, device="meta") for name, entries in heads.named_parameters()}
    taps = [torch.empty(1, embed_dim, *grid, device="meta") for _ in heads.fractions]
    tasks = [*heads.image, *(heads.dense.tasks if heads.dense else ())]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        functional_call(heads, weights, (dict.fromkeys(tasks, taps), grid))
    operations: int = counter.get_total_flops()
    return operations // 2  # a multiplication and an addition each


def _sliced(module: nn.Module) -> list[SlicedConv2d | SlicedLinear]:
    """List the layers of a module whose weights are cut to the width."""
    return [layer for layer in module.modules() if isinstance(layer, SlicedConv2d | SlicedLinear)]
