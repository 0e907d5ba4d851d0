"""A training that takes no time: what a sweep starts, with a run folder, a lock, curves and an orderly end."""

import textwrap
from pathlib import Path

import pytest
import yaml

TRAINING = """
import fcntl, json, os, pathlib, signal, sys, time

flags = dict(word.lstrip("-").split("=", 1) for word in sys.argv[2:])
folder = pathlib.Path(flags["runs_dir"], flags["name"])
folder.mkdir(parents=True, exist_ok=True)
lock = os.open(folder, os.O_RDONLY)
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # two trainings in one folder would fail here
config, curves = folder / "config.yaml", folder / "logs" / "fit" / "metrics.csv"
assert ("resume" in flags) == config.is_file()
if not config.is_file():
    config.write_text(json.dumps(flags))
settings = json.loads(config.read_text())
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
curves.parent.mkdir(parents=True, exist_ok=True)
metric = settings.get("metric", "val/score")
if not curves.is_file():
    curves.write_text(f"epoch,{metric},val/loss\\n")
with open("events.log", "a") as log:
    log.write(f"begin {folder.name} {os.environ['WANDB_MODE']} {os.environ['OMP_NUM_THREADS']}\\n")
for epoch in range(curves.read_text().count("\\n") - 1, int(settings.get("epochs", 3))):
    time.sleep(float(settings.get("seconds", 0)))
    if asked:
        sys.exit(143)
    if epoch == 1 and settings.get("fails") == "True" and not os.path.exists("mended"):
        print("taskformer: the disk is full")
        sys.exit(2)
    value = float(settings["x"]) * (epoch + 1)
    with open("events.log", "a") as log:
        log.write(f"epoch {folder.name} {epoch}\\n")
    with curves.open("a") as stream:
        stream.write(f"{epoch},{value},{-value}\\n")
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder to work in, with a fast training, and workers that look often."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("taskformer.sweeps.worker.POLL", 0.02)
    Path("training.py").write_text(textwrap.dedent(TRAINING))
    return tmp_path


@pytest.fixture
def sweep_file(work):
    """Write a sweep of the fast training."""

    def write(parameters, method="grid", **content):
        plan = {
            "method": method,
            "metric": {"name": "val/score", "goal": "maximize"},
            "parameters": parameters,
            "command": ["${interpreter}", "training.py", "fit", "${args}"],
        }
        Path("toy.yaml").write_text(yaml.safe_dump(plan | content, sort_keys=False))
        return Path("toy.yaml")

    return write


@pytest.fixture
def events(work):
    """Read what trainings did: ``begin`` with the run and its environment, or ``epoch`` with the run and its number."""

    def read(kind):
        lines = [line.split() for line in Path("events.log").read_text().splitlines()]
        return [tuple(words[1:]) for words in lines if words[0] == kind]

    return read
