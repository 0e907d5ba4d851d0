"""A trained network, or one sub-network of a supernet, as an ONNX file."""

import importlib
import logging
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from taskformer.errors import ConfigError, MissingExtraError
from taskformer.files import replacing
from taskformer.models.autotaskformer import Architecture, Supernet
from taskformer.modules import MultiTaskModule
from taskformer.modules.loading import load

#: Largest difference between the file's outputs and the network's, relative to their size.
TOLERANCE = 1e-3


class Outputs(nn.Module):
    """A network whose outputs are a tuple in the order of the tasks, as ONNX has them.

    Args:
        network: Image to raw output by task.
        tasks: The tasks' names.
    """

    def __init__(self, network: nn.Module, tasks: list[str]) -> None:
        super().__init__()
        self.network = network
        self.tasks = tasks

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Predict from ``(B, 3, H, W)``."""
        outputs = self.network(image)
        return tuple(outputs[task] for task in self.tasks)


class Exported(NamedTuple):
    """What :func:`export` has done.

    Attributes:
        out: The file that it has written.
        tasks: The names of the file's outputs.
        difference: Largest difference of its outputs from the network's, relative to the largest value of each.
    """

    out: Path
    tasks: list[str]
    difference: float


def export(
    model: str | Path,
    out: str | Path = "model.onnx",
    architecture: str | None = None,
    size: tuple[int, int] | None = None,
) -> Exported:
    """Write a network as ONNX and check that the file gives its outputs.

    The file's input is ``image`` ``(any batch, 3, H, W)`` float32, ImageNet-normalised; its outputs are the raw ones of
    each task by name.

    Args:
        model: Run folder or checkpoint file.
        out: File to write, whole or not at all.
        architecture: JSON file of a supernet's sub-network; None: the largest.
        size: Height and width of the images; None: those of training.

    Returns:
        What was written, and how exact it is.

    Raises:
        ConfigError: If an architecture is given for a model that has none to choose, or the file's outputs differ.
        MissingExtraError: If ONNX is not installed.
        WeightsError: If there is no such model.
    """
    out = Path(out)
    runtime = _required("onnxruntime")
    _required("onnxscript")
    module = load(model)
    network = Outputs(_network(module, architecture), list(module.tasks)).eval()
    height, width = size or (int(side) for side in module.train_size)
    if min(height, width) < 1:
        msg = f"the images' size is {height}x{width}; give their height and width with --size"
        raise ConfigError(msg)
    # Not one image: the exporter would take that for the only size of a batch.
    image = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    with replacing(out) as temporary:
        _write(network, image, temporary)
        session = runtime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        found = dict(zip(network.tasks, session.run(network.tasks, {"image": image.numpy()}), strict=True))
        difference = _compare(network, image, found)
    return Exported(out, list(found), difference)


def _network(module: MultiTaskModule, architecture: str | None) -> nn.Module:
    """Return what is exported: of a supernet one plain sub-network."""
    if isinstance(module.network, Supernet):
        space = module.network.space
        chosen = space.largest() if architecture is None else Architecture.read(architecture, len(module.tasks))
        return module.network.extract(chosen)
    if architecture is not None:
        msg = (
            f"only a supernet has sub-networks; this is a {type(module).__name__} of one size, leave out --architecture"
        )
        raise ConfigError(msg)
    return module.network


def _write(network: Outputs, image: Tensor, path: Path) -> None:
    """Trace the network and write the graph with its weights in one file."""
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # torch about its own exporter
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            network,
            (image,),
            str(path),
            input_names=["image"],
            output_names=network.tasks,
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


@torch.inference_mode()
def _compare(network: Outputs, image: Tensor, found: dict[str, Any]) -> float:
    """Return the largest difference over the largest value of each output.

    Raises:
        ConfigError: If they differ by more than rounding.
    """
    worst = 0.0
    for task, expected in zip(network.tasks, network(image), strict=True):
        difference = np.abs(found[task] - expected.numpy()).max() / max(float(expected.abs().max()), 1e-6)
        worst = max(worst, float(difference))
    if worst > TOLERANCE:
        msg = f"the exported graph differs from the network by {worst:.1e}; nothing was written, please report this"
        raise ConfigError(msg)
    return worst


def _required(package: str) -> Any:
    """Import a package of the extra ``export``."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        extra = "export"
        raise MissingExtraError(package, extra) from error
