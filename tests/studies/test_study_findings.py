"""What a study finds, against numbers made by hand and by brute force."""

from pathlib import Path

import numpy as np
import pytest

from taskformer.errors import ConfigError
from taskformer.evaluation.significance import seeds_interval
from taskformer.studies.findings import DELTA_M, Evaluation, Evidence

MIOU, RMSE = ("semseg", "mIoU"), ("depth", "rmse")


def evaluate(study, name="test", resamples=4000):
    return Evaluation(Evidence.read(study, Path("docs/studies/small")), name, resamples)


def finding(evaluation, arm, key):
    return next(each for each in evaluation.findings if (each.arm, each.key) == (arm, key))


def test_delta_m_is_against_the_mean_of_the_single_tasks_seeds(study):
    """Single tasks have 0.5 mIoU and 0.5 m: a point of either is two percent of it."""
    found = evaluate(study)
    assert found.references == pytest.approx({"semseg": 0.5, "depth": 0.5})
    assert finding(found, "plain", DELTA_M).values == pytest.approx({0: (0 + 40) / 2, 1: (-10 - 10) / 2})
    assert finding(found, "wide", DELTA_M).values == pytest.approx({0: (20 + 0) / 2, 1: (10 + 10) / 2})
    assert finding(found, "wide", DELTA_M).mean[:2] == pytest.approx((10.0, 0.0))
    assert finding(found, "single", MIOU).values == {0: 0.4, 1: 0.6}
    assert DELTA_M not in [each.key for each in found.findings if each.arm == "single"]


def test_seeds_are_compared_by_the_values_of_the_whole_split(study):
    found = finding(evaluate(study), "wide", DELTA_M)
    assert found.over_seeds == pytest.approx(seeds_interval([20.0, -10.0], [10.0, 10.0]))
    assert finding(evaluate(study), "plain", DELTA_M).over_seeds is None


def test_the_difference_of_delta_m_is_that_of_image_means(study, images):
    """Brute force: draw seeds and images one by one, the same for both arms, and compute delta_m from scratch."""
    rng = np.random.default_rng(5)
    tables = {name: {task: np.array([run[task] for run in runs], dtype=float) for task in runs[0]}
              for name, runs in images.items()}  # fmt: skip

    def gain(arm, seeds, drawn):
        semseg = np.nanmean(tables[arm]["semseg"][np.ix_(seeds, drawn)])
        single = np.nanmean(tables["single-semseg"]["semseg"][:, drawn])
        depth = np.nanmean(tables[arm]["depth"][np.ix_(seeds, drawn)])
        alone = np.nanmean(tables["single-depth"]["depth"][:, drawn])
        return 50 * ((semseg / single - 1) - (depth / alone - 1))

    def difference(seeds, drawn):
        return gain("wide", seeds, drawn) - gain("plain", seeds, drawn)

    draws = []
    while len(draws) < 4000:
        seeds, drawn = rng.integers(2, size=2), rng.integers(3, size=3)
        if set(drawn) != {2}:  # no depth
            draws.append(difference(seeds, drawn))
    found = finding(evaluate(study, resamples=20_000), "wide", DELTA_M).difference
    assert found.difference == pytest.approx(difference([0, 1], [0, 1, 2]))
    assert (found.low, found.high) == pytest.approx(np.percentile(draws, (2.5, 97.5)), abs=1.5)


def test_the_difference_in_a_metric_is_that_of_image_means(study):
    found = finding(evaluate(study), "wide", RMSE).difference
    assert found.difference == pytest.approx(np.mean([0.4, 0.4, 0.3, 0.6]) - np.mean([0.4, 0.5, 0.5, 0.6]))
    assert found.low < found.difference < found.high


def test_other_images_are_refused(study, keep):
    trial = study.trials(["wide"])[0]
    keep(trial, {"semseg": 0.5, "depth": 0.5}, {"ids": ["a", "b", "x"], "semseg": [0, 0, 0], "depth": [0, 0, 0]})
    with pytest.raises(ConfigError, match=r"wide-seed0 and .* were scored on different images"):
        _ = evaluate(study).findings


def test_without_scores_of_images_there_is_the_interval_over_seeds(write, keep):
    study = write(split="val")
    for trial in study.trials():
        tasks = [trial.variant.task] if trial.variant.task else ["semseg", "depth"]
        keep(trial, dict.fromkeys(tasks, 0.5 + 0.1 * trial.seed), None, split="val")
    found = finding(evaluate(study, "val"), "wide", DELTA_M)
    assert found.difference is None
    assert found.over_seeds is not None


def test_a_missing_single_task_leaves_no_delta_m_and_all_else(study):
    for path in Path("docs/studies/small/runs").glob("single-depth*"):
        path.unlink()
    found = evaluate(study)
    assert DELTA_M not in found.columns
    assert found.references == pytest.approx({"semseg": 0.5})
    assert finding(found, "wide", RMSE).difference is not None
    assert [trial.name for trial in found.evidence.missing] == ["single-depth-seed0", "single-depth-seed1"]
