"""The program itself: help, version, unknown commands, and photographs."""

import importlib.util
import subprocess
import sys
from importlib import metadata

import numpy as np
import pytest
import torch
from PIL import Image

import taskformer
from taskformer.cli import COMMANDS, main
from taskformer.commands.light import without
from taskformer.errors import WeightsError


def test_help_lists_every_command_without_importing_torch():
    code = "import sys; from taskformer.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f"  {name} " in done.stdout for name in COMMANDS)


def test_help_imports_nothing_that_it_does_not_need():
    heavy = ("albumentations", "matplotlib", "onnx", "optuna", "scipy", "timm", "torch._dynamo", "torchvision", "wandb")
    code = (
        "import sys\nfrom taskformer.cli import main\n"
        "try:\n    main(['fit', '--help'])\n"
        f"finally:\n    sys.stderr.write(' '.join(name for name in {heavy} if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(flag in done.stdout for flag in ("--model.help", "--data.help", "--trainer.max_epochs", "--resume"))


def test_hidden_packages_are_there_again(monkeypatch):
    monkeypatch.delitem(sys.modules, "this", raising=False)
    with without("this", "pytest"):
        with pytest.raises(ImportError):
            importlib.import_module("this")
        assert importlib.import_module("pytest") is pytest
        assert metadata.version("pytest")
    assert importlib.util.find_spec("this")


def test_who_wants_more_of_the_compiler_gets_it():
    code = (
        "import sys, torch\nfrom taskformer.commands.light import LightCompiler, without_compiler\n"
        "with without_compiler():\n    import torch._dynamo as light\n"
        "    assert light.disable(print) is print and isinstance(light, LightCompiler)\n"
        "    from torch._dynamo import config\n    assert config.cache_size_limit\n"
        "assert not isinstance(sys.modules['torch._dynamo'], LightCompiler)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_module_runs_like_the_program():
    done = subprocess.run([sys.executable, "-m", "taskformer", "--version"], capture_output=True, text=True)
    assert done.stdout.strip() == f"taskformer {taskformer.__version__}"


def test_an_unknown_command_is_corrected(capsys):
    with pytest.raises(SystemExit):
        main(["prdict"])
    assert "unknown command 'prdict' (did you mean 'predict'?)" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as done:
        main([command, "--help"])
    assert done.value.code == 0
    assert "usage" in capsys.readouterr().out


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An untrained model, saved as `fit` saves it."""

    from taskformer.modules import Baseline

    model = Baseline({"depth": {}, "semseg": {"classes": ["a", "b"]}}, embed_dim=8, head_dim=4)
    path = tmp_path_factory.mktemp("model") / "model.ckpt"
    state = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    model.on_save_checkpoint(state)
    torch.save(state, path)
    return path


def test_photographs_are_predicted_into_pictures_and_values(checkpoint, tmp_path):
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "b.png"):
        Image.fromarray(rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)).save(tmp_path / "photos" / name)
    main(["predict", str(checkpoint), str(tmp_path / "photos"), f"--out={tmp_path / 'out'}"])
    for name in "ab":
        depth = np.load(tmp_path / "out" / "raw" / "depth" / f"{name}.npy")
        assert depth.shape == (1, 40, 56)
        with Image.open(tmp_path / "out" / "depth" / f"{name}.png") as picture:
            assert picture.size == (56, 40)
        assert set(np.unique(np.load(tmp_path / "out" / "raw" / "semseg" / f"{name}.npy"))) <= {0, 1}
    assert (tmp_path / "out" / "overview.png").exists()


@pytest.mark.parametrize(
    ("paths", "message"), [(["nowhere.jpg"], "no image at 'nowhere.jpg'"), (["."], "no image at '.'")]
)
def test_missing_photographs_are_explained(checkpoint, paths, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["predict", str(checkpoint), *paths])
    assert message in capsys.readouterr().err


def test_files_that_are_no_models_are_refused(tmp_path):

    with pytest.raises(WeightsError, match="no checkpoint at"):
        taskformer.load(tmp_path)
    torch.save({"state_dict": {}}, tmp_path / "x.ckpt")
    with pytest.raises(WeightsError, match="does not name its model's class"):
        taskformer.load(tmp_path / "x.ckpt")
    torch.save({"taskformer_class": "subprocess.Popen", "hyper_parameters": {}}, tmp_path / "y.ckpt")
    with pytest.raises(WeightsError, match=r"the model 'subprocess.Popen', which is none of .*taskformer.modules"):
        taskformer.load(tmp_path / "y.ckpt")


@pytest.mark.parametrize("model", ["MQTransformer", "Baseline", "AutoTaskFormer"])
def test_the_defaults_of_python_are_those_of_the_command_line(model):
    data = ["--data=RoomsDataModule", "--data.root=anywhere", "--data.tasks=[depth]"]
    given, _ = taskformer.from_config(overrides=[f"--model={model}", *data, "--model.optimizer.lr=0.01"])
    by_hand = getattr(taskformer.modules, model)({"depth": {}})
    for module, rate in ((given, 0.01), (by_hand, 1e-3)):
        optimizer = module.optimizer([torch.nn.Parameter(torch.zeros(1))])
        settings = optimizer.defaults["lr"], optimizer.defaults["weight_decay"]
        assert (type(optimizer).__name__, settings) == ("AdamW", (rate, 1e-4))
        schedule = module.lr_scheduler(optimizer)
        assert (type(schedule).__name__, schedule.power, schedule.warmup) == ("PolyLR", 0.9, 0.0)
