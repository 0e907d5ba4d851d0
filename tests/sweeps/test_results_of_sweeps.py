"""What a sweep has found: the table against NumPy, the files, the pictures and what they show."""

import csv
import json
import math
import shlex
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from taskformer.sweeps import Choice, Distribution, Metric, Sweep
from taskformer.sweeps.importance import importances
from taskformer.sweeps.labels import unit_of
from taskformer.sweeps.pictures import Axis, draw_importance, draw_parallel
from taskformer.sweeps.results import SweepResult
from taskformer.sweeps.study import Run, State

MODELS = ("configs/model/mqtransformer.yaml", ["configs/model/baseline.yaml", "b.yaml"])
RATE = "model.init_args.optimizer.init_args.lr"
PLAN = Sweep(
    Path("toy.yaml"),
    "toy",
    "grid",
    Metric("val/delta_m", "maximize"),
    {
        "config": Choice(MODELS),
        RATE: Choice((1.0e-3, 0.01)),
        "seed_everything": Choice((0, 1, 2)),
        "fixed": Choice((7,)),
    },
    command=("${env}", "${interpreter}", "-m", "taskformer", "fit", "${args}"),
)  # fmt: skip
RUNS = PLAN.grid()
VALUES = np.random.default_rng(0).normal(size=len(RUNS)).round(3).tolist()


@pytest.fixture
def found(tmp_path):
    """Twelve runs, of which one failed and one was stopped early."""
    states = {4: State.FAILED, 8: State.PRUNED}
    runs = [
        Run(number, settings, states.get(number, State.FINISHED), None if number == 4 else VALUES[number],
            "it broke" if number == 4 else None)
        for number, settings in enumerate(RUNS)
    ]  # fmt: skip
    return SweepResult(PLAN, tmp_path / "toy", runs, 12)


def expected(number):
    """Mean, spread and number of the finished runs of the settings of run ``3 * number`` and its seeds."""
    values = [VALUES[run] for run in range(3 * number, 3 * number + 3) if run not in (4, 8)]
    return np.mean(values), np.std(values, ddof=1), len(values)


def test_groups_are_the_seeds_of_the_same_settings(found):
    order = sorted(range(4), key=lambda number: -expected(number)[0])
    for group, number in zip(found.groups, order, strict=True):
        assert (group.mean, group.spread, len(group.values)) == pytest.approx(expected(number))
        assert group.settings == {name: value for name, value in RUNS[3 * number].items() if name != "seed_everything"}
    assert found.best is found.groups[0]
    assert {group.others for group in found.groups} == {"", "1 failed", "1 stopped early"}


def test_files_say_the_same(found):
    found.write()
    with (found.folder / "table.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["mean"]) for row in rows] == pytest.approx([group.mean for group in found.groups])
    assert {row["config"] for row in rows} == {str(model) for model in MODELS}
    markdown = (found.folder / "table.md").read_text().splitlines()
    assert markdown[0] == "| config | lr | val/delta_m, % | spread | seeds | other runs |"
    best = found.groups[0]
    number = next(n for n in range(4) if expected(n)[0] == pytest.approx(best.mean))
    mean, spread, seeds = expected(number)
    model = ("mqtransformer", "baseline + b")[number // 2]
    others = f"{best.others} " if best.others else ""
    assert markdown[2] == f"| {model} | {(0.001, 0.01)[number % 2]} | {mean:.2f} | {spread:.2f} | {seeds} | {others}|"
    assert r"val/delta\_m, \%" in (found.folder / "table.tex").read_text()
    trials = json.loads((found.folder / "trials.json").read_text())
    assert [trial["settings"] for trial in trials] == RUNS
    assert trials[4] == {"run": str(found.folder / "0004"), "settings": RUNS[4], "state": "failed", "value": None,
                         "reason": "it broke"}  # fmt: skip
    assert (found.folder / "importance.png").is_file()


def test_a_setting_of_all_runs_is_no_column(found):
    assert found.varied == ["config", RATE]
    assert all("fixed" not in heading for heading in found.lines()[0])


def test_the_best_command_trains_the_best_settings(found):
    words = shlex.split(found.command)
    assert words[:2] == ["taskformer", "fit"]
    flags = dict(word.removeprefix("--").split("=", 1) for word in words[2:])
    assert flags == {
        **{name: str(value) for name, value in found.best.settings.items()}, "seed_everything": "0", "name": "toy-best"
    }  # fmt: skip


def test_a_sweep_without_results_has_a_table_too(tmp_path):
    empty = SweepResult(PLAN, tmp_path, [Run(0, RUNS[0], State.FAILED, None, "x")], 12)
    empty.write()
    assert (empty.best, empty.command, empty.importances) == (None, None, {})
    assert not (tmp_path / "parallel.png").exists()
    assert (tmp_path / "table.md").read_text().splitlines()[2] == "|  |  | 0 | 1 failed |"


def test_goals_order_the_table(found):
    lower = SweepResult(Sweep(**vars(PLAN) | {"metric": Metric("val/loss", "minimize")}), found.folder, found.runs, 12)
    assert [group.mean for group in lower.groups] == sorted(group.mean for group in found.groups)


@pytest.mark.parametrize(
    ("metric", "unit"),
    [("val/delta_m", "%"), ("val/loss", ""), ("val/loss/depth", ""), ("val/semseg/mIoU", ""), ("train/loss", "")],
)
def test_units_without_a_checkpoint(metric, unit, tmp_path):
    assert unit_of(metric, [tmp_path]).name == unit
    assert unit_of(metric, [tmp_path]).factor == 1


def test_what_decides_has_the_largest_importance():
    rng = np.random.default_rng(0)
    parameters = {
        "lr": Distribution("log_uniform_values", {"min": 1e-4, "max": 1e-1}),
        "merge": Choice(("add", "concat")),
        "seed_everything": Choice((0, 1)),
    }
    settings = [
        {"lr": rate, "merge": merge, "seed_everything": seed}
        for rate, merge, seed in zip(
            10 ** rng.uniform(-4, -1, 40), rng.choice(["add", "concat"], 40), rng.integers(0, 2, 40), strict=True
        )
    ]
    noise = rng.normal(scale=0.01, size=40)
    by_rate = [math.log10(run["lr"]) for run in settings]
    by_merge = [run["merge"] == "add" for run in settings]
    for name, values in (("lr", by_rate), ("merge", by_merge)):
        for goal in ("maximize", "minimize"):
            shares = importances(parameters, settings, np.asarray(values) + noise, Metric("x", goal))
            assert sum(shares.values()) == pytest.approx(1)
            assert next(iter(shares)) == name


@pytest.mark.parametrize("runs", [4, 12])
def test_where_nothing_can_be_said_there_is_no_importance(runs):
    settings = [{"x": number, "y": 1} for number in range(runs)]
    assert importances({"x": Choice((0,)), "y": Choice((1,))}, settings, [0.0] * runs, Metric("x", "minimize")) == {}


def test_axes_have_values_where_they_belong():
    rates = Axis.of_setting("lr", [1e-4, 1e-3, 1e-2], Distribution("log_uniform_values", {"min": 1e-4, "max": 1e-2}))
    assert rates.places == pytest.approx([0, 0.5, 1])
    assert {text: round(height, 3) for height, text in rates.ticks.items()}["0.001"] == 0.5
    errors = Axis.of_numbers("rmse", [2.0, 1.0, 1.5], turned=True)
    assert errors.places == pytest.approx([0, 1, 0.5])
    for height, text in errors.ticks.items():
        assert float(text) == pytest.approx(2 - height)
    models = Axis.of_choices("model", ["b", "a", "b"], ["a", "c", "b"])
    assert models.ticks == {0.0: "a", 1.0: "b"}
    assert models.places[1] == 0
    assert models.places[0] != models.places[2]
    assert np.mean([models.places[0], models.places[2]]) == pytest.approx(1)
    assert Axis.of_numbers("x", [3.0, 3.0]).places == [0.5, 0.5]


def test_pictures_show_each_run(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("taskformer.sweeps.pictures.save", lambda figure, path: drawn.append(figure))
    places = [[0.0, 1.0, 0.5], [1.0, 0.2, 0.4], [0.9, 0.1, 0.0]]
    draw_parallel(
        tmp_path / "x.png", [Axis(str(n), column, {}) for n, column in enumerate(places)], [True, True, False]
    )
    draw_importance(tmp_path / "y.png", {"lr": 0.7, "merge": 0.3}, "val/loss")
    lines = [line for line in drawn[0].axes[0].lines if len(line.get_ydata()) == 3]
    assert sorted(list(line.get_ydata()) for line in lines) == sorted(map(list, zip(*places, strict=True)))
    assert {line.get_linestyle() for line in lines} == {"-", ":"}
    assert [bar.get_width() for bar in drawn[1].axes[0].patches] == pytest.approx([30, 70])
    assert all(isinstance(figure, Figure) for figure in drawn)


def test_pictures_are_as_wide_as_a_readme_needs(found):
    found.write()
    for name in ("parallel.png", "importance.png"):
        assert imread(found.folder / name).shape[1] == 1600
