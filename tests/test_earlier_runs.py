"""Runs and studies that were written before the package was built anew (November 2026) still work.

``tests/earlier/run`` was written by the code before: one step of a tiny supernet by SGD, and a search of one
generation.
"""

import shutil
from pathlib import Path

import optuna
import pytest
import torch

import taskformer
from taskformer.cli import main
from taskformer.search.storage import open_storage
from taskformer.search.study import read_records

ROOT = Path(__file__).parent.parent
#: Mean, standard deviation and one pixel of what the network of that time predicted.
PREDICTED = {
    "depth": (-0.07000826227620867, 0.03765706464107841, -0.08621957153081894),
    "edges": (-0.030128620343734386, 0.039836445370261875, -0.015336745418608189),
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "tests" / "earlier" / "run", tmp_path / "runs" / "run")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rooms").symlink_to(ROOT / "data" / "rooms")
    return tmp_path / "runs" / "run"


def records():
    return read_records(optuna.load_study(study_name="search", storage=open_storage("runs/run/search/study.db")))


def test_it_predicts_as_it_did(run):
    model = taskformer.load(run)
    with torch.no_grad():
        outputs = model(torch.linspace(-1, 1, 3 * 48 * 64).reshape(1, 3, 48, 64))
    for task, expected in PREDICTED.items():
        output = outputs[task].double()
        found = [output.mean(), output.std(), output[0, 0, 20, 30]]
        assert [value.item() for value in found] == pytest.approx(expected, rel=1e-5)


@pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller than the logging interval")
def test_it_goes_on_training_and_is_tested(run):
    main(["fit", "--resume=runs/run", "--trainer.max_epochs=2", "--data.batch_size=2"])
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    main(["test", "runs/run", "--ckpt=last"])
    assert (run / "metrics.json").is_file()


def test_its_search_goes_on_and_repeats_nothing(run, capsys):
    before = records()
    assert {record.key.origin for record in before} >= {
        "evolution",
        "random",
        "all-shared",
        "all-specific",
        "hand-made",
    }
    main(["search", "pick", "runs/run"])
    assert "evolution-00-01" in capsys.readouterr().out
    again = ["search", "runs/run", "--ckpt=last", "--population=2"]
    main([*again, "--generations=1"])
    assert records() == before
    main([*again, "--generations=2"])
    after = records()
    assert len(after) > len(before)
    assert [record for record in after if record.number < len(before)] == before
