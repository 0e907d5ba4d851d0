"""Sweep files: what they say is read as wandb reads it, and each mistake is one sentence."""

import math
from pathlib import Path

import numpy as np
import optuna
import pytest
import yaml
from scipy import stats

from taskformer.errors import ConfigError
from taskformer.sweeps import Choice, Distribution, Hyperband, Metric, read_sweep

WHOLE = {
    "method": "grid",
    "metric": {"name": "val/delta_m", "goal": "maximize"},
    "parameters": {"seed_everything": {"values": [0, 1]}},
}


@pytest.fixture
def read(tmp_path):
    """Write a sweep that differs from a right one and read it."""

    def written(**changes):
        content = {key: value for key, value in (WHOLE | changes).items() if value != "LEFT OUT"}
        (tmp_path / "a.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        return read_sweep(tmp_path / "a.yaml")

    return written


def drawn(parameter, trials=400):
    """Draw values of a parameter through Optuna."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [parameter.suggest(study.ask(), "x") for _ in range(trials)]


def test_a_sweep_is_read_whole(read, tmp_path):
    sweep = read(
        apiVersion="1",
        kind="sweep",
        project="mine",
        description="text",
        name="models",
        method="bayes",
        metric={"name": "val/loss", "goal": "minimize", "target": 1},
        parameters={
            "config": {"values": ["a.yaml", ["b.yaml", "c.yaml"]]},
            "lr": {"min": 0.1, "max": 1},
            "optimizer": {"parameters": {"momentum": {"value": None}, "inner": {"parameters": {"x": {"value": 1}}}}},
        },
        command=["${env}", "python", "-m", "taskformer", "fit", "${args}", 3],
        run_cap=5,
        early_terminate={"type": "hyperband", "min_iter": 2},
    )
    assert (sweep.path, sweep.name, sweep.method) == (tmp_path / "a.yaml", "models", "bayes")
    assert sweep.metric == Metric("val/loss", "minimize", 1)
    assert sweep.parameters == {
        "config": Choice(("a.yaml", ["b.yaml", "c.yaml"])),
        "lr": Distribution("uniform", {"min": 0.1, "max": 1}),
        "optimizer.momentum": Choice((None,)),
        "optimizer.inner.x": Choice((1,)),
    }
    assert sweep.groups == ("optimizer", "optimizer.inner")
    assert sweep.command[-1] == "3"
    assert (sweep.run_cap, sweep.early_terminate) == (5, Hyperband(2))
    assert read().name == "a"


def test_a_grid_is_every_combination_once(read):
    sweep = read(parameters={"b": {"values": [None, True]}, "a": {"min": 1, "max": 3}, "c": {"value": {"x": []}}})
    grid = sweep.grid()
    assert [(run["b"], run["a"]) for run in grid] == [(b, a) for b in (None, True) for a in (1, 2, 3)]
    assert all(run["c"] == {"x": []} for run in grid)
    steps = read(parameters={"a": {"distribution": "q_uniform", "min": 0, "max": 1, "q": 0.1}}).grid()
    assert [run["a"] for run in steps] == pytest.approx(np.arange(0, 1, 0.1).tolist(), abs=1e-15)  # as wandb does
    whole = read(parameters={"a": {"distribution": "q_uniform", "min": 8, "max": 32, "q": 8}}).grid()
    assert [str(run["a"]) for run in whole] == ["8", "16", "24"]


@pytest.mark.parametrize(
    ("spec", "law"),
    [
        ({"min": 0.5, "max": 2.0}, stats.uniform(0.5, 1.5)),
        ({"min": 1, "max": 6}, stats.randint(1, 7)),
        ({"distribution": "log_uniform", "min": -3, "max": 1}, stats.loguniform(math.exp(-3), math.e)),
        ({"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2}, stats.loguniform(1e-4, 1e-2)),
        ({"distribution": "inv_log_uniform", "min": -3, "max": 1}, stats.loguniform(math.exp(-1), math.exp(3))),
        ({"distribution": "inv_log_uniform_values", "min": 1e-4, "max": 1e-2}, stats.loguniform(1e-4, 1e-2)),
        ({"distribution": "normal", "mu": 3, "sigma": 2}, stats.norm(3, 2)),
        ({"distribution": "log_normal", "mu": 1}, stats.lognorm(1, scale=math.e)),
        ({"distribution": "beta", "a": 2, "b": 5}, stats.beta(2, 5)),
    ],
)
def test_distributions_are_wandbs(spec, law, read):
    parameter = read(method="random", parameters={"x": spec}).parameters["x"]
    for values in (drawn(parameter), [parameter.at(u) for u in np.linspace(0.001, 0.999, 400)]):
        if isinstance(values[0], int):
            assert set(values) == set(range(1, 7))
        else:
            assert stats.kstest(values, law.cdf).pvalue > 0.01
    assert parameter.at(0.0) == law.support()[0]


@pytest.mark.parametrize("kind", ["q_uniform", "q_log_uniform_values", "q_normal", "q_log_normal", "q_beta"])
def test_quantised_values_are_multiples(kind, read):
    ends = {"min": 0.5, "max": 9.5} if "uniform" in kind else {}
    for q in (0.1, 2):
        spec = {"distribution": kind, "q": q, **ends}
        values = drawn(read(method="bayes", parameters={"x": spec}).parameters["x"], 100)
        assert all(isinstance(value, type(q)) and len(str(value)) < 6 for value in values)
        assert [round(value / q) * q for value in values] == pytest.approx(values, abs=1e-12)


def test_choices_are_drawn_as_often_as_they_should():
    plain, weighted = Choice(("a", [1, None], {"x": True})), Choice((1, 2, 3), (1, 0, 3))
    values = drawn(plain)
    assert [values.count(value) for value in plain.values] == pytest.approx([400 / 3] * 3, abs=40)
    values = drawn(weighted)
    assert values.count(2) == 0
    assert values.count(3) == pytest.approx(300, abs=40)
    assert [plain.at(u) for u in (0, 0.3, 0.34, 0.67, 1)] == ["a", "a", [1, None], {"x": True}, {"x": True}]
    study = optuna.create_study()
    assert Choice((None,)).suggest(study.ask(), "x") is None
    assert study.trials[0].params == {}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"min_iter": 3, "eta": 2}, Hyperband(3, 2.0)),
        ({"max_iter": 27, "s": 2}, Hyperband(3, 3.0, 27)),  # wandb trims at 27/3/3 and 27/3
        ({"max_iter": 27, "s": 2, "eta": 1.5, "strict": False}, Hyperband(12, 1.5, 27, strict=False)),
        ({"max_iter": 4, "s": 5}, Hyperband(1, 3.0, 4)),
    ],
)
def test_hyperband_as_wandb_says_it(content, expected, read):
    assert read(early_terminate={"type": "hyperband", **content}).early_terminate == expected


def with_parameter(**spec):
    return {"method": "random", "parameters": {"lr": spec}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metod": "grid"}, r"a\.yaml: unknown key of a sweep 'metod' \(did you mean 'method'\?\)"),
        ({"method": "LEFT OUT"}, "a sweep needs method: grid, random or bayes"),
        ({"method": "gird"}, "unknown method 'gird' .*'grid'.*known: bayes, grid, random"),
        ({"metric": "LEFT OUT"}, "needs metric, e.g. metric: {name: val/delta_m, goal: maximize}"),
        ({"metric": "val/loss"}, "metric must be settings by name, got 'val/loss'"),
        ({"metric": {"name": "val/loss"}}, "metric needs goal: minimize or maximize"),
        ({"metric": {"name": "val/loss", "goal": "min"}}, r"unknown metric\.goal 'min'"),
        ({"metric": {"name": "x", "goal": "minimize", "target": "low"}}, r"metric\.target must be a number, got 'low'"),
        ({"parameters": {}}, "parameters must be settings by name, got {}"),
        ({"parameters": {"--lr": {"value": 1}}}, "'--lr' is no name of a setting"),
        ({"parameters": {"lr": 3}}, r"parameters\.lr must be settings by name, got 3"),
        ({"parameters": {"lr": {"values": []}}}, r"parameters\.lr\.values must be a list of one item or more"),
        ({"parameters": {"lr": {"values": [1, 2, 1]}}}, r"parameters\.lr\.values has 1 more than once"),
        ({"parameters": {"lr": {"min": 0.0, "max": 1.0}}}, "a grid needs settings whose values can be counted, lr"),
        ({"parameters": {"a": {"parameters": {"b": {"vals": [1]}}}}}, r"key of parameters\.a\.parameters\.b 'vals'"),
        (with_parameter(min=1), r"parameters\.lr needs max"),
        (with_parameter(min=1, max=2, step=1), r"unknown key of parameters\.lr 'step'"),
        (with_parameter(min=2, max=1), "min must be less than max, got 2 and 1"),
        (
            with_parameter(min="1e-3", max=1.0),
            r"lr\.min must be a number, got '1e-3', which is text in YAML.* 1\.0e-3",
        ),
        (with_parameter(min=True, max=2.5), r"lr\.min must be a number, got True"),
        (with_parameter(distribution="int_uniform", min=1.5, max=2), r"lr\.min must be a whole number, got 1\.5"),
        (with_parameter(distribution="loguniform", min=1, max=2), "unknown distribution .*'log_uniform'"),
        (with_parameter(distribution="log_uniform_values", min=0, max=1), r"lr\.min must be in \(0, inf\), got 0"),
        (with_parameter(distribution="log_uniform", min=1, max=5000), "takes exponents of e, got max 5000"),
        (with_parameter(distribution="q_normal", q=0), r"lr\.q must be in \(0, inf\), got 0"),
        (with_parameter(values=[1, 2], probabilities=[1]), "one number for each of the 2 values"),
        (with_parameter(values=[1, 2], probabilities=[1, -1]), r"probabilities must be in \[0, inf\)"),
        (with_parameter(values=[1, 2], probabilities=[0, 0]), r"sum of .* must be in \(0, inf\)"),
        ({"early_terminate": {"type": "median"}}, "unknown early_terminate.type 'median'.*hyperband"),
        ({"early_terminate": {"type": "hyperband"}}, "early_terminate needs min_iter, or max_iter and s"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 0}}, r"early_terminate\.min_iter must be in \[1, inf\)"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 1, "eta": 1}}, r"eta must be in \(1, inf\), got 1"),
        ({"run_cap": "many"}, "run_cap must be a whole number, got 'many'"),
        ({"run_cap": 0}, r"run_cap must be in \[1, inf\), got 0"),
        ({"command": ["python", "-m", "taskformer", "fit"]}, r"command has no \$\{args\}"),
        ({"command": ["taskformer", "fit", "${arg}"]}, r"unknown macro of command 'arg' \(did you mean 'args'\?\)"),
        ({"command": ["taskformer", "fit", "x${args}"]}, r"command has no \$\{args\}.* a line of its own"),
        ({"command": "taskformer fit ${args}"}, "command must be a list of one item or more"),
    ],
)
def test_mistakes_are_one_sentence(changes, message, read):
    with pytest.raises(ConfigError, match=message) as error:
        read(**changes)
    assert "\n" not in str(error.value)
    assert "a.yaml" in str(error.value)


@pytest.mark.parametrize("text", ["", "- 1", "grid"])
def test_what_is_no_sweep_is_said(text, tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"a\.yaml: a sweep must be settings by name, got"):
        read_sweep(file)


def test_a_missing_file_is_the_systems_error():
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_sweep(Path("nothing.yaml"))
