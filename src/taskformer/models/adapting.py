"""How much of a pretrained encoder trains: all of it, its last blocks, low-rank adapters in it, or nothing.

Layers are counted as timm's ``group_matcher`` does: the stem is layer 0, then each block is one.

References:
    Hu et al. LoRA: Low-Rank Adaptation of Large Language Models. ICLR 2022.
    Bao et al. BEiT: BERT Pre-Training of Image Transformers. ICLR 2022, for rates that fall from layer to layer.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from taskformer.errors import ConfigError, require

#: What of an encoder stays as it is: nothing, everything, or the stem and so many blocks.
Freeze = Literal["none", "all"] | int
#: What timm calls the linear layers of attention.
ATTENTION = ("qkv", "q", "k", "v", "kv", "qk", "q_proj", "k_proj", "v_proj", "proj", "out_proj")
#: Where torch keeps a weight that an adapter changes.
ORIGINAL = "parametrizations.weight.original"
#: How many names a message lists.
NAMED = 8


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters in the linear layers of an encoder, whose own weights are frozen.

    >>> Lora(rank=8).scale
    2.0

    Args:
        rank: Rank of each adapter; 0: there are none.
        alpha: An adapter's product of two matrices counts alpha / rank times.
        targets: Names of the linear layers that get one, or their last parts, such as ``fc1`` or ``attn.proj``; None:
            all that timm gives attention (``qkv`` and ``proj``, or what the encoder has in their place).
    """

    rank: int = 0
    alpha: float = 16.0
    targets: list[str] | None = None

    def __post_init__(self) -> None:
        require("[0, inf)", **{"lora.rank": self.rank})
        require("(0, inf)", **{"lora.alpha": self.alpha})

    @property
    def scale(self) -> float:
        """What the product of the two matrices is multiplied by."""
        return self.alpha / self.rank


class LowRank(nn.Module):
    """A weight plus a product of two thin matrices, as a parametrisation: ``weight + scale * up @ down``.

    The second matrix starts at zero, so that the network starts as it was.

    Args:
        weight: The weight ``(out, in)``.
        lora: Rank and scale.
    """

    def __init__(self, weight: Tensor, lora: Lora) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        self.scale = lora.scale
        self.down = nn.Parameter(weight.new_empty(lora.rank, inputs))
        self.up = nn.Parameter(weight.new_zeros(outputs, lora.rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))  # as torch fills a linear layer

    def forward(self, weight: Tensor) -> Tensor:
        """Return the adapted weight ``(out, in)``."""
        return weight + self.scale * (self.up @ self.down)


def adapt(encoder: nn.Module, name: str, freeze: Freeze, lora: Lora) -> None:
    """Freeze what is not to train and put in adapters.

    Args:
        encoder: The timm model, filled and pruned; parameters that nothing depends on are frozen already.
        name: Its name, for messages.
        freeze: ``"none"``; ``"all"``; or how many blocks, from the image on and with the stem.
        lora: The adapters; where there are some, everything else of the encoder is frozen.

    Raises:
        ConfigError: If the encoder has fewer blocks, has no linear layer of such a name, or both are asked for.
    """
    if lora.rank:
        if freeze not in ("none", "all"):
            msg = f"lora freezes the whole encoder but its adapters; leave out freeze, got {freeze}"
            raise ConfigError(msg)
        layers = _targeted(encoder, name, lora)
        encoder.requires_grad_(False)
        for layer in layers:
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, lora))
    elif freeze == "all":
        encoder.requires_grad_(False)
    elif freeze != "none":
        layer_of = encoder_layers(encoder)
        blocks = max(layer_of.values())
        if not 1 <= freeze <= blocks:
            msg = f"freeze is 'none', 'all' or how many of the {blocks} blocks of {name!r}, 1 to {blocks}, got {freeze}"
            raise ConfigError(msg)
        for parameter_name, parameter in encoder.named_parameters():
            if layer_of[parameter_name] <= freeze:
                parameter.requires_grad_(False)


def encoder_layers(encoder: Any) -> dict[str, int]:
    """Return the layer of each of an encoder's parameters: 0 in the stem, then one number for each block.

    >>> import timm
    >>> layers = encoder_layers(timm.create_model("test_vit"))
    >>> layers["cls_token"], layers["blocks.0.attn.qkv.weight"], layers["blocks.5.mlp.fc2.bias"], layers["norm.weight"]
    (0, 1, 6, 6)

    Args:
        encoder: A timm model.

    Raises:
        ConfigError: If timm does not say what its layers are.
    """
    from timm.models import group_parameters  # with torchvision, which takes seconds to import

    if not hasattr(encoder, "group_matcher"):
        kind = type(encoder).__name__
        msg = f"timm does not say what the layers of a {kind} are; freeze 'all' or 'none' of it, with layer_decay 1"
        raise ConfigError(msg)
    layers: dict[str, int] = group_parameters(encoder, encoder.group_matcher(), reverse=True)
    return layers


def frozen_parts(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the largest parts of a module none of whose parameters train: they are to run as in evaluation."""
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        yield module
        return
    for child in module.children():
        yield from frozen_parts(child)


def frozen_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a module's state that training leaves as they are.

    These are the frozen parameters, and the buffers of parts that are frozen as a whole.
    """
    frozen: set[Tensor] = {parameter for parameter in module.parameters() if not parameter.requires_grad}
    frozen.update(buffer for part in frozen_parts(module) for buffer in part.buffers())
    return {name: values for name, values in module.state_dict(keep_vars=True).items() if values in frozen}


def plain_name(name: str) -> str:
    """Return what a tensor is called where there are no adapters.

    >>> plain_name("blocks.0.attn.qkv.parametrizations.weight.original")
    'blocks.0.attn.qkv.weight'
    """
    return name.replace(ORIGINAL, "weight")


def merged(network: nn.Module) -> nn.Module:
    """Return a network with its adapters added to the weights: a copy, or the network itself if it has none."""
    if not _adapted(network):
        return network
    network = deepcopy(network)
    for path, part in _adapted(network).items():  # torch's own removal would change the original, too
        above, _, name = path.rpartition(".")
        layer = nn.Linear(part.in_features, part.out_features, bias=False, device="meta")
        layer.weight = nn.Parameter(part.weight.detach(), requires_grad=False)
        layer.bias = part.bias
        setattr(network.get_submodule(above), name, layer.train(part.training))
    return network


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors and their names, types and shapes, in whatever order, layout or place they are.

    >>> fingerprint({"a": torch.zeros(2), "b": torch.ones(1)}) == fingerprint({"b": torch.ones(1), "a": torch.zeros(2)})
    True
    >>> fingerprint({"a": torch.zeros(2)}) == fingerprint({"a": torch.zeros(1, 2)})
    False
    """
    digest = hashlib.sha256()
    for name, values in sorted(tensors.items()):
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _adapted(network: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers of a network that have an adapter, by name."""
    parts: dict[str, Any] = {name: p for name, p in network.named_modules() if parametrize.is_parametrized(p, "weight")}
    return {name: part for name, part in parts.items() if isinstance(part.parametrizations.weight[0], LowRank)}


def _targeted(encoder: nn.Module, name: str, lora: Lora) -> list[nn.Linear]:
    """Find the linear layers that get an adapter; one that no map depends on gets none."""
    layers = {path: part for path, part in encoder.named_modules() if isinstance(part, nn.Linear)}
    linear = {path: layer for path, layer in layers.items() if layer.weight.requires_grad}
    wanted = ATTENTION if lora.targets is None else lora.targets
    found = {target: [path for path in linear if f".{path}".endswith(f".{target}")] for target in wanted}
    missing = [target for target, paths in found.items() if not paths]
    if missing and (lora.targets is not None or len(missing) == len(wanted)):
        there = list(dict.fromkeys(path.rpartition(".")[2] for path in linear))[:NAMED]
        what = f"its linear layers are called {', '.join(there)}" if there else "it has no linear layers; freeze it"
        msg = f"lora: no linear layer of {name!r} is called {' or '.join(missing)}; {what}"
        raise ConfigError(msg)
    chosen = {path for paths in found.values() for path in paths}
    return [layer for path, layer in linear.items() if path in chosen]
