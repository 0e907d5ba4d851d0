"""What heads and decoders share."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from taskformer.errors import ConfigError

if TYPE_CHECKING:
    from timm.layers.drop import DropPath

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resample ``(B, C, h, w)`` bilinearly to ``(B, C, *size)``."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def resize_rows(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resample ``(B, h, w, C)`` bilinearly to ``(B, *size, C)``."""
    return resize(x.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)


def pool_rows(x: Tensor, factor: int) -> Tensor:
    """Average ``(B, h, w, C)`` over squares of ``factor`` pixels a side; those at the border may be smaller."""
    pooled = F.avg_pool2d(x.permute(0, 3, 1, 2), factor, ceil_mode=True, count_include_pad=False)
    return pooled.permute(0, 2, 3, 1)


def after(cheap: Callable[[Tensor], Tensor], layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a layer to a cheap function of ``x``, such as a GELU or a norm.

    For the gradient only ``x`` is kept, and the backward pass computes the function again: it takes little time, and
    what it gives would take as much memory as ``x``. The layer itself does not run twice. Both hold their parameters as
    tensors, so that they are those of the forward pass, also where a functional call lends a module others.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():  # a compiler decides by itself what to keep
        return layer(cheap(x))
    result: Tensor = checkpoint(lambda x: layer(cheap(x)), x, use_reentrant=False, preserve_rng_state=False)
    return result


def pad_to_multiples(image: Tensor, step: int) -> Tensor:
    """Pad ``(B, 3, H, W)`` right and below to multiples of ``step``; zero is the mean colour after normalisation."""
    *_, height, width = image.shape
    # Rounded up without a remainder, which tracers cannot simplify, or a negative number, which ONNX rounds otherwise.
    below, right = ((side + step - 1) // step * step - side for side in (height, width))
    return F.pad(image, (0, right, 0, below)) if right or below else image  # a pad by nothing would copy it


def near_zero(layer: Layer) -> Layer:
    """Start a task's last layer near zero, so that no task's first loss dwarfs the others'."""
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def zero(layer: nn.Linear) -> None:
    """Start a residual branch's last layer at zero: the branch adds nothing until it has learnt."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


def undecayed(module: nn.Module, prefix: str = "") -> set[str]:
    """List the parameters of a module's parts that they declare as free of weight decay.

    A part declares them, as timm's models do, by a method ``no_weight_decay`` that returns their names, and then speaks
    for all of its own parts.

    Args:
        module: The module, which itself is not asked.
        prefix: What to put before the names.
    """
    names: set[str] = set()
    for name, part in module.named_children():
        path = f"{prefix}{name}."
        declared: Callable[[], set[str]] | None = getattr(part, "no_weight_decay", None)
        names |= {path + own for own in declared()} if declared else undecayed(part, path)
    return names


@contextmanager
def enough_values(image: Tensor) -> Iterator[None]:
    """Explain why a network cannot train on a batch that leaves a norm one value per channel.

    Args:
        image: What the network is given, ``(B, 3, H, W)``.

    Raises:
        ConfigError: In place of torch's own error.
    """
    try:
        yield
    except ValueError as error:
        if not str(error).startswith("Expected more than 1"):
            raise
        batch, _, height, width = image.shape
        msg = (
            f"a batch of {batch} of {height}x{width} pixels leaves a norm with one value per channel, from which it "
            "cannot learn; train with a batch_size of at least 2 (and drop a last batch of 1), or on larger images"
        )
        raise ConfigError(msg) from error


class TaskProjection(nn.Module):
    """One linear projection per task of all maps of a scale, brought to the finest of their sizes.

    This is concatenation, bilinear upsampling and a 1x1 convolution in another order: both steps are linear and the
    interpolation weights sum to one, so each map is projected at its own small size first (exactly the same, with
    several times fewer operations).

    Args:
        in_channels: Channels of the maps that make up the scale, finest first.
        num_tasks: Number of tasks T.
        channels: Channels C per task.
    """

    def __init__(self, in_channels: Sequence[int], num_tasks: int, channels: int) -> None:
        super().__init__()
        self.num_tasks = num_tasks
        self.levels = nn.ModuleList(
            nn.Conv2d(width, num_tasks * channels, kernel_size=1, bias=i == 0) for i, width in enumerate(in_channels)
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Project maps ``(B, C_i, H_i, W_i)`` to one map per task, T x ``(B, H, W, C)``, the size of the first."""
        finest, *coarser = [feature.permute(0, 2, 3, 1).contiguous() for feature in features]
        levels = cast("Sequence[nn.Conv2d]", self.levels)
        weights = zip(*(level.weight.flatten(1).chunk(self.num_tasks) for level in levels), strict=True)
        biases = cast(Tensor, levels[0].bias).chunk(self.num_tasks)
        maps = []
        for (first, *others), bias in zip(weights, biases, strict=True):
            task = F.linear(finest, first, bias)
            for feature, weight in zip(coarser, others, strict=True):
                task += resize_rows(F.linear(feature, weight), task.shape[1:3])
            maps.append(task)
        return maps


class TaskPredictor(nn.Module):
    """Per task GELU, 3x3 convolution, batch norm and ReLU, then 1x1 to the task's channels.

    Args:
        tasks: Task name to output channels.
        channels: Channels that arrive for each task.
        hidden: Channels between the two layers.
    """

    def __init__(self, tasks: Mapping[str, int], channels: int, hidden: int) -> None:
        super().__init__()
        count = len(tasks)
        # The parameters of all tasks in one: a grouped convolution, of which each task's group runs on its own.
        self.bottleneck = nn.Sequential(
            nn.Conv2d(count * channels, count * hidden, kernel_size=3, padding=1, groups=count, bias=False),
            nn.BatchNorm2d(count * hidden),
            nn.ReLU(inplace=True),
        )
        layers = {name: nn.Conv2d(hidden, out, kernel_size=1) for name, out in tasks.items()}
        for layer in layers.values():
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # it has a bias
        self.logits = nn.ModuleDict(layers)

    def forward(self, maps: Iterable[Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        """Predict from each task's map ``(B, h, w, C)`` at ``size``: ``{task: (B, C_task, *size)}``."""
        convolve, norm, act = self.bottleneck
        kernels = cast(Tensor, convolve.weight).chunk(len(self.logits))

        def hide(x: Tensor, kernel: Tensor) -> Tensor:
            return after(F.gelu, partial(F.conv2d, weight=kernel, padding=1), x.permute(0, 3, 1, 2))

        # One map at a time: none is held on to when the next is made.
        hidden = list(map(hide, maps, kernels))
        shares = act(norm(torch.cat(hidden, dim=1))).chunk(len(hidden), dim=1)  # T x (B, hidden, h, w)
        layers = self.logits.items()
        return {name: resize(layer(x), size) for (name, layer), x in zip(layers, shares, strict=True)}


def stochastic_depth(rate: float) -> "DropPath":
    """Build the layer that drops a residual branch at a rate, for each sample of a batch on its own."""
    from timm.layers.drop import DropPath  # with torchvision, which takes seconds to import

    return DropPath(rate)
