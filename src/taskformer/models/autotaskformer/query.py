"""The supernet's query head: MQTransformer's decoder on a transformer's taps, in sizes that are chosen.

A smaller head is a head like it whose every parameter is the first entries, along all axes, of the larger one's.

Notation of the shape comments: B images, E the sampled width, C the head's own width, K a task's output channels,
(h, w) the grid of patches, T tasks, N queries per task.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from taskformer.errors import ConfigError
from taskformer.models.autotaskformer.architecture import FULL, DecoderSize
from taskformer.models.autotaskformer.layers import SlicedConv2d
from taskformer.models.decoders import Maps, projection
from taskformer.models.layers import near_zero, resize, resize_rows
from taskformer.models.mqtransformer import MultiQueryDecoder, require_whole_heads

#: Depth fractions of the taps that decoders of several maps read.
QUARTERS = (0.25, 0.5, 0.75, 1.0)


class QueryHead(MultiQueryDecoder):
    """MQTransformer's decoder on the transformer's taps: tasks exchange through a few queries.

    Each task projects its own taps, which may be its own stream's or shared with other tasks; the encoder, the
    cross-task attention and the decoder are shared and run once over all tasks, folded into the batch.

    Args:
        embed_dim: Largest width of the transformer.
        tasks: Task name to output channels. Task-specific parameters have a task axis in this order.
        width: Width C of tokens and queries.
        num_queries: Queries N per task.
        num_heads: Attention heads.
        num_blocks: Encoder - cross-task attention - decoder rounds.
        encoder_mlp_ratio: Hidden width of the encoder's MLP over C.
        cross_mlp_ratio: Hidden width of the cross-task attention's MLP over C.
        decoder_mlp_ratio: Hidden width of the decoder's MLP over C.
        drop_path: Stochastic depth rate, per sample, of the encoder and decoder.
        cross_drop_path: The same for the cross-task attention.
        upsample: Resolution of the last convolutions over that of the patch grid.
        head_dim: Channels before each task's last layer.
        num_scales: Taps that are read, the last ones.

    Raises:
        ConfigError: If ``width`` is not a multiple of ``num_heads``, or there are not as many taps.
    """

    project: nn.ModuleDict

    def __init__(
        self,
        embed_dim: int,
        tasks: Mapping[str, int],
        width: int = 256,
        num_queries: int = 64,
        num_heads: int = 4,
        num_blocks: int = 1,
        encoder_mlp_ratio: float = 1.0,
        cross_mlp_ratio: float = 1.0,
        decoder_mlp_ratio: float = 3.0,
        drop_path: float = 0.1,
        cross_drop_path: float = 0.5,
        upsample: int = 2,
        head_dim: int = 64,
        num_scales: int = len(QUARTERS),
    ) -> None:
        require_whole_heads(num_heads, width=width)
        if not 1 <= num_scales <= len(QUARTERS):
            msg = f"the query head reads 1 to {len(QUARTERS)} taps, got num_scales={num_scales}"
            raise ConfigError(msg)
        taps = [str(tap) for tap in range(len(QUARTERS))][-num_scales:]  # each keeps its name however many are read
        super().__init__(
            nn.ModuleDict(
                {task: nn.ModuleDict({t: projection(embed_dim, width, SlicedConv2d) for t in taps}) for task in tasks}
            ),
            (len(tasks),),
            width,
            num_queries,
            num_heads,
            num_blocks,
            mlp_ratios=(encoder_mlp_ratio, cross_mlp_ratio, decoder_mlp_ratio),
            drop_path=drop_path,
            cross_drop_path=cross_drop_path,
        )
        self._like = partial(  # the same but for the sizes that are chosen
            QueryHead,
            tasks=tasks,
            num_blocks=num_blocks,
            encoder_mlp_ratio=encoder_mlp_ratio,
            cross_mlp_ratio=cross_mlp_ratio,
            decoder_mlp_ratio=decoder_mlp_ratio,
            drop_path=drop_path,
            cross_drop_path=cross_drop_path,
            upsample=upsample,
            head_dim=head_dim,
        )
        self._smaller: dict[DecoderSize, QueryHead] = {}
        self.tasks = list(tasks)
        self.upsample = upsample
        self.fractions = QUARTERS[-num_scales:]
        count = len(tasks)
        self.bottleneck = nn.Sequential(  # all tasks at once, each with its own weights and its own statistics
            nn.Conv2d(count * width, count * head_dim, kernel_size=3, padding=1, groups=count, bias=False),
            nn.GroupNorm(count, count * head_dim),
            nn.ReLU(inplace=True),
        )
        self.predict = nn.ModuleDict(
            {task: near_zero(nn.Conv2d(head_dim, channels, kernel_size=1)) for task, channels in tasks.items()}
        )

    def forward(
        self, features: Mapping[str, Maps], size: tuple[int, int], decoder: DecoderSize = FULL
    ) -> dict[str, Tensor]:
        """Decode every task's taps ``(B, E, h, w)`` to ``(B, K, *size)``.

        Args:
            features: Task name to its taps, at least the last ``num_scales``.
            size: Height and width of the maps.
            decoder: Sizes, if smaller than this head's.
        """
        if any(decoder):
            smaller = self.smaller(decoder).train(self.training)
            outputs: dict[str, Tensor] = functional_call(smaller, self._first_entries(smaller), (features, size))
            return outputs
        maps = [self._fuse(task, features[task]) for task in self.tasks]  # T x (B, h, w, C)
        height, width = maps[0].shape[1:3]
        fine_size = (self.upsample * height, self.upsample * width)
        fine = [resize_rows(F.gelu(x), fine_size).permute(0, 3, 1, 2) for x in self.refine([maps])]
        hidden = self.bottleneck(torch.cat(fine, dim=1)).unflatten(1, (len(fine), -1))  # (B, T, head_dim, h', w')
        return {task: resize(layer(hidden[:, i]), size) for i, (task, layer) in enumerate(self.predict.items())}

    def smaller(self, decoder: DecoderSize) -> "QueryHead":
        """Return a smaller head without weights; the same one every time, as building takes long.

        Raises:
            ConfigError: If these weights hold no such head.
        """
        if decoder not in self._smaller:
            self._smaller[decoder] = self._build(decoder)
        return self._smaller[decoder]

    def narrowed(self, decoder: DecoderSize) -> "QueryHead":
        """Copy a smaller head out of this one, for taps as wide as before.

        Raises:
            ConfigError: If these weights hold no such head.
        """
        smaller = self._build(decoder)
        weights = {name: entries.detach().clone() for name, entries in self._first_entries(smaller).items()}
        smaller.load_state_dict(weights, assign=True)
        return smaller

    def check(self, decoder: DecoderSize) -> None:
        """Refuse sizes that these weights do not hold.

        Raises:
            ConfigError: If a size is too large, or the width is not one of whole attention heads.
        """
        for what, needed, available in zip(decoder._fields, decoder, self._size(), strict=True):
            if needed > available:
                msg = f"the query decoder's weights hold {what}={available}, an architecture needs {needed}"
                raise ConfigError(msg)
        if decoder.width % self._channels():
            msg = (
                f"the query decoder's width is a multiple of its attention heads' {self._channels()} channels, "
                f"got {decoder.width}"
            )
            raise ConfigError(msg)

    def _build(self, decoder: DecoderSize) -> "QueryHead":
        """Build a head like this, without weights, of other sizes."""
        self.check(decoder)
        size = DecoderSize(*(wanted or own for wanted, own in zip(decoder, self._size(), strict=True)))
        embed_dim = next(self.project.parameters()).shape[1]
        num_heads = size.width // self._channels()  # heads are as wide as before, so that they can learn one thing
        with torch.device("meta"):
            return self._like(embed_dim, num_heads=num_heads, **size._asdict())

    def _size(self) -> DecoderSize:
        _, num_queries, width = self.queries.shape
        return DecoderSize(num_queries, len(self.fractions), width)

    def _channels(self) -> int:
        """Count the channels of one attention head."""
        return self.query_pos.shape[-1]

    def _first_entries(self, smaller: nn.Module) -> dict[str, Tensor]:
        """Cut this head's parameters to the shapes of a smaller one's."""
        own = dict(self.named_parameters())
        return {
            name: own[name][tuple(slice(side) for side in parameter.shape)]
            for name, parameter in smaller.named_parameters()
        }

    def _fuse(self, task: str, taps: Sequence[Tensor]) -> Tensor:
        """Project one task's last taps and add them up: ``(B, h, w, C)``."""
        projections = cast(nn.ModuleDict, self.project[task]).values()
        last = taps[-len(projections) :]
        return (
            torch.stack([project(tap) for project, tap in zip(projections, last, strict=True)])
            .sum(0)
            .permute(0, 2, 3, 1)
        )
