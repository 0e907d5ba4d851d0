"""A trained network, or one sub-network of a supernet, as a file that other programs run: ONNX, or torch's own."""

import importlib
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from taskformer.errors import ConfigError, MissingExtraError, TaskformerError
from taskformer.files import replacing
from taskformer.models.adapting import merged
from taskformer.models.autotaskformer import Architecture, Supernet
from taskformer.models.traceable import traceable
from taskformer.modules import MultiTaskModule
from taskformer.modules.loading import load

#: Largest difference between the file's outputs and the network's, relative to their size.
TOLERANCE = 1e-3
#: Height and width that a network of any size is traced at. Nothing is computed, so they may be large; they are unlike
#: any that somebody trains at, because the tracer takes sizes that are equal once as equal always.
TRACED = (1061, 1493)

Format = Literal["onnx", "torch"]
#: An image ``(B, 3, H, W)`` to the raw output of each task.
Run: TypeAlias = Callable[[Tensor], dict[str, Tensor]]


class Exported(NamedTuple):
    """What :func:`export` has done.

    Attributes:
        out: The file that it has written.
        tasks: The names of the file's outputs.
        size: The only height and width of images that the file takes, None if it takes any.
        difference: Largest difference of its outputs from the network's, relative to the largest value of each.
    """

    out: Path
    tasks: list[str]
    size: tuple[int, int] | None
    difference: float


def export(
    model: str | Path,
    out: str | Path | None = None,
    architecture: str | None = None,
    size: tuple[int, int] | None = None,
    format: Format = "onnx",
) -> Exported:
    """Write a network to a file and check that the file gives its outputs.

    The file's input is ``image`` ``(any batch, 3, H, W)`` float32, ImageNet-normalised; its outputs are the raw ones of
    each task by name. Adapters are added to the weights. It is checked at the training's size and at an odd one, with
    different batches.

    Args:
        model: Run folder or checkpoint file.
        out: File to write, whole or not at all; None: ``model.onnx``, or ``model.pt2`` of torch.
        architecture: JSON file of a supernet's sub-network; None: the largest.
        size: The one height and width of images that the file takes; None: any.
        format: ``"onnx"``, or ``"torch"``: a program of ``torch.export``, for Python, C++ and ahead-of-time compilers.

    Returns:
        What was written, and how exact it is.

    Raises:
        ConfigError: If an architecture is given for a model that has none to choose, the network cannot be exported for
            images of any size, or the file's outputs differ.
        MissingExtraError: If ONNX is not installed.
        WeightsError: If there is no such model.
    """
    kind = FORMATS[format]
    for package in kind.packages:
        _required(package)
    out = Path(kind.name if out is None else out)
    if size is not None and min(size) < 1:
        msg = f"the images' size is {size[0]}x{size[1]}; give their height and width with --size"
        raise ConfigError(msg)
    module = load(model)
    network = merged(plain_network(module, architecture))
    shapes = _shapes(module, size)
    tasks = list(module.tasks)
    with replacing(out) as temporary, _explained(size):
        kind.write(_traced(network, size), tasks, temporary)
        run = kind.read(temporary)
        difference = max(_difference(network, run, shape) for shape in shapes)
        if difference > TOLERANCE:
            msg = (
                f"the exported graph differs from the network by {difference:.1e}; nothing was written, "
                "please report this"
            )
            raise ConfigError(msg)
    return Exported(out, tasks, size, difference)


def plain_network(module: MultiTaskModule, architecture: str | None = None) -> nn.Module:
    """Return a model's network as it is used: of a supernet one plain sub-network.

    Args:
        module: The model.
        architecture: JSON file of a supernet's sub-network, or its text; None: the active one, at first the largest.

    Raises:
        ConfigError: If an architecture is given for a model that has none to choose, or it does not fit.
    """
    if isinstance(module.network, Supernet):
        active = module.network.active
        chosen = active if architecture is None else Architecture.read(architecture, len(module.tasks))
        return module.network.extract(chosen)
    if architecture is not None:
        msg = (
            f"only a supernet has sub-networks; this is a {type(module).__name__} of one size, leave out --architecture"
        )
        raise ConfigError(msg)
    return module.network


def _shapes(module: MultiTaskModule, size: tuple[int, int] | None) -> list[tuple[int, int, int]]:
    """Return the batches and sizes at which a file is checked."""
    if size is not None:
        return [(1, *size), (3, *size)]
    # Imported weights were not trained here.
    height, width = (int(side) or default for side, default in zip(module.train_size, (96, 128), strict=True))
    return [(1, height, width), (3, 3 * height // 4 | 1, 5 * width // 4 | 1)]


@torch.no_grad()
def _traced(network: nn.Module, size: tuple[int, int] | None) -> ExportedProgram:
    """Capture a network as a graph: for any batch, and for any height and width or one."""
    image = torch.zeros(2, 3, *(size or TRACED))  # not one image: the tracer would take that for the only batch
    axes = (0,) if size else (0, 2, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch about its own tracer
        program = torch.export.export(
            traceable(network), (image,), dynamic_shapes=(dict.fromkeys(axes, Dim.DYNAMIC),), strict=False
        )
    # What the tracer has noted of memory layouts at the traced size, which other sizes need not have: the outputs do
    # not depend on them, as the checks of the file show.
    program._guards_code = []
    return program


def _write_onnx(program: ExportedProgram, tasks: list[str], path: Path) -> None:
    """Write the graph with its weights in one file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch about its own exporter
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            program,
            f=str(path),
            input_names=["image"],
            output_names=tasks,
            dynamic_shapes={"image": {0: "batch", 2: "height", 3: "width"}},
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def _read_onnx(path: Path) -> Run:
    """Return a file's function."""
    session = _required("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(image: Tensor) -> dict[str, Tensor]:
        found = session.run(names, {"image": image.numpy()})
        return {name: torch.from_numpy(values) for name, values in zip(names, found, strict=True)}

    return run


def _write_torch(program: ExportedProgram, _: list[str], path: Path) -> None:
    """Write the program with its weights, and without the image that it was traced with: tens of megabytes."""
    program.example_inputs = None
    with path.open("wb") as stream:  # torch takes names of some endings only
        torch.export.save(program, stream)


def _read_torch(path: Path) -> Run:
    """Return a file's function."""
    with path.open("rb") as stream:
        run: Run = torch.export.load(stream).module()
    return run


class Kind(NamedTuple):
    """A format of files.

    Attributes:
        name: The default name of a file.
        packages: What it needs to be installed.
        write: Writes a program and the names of its outputs to a path.
        read: Reads a file as a function.
    """

    name: str
    packages: tuple[str, ...]
    write: Callable[[ExportedProgram, list[str], Path], None]
    read: Callable[[Path], Run]


FORMATS: dict[Format, Kind] = {
    "onnx": Kind("model.onnx", ("onnxruntime", "onnxscript"), _write_onnx, _read_onnx),
    "torch": Kind("model.pt2", (), _write_torch, _read_torch),
}


@torch.no_grad()
def _difference(network: nn.Module, run: Run, shape: tuple[int, int, int]) -> float:
    """Return the largest difference over the largest value of each output, for noise of ``(B, H, W)``."""
    batch, height, width = shape
    image = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))
    found = run(image)
    return max(
        float((found[task] - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
        for task, expected in network(image).items()
    )


@contextmanager
def _explained(size: tuple[int, int] | None) -> Iterator[None]:
    """Say what to do if a network cannot be exported.

    Raises:
        ConfigError: In place of the errors of torch's tracer, of the exporter and of the runtime.
    """
    try:
        yield
    except (TaskformerError, OSError, MemoryError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        advice = "give the one height and width that the file shall take, e.g. --size [480,640]"
        what = (
            f"images of any size ({reason}); {advice}" if size is None else f"images of {size[0]}x{size[1]} ({reason})"
        )
        msg = f"this network cannot be exported for {what}"
        raise ConfigError(msg) from error


def _required(package: str) -> Any:
    """Import a package of the extra ``export``."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        extra = "export"
        raise MissingExtraError(package, extra) from error
