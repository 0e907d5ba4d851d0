"""One way from what a person names to a data module: a name, a YAML file, a run folder."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from taskformer.data import RoomsDataModule
from taskformer.data.configured import data_module
from taskformer.errors import ConfigError, UnknownNameError
from taskformer.modules.recipe import pipeline

ROOMS = Path(__file__).parents[2] / "configs" / "data" / "rooms.yaml"
BLOCK = {"class_path": "RoomsDataModule", "init_args": {"tasks": ["depth"], "batch_size": 3}}


@pytest.fixture
def run(tmp_path):
    """A run's folder with its configuration."""
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "config.yaml").write_text(yaml.dump({"data": BLOCK, "model": {"class_path": "X"}}))
    return tmp_path / "runs" / "demo"


def test_a_name_a_file_and_a_run_name_a_data_module(run):
    for source in ("rooms", ROOMS, str(ROOMS), run, run / "config.yaml"):
        assert type(data_module(source)) is RoomsDataModule
    assert (data_module(run).batch_size, data_module(run).task_names) == (3, ["depth"])


@pytest.mark.parametrize("source", ["rooms", ROOMS])
def test_what_is_chosen_wins(source):
    module = data_module(source, batch_size=5, tasks=["normals"], root="x")
    assert (module.batch_size, module.task_names, Path(module.root)) == (5, ["normals"], Path("x"))


def test_a_data_block_may_be_a_mere_name(tmp_path):
    (tmp_path / "c.yaml").write_text("data: RoomsDataModule\n")
    assert type(data_module(tmp_path / "c.yaml")) is RoomsDataModule


def test_a_data_set_is_not_mistaken_for_a_folder_of_its_name(run, monkeypatch):
    monkeypatch.chdir(run.parents[1])
    shutil.copytree(run, "rooms")
    assert data_module("rooms").batch_size != 3
    assert data_module("./rooms").batch_size == 3


@pytest.mark.parametrize(
    ("source", "chosen", "error", "message"),
    [
        ("rom", {}, UnknownNameError, r"unknown data set 'rom' \(did you mean 'rooms'\?\)"),
        ("no/such.yaml", {}, ConfigError, "such.yaml does not exist; give the name of a data set, a YAML file"),
        (".", {}, ConfigError, r"config.yaml does not exist"),
        ("folder", {}, ConfigError, "the data set 'folder' needs options that only a YAML file can give"),
        (ROOMS, {"batch_size": "x"}, ConfigError, "batch_size: expected int, got x"),
        (ROOMS, {"batchsize": 3}, ConfigError, r"unknown setting 'batchsize' \(did you mean 'batch_size'\?\)"),
        (ROOMS.parents[1] / "model" / "baseline.yaml", {}, ConfigError, "is not a YAML file with a `data` block"),
    ],
)
def test_mistakes_are_one_sentence(source, chosen, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message) as raised:
        data_module(source, **chosen)
    assert "\n" not in str(raised.value)


def test_the_stored_single_task_results_are_of_the_rooms_recipe():
    """A changed default would otherwise make the demo lose its delta_m without a word."""
    (path,) = (ROOMS.parents[1] / "baselines").glob("rooms_*.json")
    stored = json.loads(path.read_text())["facts"]["training"]["augmentation"]
    assert pipeline(data_module(ROOMS), "train_transforms") == stored
