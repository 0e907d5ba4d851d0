"""A study of supernets: what its numbers claim, and that it comes to an end wherever it was stopped."""

import importlib
import json
import sys
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats

import taskformer
from taskformer.cli import main
from taskformer.errors import ConfigError
from taskformer.evaluation.significance import seeds_interval
from taskformer.metrics import delta_m
from taskformer.models.autotaskformer import Architecture, SearchSpace

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")
STUDY = "configs/studies/supernet_rooms7.yaml"


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import supernet_study

    yield supernet_study
    for name in ("supernet_study", "supernet_report", "inheritance"):
        sys.modules.pop(name, None)


@pytest.fixture
def report(study):
    return sys.modules["supernet_report"]


@pytest.mark.parametrize("ties", [False, True])
def test_rank_correlations_are_scipys(report, ties):
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 5, 9))
    if ties:
        first, second = first.round(), second.round()
    for ours, theirs in ((report.spearman, scipy.stats.spearmanr), (report.kendall, scipy.stats.kendalltau)):
        expected = [theirs(a, b).statistic for a, b in zip(first, second, strict=True)]
        np.testing.assert_allclose(ours(first, second), expected)


def test_the_interval_of_an_order_is_scipys_bootstrap(report):
    rng = np.random.default_rng(1)
    first = rng.normal(size=30)
    second = first + rng.normal(size=30)
    found = report.over_networks(report.spearman, first, second)
    theirs = scipy.stats.bootstrap(
        (first, second),
        lambda one, other: scipy.stats.spearmanr(one, other).statistic,
        paired=True,
        vectorized=False,
        n_resamples=1000,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    assert found.difference == pytest.approx(scipy.stats.spearmanr(first, second).statistic)
    assert (found.low, found.high) == pytest.approx(tuple(theirs), abs=0.05)


def test_an_order_of_equal_networks_is_none(report):
    assert np.isnan(report.over_networks(report.kendall, np.ones(4), np.arange(4.0))).all()


def test_a_paired_gain_is_the_mean_improvement_of_all_draws(report):
    """Two seeds and two images: every draw of both is enumerated."""
    first, second = np.random.default_rng(0).uniform(0.5, 1, size=(2, 2, 2, 2))
    first[0, 1, 0] = np.nan  # the image has no label of this task
    higher = [True, False]
    arms = [{task: dict(enumerate(scores[:, :, task])) for task in range(2)} for scores in (first, second)]
    found = report.paired_gain(*arms, dict(enumerate(higher)))

    def gain(seeds, images):
        changes = []
        for task, sense in enumerate(higher):
            cells = [(s, i, task) for s in seeds for i in images if np.isfinite(first[s, i, task])]
            if not cells:
                return np.nan
            mine, base = (np.mean([scores[cell] for cell in cells]) for scores in (first, second))
            changes.append((1 if sense else -1) * 100 * (mine - base) / base)
        return np.mean(changes)

    draws = [gain(*draw) for draw in product(product(range(2), repeat=2), repeat=2)]
    assert found.difference == pytest.approx(gain([0, 1], [0, 1]))
    # Each of the 16 draws has a chance above 2.5 %, so that the ends are the least and the most.
    assert [found.low, found.high] == pytest.approx([np.nanmin(draws), np.nanmax(draws)])


def test_random_networks_are_spread_from_shared_to_parted(study):
    space = SearchSpace((8, 16), (2, 3), (1.0, 2.0), (1, 2), num_tasks=3, sharing="tree", copies=3)
    networks = study.spread_networks(space, 9)
    parted = [len(set(one.rows(3)[-1])) for one in networks]
    assert parted[0] == 1
    assert parted[-1] == 3
    assert np.mean(parted[:4]) < np.mean(parted[5:])
    assert all(one in space for one in networks)
    assert {one.embed_dim for one in networks} == {8, 16}


def test_nothing_shared_needs_a_copy_for_every_task(study):
    space = SearchSpace((8,), (2,), (1.0,), (1,), num_tasks=3, sharing="tree", copies=3)
    assert study.unshared(space, space.random(Random(0))).sharing == ((0, 1, 2),) * 4
    few = SearchSpace((8,), (2,), (1.0,), (1,), num_tasks=3, sharing="tree", copies=2)
    with pytest.raises(ConfigError, match="a copy for each of 3 tasks"):
        study.unshared(few, few.random(Random(0)))


def test_jobs_come_after_what_they_need_and_tests_after_everything(study, tmp_path):
    jobs = study.all_jobs(study.read_study(Path(STUDY)), study.Results(tmp_path), tmp_path)
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names)
    for place, job in enumerate(jobs):
        assert set(job.needs) <= set(names[:place])
    tests = [job for job in jobs if job.name.endswith("-test")]
    assert len(tests) == 24  # 2 supernets, 4 arms, 3 seeds
    assert all(len(job.needs) == len(jobs) - len(tests) for job in tests)


def test_results_that_are_there_are_not_made_again(study, tmp_path):
    results, made = study.Results(tmp_path / "results"), []
    results["first"] = {"value": 1}

    def job(name, *needs):
        return study.Job(name, needs, lambda: made.append(name) or {"value": len(made)})

    study.work([job("first"), job("third", "second"), job("second", "first")], results, tmp_path)
    assert made == ["second", "third"]
    assert results["third"]["value"] == 2
    assert results["third"].keys() > {"processor_seconds", "git_revision"}


def test_a_job_that_another_process_has_is_left_to_it(study, tmp_path):
    results = study.Results(tmp_path)
    job = study.Job("only", [], lambda: {})
    with study.claimed(tmp_path / "only.lock") as mine:
        assert mine
        assert not study._done(job, results, tmp_path)
    assert study._done(job, results, tmp_path)


@pytest.fixture
def jobs(study, tmp_path):
    """The jobs of a supernet that was never trained: parameters are widths times layers, scores are made up."""
    settings = study.Study({"plain": []}, params=(30, 70), tuning=[], rates=[1e-3])
    found = study.SupernetJobs("plain", settings, study.Results(tmp_path), tmp_path)
    space = SearchSpace((8, 16, 32), (1, 2), (1.0, 2.0), (1, 2), num_tasks=2, sharing="tree", copies=2)
    found.model = SimpleNamespace(space=space, tasks={"depth": SimpleNamespace(higher_is_better=False)})

    def cost(one):
        copies = sum(len(set(row)) for row in one.rows(2)) / 2
        return {"params": one.embed_dim * copies + sum(one.mlp_ratio), "macs": 0.0}

    def score(one):
        return SimpleNamespace(tasks={"depth": 1.0}, delta_m=-abs(cost(one)["params"] - 40) - one.num_heads[0])

    found.costs, found.params = cost, lambda one: cost(one)["params"]
    found.evaluator = SimpleNamespace(evaluate=lambda architectures: [score(one) for one in architectures])
    return found, cost, score


@pytest.mark.parametrize("kind", ["all-shared", "all-specific"])
def test_networks_of_equal_parameters_are_all_that_there_are(study, jobs, kind, monkeypatch):
    """Every network of the kind is built, counted and scored here; that is what is drawn and chosen."""
    monkeypatch.setattr(study, "RANDOM_ATTEMPTS", 30)  # enough to draw each of the 60 networks
    found, cost, score = jobs
    space = found.space
    row = ((0, 0),) if kind == "all-shared" else ((0, 1),)
    every = [
        Architecture(width, depth, ratios, heads, row * 2 * depth)
        for width in space.embed_dims
        for depth in space.depths
        for ratios in product(space.mlp_ratios, repeat=depth)
        for heads in product(space.num_heads, repeat=depth)
    ]
    within = [one for one in every if 30 <= cost(one)["params"] <= 70]
    changed = {"all-shared": lambda one: replace(one, sharing=()), "all-specific": partial(study.unshared, space)}[kind]
    drawn = found._draw(len(every), changed)
    assert {replace(one, sharing=one.rows(2)) for one in drawn} == set(within)
    assert 0 < len(within) < len(every)
    chosen = found._best(drawn)
    assert chosen["delta_m"] == max(score(one).delta_m for one in within)
    best = [cost(one)["params"] for one in within if score(one).delta_m == chosen["delta_m"]]
    assert chosen["params"] == min(best)


def test_limits_that_no_network_keeps_are_refused(study, jobs):
    found, *_ = jobs
    found.study = replace(found.study, params=(1e6, 2e6))
    with pytest.raises(ConfigError, match=r"none has 1e\+06 to 2e\+06 parameters; widen params or the space"):
        found._draw(1, lambda one: one)


def test_the_rate_is_the_best_on_the_held_out_images(study, jobs):
    found, *_ = jobs
    found.study = replace(found.study, rates=[1e-4, 1e-3, 1e-2])
    for rate, gain in (("0.0001", 1.0), ("0.001", 2.5), ("0.01", -3.0)):
        found.results[f"plain-rate-{rate}"] = {"delta_m": gain}
    assert found.rate() == 1e-3


def network(params, depth, edges, **more):
    return {"params": params, "macs": 5e7, "delta_m": 0.0, "scores": {"depth": depth, "edges": edges}, **more}


@pytest.fixture
def finished(study, tmp_path):
    """The results of a finished study of three random networks, two seeds and two test images, by hand."""
    results = study.Results(tmp_path / "by_hand" / "runs")
    reference = {"scores": {"depth": 1.0, "edges": 0.5}, "higher_is_better": {"depth": False, "edges": True}}
    spent = {"processor_seconds": 60.0, "git_revision": "abc"}
    networks = [network(1e6, 1.0, 0.5), network(2e6, 0.9, 0.5), network(3e6, 0.8, 0.5)]
    results["plain"] = spent
    results["plain-networks"] = {"reference": reference, "networks": networks, **spent}
    for number, depth in enumerate([0.6, 0.8, 0.7]):
        results[f"plain-network-{number:02d}"] = network(networks[number]["params"], depth, 0.5) | spent
    results["plain-rate-0.001"] = {"delta_m": 1.0, **spent}
    arms = {arm: [network(1.2e6, 1.0, 0.5)] for arm in ("searched", "all-shared", "all-specific", "random")}
    results["plain-choice"] = {**arms, "evaluated": dict.fromkeys(arms, 7), **spent}
    headline = {"depth": "rmse", "edges": "f_tolerant"}
    for arm, depth in {"searched": 0.75, "all-shared": 1.0, "all-specific": 1.25, "random": 1.0}.items():
        for seed, shift in enumerate((-0.1, 0.1)):
            scores = {"depth": depth * (1 + shift), "edges": 0.5}
            images = {task: [value, value] for task, value in scores.items()}
            results[f"plain-{arm}-seed-{seed}-test"] = {
                "scores": scores,
                "images": images,
                "headline": headline,
                **spent,
            }
    settings = {"supernets": {"plain": ["--config=x.yaml"]}, "params": [1e6, 1.2e6], "tuning": ["--x"], "rates": [1e-3]}
    folder = tmp_path / "by_hand"
    (folder / "study.json").write_text(json.dumps(settings | {"networks": 3, "seeds": [0, 1]}))
    return folder


def rows(folder):
    """The cells of the report's tables by the first two of each line."""
    lines = [line.strip("| ").split(" | ") for line in (folder / "README.md").read_text().splitlines()]
    return {tuple(cells[:2]): cells[2:] for cells in lines if len(cells) > 3}


def test_the_report_says_what_the_results_say(report, finished):
    report.write_report(finished, "python x.py")
    found = rows(finished)
    # Depth before: 0, 10 and 20 %, after: 40, 20 and 30 %, which agrees in one pair of three. Edges stay.
    assert found["delta_m", "+5.00"][0] == "+15.00"
    assert [cell.split()[0] for cell in found["depth", "+10.00"]] == ["+30.00", "-0.50", "-0.33", "-0.50"]
    assert found["edges", "+0.00"][1] == "nan (nan to nan)"
    # 25 % less error than the all-shared network's mean in depth is 12.5 % of both tasks; seeds differ by 0.15 / 2.
    assert found["plain", "searched"] == ["7", "1.200", "50", "+0.00", "+12.50 ± 5.30", "0.75", "50.00"]
    images, test, verdict = found["plain searched", "plain all-shared"]
    assert images == "+12.50 (+12.50 to +12.50)"
    low, high = seeds_interval([-5.0, 5.0], [8.75, 16.25])[1:]
    assert (test, verdict) == (f"+12.50 ({low:+.2f} to {high:+.2f})", "no")  # of two seeds nothing is certain
    assert found["plain searched", "plain all-specific"][0] == "+20.00 (+20.00 to +20.00)"
    assert found["plain", "`--config=x.yaml`"] == ["0.001", "1", "1", "4", "1", "8"]
    assert (finished / "order.png").is_file()


def test_the_report_of_a_study_that_goes_on_shows_what_is_whole(report, finished):
    (finished / "runs" / "plain-random-seed-1-test.json").unlink()
    report.write_report(finished, "python x.py")
    assert ("plain searched", "plain all-shared") not in rows(finished)
    (finished / "runs" / "plain-network-02.json").unlink()
    report.write_report(finished, "python x.py")
    assert list(rows(finished)) == [
        ("supernet", "flags of `taskformer fit`"),
        ("---", "---"),
        ("plain", "`--config=x.yaml`"),
    ]


def test_a_report_of_nothing_says_what_to_do(study, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", STUDY, "--report", f"--results_dir={tmp_path}"])
    with pytest.raises(
        SystemExit, match=r"no results of a study; make them with `python benchmarks/supernet_study\.py"
    ):
        study.main()


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted(Path("configs/studies").glob("supernet_*.yaml")), ids=lambda file: file.stem)
def test_every_study_has_networks_of_all_kinds_at_equal_parameters(study, tmp_path, file):
    settings = study.read_study(file)
    for name, flags in settings.supernets.items():
        found = study.SupernetJobs(name, settings, study.Results(tmp_path), tmp_path)
        found.model, _ = taskformer.from_config(flags[0].removeprefix("--config="))
        for changed in (lambda one: replace(one, sharing=()), partial(study.unshared, found.space), lambda one: one):
            assert len(found._draw(5, changed)) == 5


TINY = {
    "supernets": {"plain": [], "wide": ["--model.head.width=8"]},
    "params": [20000.0, 40000.0],
    "networks": 3,
    "generations": 1,
    "population": 3,
    "rates": [1e-3, 1e-4],
    "tuning": ["--trainer.max_epochs=1"],
    "seeds": [0, 1],
}


@pytest.mark.slow
def test_a_whole_study(study, small_rooms, tmp_path, monkeypatch):
    config = tmp_path / "tiny.yaml"
    space = (
        "{preset: custom, embed_dims: [8, 16], depths: [1, 2], mlp_ratios: [1.0, 2.0], num_heads: [1, 2], head_dim: 8, "
    )
    config.write_text(
        f"base: {Path('configs/experiment/autotaskformer_rooms.yaml').resolve()}\n"
        f"model: {{init_args: {{space: {space}sharing: tree, copies: 2}}, head: {{width: 4}}, patch_size: 32, "
        "max_relative: 2, loss_weights: null}}\n"
        f"data: {{init_args: {{root: {small_rooms}, tasks: [depth, edges], batch_size: 2, holdout: 0.5}}}}\n"
        "trainer: {max_epochs: 1, check_val_every_n_epoch: 1, log_every_n_steps: 1}\n"
        "results: {constant: false}\n"
    )
    settings = TINY | {"supernets": {name: [f"--config={config}", *f] for name, f in TINY["supernets"].items()}}
    file = tmp_path / "tiny_study.yaml"
    file.write_text(json.dumps(settings))
    called = []

    def command(words):
        called.append(words)
        main(words)

    monkeypatch.setattr(study, "run_command", command)
    argv = ["x", str(file), f"--results_dir={tmp_path / 'docs'}", f"--runs_dir={tmp_path / 'runs'}"]
    monkeypatch.setattr(sys, "argv", argv)
    study.main()
    folder = tmp_path / "docs" / "tiny_study"
    text = (folder / "README.md").read_text()
    assert (folder / "order.png").is_file()
    assert "| plain searched | plain all-shared |" in text
    for file in (folder / "runs").glob("plain-*-seed-0.json"):
        assert 20000 <= json.loads(file.read_text())["params"] <= 40000
    first = [words[0] for words in called].index("test")
    assert all(words[0] == "test" for words in called[first:])  # test images come last
    runs = tmp_path / "runs" / "tiny_study"
    first, other = (json.loads((folder / "runs" / f"{name}-networks.json").read_text()) for name in ("plain", "wide"))
    scores = importlib.import_module("inheritance").compare([runs / "plain", runs / "wide"], networks=2)["runs"]
    gain = delta_m(other["reference"]["scores"], *first["reference"].values())
    assert (scores["plain"]["largest"], scores["wide"]["largest"]) == pytest.approx((0, gain))
    (folder / "runs" / "wide-network-01.json").unlink()  # as if it had been stopped there
    before = len(called)
    study.main()
    assert called[before:] == [["fit", f"--resume={runs / 'wide-network-01'}"]]
    assert (folder / "README.md").read_text() == text
