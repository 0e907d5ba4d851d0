"""``taskformer search`` on a supernet of a few rooms, against networks evaluated one by one."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
import torch
import yaml

import taskformer
from taskformer.cli import main
from taskformer.commands.search import spell_out
from taskformer.data import RoomsDataModule
from taskformer.errors import ConfigError, TaskformerError
from taskformer.metrics import delta_m
from taskformer.models.autotaskformer import Architecture
from taskformer.search.objectives import Constraints
from taskformer.search.run import require_clean_selection, require_weights
from taskformer.search.storage import open_storage
from taskformer.search.study import read_records

TASKS = {"semseg", "depth"}


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_rooms):
    """Run folder of a supernet that has trained for one step; three of eight training images are held out."""
    runs = tmp_path_factory.mktemp("runs")
    settings = {
        "model": "AutoTaskFormer",
        "model.space.preset": "custom",
        "model.space.embed_dims": [8, 16],
        "model.space.depths": [1, 2],
        "model.space.mlp_ratios": [1.0, 2.0],
        "model.space.num_heads": [1, 2],
        "model.space.head_dim": 8,
        "model.image_size": [128, 160],
        "model.patch_size": 32,
        "data": "RoomsDataModule",
        "data.root": small_rooms,
        "data.tasks": sorted(TASKS),
        "data.batch_size": 2,
        "data.holdout": 0.3,
        "name": "supernet",
        "runs_dir": runs,
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": 1,
        "trainer.num_sanity_val_steps": 0,
        "trainer.log_every_n_steps": 1,
        "trainer.enable_progress_bar": "false",
        "gallery.every_n_epochs": 9,
    }
    main(["fit", *(f"--{name}={value}" for name, value in settings.items())])
    return runs / "supernet"


def search(run, *flags):
    main(["search", f"--config={run / 'config.yaml'}", f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}", *flags])


def read(run, study="search"):
    storage = open_storage(str(run / study / "study.db"))
    return read_records(optuna.load_study(study_name=study, storage=storage))


def front(run):
    """Names of the networks of a search's front, the best delta_m first."""
    return [row["name"] for row in json.loads((run / "search" / "pareto.json").read_text())["front"]]


def read_architecture(run, name):
    return Architecture.read(str(run / "search" / "architectures" / f"{name}.json"), len(TASKS))


@pytest.fixture(scope="module")
def found(run):
    """The records of a search with everything."""
    search(run, "--generations=3", "--population=4", "--batch=3", "--pruner=NopPruner", "--final=2")
    return read(run)


def test_every_kind_of_network_is_in_the_study(run, found):
    origins = [record.key.origin for record in found]
    assert origins.count("evolution") == origins.count("random") == 12
    assert {"all-shared", "all-specific"} <= set(origins)
    drawn = {record.candidate.architecture for record in found}
    assert len(drawn) == len(found)
    # Nothing is evaluated twice: in so small a space the search may find what one would draw by hand.
    by_hand = [record for record in found if record.key.origin == "hand-made"]
    space = taskformer.load(run / "checkpoints" / "last.ckpt").space
    assert space.median() in drawn
    assert len(by_hand) <= 3
    assert all(set(record.candidate.values) == {"delta_m", "params", "macs"} | TASKS for record in found)


def test_scores_and_costs_are_those_of_the_extracted_network(run, found):
    model = taskformer.load(run / "checkpoints" / "last.ckpt")
    data = RoomsDataModule(str(data_root(run)), tasks=sorted(TASKS), batch_size=2, holdout=0.3)
    data.setup("validate")
    largest = score(model, model.space.largest(), data)
    for record in (found[0], found[7], found[-1]):
        values = record.candidate.values
        expected = score(model, record.candidate.architecture, data)
        assert {name: values[name] for name in TASKS} == pytest.approx(expected, rel=1e-4)
        gains = [expected["semseg"] / largest["semseg"] - 1, 1 - expected["depth"] / largest["depth"]]
        assert values["delta_m"] == pytest.approx(100 * sum(gains) / 2, abs=1e-2)
        network = model.network.extract(record.candidate.architecture)
        assert values["params"] == sum(parameter.numel() for parameter in network.parameters())


def data_root(run):
    return yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"]["root"]


@torch.no_grad()
def score(model, architecture, data):
    """Score a network as a test would, batch after batch."""
    network = model.network.extract(architecture).eval()
    metrics = {name: task.metrics() for name, task in model.tasks.items()}
    for batch in data.val_dataloader():
        outputs = network(batch["image"])
        for name, metric in metrics.items():
            metric.update(outputs[name], batch["targets"][name])
    return {name: float(metric.compute()[model.tasks[name].headline]) for name, metric in metrics.items()}


def test_the_final_ones_are_of_the_front_and_scored_on_the_test_images(run, found):
    scores = json.loads((run / "search" / "test.json").read_text())
    assert 1 <= len(scores) <= 2
    model = taskformer.load(run / "checkpoints" / "last.ckpt")
    data = RoomsDataModule(str(data_root(run)), tasks=sorted(TASKS), batch_size=2)
    data.setup("test")
    data.val_dataloader = data.test_dataloader
    evolved = [record.candidate for record in found if record.key.origin == "evolution"]
    for entry in scores:
        architecture = Architecture.from_dict(entry["architecture"])
        assert {name: entry["test"][name] for name in TASKS} == pytest.approx(
            score(model, architecture, data), rel=1e-4
        )
        assert not any(
            one.values["delta_m"] > entry["val"]["delta_m"] and one.values["params"] <= entry["val"]["params"]
            for one in evolved
        )


def test_a_longer_search_goes_on_and_repeats_nothing(run, found, capsys, tmp_path):
    (tmp_path / "old.yaml").write_text("population: 4\nbaselines: false\n")  # the names that two settings once had
    search(run, f"--config={tmp_path / 'old.yaml'}", "--generations=4", "--early_stop", "false")
    longer = read(run)
    assert [record for record in longer if record.key in {one.key for one in found}] == found
    assert len(longer) == len(found) + 4
    assert "M params" in capsys.readouterr().out


def test_a_run_stands_for_its_configuration_and_weights(run, found, capsys):
    main(["search", str(run), "--ckpt=last", "--study=short", "--generations=2", "--population=4", "--pruner=NopPruner",
          "--references=false"])  # fmt: skip
    assert str(run / "short") in capsys.readouterr().out
    evolved = [record.candidate for record in found if record.key.origin == "evolution"][:8]
    assert [record.candidate for record in read(run, "short")] == evolved
    with pytest.raises(SystemExit):
        main(["search", f"--config={run / 'config.yaml'}", "--name=null"])
    assert "which supernet is to be searched?" in capsys.readouterr().err


def test_a_pruner_of_ones_own_is_chosen_by_its_path(run, found, tmp_path, monkeypatch):
    (tmp_path / "strict.py").write_text(
        "from taskformer.search import Pruner\n"
        "class Strict(Pruner):\n"
        "    def __init__(self, least: float = 0.0) -> None:\n"
        "        self.least = least\n"
        "    def prune(self, course, costs, history):\n"
        "        return course[-1] < self.least\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    search(run, "--study=strict", "--generations=2", "--population=4", "--references=false", "--pruner=strict.Strict",
           "--pruner.least=1e9")  # fmt: skip
    states = [(record.key.generation, record.state.name) for record in read(run, "strict")]
    assert states == [(0, "COMPLETE")] * 4 + [(1, "PRUNED")] * 4
    study = optuna.load_study(study_name="strict", storage=open_storage(str(run / "strict" / "study.db")))
    assert study.user_attrs["pruner"] == "Strict(least=1000000000.0)"


def test_settings_on_which_results_depend_cannot_change(run, found, capsys):
    with pytest.raises(SystemExit):
        search(run, "--seed=1", "--population=4", "--pruner=NopPruner")
    error = capsys.readouterr().err
    assert "begun with seed 0, now it is 1" in error
    assert "--study" in error


def test_constraints_hold_and_the_impossible_is_refused(run, capsys):
    search(run, "--study=small", "--objectives=[delta_m]", "--constraint.params=[52e3,58e3]", "--generations=2",
           "--population=4")  # fmt: skip
    records = read(run, "small")
    assert {"evolution", "random"} <= {record.key.origin for record in records}
    assert all(52e3 <= record.candidate.values["params"] <= 58e3 for record in records)
    with pytest.raises(SystemExit):
        search(run, "--study=none", "--constraint.params=[1,2]")
    assert "no sub-network has params in [1, 2]: the smallest has" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        search(run, "--study=none", "--objectives=[delta]")
    assert "unknown objective 'delta' (did you mean 'delta_m'?)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        search(run, "--study=none", "--population=0")
    assert "population must be in [1, inf), got 0" in capsys.readouterr().err


def test_latencies_are_measured_once_and_checked(run, capsys, monkeypatch):
    from taskformer.modules import timing
    from taskformer.search import latency

    monkeypatch.setattr(timing, "BLOCK", 1e-4)
    monkeypatch.setattr(timing, "PATIENCE", 0.5)
    monkeypatch.setattr(latency, "WHOLE", 2)
    monkeypatch.setattr(latency, "CHECKED", 2)
    flags = [
        "--study=fast",
        "--objectives=[delta_m,latency]",
        "--population=3",
        "--references=false",
        "--predictor=true",
    ]
    search(run, *flags, "--generations=1")
    said = capsys.readouterr().out
    assert re.search(r"latency table: mean error [\d.]+ % on random sub-networks", said)
    assert "rank correlation" not in said  # there was too little to learn from
    assert all(record.candidate.values["latency"] > 0 for record in read(run, "fast"))
    search(run, *flags, "--generations=2")
    assert "latency table" not in capsys.readouterr().out


def test_photographs_are_predicted_by_the_best_network_for_a_budget(run, found, tmp_path, capsys):
    photo = next((Path(data_root(run)) / "image").iterdir())
    models = taskformer.load(run), taskformer.load(run)
    costs = {name: models[0].network.count_parameters(read_architecture(run, name)) for name in front(run)}
    budget = sorted(costs.values())[len(costs) // 2]
    best = next(name for name in front(run) if costs[name] <= budget)  # the front is in the order of its delta_m
    main(["predict", str(run), str(photo), "--params", str(budget), "--out", str(tmp_path)])
    assert f"of 1 photographs by {best}: {costs[best] / 1e6:.4g} M params" in capsys.readouterr().out
    models[0].network = models[0].network.extract(read_architecture(run, best))
    assert models[1].pick(params=budget).name == best
    depth = np.load(tmp_path / "raw" / "depth" / f"{photo.stem}.npy")
    for model in models:
        np.testing.assert_allclose(depth, model.predict_image(photo)["depth"], rtol=1e-5)
    with pytest.raises(SystemExit):
        main(["predict", str(run), str(photo), "--params", "10"])
    assert "no sub-network has at most 1e-05 M params; the least of" in capsys.readouterr().err


def test_a_network_is_picked_by_the_latency_of_this_machine(run, found, capsys, tmp_path, monkeypatch):
    from taskformer.modules import timing

    monkeypatch.setattr(timing, "BLOCK", 1e-4)
    monkeypatch.setattr(timing, "QUICKLY", 0.2)
    main(["search", "pick", str(run), "--measure", "cpu", "--latency", "5", "--json", str(tmp_path / "pick.json")])
    picked = json.loads((tmp_path / "pick.json").read_text())
    complete = [one.candidate for one in found if one.state == optuna.trial.TrialState.COMPLETE]
    assert picked["values"]["delta_m"] == max(one.values["delta_m"] for one in complete)  # all are fast enough
    assert 0 < picked["values"]["latency"] < 5
    assert " ms" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["search", "pick", str(run), "--measure", "cpu", "--latency", "1e-9"])
    assert "no evaluated network has latency <= 1e-09" in capsys.readouterr().err


def test_weights_hold_for_the_final_ones_too(run):
    search(run, "--study=weighted", "--task_weights={semseg: 3}", "--generations=1", "--population=3", "--final=3",
           "--references=false")  # fmt: skip
    entries = json.loads((run / "weighted" / "test.json").read_text())
    model = taskformer.load(run / "checkpoints" / "last.ckpt")
    data = RoomsDataModule(str(data_root(run)), tasks=sorted(TASKS), batch_size=2)
    data.setup("test")
    data.val_dataloader = data.test_dataloader
    largest = score(model, model.network.space.largest(), data)
    senses = {name: model.tasks[name].higher_is_better for name in TASKS}
    for entry in entries:
        own = {name: entry["test"][name] for name in TASKS}
        expected = delta_m(own, largest, senses, {"semseg": 3.0})
        assert entry["test"]["delta_m"] == pytest.approx(expected, abs=0.02)


def test_only_supernets_are_searched(run, capsys, tmp_path):
    (tmp_path / "one.json").write_text(Architecture(8, 1, (1.0,), (1,)).to_json())
    with pytest.raises(SystemExit):
        search(run, f"--model.architecture={tmp_path / 'one.json'}")
    assert "only an AutoTaskFormer without an architecture" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["search", f"--config={run / 'config.yaml'}", "--ckpt_path=nothing.ckpt"])
    assert "the checkpoint 'nothing.ckpt' does not exist" in capsys.readouterr().err


def test_nothing_is_chosen_on_images_that_papers_test_on_or_that_were_trained_on(run, tmp_path):
    published = SimpleNamespace(name="nyud", splits=lambda: ["train", "val"], holdout=0.0)
    with pytest.raises(ConfigError, match="papers test on"):
        require_clean_selection(published, tmp_path)
    published.holdout = 0.1
    require_clean_selection(published, tmp_path)
    require_clean_selection(SimpleNamespace(splits=lambda: ["train", "val", "test"], holdout=0.0), tmp_path)
    published.holdout = 0.3
    require_clean_selection(published, run)
    published.holdout = 0.4
    with pytest.raises(ConfigError, match=r"trained with holdout 0\.3"):
        require_clean_selection(published, run)
    assert Constraints().params is None


@pytest.mark.parametrize(("weights", "message"), [({"semsg": 2.0}, "semseg"), ({"semseg": 0.0}, r"in \(0, inf\)")])
def test_task_weights_that_make_no_sense_are_refused(weights, message):
    with pytest.raises(TaskformerError, match=message):
        require_weights(weights, dict.fromkeys(TASKS))


def test_limits_may_be_two_words_and_worker_one():
    words = ["search", "--constraint.params", "5e6", "7e6", "--worker", "--seed", "1", "--worker", "false"]
    expected = ["search", "--constraint.params=[5e6,7e6]", "--worker=true", "--seed", "1", "--worker", "false"]
    assert spell_out(words) == expected
    assert spell_out(["--constraint.macs", "[1,2]", "--worker"]) == ["--constraint.macs", "[1,2]", "--worker=true"]
    assert spell_out(["--constraint.macs=[1,2]", "--constraint.params"]) == [
        "--constraint.macs=[1,2]",
        "--constraint.params",
    ]
