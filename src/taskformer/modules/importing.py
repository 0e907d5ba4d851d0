"""Checkpoints of other programs, made checkpoints of ours."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import torch
from torch import Tensor
from torch.nn import functional

from taskformer.data.datamodules import NYUDDataModule, PASCALContextDataModule
from taskformer.data.datasets.pascal_context import NORMAL_AXES
from taskformer.errors import ConfigError, UnknownNameError, WeightsError, require
from taskformer.files import read_tensors, replacing
from taskformer.models import Backbone, DenseNetwork
from taskformer.models.autotaskformer.importance import measure_importance, sort_by_importance
from taskformer.models.autotaskformer.vit import PlainViT
from taskformer.models.backbones import encoder_shapes
from taskformer.models.mqtransformer import import_released
from taskformer.models.mqtransformer.released import dropped_tensors, head_prefix, released_tasks
from taskformer.models.segmentation import named_as_timm
from taskformer.modules.base import output_channels
from taskformer.modules.mqtransformer import MQTransformer
from taskformer.modules.photographs import find_images
from taskformer.normalisation import normalise_bytes
from taskformer.pictures import read_picture


class DataSet(NamedTuple):
    """What a released network was trained on.

    Attributes:
        offers: Its data module, which describes the tasks.
        size: Height and width of the training images.
        normal_axes: For x (right), y (down) and z (into the scene) the channel of the network's normals that holds it,
            1 to 3, negative if it has the other sign.
    """

    offers: type[NYUDDataModule | PASCALContextDataModule]
    size: tuple[int, int]
    normal_axes: tuple[int, int, int]


DATA_SETS = {
    "nyud": DataSet(NYUDDataModule, (425, 560), (1, 2, 3)),
    "pascal_context": DataSet(PASCALContextDataModule, (512, 512), NORMAL_AXES),
}
#: The encoders of the released networks, and what each was filled with before the training.
ENCODERS = {
    "hrnet_w18_small_v2": "imagenet1k",
    "hrnet_w48": "imagenet1k",
    "swin_tiny_patch4_window7_224": "ade20k",
    "swin_small_patch4_window7_224": "ade20k",
    "swin_base_patch4_window7_224": "ade20k",
    "swin_large_patch4_window12_384": "ade20k",
}
#: Of an encoder: counters of batch norms, which nothing reads, and layers that give no map.
UNREAD, CLASSIFIER = "num_batches_tracked", ("encoder.norm.", "encoder.head.")


class Imported(NamedTuple):
    """What :func:`import_mqtransformer` has done.

    Attributes:
        out: The checkpoint that it has written.
        tasks: The tasks, in the data set's order.
        data: The data set whose classes and conventions they have.
        backbone: timm's name of the encoder.
        dropped: Tensors of the head that have no effect, and why.
    """

    out: Path
    tasks: list[str]
    data: str
    backbone: str
    dropped: dict[str, str]


def import_mqtransformer(
    checkpoint: str | Path,
    out: str | Path = "mqtransformer.ckpt",
    backbone: str | None = None,
    data: str | None = None,
    tasks: Sequence[str] | None = None,
) -> Imported:
    """Turn a checkpoint of the released MQTransformer into one that every command takes.

    The network is the released one: outputs of an image whose sides are multiples of 32 are the same. Other images are
    padded to that, where the original pads in every stage. Normals are turned to our axes.

    Args:
        checkpoint: The file; the tensors of ``backbone`` and ``head`` are taken, whatever else it holds.
        out: File to write, whole or not at all.
        backbone: timm's name of the encoder; None: the one of :data:`ENCODERS` that fits.
        data: ``"nyud"`` or ``"pascal_context"``; None: the one that has these tasks and classes.
        tasks: The tasks in the order in which the head was built, where the file's order says nothing of it.

    Raises:
        ConfigError: If data set or tasks are unclear.
        UnknownNameError: If there is no such encoder or data set.
        WeightsError: If the file cannot be read, or is of another network.

    Reference:
        Xu, Li, Yuan, Yang, Zhang. Multi-Task Learning with Multi-Query Transformer for Dense Prediction.
        arXiv 2205.14354. Code: github.com/yangyangxu0/MQTransformer.
    """
    content = read_tensors(Path(checkpoint), foreign=True)
    state = _tensors(content, checkpoint)
    prefix = head_prefix(state)
    head = {name: values for name, values in state.items() if name.startswith(prefix)}
    encoder = _encoder_tensors(state, prefix.removesuffix("head."), checkpoint)
    name = _find_encoder(encoder, [backbone] if backbone else list(ENCODERS), checkpoint)
    classes = released_tasks(head, tasks)
    data, specs = _describe(classes, data)
    model = MQTransformer(specs, wiring="released", backbone=name, backbone_form="segmentation", weight_decay_on="all")
    assert isinstance(model.network, DenseNetwork)
    head = _renumbered(head, list(classes), list(specs))
    turned = _with_our_axes(head, prefix, DATA_SETS[data])
    imported = import_released(turned, model.network.backbone.channels, list(specs))
    model.network.head.load_state_dict(imported.state_dict())
    _fill(model.network.backbone, encoder, checkpoint)
    model.train_size.copy_(torch.tensor(DATA_SETS[data].size))
    model.hparams["weights"] = ENCODERS.get(name, "unknown")
    _save(model, content, Path(out))
    return Imported(Path(out), list(specs), data, name, dropped_tensors(head))


def import_vit(
    weights: str | Path,
    backbone: str,
    out: str | Path = "vit.pth",
    images: str | Path | None = None,
    size: tuple[int, int] | None = None,
    count: int = 64,
    normalisation: Sequence[Sequence[float]] | None = None,
) -> PlainViT:
    """Prepare the weights of a plain ViT for supernets: check them and, on photographs, sort its parts by importance.

    The file has timm's names and gives timm's features; ``--model.weights`` takes it with ``--model.space.preset vit``.

    Args:
        weights: Where they come from, see :class:`~taskformer.models.backbones.Backbone`.
        backbone: timm's name of the ViT.
        out: File to write, whole or not at all.
        images: A photograph, or a folder of them, that no training sees; no labels are needed. None: parts stay in
            their order.
        size: Height and width that photographs are brought to; None: those that the ViT was trained with.
        count: Photographs at most, evenly over all of them.
        normalisation: Mean and deviation of the three channels, in 0..1, of the images that the weights were trained
            on; None: what timm or the hub says of them.

    Returns:
        The ViT as it was written.

    Raises:
        ConfigError: If the ViT has parts that a supernet has not.
        DatasetNotFoundError: If there are no such photographs.
        UnknownNameError: If timm has no such model.
        WeightsError: If the weights cannot be found or do not fit.

    See Also:
        :mod:`taskformer.models.autotaskformer.importance`.
    """
    require("[1, inf)", count=count, size=size)
    vit = PlainViT(backbone, str(weights), normalisation)
    if images is not None:
        height, width = size or vit.encoder.patch_embed.img_size
        files = find_images([images])
        chosen = files[:: math.ceil(len(files) / count)]
        sort_by_importance(vit, measure_importance(vit, (_photograph(file, (height, width)) for file in chosen)))
    vit.save(Path(out))
    return vit


def _photograph(file: Path, size: tuple[int, int]) -> Tensor:
    """Read a photograph as the network sees it: ``(1, 3, *size)``."""
    pixels = normalise_bytes(read_picture(file))
    return functional.interpolate(pixels[None], size, mode="bilinear", antialias=True)


def _tensors(content: Any, source: object) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint, or of the state dict that a file holds.

    Raises:
        WeightsError: If there are none.
    """
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    tensors = {str(name): x for name, x in state.items() if isinstance(x, Tensor)} if isinstance(state, dict) else {}
    if not tensors:
        msg = f"{source} holds no tensors by name; give a checkpoint of the released MQTransformer"
        raise WeightsError(msg)
    return tensors


def _encoder_tensors(state: Mapping[str, Tensor], prefix: str, source: object) -> dict[str, Tensor]:
    """Take the encoder's tensors, under our names.

    Raises:
        WeightsError: If there are none.
    """
    below = f"{prefix}backbone."
    encoder = {name.removeprefix(below): values for name, values in state.items() if name.startswith(below)}
    if not encoder:
        msg = (
            f"{source} holds a head, but no encoder, whose tensors begin with {below!r}; "
            "give the whole checkpoint, or import the head with taskformer.models.mqtransformer.import_released"
        )
        raise WeightsError(msg)
    return named_as_timm(encoder)


def _find_encoder(tensors: Mapping[str, Tensor], candidates: Sequence[str], source: object) -> str:
    """Return the first encoder that has exactly these tensors.

    Raises:
        UnknownNameError: If timm has no such encoder.
        WeightsError: If it is none of them.
    """
    for name in candidates:
        shapes = {f"encoder.{key}": shape for key, shape in encoder_shapes(name).items() if not key.endswith(UNREAD)}
        needed = {key for key in shapes if not key.startswith(CLASSIFIER)}
        own = {key: values.shape for key, values in tensors.items() if key.startswith("encoder.")}
        if needed <= own.keys() and all(shapes.get(key) == shape for key, shape in own.items()):
            return name
    msg = (
        f"the encoder of {source} with its {len(tensors)} tensors ({', '.join(list(tensors)[:2])}, ...) is none of "
        f"{', '.join(candidates)}; name the timm model that it is"
    )
    raise WeightsError(msg)


def _fill(backbone: Backbone, tensors: Mapping[str, Tensor], source: object) -> None:
    """Fill the encoder; nothing may be left over on either side but counters of batch norms.

    Raises:
        WeightsError: If it does not fit.
    """
    own = backbone.state_dict()
    needed = {name for name in own if not name.endswith(UNREAD)}
    missing, unknown = sorted(needed - tensors.keys()), sorted(tensors.keys() - needed)
    if missing or unknown:
        msg = (
            f"the encoder of {source} misses {missing[:4]} and has the unknown {unknown[:4]}; get the whole checkpoint"
        )
        raise WeightsError(msg)
    backbone.load_state_dict({**own, **tensors})


def _describe(classes: Mapping[str, int], given: str | None) -> tuple[str, dict[str, dict[str, Any]]]:
    """Find the data set that has these tasks with as many channels, and describe the tasks in its order as it does.

    Raises:
        ConfigError: If there is none, or more than one.
        UnknownNameError: If the given one does not exist.
    """
    if given is not None and given not in DATA_SETS:
        kind = "data set"
        raise UnknownNameError(kind, given, DATA_SETS)
    fitting = {}
    for name in [given] if given else DATA_SETS:
        offers = DATA_SETS[name].offers
        if classes.keys() <= offers.offers.keys():
            specs = offers(tasks=[task for task in offers.offers if task in classes]).task_specs
            if output_channels(specs) == classes:
                fitting[name] = specs
    if len(fitting) != 1:
        told = ", ".join(f"{task} ({count})" for task, count in classes.items())
        msg = (
            f"of the data sets {', '.join(DATA_SETS)} one must have these tasks and channels: {told}; "
            f"got {' and '.join(fitting) or 'none'}; give as data the one that the network was trained on"
        )
        raise ConfigError(msg)
    return next(iter(fitting.items()))


def _renumbered(head: Mapping[str, Tensor], old: Sequence[str], new: Sequence[str]) -> dict[str, Tensor]:
    """Number a released head's tasks in another order; nothing else depends on it."""
    places = [new.index(task) for task in old]
    return {
        re.sub(r"(linears|rpn_\w+)\.(\d+)", lambda found: f"{found[1]}.{places[int(found[2])]}", name): values
        for name, values in head.items()
    }


def _with_our_axes(head: Mapping[str, Tensor], prefix: str, data: DataSet) -> dict[str, Tensor]:
    """Turn the normals that the last layer gives from the axes of the data set's files to ours."""
    axes = torch.tensor(data.normal_axes)
    turned = {
        name: head[name][axes.abs() - 1] * axes.sign().view(-1, *[1] * (head[name].ndim - 1))
        for name in (f"{prefix}final_logits.normals.{kind}" for kind in ("weight", "bias"))
        if name in head
    }
    return {name: turned.get(name, values) for name, values in head.items()}


def _save(model: MQTransformer, source: Mapping[str, Any], out: Path) -> None:
    """Write a checkpoint as a training does, without what a training needs to go on."""
    content: dict[str, Any] = {
        "epoch": int(source.get("epoch", 0)),
        "global_step": int(source.get("global_step", 0)),
        "pytorch-lightning_version": lightning.__version__,
        "state_dict": model.state_dict(),
        "hparams_name": "kwargs",
        "hyper_parameters": dict(model.hparams),
    }
    model.on_save_checkpoint(content)
    with replacing(out) as temporary:
        torch.save(content, temporary)
