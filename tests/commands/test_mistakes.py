"""Mistakes of many kinds through the real entry point: one sentence, status 2, and no process is started.

They are those of benchmarks/mutations.py that once ended otherwise.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from jsonargparse import Namespace

import taskformer
from taskformer.cli import main
from taskformer.commands.devices import require_possible
from taskformer.errors import ConfigError, WeightsError
from taskformer.files import inside
from taskformer.modules import Baseline

CONFIGS = Path(__file__).parents[2] / "configs"
TRANSFORMS = "taskformer.data.transforms"


@pytest.fixture
def fit(tmp_path, monkeypatch, tiny):
    """A command line that trains for seconds, in a folder of its own; nothing may start another process."""
    monkeypatch.chdir(tmp_path)

    class Watched(subprocess.Popen):
        def __init__(self, words, *args, **kwargs):
            assert words[0] != sys.executable, "a process of taskformer was started"
            super().__init__(words, *args, **kwargs)

    monkeypatch.setattr(subprocess, "Popen", Watched)
    configs = [f"--config={CONFIGS}/model/baseline.yaml", f"--config={CONFIGS}/data/rooms.yaml"]
    return ["fit", *configs, *tiny, "--name=run"]


def sentence(words, capsys):
    """Run a command that is refused and return what it says."""
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("taskformer: ")
    assert sum(line.startswith("taskformer: ") for line in lines) == 1
    assert not any("Traceback" in line for line in lines)
    return lines[-1].removeprefix("taskformer: ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--trainer.devices=100"], "trainer.devices asks for 100 processes, this machine takes"),
        (["--trainer.devices=64", "--trainer.accelerator=auto"], "trainer.devices asks for 64 processes"),
        (["--trainer.num_nodes=5"], "nothing says where the other machines are"),
        (["--data.num_workers=1000"], "num_workers must be in [0, "),
        (["--data.batch_size=0"], "batch_size must be in [1, inf), got 0"),
        (["--data.tasks=[depth,depth]"], "must name one or more different tasks, got ['depth', 'depth']"),
        (["--data.tasks=[]"], "must name one or more different tasks, got []"),
        (["--data.size=[0,80]"], "size must be in [1, 32767], got (0, 80)"),
        (
            [f"--data.eval_transforms=[{{class_path: {TRANSFORMS}.RandomCrop, init_args: {{height: 8, width: 8}}}}]"],
            "eval_transforms has RandomCrop, which is random",
        ),
        (
            [f"--data.train_transforms=[{{class_path: {TRANSFORMS}.RandomCrop, init_args: {{heights: 8}}}}]"],
            "data: train_transforms: unknown setting 'heights' (did you mean 'height'?)",
        ),
        (["--model.optimizer=Nonsense"], "model: optimizer: unknown class 'Nonsense'; give its full path"),
        (["--trainer.logger=CometLogger"], "comet-ml"),
        (["--model.head_dim=0"], "head_dim must be in [1, inf), got 0"),
        (["--model.backbone_drop_path=1.5"], "backbone_drop_path must be in [0, 1), got 1.5"),
        (["--trainer.devices=[0,1]"], "should be an int > 0"),
        (["--trainer.accumulate_grad_batches=0"], "trainer.accumulate_grad_batches must be in [1, inf), got 0"),
        (["--trainer.gradient_clip_val=-1"], "trainer.gradient_clip_val must be in [0, inf), got -1"),
        (["--gallery.images=-1"], "images must be in [1, inf), got -1"),
        (["--ckpt_path=https://example.com/x.ckpt"], "does not exist"),
        (["--model.optimizer.lr=-1"], "Invalid learning rate: -1.0"),
    ],
)
def test_mistakes_end_in_a_sentence(fit, words, said, capsys):
    assert said in sentence([*fit, *words], capsys)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"\xd4\x00\xff", "the file is not text"),
        (b"model: [", "expected"),
        (b"!!python/object/apply:os.system ['touch pwned']", "could not determine a constructor"),
        (b"trainer: -0.5\n", "trainer must be settings by name, got -0.5"),
        (b"model: {class_path: Baselin}\n", "known: AutoTaskFormer, Baseline, "),
        (b"model: {class_path: Baseline, init_args: 3}\n", "init_args of taskformer.modules.Baseline must be settings"),
        (b"data: {class_path: RoomsDataModule, init_args: {batch_size: x}}\n", "batch_size: expected int, got x"),
    ],
)
def test_broken_configurations_end_in_a_sentence(fit, text, said, tmp_path, capsys):
    (tmp_path / "c.yaml").write_bytes(text)
    told = sentence([*fit[:3], "--config=c.yaml"], capsys)
    assert said in told
    assert not (tmp_path / "pwned").exists()
    assert len(told) < 300


def test_a_wrong_class_is_compared_with_those_of_its_place(fit, capsys):
    told = sentence([*fit, "--trainer.logger=Nonsense"], capsys)
    assert "CSVLogger" in told or "full path" in told
    assert "RoomsDataModule" not in told


@pytest.mark.parametrize("words", [["--raw=maybe"], ["--nonsense=1"], []])
def test_predict_speaks_in_sentences_too(words, capsys):
    assert "see `taskformer predict --help`" in sentence(["predict", "runs/x", *words], capsys)


def test_gpus_are_counted_before_anything_starts(monkeypatch):

    def require_devices(accelerator, devices, num_nodes):
        require_possible(Namespace(accelerator=accelerator, devices=devices, num_nodes=num_nodes))

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match="torch sees no GPU"):
        require_devices("gpu", "auto", 1)
    require_devices("cpu", "auto", 1)
    require_devices("auto", 1, 1)
    require_devices("mps", "auto", None)  # Lightning knows those
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    require_devices("auto", "4", 1)
    require_devices("cuda", [0, 1, 2, 3], 1)
    with pytest.raises(ConfigError, match="asks for 5 processes, this machine takes 4, one for each GPU"):
        require_devices("auto", "5", 1)
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    require_devices("gpu", 4, 8)


def test_names_from_data_stay_inside(tmp_path):
    assert inside(tmp_path, "a/b", "it") == tmp_path / "a" / "b"
    for name in ("", ".", "..", "../x", "a/../../x", "/etc/passwd", "a\0b"):
        with pytest.raises(ConfigError, match="is not a place in"):
            inside(tmp_path, name, "it")


@pytest.mark.parametrize("study", ["../../x", "/tmp/x", "."])
def test_studies_stay_in_their_run(study, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    assert "the study" in sentence(["search", "pick", str(tmp_path / "run"), f"--study={study}"], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def save(path, **changes):
    """Save an untrained model as `fit` saves it."""
    model = Baseline({"depth": {}}, embed_dim=8, head_dim=4)
    state = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    model.on_save_checkpoint(state)
    torch.save(state | changes, path)
    return path


def test_a_checkpoint_imports_nothing(tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise RuntimeError('code ran')")
    monkeypatch.syspath_prepend(tmp_path)
    assert isinstance(taskformer.load(save(tmp_path / "a.ckpt")), Baseline)
    with pytest.raises(WeightsError, match=r"names the model 'evil.Model', which is none of"):
        taskformer.load(save(tmp_path / "b.ckpt", taskformer_class="evil.Model"))
    with pytest.raises(WeightsError, match="does not fit the model"):
        taskformer.load(save(tmp_path / "c.ckpt", hyper_parameters={"tasks": {"depth": {}}, "nonsense": 1}))
    with pytest.raises(ConfigError, match="cannot use the device 'x'"):
        taskformer.load(save(tmp_path / "d.ckpt"), map_location="x")
    with pytest.raises(WeightsError, match=r"s3://bucket/x.ckpt is an address; download"):
        taskformer.load("s3://bucket/x.ckpt")


def test_a_model_of_one_s_own_is_known_once_it_is_imported(tmp_path):
    class Mine(Baseline):
        pass

    name = f"{Mine.__module__}.{Mine.__qualname__}"
    assert isinstance(taskformer.load(save(tmp_path / "x.ckpt", taskformer_class=name)), Mine)
