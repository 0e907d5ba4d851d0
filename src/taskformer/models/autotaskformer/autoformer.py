"""AutoFormer's weights, published sub-networks and way of counting.

Reference:
    Chen, Peng, Fu, Ling. AutoFormer: Searching Transformers for Visual Recognition. ICCV 2021. arXiv 2107.00651.
    Weights: github.com/microsoft/Cream (AutoFormer), ``supernet-{tiny,small,base}.pth``, the entry ``"model"``.
"""

from collections.abc import Mapping
from math import isqrt
from typing import get_args

import torch
from torch import Tensor

from taskformer.errors import WeightsError
from taskformer.models.autotaskformer.architecture import Architecture
from taskformer.models.autotaskformer.layers import resample_positions
from taskformer.models.autotaskformer.space import PresetName, SearchSpace
from taskformer.models.autotaskformer.supernet import Supernet

TASK = "imagenet"
HEAD_DIM = 64
TABLE_ROWS = 30  # of relative positions: the class token, and distances -14 .. 14
_PIXELS = 3 * 16 * 16  # numbers in a patch

#: The sub-networks whose ImageNet accuracy the paper reports.
PUBLISHED = {
    "tiny": Architecture(
        192, 13, (3.5, 3.5, 3, 3.5, 3, 3, 4, 4, 3.5, 4, 3.5, 4, 3.5), (3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 4, 3, 3)
    ),
    "small": Architecture(
        384, 13, (3, 3.5, 3, 3.5, 4, 4, 4, 4, 4, 4, 4, 3.5, 4), (6, 6, 5, 7, 5, 5, 5, 6, 6, 7, 7, 6, 7)
    ),
    "base": Architecture(
        576,
        14,
        (3.5, 3.5, 4, 3.5, 4, 3.5, 3.5, 3, 4, 4, 3, 4, 3, 3.5),
        (9, 9, 9, 9, 9, 10, 9, 9, 10, 9, 10, 9, 9, 10),
    ),
}

#: AutoFormer's name of each parameter, or layer with weight and bias, to ours.
_STEM = {"cls_token": "stem.cls_token", "pos_embed": "stem.pos_embed"}
_STEM_LAYERS = {"patch_embed_super.proj": "stem.project", "norm": "norm"}
_TABLES = {
    f"attn.rel_pos_embed_{kind[0]}.embeddings_table_{axis[0]}": f"relative.{kind}.{axis}"
    for kind in ("keys", "values")
    for axis in ("vertical", "horizontal")
}
_ATTENTION_LAYERS = {"attn_layer_norm": "norm", "attn.qkv": "qkv", "attn.proj": "proj"}
_MLP_LAYERS = {"ffn_layer_norm": "norm", "fc1": "fc1", "fc2": "fc2"}
_HEAD_LAYERS = {"head": f"heads.image.{TASK}"}


def import_autoformer(state: Mapping[str, Tensor], num_heads: int) -> Supernet:
    """Build AutoFormer's supernet, with its one classification task ``imagenet``, from its weights.

    Args:
        state: State dict of an AutoFormer supernet (trained with ``--gp --change_qkv --relative_position``).
        num_heads: Heads of the supernet: 4, 7 and 10 for tiny, small and base.

    Raises:
        WeightsError: If names or shapes are not those of such a supernet.
    """
    try:
        depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
        classes, width = state["head.weight"].shape
        hidden = state["blocks.0.fc1.weight"].shape[0]
        head_dim = state["blocks.0.attn.proj.weight"].shape[1] // num_heads
        rows = state["blocks.0.attn.rel_pos_embed_k.embeddings_table_v"].shape[0]
        patch = state["patch_embed_super.proj.weight"].shape[-1]
        side = isqrt(state["pos_embed"].shape[1] - 1)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        msg = f"these are not the weights of an AutoFormer supernet with relative positions: {error}"
        raise WeightsError(msg) from error
    supernet = Supernet(
        _space(width, depth, num_heads, hidden / width, head_dim),
        {TASK: classes},
        image_tasks=(TASK,),
        image_size=(side * patch, side * patch),
        patch_size=patch,
        max_relative=rows // 2 - 1,
    )
    _load(supernet.to(state["cls_token"].dtype), state, _names(depth) | _layers(_HEAD_LAYERS))
    return supernet


def export_autoformer(supernet: Supernet) -> dict[str, Tensor]:
    """Return the shared copies of a supernet under AutoFormer's names.

    The classifier is included if the supernet has the task ``imagenet``, as :func:`import_autoformer` makes it.
    """
    names = _names(supernet.space.super_depth)
    if TASK in supernet.heads.image:
        names |= _layers(_HEAD_LAYERS)
    own = supernet.state_dict()
    return {theirs: own[ours].clone() for theirs, ours in names.items()}


def warm_start(supernet: Supernet, state: Mapping[str, Tensor]) -> None:
    """Start a supernet of any tasks from AutoFormer's weights: all copies of all units, and the stem.

    Positions are resampled to the supernet's grid; the heads stay as they are.

    Args:
        supernet: A supernet whose weights have AutoFormer's sizes, e.g. of ``SearchSpace.preset("tiny", ...)``.
        state: State dict of an AutoFormer supernet.

    Raises:
        WeightsError: If names or shapes do not fit.
    """
    backbone = {name: value for name, value in state.items() if not name.startswith("head.")}
    if "pos_embed" in backbone:
        patches = backbone["pos_embed"].shape[1] - 1
        side = isqrt(patches)
        if side * side != patches:
            msg = f"AutoFormer's pos_embed covers a square of patches, got {patches} of them"
            raise WeightsError(msg)
        backbone["pos_embed"] = resample_positions(backbone["pos_embed"], (side, side), supernet.stem.grid)
    _load(supernet, backbone, _names(supernet.space.super_depth))
    supernet.warm_start_copies()


def original_parameters(architecture: Architecture, num_patches: int = 196, num_classes: int = 1000) -> int:
    """Count a sub-network's parameters as AutoFormer does (``get_sampled_params_numel``).

    Args:
        architecture: The sub-network.
        num_patches: Patches of the image.
        num_classes: Classes of the classifier.
    """
    width = architecture.embed_dim
    total = (_PIXELS + 1) * width + (2 + num_patches) * width + 2 * width + (width + 1) * num_classes
    for inner, hidden in _inner_widths(architecture):
        total += 4 * width * inner + 3 * inner + width + 4 * TABLE_ROWS * HEAD_DIM
        total += 4 * width + 2 * width * hidden + hidden + width
    return total


def original_macs(architecture: Architecture, num_patches: int = 196, num_classes: int = 1000) -> int:
    """Count the multiply-accumulates of AutoFormer's own computation for one image.

    It multiplies with a vector of relative position per pair of tokens; this package needs fewer operations for the
    same outputs (:meth:`~taskformer.models.autotaskformer.supernet.Supernet.count_macs`).

    Args:
        architecture: The sub-network.
        num_patches: Patches of the image.
        num_classes: Classes of the classifier.
    """
    width, tokens = architecture.embed_dim, 1 + num_patches
    total = num_patches * _PIXELS * width + num_classes * width
    for inner, hidden in _inner_widths(architecture):
        total += 4 * tokens * width * inner + 4 * tokens**2 * inner + 2 * tokens * width * hidden
    return total


def get_complexity(architecture: Architecture, num_patches: int = 196, num_classes: int = 1000) -> int:
    """Compute what AutoFormer's ``get_complexity`` returns, the "FLOPs" of its paper, quirks included.

    Blocks count one token too many, the classifier runs on every token, the cost of relative positions is not what
    is computed, and half an operation is counted for each addition of positions.

    Args:
        architecture: The sub-network.
        num_patches: Patches of the image.
        num_classes: Classes of the classifier.
    """
    width, tokens = architecture.embed_dim, 1 + num_patches
    total = width + num_patches * _PIXELS * width + tokens * width / 2 + tokens * width * num_classes
    length = tokens + 1
    for inner, hidden in _inner_widths(architecture):
        total += 2 * length * width  # two norms
        total += 4 * length * width * inner + 2 * length**2 * inner
        total += 28 * length**2 + length**2 / 2 + length * inner / 2  # relative positions
        total += 2 * length * width * hidden
    return int(total)


def _inner_widths(architecture: Architecture) -> list[tuple[int, int]]:
    """List for each layer the channels of all its heads and of its MLP's hidden layer."""
    return [
        (HEAD_DIM * heads, hidden)
        for heads, hidden in zip(architecture.num_heads, architecture.hidden_widths, strict=True)
    ]


def _space(width: int, depth: int, num_heads: int, mlp_ratio: float, head_dim: int) -> SearchSpace:
    """Return the preset of which these are the weights' sizes, else the space of their largest network alone."""
    sizes = (width, depth, num_heads, mlp_ratio, head_dim)
    for name in get_args(PresetName):
        space = SearchSpace.preset(name)
        if sizes == (
            space.super_embed_dim,
            space.super_depth,
            space.super_heads,
            space.super_mlp_ratio,
            space.head_dim,
        ):
            return space
    return SearchSpace((width,), (depth,), (mlp_ratio,), (num_heads,), head_dim=head_dim)


def _names(depth: int) -> dict[str, str]:
    """Map AutoFormer's names of a backbone's parameters to ours, the shared copies'."""
    names = _STEM | _layers(_STEM_LAYERS)
    for layer in range(depth):
        attention, mlp = f"units.{2 * layer}.0", f"units.{2 * layer + 1}.0"
        for theirs, ours in (_layers(_ATTENTION_LAYERS) | _TABLES).items():
            names[f"blocks.{layer}.{theirs}"] = f"{attention}.{ours}"
        for theirs, ours in _layers(_MLP_LAYERS).items():
            names[f"blocks.{layer}.{theirs}"] = f"{mlp}.{ours}"
    return names


def _layers(names: Mapping[str, str]) -> dict[str, str]:
    """Spell out weight and bias of layers."""
    return {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in names.items() for kind in ("weight", "bias")}


@torch.no_grad()
def _load(supernet: Supernet, state: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
    """Copy a whole state dict; nothing may be left over on either side."""
    own = dict(supernet.named_parameters())
    missing = sorted(names.keys() - state.keys())
    unexpected = sorted(state.keys() - names.keys())
    misfits = [
        f"{name} {tuple(state[name].shape)} {state[name].dtype} for {tuple(own[ours].shape)} {own[ours].dtype}"
        for name, ours in names.items()
        if name in state and not (state[name].shape == own[ours].shape and state[name].is_floating_point())
    ]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape or type": misfits}
    if any(faults.values()):
        told = "; ".join(f"{what}: {_some(entries)}" for what, entries in faults.items() if entries)
        msg = f"the weights do not fit an AutoFormer of these sizes: {told}"
        raise WeightsError(msg)
    for theirs, ours in names.items():
        own[ours].copy_(state[theirs])


def _some(entries: list[str], count: int = 4) -> str:
    """Name the first few of many."""
    return ", ".join(entries[:count]) + (f" and {len(entries) - count} more" if len(entries) > count else "")
