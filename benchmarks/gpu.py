"""How fast a training runs on a GPU, with each way to compute on and off: images/s, memory, waiting for data.

Usage: python benchmarks/gpu.py [--accelerator gpu] [--backbone swin_tiny_patch4_window7_224] [--size 448 576]
           [--batch-size 8] [--workers 8] [--warmup 10] [--steps 50] [--processes 1] [--rows NAME ...] [--json FILE]
           [FLAGS of `taskformer fit`, e.g. --config configs/data/nyud.yaml --data.root=...]

Every row trains MQTransformer on the rooms (or what the flags say) in processes of its own: ``none`` in float32, each
option of ``OPTIONS`` alone, ``all`` together, and ``all but NAME``. The first steps, which compile and tune, do not
count. ``waiting`` is the share of time that the host spends between a step and the next one's batch; where it is
large, the loader is too slow. With more processes than GPUs they share the first one and exchange gradients by gloo.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy
from rich.console import Console
from rich.table import Table

import taskformer
from taskformer.callbacks import Stopping
from taskformer.files import write_json

ROOT = Path(__file__).parent.parent
#: Name to the flags of the model and the settings of the Trainer.
OPTIONS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "bf16": ([], {"precision": "bf16-mixed"}),
    "tf32": (["--model.matmul_precision=high"], {}),
    "benchmark": ([], {"benchmark": True}),
    "channels_last": (["--model.channels_last=true"], {}),
    "fused": (["--model.optimizer.fused=true"], {}),
    "compile": (["--model.compile=true"], {}),
}
ROWS = {
    "none": [],
    **{name: [name] for name in OPTIONS},
    "all": list(OPTIONS),
    **{f"all but {name}": [other for other in OPTIONS if other != name] for name in OPTIONS},
}


class Timer(Callback):
    """Measures the steps after the first ones.

    Args:
        warmup: Steps that are not counted.
    """

    def __init__(self, warmup: int) -> None:
        self.warmup = warmup
        self.images = 0
        self.waited = 0.0
        self.start = self.end = self.last = 0.0

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        """Count how long the batch took to come."""
        if self.start:
            self.waited += time.perf_counter() - self.last

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Start after the last step that is not counted; until the end nothing waits for the device."""
        if self.start:
            self.images += len(batch["image"]) * trainer.world_size
        elif trainer.global_step >= self.warmup:
            _synchronise(reset=True)
            self.start = time.perf_counter()
        self.last = time.perf_counter()

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        """Wait for the work that is left."""
        _synchronise()
        self.end = time.perf_counter()


def _synchronise(reset: bool = False) -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        if reset:
            torch.cuda.reset_peak_memory_stats()


def measure(row: str, args: argparse.Namespace, flags: list[str]) -> dict[str, Any]:
    """Train one row in this process, and in others that it starts."""
    settings: dict[str, Any] = {}
    overrides = [f"--model.backbone={args.backbone}", "--model.weights=random", f"--data.size={args.size}",
                 f"--data.batch_size={args.batch_size}", f"--data.num_workers={args.workers}"]  # fmt: skip
    for option in ROWS[row]:
        overrides += OPTIONS[option][0]
        settings |= OPTIONS[option][1]
    configs = [ROOT / "configs" / "model" / "mqtransformer.yaml", ROOT / "configs" / "data" / "rooms.yaml"]
    model, data = taskformer.from_config(*configs, overrides=[f"--data.root={ROOT / 'data' / 'rooms'}",
                                                              *overrides, *flags])  # fmt: skip
    timer = Timer(args.warmup)
    trainer = Trainer(
        **settings,
        **_devices(args),
        callbacks=[timer, Stopping()],
        max_steps=args.warmup + args.steps,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data)
    seconds = timer.end - timer.start
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _resident_peak()
    return {
        "row": row,
        "images/s": timer.images / seconds,
        "waiting": timer.waited / seconds,
        "peak MiB": peak / 2**20,
        "rank": trainer.global_rank,
    }


def _resident_peak() -> int:
    """Return the most memory that this process has had, in bytes, as Linux counts it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _devices(args: argparse.Namespace) -> dict[str, Any]:
    """Return the Trainer's settings for one process or several, which share a GPU where there is only one."""
    if args.processes == 1:
        return {"accelerator": args.accelerator, "devices": 1}
    if args.accelerator == "cpu" or torch.cuda.device_count() >= args.processes:
        return {"accelerator": args.accelerator, "devices": args.processes, "strategy": "ddp"}
    shared = [torch.device("cuda", 0)] * args.processes
    return {"strategy": DDPStrategy(parallel_devices=shared, process_group_backend="gloo")}


def in_own_process(row: str, argv: list[str]) -> dict[str, Any]:
    """Measure a row where no other has compiled, tuned or allocated anything."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "row.json")
        done = subprocess.run([sys.executable, __file__, *argv, f"--one={row}", f"--json={file}"], check=False)
        if done.returncode:
            return {"row": row, "failed": done.returncode}
        found: dict[str, Any] = json.loads(file.read_text())
        return found


def main(argv: list[str]) -> None:
    """Measure all rows and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accelerator", default="gpu", choices=["gpu", "cpu"])
    parser.add_argument("--backbone", default="swin_tiny_patch4_window7_224")
    parser.add_argument("--size", type=int, nargs=2, default=[448, 576])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--rows", nargs="+", default=["none", *OPTIONS, "all"], choices=list(ROWS))
    parser.add_argument("--one", choices=list(ROWS), help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    args, flags = parser.parse_known_args(argv)
    if args.one is not None:
        row = measure(args.one, args, flags)
        if row.pop("rank") == 0:
            write_json(args.json, row)
        return
    device = torch.cuda.get_device_name(0) if args.accelerator == "gpu" else "CPU"
    table = Table("row", "images/s", "waiting", "peak MiB", title=f"{device}, {args.processes} process(es)")
    rows = [in_own_process(row, argv) for row in args.rows]
    for row in rows:
        numbers = ("failed",) if "failed" in row else (
            f"{row['images/s']:.1f}", f"{row['waiting']:.0%}", f"{row['peak MiB']:.0f}")  # fmt: skip
        table.add_row(row["row"], *numbers)
    Console().print(table)
    if args.json:
        settings = {key: value for key, value in vars(args).items() if key not in ("json", "one")}
        found = {"device": device, "settings": settings, "flags": flags, "torch": torch.__version__, "rows": rows}
        write_json(args.json, found)


if __name__ == "__main__":
    main(sys.argv[1:])
