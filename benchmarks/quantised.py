"""What 8-bit weights do to a run's scores: its ONNX file and the same file quantised, on the test images.

Usage: python benchmarks/quantised.py RUN [--split test] [--json FILE]

``onnxruntime.quantization.quantize_dynamic`` stores the weights of matrix products, or of convolutions too, in 8 bits
and measures the activations' range at every call. Printed are the scores of each file with their relative change, and
the files' sizes. A quantised file is worth offering if no score changes by more than 1 %.
"""

import argparse
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import taskformer
from taskformer.data.configured import data_module
from taskformer.files import write_json
from taskformer.modules import MultiTaskModule
from taskformer.modules.exporting import FORMATS, Run

#: What is quantised: matrix products alone, or convolutions too.
OPERATORS = {"products": ["MatMul", "Gemm"], "all": ["MatMul", "Gemm", "Conv"]}


def main() -> None:
    """Export, quantise, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model, data = taskformer.load(options.run), data_module(options.run)
    data.setup("test" if options.split == "test" else "fit")
    loader = getattr(data, f"{options.split}_dataloader")
    scores, sizes = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        whole = taskformer.export(options.run, Path(folder) / "float32.onnx").out
        files = {"float32": whole} | {f"int8 {name}": quantised(whole, ops) for name, ops in OPERATORS.items()}
        for name, file in files.items():
            scores[name] = score(model, FORMATS["onnx"].read(file), loader())
            sizes[name] = file.stat().st_size / 1e6
    Console().print(table(scores, sizes))
    if options.json:
        write_json(options.json, {"scores": scores, "megabytes": sizes})


def quantised(file: Path, operators: list[str]) -> Path:
    """Write a file beside another one with the weights of some operators as int8."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    out = file.with_name(f"{'-'.join(operators)}.onnx")
    # Convolutions on CPU take unsigned activations with unsigned weights only.
    kind = QuantType.QUInt8 if "Conv" in operators else QuantType.QInt8
    quantize_dynamic(file, out, op_types_to_quantize=operators, weight_type=kind, per_channel="Conv" not in operators)
    return out


@torch.inference_mode()
def score(model: MultiTaskModule, run: Run, batches: Iterable[Any]) -> dict[str, float]:
    """Score a function's outputs with each task's metrics.

    Args:
        model: Its tasks.
        run: Image ``(B, 3, H, W)`` to raw outputs by task.
        batches: Images and targets.
    """
    metrics = {name: task.metrics() for name, task in model.tasks.items()}
    for batch in batches:
        outputs = run(batch["image"])
        for name, metric in metrics.items():
            metric.update(outputs[name], model.tasks[name].check(batch["targets"][name], outputs[name]))
    return {
        f"{name} {key}": float(value) for name, metric in metrics.items() for key, value in metric.compute().items()
    }


def table(scores: dict[str, dict[str, float]], sizes: dict[str, float]) -> Table:
    """Lay out the scores, one column for each file."""
    (reference, whole), *others = scores.items()
    result = Table("", reference, *(name for name, _ in others))
    for key, value in whole.items():
        changes = [100 * (found[key] / value - 1) if value else float("nan") for _, found in others]
        cells = [f"{found[key]:.4f} ({change:+.2f} %)" for (_, found), change in zip(others, changes, strict=True)]
        result.add_row(key, f"{value:.4f}", *cells)
    result.add_row("MB", *(f"{size:.1f}" for size in sizes.values()))
    return result


if __name__ == "__main__":
    main()
