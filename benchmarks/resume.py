"""Kill trainings at random moments, let them go on, and compare them with one that was not killed, bit for bit.

    python benchmarks/resume.py --kills 20 --workers 0
    python benchmarks/resume.py --kills 20 --model supernet
    python benchmarks/resume.py --kills 20 --processes 2

Each training is a process forked from this one, which has imported everything, so that moments are not all in imports;
with two processes the second one is started by Lightning as always.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

import torch

import taskformer.commands.trainer
import taskformer.data.transforms  # noqa: F401  # else every training would import it
from taskformer.cli import main as taskformer_command

ROOT = Path(__file__).parent.parent
ROOMS = ROOT / "data" / "rooms"
MODELS = {
    "mqtransformer": [f"--config={ROOT}/configs/model/mqtransformer.yaml", f"--config={ROOT}/configs/data/rooms.yaml",
                      "--model.embed_dim=16", "--model.head_dim=8"],
    "supernet": [f"--config={ROOT}/configs/experiment/autotaskformer_rooms.yaml", "--model.space.embed_dims=[32,64]",
                 "--model.space.depths=[2,3]", "--model.space.num_heads=[1,2]", "--model.space.mlp_ratios=[1.0,2.0]",
                 "--model.head.width=16", "--model.drop_path=0.1", "--data.holdout=0.0"],
}  # fmt: skip


def few_rooms(folder: Path) -> None:
    """Make a data set of a few of the embedded rooms."""
    folder.mkdir()
    for entry in ROOMS.iterdir():
        if entry.stem not in ("train", "val", "test"):
            (folder / entry.name).symlink_to(entry)
    for split, count in {"train": 12, "val": 3, "test": 3}.items():
        records = json.loads((ROOMS / f"{split}.json").read_text())
        (folder / f"{split}.json").write_text(json.dumps(records[:count]))


def train(arguments: list[str], log: Path, seconds: float | None = None) -> tuple[int, float]:
    """Run ``taskformer`` in a process group of its own; returns its status and how long it took.

    Args:
        arguments: The command line.
        log: File for what it prints.
        seconds: When to kill it; None: never.
    """
    process = os.fork()
    if process == 0:
        os.setpgrp()
        for stream in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        sys.argv = [str(Path(sys.executable).with_name("taskformer")), *arguments]
        try:
            taskformer_command(arguments)
        except SystemExit as end:
            os._exit(end.code if isinstance(end.code, int) else 1)
        except BaseException:  # into the log
            traceback.print_exc()
            os._exit(99)
        os._exit(0)
    begin = time.monotonic()
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        passed = time.monotonic() - begin
        if done:
            return os.waitstatus_to_exitcode(status), passed
        if seconds is not None and passed > seconds:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return -signal.SIGKILL, passed
        time.sleep(0.005)


def state(name: str) -> dict[str, torch.Tensor]:
    """Gather all tensors of a run's two checkpoints: weights and what the optimizer has learnt."""
    found = {}
    for file in ("last", "best"):
        checkpoint = torch.load(f"runs/{name}/checkpoints/{file}.ckpt", weights_only=True)
        moments = checkpoint["optimizer_states"][0]["state"]
        found |= {f"{file} {key}": value for key, value in checkpoint["state_dict"].items()}
        found |= {f"{file} {key} {part}": value for key, parts in moments.items() for part, value in parts.items()}
    return found


def steps_at(name: str) -> int:
    """Return how many steps a run's last checkpoint has, 0 without."""
    path = Path(f"runs/{name}/checkpoints/last.ckpt")
    return torch.load(path, weights_only=True)["global_step"] if path.exists() else 0


def main() -> None:
    """Kill, go on, compare; the status is 1 if a training differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="mqtransformer")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=0, help="loader processes")
    parser.add_argument("--processes", type=int, default=1, help="training processes, by DDP")
    parser.add_argument("--every", type=int, default=1, help="steps between checkpoints, 0: at the ends of epochs")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        few_rooms(Path("rooms"))
        flags = [
            *MODELS[options.model], "--data.root=rooms", "--data.batch_size=3", "--trainer.accelerator=cpu",
            f"--data.num_workers={options.workers}", f"--checkpoint.every_n_train_steps={options.every}",
            f"--trainer.devices={options.processes}", "--trainer.max_epochs=3", "--trainer.num_sanity_val_steps=0",
            "--trainer.check_val_every_n_epoch=1", "--trainer.enable_progress_bar=false", "--gallery.every_n_epochs=0",
            *(["--trainer.strategy=ddp_find_unused_parameters_true"] if options.processes > 1 else []),
        ]  # fmt: skip
        status, seconds = train(["fit", *flags, "--name=whole"], Path("whole.log"))
        if status:
            sys.exit(Path("whole.log").read_text())
        whole, moments, identical = state("whole"), random.Random(options.seed), 0
        print(f"the whole training takes {seconds:.1f} s")
        for number in range(options.kills):
            name, log, status = f"killed{number}", Path(f"killed{number}.log"), 0
            while status == 0:  # another training than one that was faster than the moment
                shutil.rmtree(Path("runs", name), ignore_errors=True)
                moment = moments.uniform(0.02, 0.98) * seconds
                status, passed = train(["fit", *flags, f"--name={name}"], log, moment)
                seconds = min(seconds, passed) if status == 0 else seconds
            done = steps_at(name)
            begun = Path(f"runs/{name}/config.yaml").exists()
            again, _ = train(["fit", *(["--resume", f"runs/{name}"] if begun else [*flags, f"--name={name}"])], log)
            same = again == 0 and all(torch.equal(value, whole[key]) for key, value in state(name).items())
            litter = [str(path) for path in Path("runs", name).rglob(".*")]
            identical += same and not litter
            how = "killed" if status < 0 else f"ended with {status}"
            print(f"{name}: {how} after {moment:.2f} s with {done} steps saved, then {again}, equal: {same}, {litter}",
                  flush=True)  # fmt: skip
            if again:
                print(log.read_text()[-3000:])
        print(f"{identical} of {options.kills} are bit for bit the training that was not killed")
        sys.exit(identical < options.kills)


if __name__ == "__main__":
    main()
