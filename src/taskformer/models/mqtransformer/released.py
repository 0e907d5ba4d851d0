"""The released head's weights: its names to ours, and what of it has no effect.

The original (github.com/yangyangxu0/MQTransformer) is :class:`MQTransformerHead` with ``wiring="released"``. Its
decoder also attends over the images of a batch; of one image alone, as it was trained and is tested, that is a linear
map, and this is what is imported.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from taskformer.errors import ConfigError, WeightsError
from taskformer.models.mqtransformer.head import MQTransformerHead

#: Our names of the tasks that have another there.
TASK_NAMES = {"edge": "edges", "sal": "saliency"}
STRIDES = (4, 8, 16, 32)
#: Channels of the original's tokens and queries, and of one of their heads.
WIDTH, HEAD_WIDTH = 256, 64
BLOCK = "parts_query_encoder_decoder_blocks.0."
NEVER_READ = "never read"
ONE_IMAGE = "without effect on an image alone: the attention over the batch then is a linear map"
SOFTMAX = "without effect: adds the same to all of a query's scores, which drops out of the softmax"
#: What has no effect, by the beginning of its name.
_DEAD = {
    "patch_embed.": NEVER_READ,
    f"{BLOCK}decoder1.attn2.": NEVER_READ,
    f"{BLOCK}decoder1.rel_pos.": NEVER_READ,
    f"{BLOCK}encoder1.enc_attn.norm_k.bias": SOFTMAX,
    f"{BLOCK}decoder1.attn1.norm_k.bias": SOFTMAX,
}
#: The same of rows of a tensor.
_DEAD_ROWS = {
    f"{BLOCK}decoder1.mhsa.in_proj_weight": (slice(0, 2 * WIDTH), ONE_IMAGE),
    f"{BLOCK}decoder1.mhsa.in_proj_bias": (slice(0, 2 * WIDTH), ONE_IMAGE),
    f"{BLOCK}mhsa_1.in_proj_bias": (slice(WIDTH, 2 * WIDTH), SOFTMAX),
}
#: Counters of batch norms; nothing that has a momentum reads them.
_COUNTER = "num_batches_tracked"

#: The original's name of each layer with a weight and a bias to ours, and of those with a weight alone.
_MLP = {"norm": "0", "fc1": "1", "fc2": "3"}
_ATTENTION = {"norm_q": "norm_q", "norm_v": "norm_v", "proj": "out"}
_LAYERS = {
    **{f"encoder1.enc_attn.{theirs}": f"encoders.0.attention.{ours}" for theirs, ours in _ATTENTION.items()},
    "encoder1.reason.norm": "encoders.0.norm",
    **{f"encoder1.enc_ffn.{theirs}": f"encoders.0.mlp.{ours}" for theirs, ours in _MLP.items()},
    "mhsa_1.out_proj": "exchanges.0.between_tasks.out",
    "norm_layer": "exchanges.0.between_tasks.norm",
    **{f"ffn_mlp.{theirs}": f"exchanges.0.between_tasks.mlp.{ours}" for theirs, ours in _MLP.items()},
    **{f"decoder1.attn1.{theirs}": f"decoders.0.attention.{ours}" for theirs, ours in _ATTENTION.items()},
    **{f"decoder1.ffn1.{theirs}": f"decoders.0.mlp.{ours}" for theirs, ours in _MLP.items()},
    "decoder1.mhsa.out_proj": "decoders.0.out",
    **{f"decoder1.ffn2.{theirs}": f"decoders.0.last_mlp.{ours}" for theirs, ours in _MLP.items()},
}
_WEIGHTS = {
    f"{theirs}.{layer}": f"{ours}.attention.{layer}"
    for theirs, ours in {"encoder1.enc_attn": "encoders.0", "decoder1.attn1": "decoders.0"}.items()
    for layer in ("norm_k", "to_q", "to_k", "to_v")
}


class Slot(NamedTuple):
    """Where a tensor of the original goes: parts of ours that together have its shape.

    Attributes:
        parts: Views of our tensors, and tensors without memory for what has no effect.
        axis: The axis along which they lie side by side.
    """

    parts: Sequence[Tensor]
    axis: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the original."""
        shape = list(self.parts[0].shape)
        if len(self.parts) > 1:
            shape[self.axis] = sum(part.shape[self.axis] for part in self.parts)
        return tuple(shape)

    def fill(self, values: Tensor) -> None:
        """Copy the original's values."""
        if len(self.parts) == 1:
            self.parts[0].copy_(values)
            return
        sizes = [part.shape[self.axis] for part in self.parts]
        for part, piece in zip(self.parts, values.split(sizes, self.axis), strict=True):
            part.copy_(piece)


def import_released(
    state_dict: Mapping[str, Tensor], channels: Sequence[int], tasks: Sequence[str] | None = None
) -> MQTransformerHead:
    """Build the released head from its weights; outputs of an image, and gradients, are those of the original.

    Args:
        state_dict: The state dict of the head, or of all around it: one prefix, such as ``head.``, is taken off.
        channels: Channels of the encoder's four maps, strides 4, 8, 16 and 32.
        tasks: The tasks in the order in which the head was built; needed where the order of ``state_dict`` says
            nothing of it, because it is alphabetical as in a safetensors file.

    Returns:
        The head with its tasks in that order and under our names: ``edge`` is ``edges``, ``sal`` is ``saliency``, with
        two channels.

    Raises:
        ConfigError: If the order of the tasks is unknown, or ``tasks`` are others.
        WeightsError: If these are no such weights: tensors miss, are unknown, of other shapes or not finite.
    """
    state = _unwrapped(state_dict)
    names = _task_order(state, tasks)
    _require_one_block(state)
    head = MQTransformerHead(_classes(state, names), list(channels), list(STRIDES), wiring="released")
    _fill(_slots(head.state_dict(), names, len(channels)), state)
    return head


def released_tasks(state_dict: Mapping[str, Tensor], tasks: Sequence[str] | None = None) -> dict[str, int]:
    """Return a released head's tasks under our names, in its order, and their channels.

    Args:
        state_dict: As :func:`import_released` takes it.
        tasks: As there.

    Raises:
        ConfigError: If the order of the tasks is unknown, or ``tasks`` are others.
        WeightsError: If this is no released head.
    """
    state = _unwrapped(state_dict)
    return _classes(state, _task_order(state, tasks))


def dropped_tensors(state_dict: Mapping[str, Tensor]) -> dict[str, str]:
    """List what of a released head's weights has no effect, and why; of a part of a tensor with its rows.

    >>> dropped_tensors({"patch_embed.norm.bias": torch.zeros(256), "linears.0.weight": torch.zeros(256, 270)})
    {'patch_embed.norm.bias': 'never read'}

    Args:
        state_dict: As :func:`import_released` takes it.
    """
    found: dict[str, str] = {}
    for name in _unwrapped(state_dict):
        found.update((name, why) for start, why in _DEAD.items() if name.startswith(start))
        if name in _DEAD_ROWS:
            rows, why = _DEAD_ROWS[name]
            found[f"{name}[{rows.start}:{rows.stop}]"] = why
    return found


def head_prefix(names: Iterable[str]) -> str:
    """Return what is put before the names of the released head's tensors.

    Raises:
        WeightsError: If there is no such head among the names, or several.
    """
    last = "linears.0.weight"
    found = [name.removesuffix(last) for name in names if name == last or name.endswith(f".{last}")]
    if len(found) != 1:
        what = f"heads at {', '.join(map(repr, found))}" if found else f"no {last!r}"
        msg = f"expected the state dict of one released MQTransformer head, found {what}; give that head's alone"
        raise WeightsError(msg)
    return found[0]


def _unwrapped(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take the head's tensors, without their prefix and the counters of batch norms."""
    prefix = head_prefix(state_dict)
    inside = {name.removeprefix(prefix): x for name, x in state_dict.items() if name.startswith(prefix)}
    return {name: x for name, x in inside.items() if not name.endswith(_COUNTER)}


def _task_order(state: Mapping[str, Tensor], given: Sequence[str] | None) -> list[str]:
    """Return the original's names of the tasks, in the order in which the head was built."""
    found, again = (
        list(dict.fromkeys(name.split(".")[1] for name in state if name.startswith(f"{part}.")))
        for part in ("bottleneck", "final_logits")
    )
    if not found:
        msg = "the released MQTransformer head has no task: no tensor is named bottleneck.TASK.conv.weight"
        raise WeightsError(msg)
    if given is not None:
        theirs = {ours: name for name, ours in TASK_NAMES.items()}
        chosen = [name if name in found else theirs.get(name, name) for name in given]
        if sorted(chosen) != sorted(found):
            msg = f"tasks are {list(given)}, but the head has {found}; name each of these once, in their order"
            raise ConfigError(msg)
        return chosen
    if len(found) > 1 and (list(state) == sorted(state) or found != again):
        msg = (
            f"the tensors are not in the head's own order but sorted or mixed, so that of the tasks {sorted(found)} is "
            "lost, by which other tensors are numbered; give it as tasks, in the order in which the head was built"
        )
        raise ConfigError(msg)
    return found


def _classes(state: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, int]:
    """Return the number of channels of each task, under our names."""
    biases = {task: state.get(f"final_logits.{task}.bias", torch.zeros(1)) for task in names}
    return {TASK_NAMES.get(task, task): bias.numel() for task, bias in biases.items()}


def _require_one_block(state: Mapping[str, Tensor]) -> None:
    """Refuse a head of several rounds: each starts from queries of its own, where ours go on with the last round's."""
    more = [name for name in state if re.match(r"parts_query_encoder_decoder_blocks\.[1-9]", name)]
    if more:
        msg = f"the published MQTransformer head has one block (enc_dec_times=1), this one more: {_some(more)}"
        raise WeightsError(msg)


def _slots(own: Mapping[str, Tensor], tasks: Sequence[str], num_levels: int) -> dict[str, Slot]:
    """Return where every tensor of the original goes, by its name.

    Args:
        own: The tensors of our head, which the slots share.
        tasks: The original's names of the tasks, in their order.
        num_levels: Number of maps of the encoder.
    """
    slots = _shared_slots(own)
    norm = ("weight", "bias", "running_mean", "running_var")
    for t, task in enumerate(tasks):

        def part(name: str, t: int = t) -> Tensor:
            """Take a task's part of a tensor that has the parts of all tasks side by side."""
            share: Tensor = own[name].unflatten(0, (len(tasks), -1))[t]
            return share

        slots[f"bottleneck.{task}.conv.weight"] = Slot([part("predict.bottleneck.0.weight")])
        slots |= {f"bottleneck.{task}.bn.{name}": Slot([part(f"predict.bottleneck.1.{name}")]) for name in norm}
        logits = f"predict.logits.{TASK_NAMES.get(task, task)}"
        slots |= {f"final_logits.{task}.{kind}": Slot([own[f"{logits}.{kind}"]]) for kind in ("weight", "bias")}
        slots[f"{BLOCK}rpn_tokens.{t}"] = Slot([own["queries"][:, t]])  # (1, N, C)
        slots[f"{BLOCK}rpn_qpos.{t}"] = Slot([own["query_pos"][0, :, t].unsqueeze(2)])  # (1, N, 1, d)
        slots[f"{BLOCK}rpn_kpos.{t}"] = Slot([own["key_pos"][0, :, t].unsqueeze(2)])
        # The original concatenates the levels' channels, in the order of the levels.
        levels = [part(f"project.0.levels.{level}.weight").flatten(1) for level in range(num_levels)]  # (C, C_i)
        slots[f"linears.{t}.weight"] = Slot(levels, axis=1)
        slots[f"linears.{t}.bias"] = Slot([part("project.0.levels.0.bias")])
    return slots


def _shared_slots(own: Mapping[str, Tensor]) -> dict[str, Slot]:
    """Return where the tensors go that all tasks share, and that what has no effect goes nowhere."""
    slots: dict[str, Slot] = {}
    for theirs, ours in _LAYERS.items():
        slots |= {f"{BLOCK}{theirs}.{kind}": Slot([own[f"{ours}.{kind}"]]) for kind in ("weight", "bias")}
    slots |= {f"{BLOCK}{theirs}.weight": Slot([own[f"{ours}.weight"]]) for theirs, ours in _WEIGHTS.items()}
    slots[f"{BLOCK}encoder1.reason.linear.weight"] = Slot([own["encoders.0.mix.weight"].unsqueeze(-1)])
    # Rows of queries, keys and values.
    ours = "exchanges.0.between_tasks"
    slots[f"{BLOCK}mhsa_1.in_proj_weight"] = Slot([own[f"{ours}.to_{x}.weight"] for x in "qkv"])
    slots[f"{BLOCK}mhsa_1.in_proj_bias"] = Slot([own[f"{ours}.to_q.bias"], _nowhere(WIDTH), own[f"{ours}.to_v.bias"]])
    value = "decoders.0.value"
    slots[f"{BLOCK}decoder1.mhsa.in_proj_weight"] = Slot([_nowhere(2 * WIDTH, WIDTH), own[f"{value}.weight"]])
    slots[f"{BLOCK}decoder1.mhsa.in_proj_bias"] = Slot([_nowhere(2 * WIDTH), own[f"{value}.bias"]])
    for attention in ("encoder1.enc_attn", "decoder1.attn1"):
        slots[f"{BLOCK}{attention}.norm_k.bias"] = Slot([_nowhere(WIDTH)])
    first = f"{BLOCK}decoder1.attn1."
    second = {name.replace("attn1", "attn2"): slot for name, slot in slots.items() if name.startswith(first)}
    slots |= {name: Slot([_nowhere(*slot.shape)]) for name, slot in second.items()}
    slots |= {f"{BLOCK}decoder1.rel_pos.rel_emb_{axis}": Slot([_nowhere(7, HEAD_WIDTH // 2)]) for axis in "hw"}
    slots["patch_embed.projection.weight"] = Slot([_nowhere(WIDTH, WIDTH, 4, 4)])
    vectors = ("projection.bias", "norm.weight", "norm.bias")
    return slots | {f"patch_embed.{name}": Slot([_nowhere(WIDTH)]) for name in vectors}


def _nowhere(*shape: int) -> Tensor:
    """Return a tensor without memory."""
    return torch.empty(shape, device="meta")


@torch.no_grad()
def _fill(slots: Mapping[str, Slot], state: Mapping[str, Tensor]) -> None:
    """Copy the whole state dict; nothing may be left over on either side but what has no effect.

    Raises:
        WeightsError: If it does not fit.
    """
    both = [name for name in slots if name in state]
    faults = {
        "missing": [name for name in slots if name not in state and not name.startswith(tuple(_DEAD))],
        "unknown": [name for name in state if name not in slots],
        "of another shape or type": [
            f"{name} {tuple(state[name].shape)} {state[name].dtype} for {slots[name].shape}"
            for name in both
            if tuple(state[name].shape) != slots[name].shape or not state[name].is_floating_point()
        ],
    }
    if any(faults.values()):
        told = "; ".join(f"{what}: {_some(names)}" for what, names in faults.items() if names)
        msg = f"the weights do not fit a released MQTransformer head of these tasks and channels: {told}"
        raise WeightsError(msg)
    broken = [name for name in both if not state[name].isfinite().all()]
    if broken:
        msg = f"weights of the released MQTransformer head are not finite: {_some(broken)}; get another file"
        raise WeightsError(msg)
    for name in both:
        slots[name].fill(state[name])


def _some(names: list[str], count: int = 4) -> str:
    """Name the first few of many."""
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")
