"""Every file in configs/ says what it should: it parses, its classes exist, and it builds.

Experiments whose encoders are large or whose weights are downloaded are in test_published_recipes.py.
"""

from pathlib import Path

import pytest
import yaml

import taskformer
from taskformer.commands.search import SearchCLI
from taskformer.commands.trainer import TaskformerCLI
from taskformer.data import RoomsDataModule
from taskformer.modules import Baseline, MQTransformer

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
PARTIAL = {  # kind of config to what completes it
    "model": ["configs/data/rooms.yaml"],
    "data": ["configs/model/mqtransformer.yaml"],
    "trainer": ["configs/model/mqtransformer.yaml", "configs/data/rooms.yaml"],
    "logger": ["configs/model/mqtransformer.yaml", "configs/data/rooms.yaml"],
    "experiment": [],
}


def config_files(*kinds):
    return [str(path.relative_to(ROOT)) for kind in kinds for path in sorted((CONFIGS / kind).rglob("*.yaml"))]


#: Settings of ``taskformer search``, which completes a run's own.
SEARCHES = [path for path in config_files("experiment") if Path(path).name.startswith("search_")]
ROWS = [path for path in config_files("experiment") if "_mqtransformer_" in path]
#: Layers that make no model or data set by themselves.
LAYERS = config_files("encoder", "recipe")


@pytest.fixture(autouse=True)
def _in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def parse(command_line):
    """Parse a command line of ``fit`` without running it."""
    return TaskformerCLI(args=command_line, run=False)


@pytest.mark.parametrize("path", [path for path in config_files(*PARTIAL) if path not in (*SEARCHES, *ROWS)])
def test_every_config_builds_a_model_and_data(path):
    model, data = taskformer.from_config(*PARTIAL[Path(path).parts[1]], path)
    assert list(model.tasks) == data.task_names


@pytest.mark.parametrize("path", SEARCHES)
def test_searches_parse(path, capsys):
    run = "configs/experiment/autotaskformer_rooms.yaml"
    with pytest.raises(SystemExit) as stopped:
        SearchCLI([f"--config={run}", f"--config={path}", "--ckpt_path=x.ckpt", "--print_config"])
    assert stopped.value.code == 0
    settings = yaml.safe_load(capsys.readouterr().out)
    given = yaml.safe_load(Path(path).read_text())
    assert {key: settings[key] for key in given} == given
    assert settings["model"]["class_path"].endswith("AutoTaskFormer")


def test_no_config_is_left_out():
    known = [*config_files(*PARTIAL, "studies", "sweeps"), *LAYERS]
    assert sorted(str(path.relative_to(ROOT)) for path in CONFIGS.rglob("*.yaml")) == sorted(known)


def test_every_recipe_is_under_an_experiment():
    above = [path for path in (*config_files("experiment", "studies"), *LAYERS) if based(path)]
    bases = [yaml.safe_load((ROOT / path).read_text())["base"] for path in above]
    used = {Path(base).name for listed in bases for base in ([listed] if isinstance(listed, str) else listed)}
    assert {Path(path).name for path in config_files("recipe")} <= used


def based(path):
    return "base" in yaml.safe_load((ROOT / path).read_text())


def test_models_and_data_swap_by_one_config():
    for name, cls in {"mqtransformer": MQTransformer, "baseline": Baseline}.items():
        model, data = taskformer.from_config(f"configs/model/{name}.yaml", "configs/data/rooms.yaml")
        assert isinstance(model, cls)
        assert isinstance(data, RoomsDataModule)


def test_overrides_win():
    model, _ = taskformer.from_config(
        "configs/model/mqtransformer.yaml", "configs/data/rooms.yaml", overrides=["--model.init_args.embed_dim=32"]
    )
    assert model.network.head.queries.shape[-1] == 32
