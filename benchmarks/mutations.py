"""Does every mistake end in one sentence? Random mutations of valid configurations and command lines.

Usage: python benchmarks/mutations.py [--count 500] [--seed 0] [--first 0] [--limit 60] [--keep FOLDER]

Mutation number K of a seed is always the same, so ``--first K --count 1 --keep FOLDER`` shows one again and leaves its
files. Each runs in a process forked from this one, which has imported everything: a second instead of ten. It is
``refused`` (status 2 and one sentence), ``accepted`` (status 0) or a ``bug``: a traceback, another status, a hang, or
a storm of processes. The accepted ones are listed too, for a person to look at.
"""

import argparse
import contextlib
import copy
import importlib
import json
import os
import random
import re
import resource
import shlex
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
ROOMS = ROOT / "data" / "rooms"
#: What the commands find: no threads, which do not survive a fork, and no network.
ENVIRONMENT = {
    **{"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "200"},
    **{"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "WANDB_SILENT": "true"},
}
#: Processes of one command at a time beyond which it is a storm: main, loaders, two ranks with theirs.
STORM = 12
MEMORY_GB = 8
#: What a value becomes.
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 100, 1000, 10**9, 10**30, -(10**9), 0.5, -0.5, 1.5, 1e-300),
    *(float("nan"), float("inf"), float("-inf"), "", " ", "x" * 5000, "käse 日本", "../../x", "/", "/etc/passwd", "."),
    *("https://example.com/x.ckpt", "s3://bucket/x", "nan", "auto", "null", "1,2", "{id}", "%s", "a\nb", "\0", "~"),
    *("Baseline", "RoomsDataModule", "torch.optim.SGD", "os.system", "semseg", "depth", "gpu", "cuda", "config.yaml"),
    *(
        [],
        {},
        [1, 2],
        [-1, -1],
        [[1]],
        ["semseg", "semseg"],
        ["nothing"],
        {"a": 1},
        {"semseg": -1.0},
        {"class_path": "X"},
    ),
]
#: Flags that a command line gets in addition.
FLAGS = """
--trainer.devices=100 --trainer.devices=2 --trainer.devices=0 --trainer.devices=[0,5] --trainer.accelerator=gpu
--trainer.accelerator=tpu --trainer.accelerator=mps --trainer.num_nodes=5 --trainer.strategy=fsdp
--trainer.strategy=nonsense --trainer.precision=16-mixed --trainer.precision=5 --trainer.logger=WandbLogger
--trainer.logger=MLFlowLogger --trainer.logger=NeptuneLogger --trainer.logger=Nonsense
--trainer.callbacks=EarlyStopping --trainer.callbacks+=Nonsense --data.num_workers=1000 --data.num_workers=2
--data.batch_size=0 --data.holdout=1 --model.optimizer=Nonsense --model.optimizer=SGD --optimizer=Adam
--model.lr_scheduler=StepLR --ckpt_path=https://example.com/x.ckpt --ckpt_path=. --ckpt_path=nothing.ckpt
--ckpt_path=best --trainer.profiler=simple --trainer.profiler=x --trainer.plugins=x --trainer.benchmark=true
--trainer.fast_dev_run=true --trainer.overfit_batches=0.5 --trainer.limit_val_batches=0
--trainer.accumulate_grad_batches=0 --trainer.gradient_clip_val=-1 --trainer.max_time=x --name=../../x --name=
--name=a/b --runs_dir=/proc/x --runs_dir=/dev/null --json=/ --out=/ --seed_everything=-1 --seed_everything=1e30
--nonsense=1 --help --config=nothing.yaml --config=. --print_config --study=../../x --workers=-1 --workers=1000
--sample=-1 --sample=0 --tasks=[] --tasks=[semseg,semseg] --split=x --device=cuda --device=x --protocol=x --fault=x
"""

Words = list[str]


@dataclass
class Case:
    """A valid command: words, and the configurations that they name as ``NAME.yaml``."""

    words: Words
    configs: dict[str, Any] = field(default_factory=dict)
    #: Contents of a configuration's file instead of the configuration.
    texts: dict[str, bytes] = field(default_factory=dict)
    what: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    kind: str
    reason: str
    said: str


def main() -> None:
    """Run the mutations and print how they ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds after which a command hangs")
    parser.add_argument("--keep", type=Path, help="new folder for the files of the commands")
    options = parser.parse_args()
    import_everything()
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary) / "work"
        make_work(work)
        for number in range(options.first, options.first + options.count):
            case = mutated(number, options.seed)
            folder = (options.keep or Path(temporary)) / str(number)
            shutil.copytree(work, folder, symlinks=True)
            slow = 4 if case.words[0] == "baselines" else 1  # it starts the program anew, several times
            outcome = run(case, folder, slow * options.limit)
            counts[outcome.kind] += 1
            print(f"{number:4} {outcome.kind:8} {shlex.join(case.words)[:200]}\n     {case.what}", flush=True)
            print(f"     {outcome.reason} {outcome.said}\n", flush=True)
            if not options.keep:
                shutil.rmtree(folder, ignore_errors=True)
    print(", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())))
    sys.exit(bool(counts["bug"]))


def import_everything() -> None:
    """Import once what every command needs; torch must not start threads before the forks."""
    os.environ.update(ENVIRONMENT)
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    names = (
        "trainer",
        "search",
        "pick",
        "predict",
        "evaluate",
        "evaluate_edges",
        "compare",
        "baselines",
        "data",
        "export",
    )
    for command in names:
        importlib.import_module(f"taskformer.commands.{command}")
    for module in ("data.transforms", "data.cache", "data.shards", "datatools.verify", "datatools.stats",
                   "datatools.preview", "datatools.miniature"):  # fmt: skip
        importlib.import_module(f"taskformer.{module}")


# What is valid ------------------------------------------------------------------------------------------------------


def make_work(work: Path) -> None:
    """Make the folder in which every command starts: data, and tiny runs to test, search, compare and export."""
    (work / "rooms").mkdir(parents=True)
    for entry in ROOMS.iterdir():
        if entry.stem not in ("train", "val", "test"):
            (work / "rooms" / entry.name).symlink_to(entry)
    for split, count in {"train": 4, "val": 2, "test": 2}.items():
        (work / "rooms" / f"{split}.json").write_text(
            json.dumps(json.loads((ROOMS / f"{split}.json").read_text())[:count])
        )
    (work / "photos").mkdir()
    photo = next((ROOMS / "image").iterdir())
    shutil.copy(photo, work / "photos" / "a.jpg")
    (work / "archives").mkdir()
    with tarfile.open(work / "archives" / "allensville_rgb.tar", "w") as archive:
        archive.add(photo, "rgb/point_0_view_0_domain_rgb.png")
    from taskformer.datatools.miniature.nyud import write_nyud

    write_nyud(work / "nyud", counts={"train": 2, "val": 2})
    net = ["test", "--config=net.yaml", "--ckpt_path=runs/net/checkpoints/last.ckpt", "--name=net"]
    extra = ["--results.per_image=true", "--predictions.save=true"]
    for name, case in {
        "net": Case(["fit", "--config=net.yaml", "--name=net"], {"net": fit_config(BASELINE)}),
        "test": Case([*net, *extra], {"net": fit_config(BASELINE)}),
        "supernet": Case(["fit", "--config=net.yaml", "--name=supernet"], {"net": fit_config(SUPERNET)}),
        "search": CASES["search"],
    }.items():
        outcome = run(case, work, 300)
        if outcome.kind != "accepted":
            sys.exit(f"the valid command {name} fails: {outcome}")


OPTIMIZER = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1.0e-3, "weight_decay": 1.0e-2}}
SCHEDULER = {"class_path": "taskformer.modules.PolyLR", "init_args": {"power": 0.9, "warmup": 0.05}}
BASELINE = {
    "class_path": "Baseline",
    "init_args": {
        **{"backbone": "test_resnet.r160_in1k", "weights": "random", "embed_dim": 8, "head_dim": 4},
        **{"backbone_drop_path": 0.0, "loss_weights": {"semseg": 1.0}, "backbone_lr_scale": 0.5},
        **{"optimizer": OPTIMIZER, "lr_scheduler": SCHEDULER},
    },
}
MQTRANSFORMER = {
    "class_path": "MQTransformer",
    "init_args": {
        **{"backbone": "test_resnet.r160_in1k", "weights": "random", "embed_dim": 8, "num_queries": 4, "num_heads": 2},
        **{"scales": "fused", "cross_attention": "separate", "num_blocks": 1, "encoder_mlp_ratio": 1.0},
        **{"cross_mlp_ratio": 1.0, "decoder_mlp_ratio": 2.0, "drop_path": 0.1, "cross_drop_path": 0.5, "head_dim": 4},
        **{"optimizer": OPTIMIZER, "lr_scheduler": SCHEDULER},
    },
}
SUPERNET = {
    "class_path": "AutoTaskFormer",
    "init_args": {
        "space": {
            **{"preset": "custom", "embed_dims": [16, 32], "depths": [2, 3], "mlp_ratios": [1.0, 2.0]},
            **{"num_heads": [1, 2], "head_dim": 8, "sharing": "binary", "copies": 2},
        },
        "head": {"kind": "pup", "width": 8},
        "sampling": {"sampler": "sandwich", "distill": 0.5, "sharing_warmup": 0.2},
        **{"image_size": [64, 80], "patch_size": 16, "max_relative": 4, "drop_path": 0.1, "layer_decay": 0.9},
        **{"optimizer": OPTIMIZER, "lr_scheduler": SCHEDULER},
    },
}
T = "taskformer.data.transforms."
ROOMS_DATA = {
    "class_path": "RoomsDataModule",
    "init_args": {
        **{"root": "rooms", "tasks": ["semseg", "depth"], "batch_size": 2, "num_workers": 0, "size": [64, 80]},
        "train_transforms": [
            {"class_path": f"{T}RandomScale", "init_args": {"low": 0.8, "high": 1.6}},
            {"class_path": f"{T}RandomCrop", "init_args": {"height": 64, "width": 80}},
            {"class_path": f"{T}RandomRotate", "init_args": {"degrees": 5.0, "p": 0.5}},
            {"class_path": f"{T}RandomHorizontalFlip", "init_args": {"p": 0.5}},
            {"class_path": f"{T}PhotoMetricDistortion", "init_args": {"brightness": 32.0, "hue": 36.0, "p": 0.5}},
            {"class_path": f"{T}Pad", "init_args": {"height": 64, "width": 80, "position": "random"}},
        ],
        **{"eval_transforms": [{"class_path": f"{T}Pad", "init_args": {"height": 64, "width": 80}}]},
        **{"on_error": "raise", "holdout": 0.0},
    },
}
CROP = {"low": 0.8, "high": 1.6, "height": 64, "width": 80, "max_share": 0.9, "retries": 2}
NYUD_DATA = {
    "class_path": "NYUDDataModule",
    "init_args": {
        **{"root": "nyud", "tasks": ["semseg", "depth"], "batch_size": 1, "size": [64, 80], "semseg_classes": 40},
        "train_transforms": [
            {"class_path": f"{T}RandomScaledCrop", "init_args": CROP},
            {"class_path": f"{T}Resize", "init_args": {"height": 64, "width": 80}},
        ],
        **{"cache_dir": "cache", "cache_gb": 1.0, "layout": "auto", "holdout": 0.5},
    },
}
FOLDER_DATA: dict[str, Any] = {
    "class_path": "FolderDataModule",
    "init_args": {
        **{"root": "rooms", "image": "image/{id}.jpg", "border": 0, "batch_size": 1, "size": [64, 80]},
        "labels": {
            "depth": {"file": "depth/{id}.png", "divide_by": 1000, "spec": {"max_depth": 7.0}},
            "semseg": {"file": "semseg/{id}.png", "spec": {"classes": [str(k) for k in range(20)]}},
        },
        "splits": {"train": 0.8, "val": 0.1, "test": 0.1},
    },
}
TRAINER = {
    **{"accelerator": "cpu", "devices": 1, "max_epochs": 1, "max_steps": 1, "max_time": "00:00:00:20"},
    **{"limit_train_batches": 1, "limit_val_batches": 1, "limit_test_batches": 1, "num_sanity_val_steps": 0},
    **{"enable_progress_bar": False, "log_every_n_steps": 1, "gradient_clip_val": 1.0, "precision": "32-true"},
    **{"accumulate_grad_batches": 1, "deterministic": False, "check_val_every_n_epoch": 1, "strategy": "auto"},
}


def fit_config(model: Any, data: Any = ROOMS_DATA) -> dict[str, Any]:
    """Build the configuration of a tiny training."""
    return {"seed_everything": 0, "model": model, "data": data, "trainer": TRAINER, "runs_dir": "runs"}


NET = "runs/net/checkpoints/last.ckpt"
SEARCH = {"objectives": ["delta_m", "params"], "generations": 1, "population": 2, "seed": 0, "study": "search"}
SEARCH |= {"batch": 2, "references": False, "final": 0, "task_weights": {"semseg": 2.0}}
SEARCH |= {"constraint": {"params": [1.0, 1.0e9]}, "latency": {"batch_size": 1}}
CASES = {
    "baseline": Case(["fit", "--config=c.yaml", "--name=new"], {"c": fit_config(BASELINE)}),
    "mqtransformer": Case(["fit", "--config=c.yaml", "--name=new"], {"c": fit_config(MQTRANSFORMER)}),
    "autotaskformer": Case(["fit", "--config=c.yaml", "--name=new"], {"c": fit_config(SUPERNET)}),
    "nyud": Case(["fit", "--config=c.yaml", "--name=new"], {"c": fit_config(MQTRANSFORMER, NYUD_DATA)}),
    "folder": Case(["fit", "--config=c.yaml", "--name=new"], {"c": fit_config(BASELINE, FOLDER_DATA)}),
    "words": Case(
        [
            *("fit", "--model=Baseline", "--model.backbone=test_resnet.r160_in1k", "--model.embed_dim=8"),
            *("--data=RoomsDataModule", "--data.root=rooms", "--data.tasks=[semseg]", "--data.size=[64,80]"),
            *("--data.batch_size=2", "--trainer.max_steps=1", "--trainer.accelerator=cpu", "--trainer.max_epochs=1"),
            *("--trainer.max_time=00:00:00:20", "--trainer.limit_val_batches=1", "--checkpoint.monitor=val/loss"),
        ]
    ),
    "callbacks": Case(
        [
            *("fit", "--config=c.yaml", "--name=new", "--gallery.images=2", "--gallery.every_n_epochs=1"),
            *("--results.protocol=standard", "--results.per_image=true", "--checkpoint.monitor=val/loss"),
            *("--checkpoint.every_n_train_steps=1", "--predictions.save=false", "--gallery.width=40"),
        ],
        {"c": fit_config(BASELINE)},
    ),
    "validate": Case(["validate", "--config=c.yaml", f"--ckpt_path={NET}"], {"c": fit_config(BASELINE)}),
    "test": Case(["test", "--config=c.yaml", f"--ckpt_path={NET}", "--json=x.json"], {"c": fit_config(BASELINE)}),
    "search": Case(
        ["search", "--config=c.yaml", "--ckpt_path=runs/supernet/checkpoints/last.ckpt"],
        {"c": fit_config(SUPERNET) | SEARCH},
    ),
    "predict": Case(["predict", "runs/net", "photos", "--out=out", "--raw=true", "--device=cpu"]),
    "evaluate": Case(["evaluate", "runs/net", "--tasks=[depth]", "--split=test", "--workers=0", "--protocol=all"]),
    "compare": Case(
        [
            "compare",
            "runs/net",
            "runs/net",
            "--json=x.json",
            "--resamples=100",
            "--seed=0",
            "--split=test",
            "--metrics=all",
        ]
    ),
    "pick": Case(["search", "pick", "runs/supernet", "--params=1e9", "--json=x.json", "--study=search"]),
    "baselines": Case(
        ["baselines", "--config=c.yaml", "--data.tasks=[semseg]", "--out=x.json", "--name=single"],
        {"c": fit_config(BASELINE)},
    ),
    "verify": Case(
        ["data", "verify", "nyud", "--root=nyud", "--sample=2", "--workers=0", "--partial", "--json=x.json"]
    ),
    "stats": Case(["data", "stats", "--config=c.yaml", "--split=val", "--workers=0"], {"c": {"data": NYUD_DATA}}),
    "preview": Case(["data", "preview", "rooms", "--root=rooms", "--out=x.png", "--count=2", "--width=40", "--seed=1"]),
    "miniature": Case(["data", "miniature", "nyud", "--out=mini", "--fault=truncated"]),
    "prepare": Case(
        [
            *("data", "prepare", "taskonomy", "--source=archives", "--out=prepared", "--workers=0"),
            *("--domains=[rgb]", "--buildings=[allensville]", "--split_list=tiny"),
        ]
    ),
}


# What is done to it -------------------------------------------------------------------------------------------------


def mutated(number: int, seed: int) -> Case:
    """Return a valid command with one or two mutations."""
    rng = random.Random(f"{seed} {number}")
    case = copy.deepcopy(CASES[rng.choice(list(CASES))])
    for _ in range(rng.choice((1, 1, 1, 2))):
        places: list[Callable[[Case, random.Random], str]] = [mutate_words]
        if case.configs:
            places += [mutate_config] * 5 + [break_text]
        case.what += rng.choice(places)(case, rng) + " "
    return case


def mutate_words(case: Case, rng: random.Random) -> str:
    """Change, drop, repeat or add a word."""
    if len(case.words) == 1:
        case.words.append("x")
    words, place = case.words, rng.randrange(1, len(case.words))
    old = words[place]
    key, is_flag, _ = old.partition("=")
    kind = rng.choice(("value", "value", "value", "add", "add", "drop", "repeat", "typo", "cut"))
    if kind == "value":
        value = rng.choice(VALUES)
        text = (value if isinstance(value, str) else json.dumps(value)).replace("\0", "")  # no word has a null byte
        words[place] = f"{key}={text}" if is_flag else text
    elif kind == "add":
        words.append(rng.choice(FLAGS.split()))
    elif kind == "drop":
        del words[place]
    elif kind == "repeat":
        words.insert(place, old)
    elif kind == "typo":
        spot = rng.randrange(len(old))
        words[place] = old[:spot] + old[spot + 1 :]
    else:
        words[place] = key
    return f"word {kind} {old!r}"


def mutate_config(case: Case, rng: random.Random) -> str:
    """Change, drop, rename, add or swap keys of a configuration."""
    nodes = list(walk(case.configs))
    holder, key = rng.choice(nodes)
    old = holder[key]
    kind = rng.choice(("value", "value", "value", "scale", "drop", "rename", "add", "swap"))
    if kind == "scale" and isinstance(old, int | float):
        holder[key] = rng.choice((-old, old * 1000, old + 0.5, str(old), [old], old / 1000))
    elif kind in ("value", "scale"):
        holder[key] = rng.choice(VALUES)
    elif kind == "swap":
        other, place = rng.choice(nodes)
        holder[key], other[place] = copy.deepcopy(other[place]), copy.deepcopy(old)
    elif isinstance(holder, list):
        holder.pop(key) if kind == "drop" else holder.insert(key, copy.deepcopy(old))
    elif kind == "add":
        holder[rng.choice(("nonsense", "lr", "init_args", "class_path", "1", "", "max_epoch"))] = rng.choice(VALUES)
    else:
        value = holder.pop(key)
        if kind == "rename":
            holder[f"{key}s"] = value
    now = holder.get(key) if isinstance(holder, dict) else holder
    return f"config {kind} {key!r}: {str(old)[:60]!r} -> {str(now)[:100]!r}"


def walk(node: Any) -> Any:
    """Yield every place of a tree of dictionaries and lists, except the configurations themselves."""
    for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
        if isinstance(value, dict | list):
            yield from walk(value)
        if (node is not None and not isinstance(value, dict)) or key not in ("c", "net"):
            yield node, key


def break_text(case: Case, rng: random.Random) -> str:
    """Replace a configuration's file by something broken."""
    name = next(iter(case.configs))
    text = yaml.safe_dump(case.configs[name], allow_unicode=True).encode()
    spot = rng.randrange(len(text))
    broken = {
        "cut": text[:spot],
        "tab": text[:spot] + b"\t" + text[spot:],
        "colon": text[:spot] + b": :" + text[spot:],
        "quote": text[:spot] + b'"' + text[spot:],
        "bytes": bytes(rng.randrange(256) for _ in range(200)),
        "null": text[:spot] + b"\0" + text[spot:],
        "latin-1": text + "\nname: käse".encode("latin-1"),
        "empty": b"",
        "list": b"- 1\n- 2\n",
        "word": b"hello",
        "code": b"!!python/object/apply:os.system ['touch pwned']",
        "bomb": b"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a]\nmodel: *b\n",
        "twice": text + b"\n" + text,
        "folder": b"",
    }
    kind = rng.choice(list(broken))
    case.texts[name] = broken[kind]
    return f"text {kind} at {spot}"


# How it ends --------------------------------------------------------------------------------------------------------


def run(case: Case, folder: Path, limit: float) -> Outcome:
    """Run a command in a fork of this process and judge it."""
    for name, config in case.configs.items():
        path = folder / f"{name}.yaml"
        path.unlink(missing_ok=True)
        if "text folder" in case.what:
            path.mkdir()
        else:
            path.write_bytes(case.texts.get(name) or b"" if name in case.texts else yaml.safe_dump(config).encode())
    out, err = folder / "stdout", folder / "stderr"
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        enter(case.words, folder, out, err)
    start, most, status = time.monotonic(), 1, None
    while status is None and time.monotonic() - start < limit and most <= STORM:
        time.sleep(0.1)
        done, code = os.waitpid(child, os.WNOHANG)
        status = code if done else None
        most = max(most, count_processes(child))
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what it may have left
    if status is None:
        os.waitpid(child, 0)
    said = err.read_text(errors="replace") if err.exists() else ""
    parts = 2 if case.words[0] == "baselines" else 1
    return judge(status, most, time.monotonic() - start, said, parts)


def enter(words: Words, folder: Path, out: Path, err: Path) -> None:
    """Be the command; never returns."""
    status = 1
    try:
        os.setsid()
        os.chdir(folder)
        for stream, path in ((1, out), (2, err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_GB << 30, MEMORY_GB << 30))
        sys.argv = [str(ROOT / "src" / "taskformer" / "__main__.py"), *words]
        from taskformer.cli import main

        main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def count_processes(session: int) -> int:
    """Count the processes of a session."""
    count = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            count += int(stat.read_text().rpartition(")")[2].split()[3]) == session
    return count


def judge(status: int | None, most: int, seconds: float, err: str, parts: int) -> Outcome:
    """Tell a refusal from a success and both from a bug; a command of several parts may say what each says."""
    lines = [line for line in err.splitlines() if line.strip()]
    sentences = [line for line in lines if line.startswith("taskformer: ")]
    last = (sentences or lines or [""])[-1]
    frames = [line.strip() for line in lines if re.match(r"\s+File ", line)]
    where = " ".join(frames[-3:])
    if most > STORM:
        return Outcome("bug", f"{most} processes,", last)
    if status is None:
        return Outcome("bug", f"no end after {seconds:.0f} s,", last)
    code = os.waitstatus_to_exitcode(status)
    if "Traceback" in err:
        said = [line for line in lines if not line.startswith("taskformer: this is a bug")][-1]
        return Outcome("bug", f"traceback, status {code}: {where}", said[:400])
    if code == 0:
        return Outcome("accepted", f"{seconds:.0f} s", "")
    if code == 2 and len(sentences) in (1, parts) and lines[-1] == sentences[-1] and len(last) < 1100:
        return Outcome("refused", f"{seconds:.0f} s", last)
    return Outcome("bug", f"status {code}, {len(sentences)} sentences,", " | ".join(lines[-3:])[:600])


if __name__ == "__main__":
    main()
