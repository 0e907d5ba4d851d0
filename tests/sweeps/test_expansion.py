"""The command line of a run: the words of wandb's own agent, and what they mean to our parser."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from taskformer.commands.parser import joined
from taskformer.sweeps import Choice, Metric, Sweep, command_line
from taskformer.sweeps.macros import SETTINGS, grouped, words_of_settings

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


def test_a_command_is_expanded_as_the_agent_does(monkeypatch):
    command = (
        "${env}",
        "${interpreter}",
        "-m",
        "${program}",
        "fit",
        "--name=${envvar:WHO}-${envvar:MISSING}",
        "${args}",
    )
    monkeypatch.setenv("WHO", "me")
    words = command_line(replace(SWEEP, command=command), {"a.lr": 0.1, "b": None, "c": [1, "x"]}, ["--runs_dir=r"])
    assert words[-4:] == ["--a.lr=0.1", "--b=None", "--c=[1, 'x']", "--runs_dir=r"]
    assert words[:5] == ["/usr/bin/env", sys.executable, "-m", "taskformer", "fit"]
    assert words[5] == create_sweep_command(list(command))[5] == "--name=me-MISSING"
    assert command_line(SWEEP, {"x": 1}) == ["/usr/bin/env", sys.executable, "taskformer", "--x=1"]


def test_groups_are_handed_over_whole():
    run = {"a.b.lr": 1, "seed": 0, "a.b.c.x": 2, "a.y": 3, "ab.z": 4}
    assert grouped(run, ["a", "a.b", "a.b.c"]) == {
        "a": {"b": {"lr": 1, "c": {"x": 2}}, "y": 3},
        "seed": 0,
        "ab.z": 4,
    }
    words = command_line(replace(SWEEP, groups=("a",)), {"a.lr": 0.5, "a.name": None})
    assert words[-1] == "--a={'lr': 0.5, 'name': None}"


@pytest.mark.parametrize("macro", ["args_no_equals", "args_json"])
def test_other_forms_of_the_settings(macro):
    words = command_line(replace(SWEEP, command=("taskformer", f"${{{macro}}}")), {"a.lr": 0.1, "b": None})
    assert words[1:] == of_the_agent({"a.lr": 0.1, "b": None})[macro]
