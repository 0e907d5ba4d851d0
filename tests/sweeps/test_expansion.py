"""The command line of a run: the words of wandb's own agent, and what they mean to our parser."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from wandb import wandb_agent
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from taskformer.commands.parser import joined
from taskformer.sweeps import Choice, Metric, Sweep, command_line, read_sweep
from taskformer.sweeps.macros import DEFAULT_COMMAND, SETTINGS, grouped, words_of_settings

ROOT = Path(__file__).parents[2]
#: Programs of this Python come first, where an agent takes the first ``python``.
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
SWEEP = Sweep(Path("a.yaml"), "a", "grid", Metric("val/loss", "minimize"), {"x": Choice((1,))})
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=6)
NAMES = st.from_regex(r"[a-z_][a-z0-9_]*(\.[a-z0-9_]+){0,2}", fullmatch=True)


def of_the_agent(run):
    return create_sweep_command_args({"args": {name: {"value": value} for name, value in run.items()}})


@settings(max_examples=60)
@given(st.dictionaries(NAMES, VALUES, min_size=1))
def test_words_are_those_of_wandbs_agent(run):
    theirs, ours = of_the_agent(run), words_of_settings(run)
    assert ours == {name: theirs[name] for name in SETTINGS}


@given(st.lists(SCALARS) | st.dictionaries(st.text(), SCALARS) | st.none() | st.booleans())
def test_values_arrive_as_they_are(value):
    (word,) = joined(words_of_settings({"x": value})["args"])
    assert json.loads(word.removeprefix("--x=")) == value


@pytest.fixture
def agents(monkeypatch, tmp_path):
    """Let wandb's agent start a run, and return the process that it would start: its words and environment."""
    started = []
    monkeypatch.setattr(wandb_agent, "AgentProcess", lambda **process: started.append(process) or SimpleNamespace())
    for name in ("WANDB_DIR", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):
        monkeypatch.setenv(name, str(tmp_path))  # the agent sets them for good

    def start(sweep, run):
        agent = wandb_agent.Agent(api=None, queue=None, sweep_id="sweep")
        agent._sweep_command = list(sweep.command)
        given = {name: {"value": value} for name, value in grouped(run, sweep.groups).items()}
        agent._command_run({"run_id": "abc123", "program": sweep.program, "args": given})
        return started[-1]

    return start


RUN = {"a.lr": 1e-05, "b": None, "c": [1, "x", None], "d.e": True, "d.f": {"g": "h i"}}


@pytest.mark.parametrize("command", [DEFAULT_COMMAND, *(("x", f"${{{name}}}", "y${args}z") for name in SETTINGS)])
def test_a_command_is_that_of_wandbs_agent(command, agents, monkeypatch):
    monkeypatch.setenv("WHO", "me")
    sweep = replace(SWEEP, command=(*command, "--name=${envvar:WHO}-${envvar:MISSING}"), groups=("d",))
    ours = command_line(sweep, RUN, ["--runs_dir=r"])
    theirs = agents(sweep, RUN)["command"]
    assert [word if word != sys.executable else "python" for word in ours] == [*theirs, "--runs_dir=r"]
    assert theirs[-1] == "--name=me-MISSING"


@pytest.mark.slow  # a training
def test_the_agents_run_trains(agents, small_rooms, tmp_path):
    sweep = read_sweep(ROOT / "configs" / "sweeps" / "rooms_models.yaml")
    run = sweep.grid()[-1]
    process = agents(sweep, run)
    assert process["env"]["WANDB_RUN_ID"] == "abc123"
    short = [f"--data.root={small_rooms}", f"--runs_dir={tmp_path / 'runs'}", "--trainer.enable_progress_bar=false"]
    subprocess.run([*process["command"], *short], env=process["env"] | {"PATH": PATH}, cwd=ROOT, check=True)
    (folder,) = (tmp_path / "runs").iterdir()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["class_path"].endswith("Baseline")
    assert config["seed_everything"] == run["seed_everything"]
    assert (folder / "checkpoints" / "best.ckpt").is_file()
    assert list((folder / "wandb").glob("offline-run-*-abc123"))


def test_groups_are_handed_over_whole():
    run = {"a.b.lr": 1, "seed": 0, "a.b.c.x": 2, "a.y": 3, "ab.z": 4}
    assert grouped(run, ["a", "a.b", "a.b.c"]) == {
        "a": {"b": {"lr": 1, "c": {"x": 2}}, "y": 3},
        "seed": 0,
        "ab.z": 4,
    }
    words = command_line(replace(SWEEP, groups=("a",)), {"a.lr": 0.5, "a.name": None})
    assert words[-1] == "--a={'lr': 0.5, 'name': None}"
