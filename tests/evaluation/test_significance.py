"""Paired bootstrap of runs, from Python."""

import json

import numpy as np
import pytest

from taskformer.errors import ConfigError
from taskformer.evaluation import compare
from taskformer.evaluation.significance import paired_interval


def write_run(folder, values):
    """A run folder with the depth error of each image."""
    folder.mkdir()
    record = {"protocol": "standard", "better": {"depth": {"rmse": "lower"}}, "per_image": "per_image.csv"}
    (folder / "metrics.json").write_text(json.dumps({"test": record}))
    rows = [f"i{index},depth,rmse,{value}" for index, value in enumerate(values)]
    (folder / "per_image.csv").write_text("\n".join(["id,task,metric,value", *rows]) + "\n")
    return folder


def test_the_interval_is_that_of_the_mean_of_normal_differences():
    differences = np.random.default_rng(0).normal(0.3, 2.0, 4000)
    low, high = paired_interval(differences, 10_000, seed=1)
    error = differences.std() / np.sqrt(4000)
    assert low == pytest.approx(differences.mean() - 1.96 * error, abs=0.06 * error)
    assert high == pytest.approx(differences.mean() + 1.96 * error, abs=0.06 * error)


def test_the_interval_of_two_images_is_known_exactly():
    # The four equally likely resamples have the means 0, 1/2, 1/2 and 1: both ends are beyond 2.5 % of a quarter.
    assert paired_interval(np.array([0.0, 1.0]), 1000, seed=0) == (0, 1)


def test_equal_differences_leave_no_doubt():
    assert paired_interval(np.full(5, 0.25), 100, seed=0) == (0.25, 0.25)


def test_every_run_is_compared_with_the_first(tmp_path):
    runs = [write_run(tmp_path / name, np.arange(9) + more) for name, more in {"x": 0, "y": -0.5, "z": 2}.items()]
    found = compare(runs, resamples=50)
    assert found.runs == {"A": str(runs[0]), "B": str(runs[1]), "C": str(runs[2])}
    assert [(row.other, row.difference, row.better) for row in found.differences] == [("B", -0.5, "B"), ("C", 2, "A")]
    assert found.as_dict()["c"] == str(runs[2])
    assert [{*row} & {*"abc"} for row in found.as_dict()["rows"]] == [{"a", "b"}, {"a", "c"}]
    assert [column.header for column in found.table().columns][:2] == ["run", "task"]
    (third,) = compare([runs[0], runs[2]], resamples=50).differences
    assert (third.other, third.difference, third.low, third.high) == ("B", 2, 2, 2)


@pytest.mark.parametrize("count", [0, 1, 27])
def test_numbers_of_runs_that_cannot_be_compared_are_refused(count, tmp_path):
    with pytest.raises(ConfigError, match=f"two to 26 runs can be compared, got {count}"):
        compare([tmp_path] * count)


@pytest.mark.parametrize("options", [{"resamples": 0}, {"seed": -1}])
def test_impossible_settings_are_refused(options, tmp_path):
    with pytest.raises(ConfigError, match=f"{next(iter(options))} must be in"):
        compare([tmp_path, tmp_path], **options)
