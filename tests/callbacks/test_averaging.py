"""The moving average of the weights is that of a plain loop; it validates, it is the model, and training goes on."""

import copy

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader

from taskformer.callbacks import Checkpoints, MovingAverage, WholeCheckpoints
from taskformer.cli import main
from taskformer.errors import ConfigError
from taskformer.modules import Baseline
from taskformer.modules.distillation import Distillation

TASKS = {"depth": {}}
DECAY = 0.8


def batches(count):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        image = torch.randn(2, 3, 32, 32, generator=generator)
        yield {"image": image, "targets": {"depth": torch.rand(2, 1, 32, 32, generator=generator)}, "meta": {}}


class Witness(Callback):
    """Keep the state after each step, and those that validations saw."""

    def __init__(self):
        self.trained, self.validated = [], []

    def on_train_start(self, trainer, module):
        self.steps = trainer.global_step

    def on_train_batch_end(self, trainer, module, *args):
        if trainer.global_step > self.steps:
            self.steps = trainer.global_step
            self.trained.append(copy.deepcopy(module.state_dict()))

    def on_validation_batch_end(self, trainer, module, *args):
        self.validated.append(copy.deepcopy(module.state_dict()))


def fit(folder, resume=None, epochs=3, monitor="val/loss", **options):
    torch.manual_seed(0)
    sizes = {"embed_dim": 8, "head_dim": 4, "backbone": "test_resnet", "lr_scheduler": None}
    module, witness = Baseline(TASKS, **sizes, **options), Witness()
    trainer = Trainer(default_root_dir=folder, callbacks=[witness, MovingAverage(DECAY), Checkpoints(monitor)],
                      accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
                      max_epochs=epochs, num_sanity_val_steps=0, accumulate_grad_batches=2)  # fmt: skip
    trainer.strategy.checkpoint_io = WholeCheckpoints()
    trainer.fit(module, *(DataLoader(list(batches(count)), batch_size=None) for count in (4, 1)), ckpt_path=resume)
    saved = {path.stem: torch.load(path, weights_only=True) for path in (folder / "checkpoints").glob("*.ckpt")}
    return module, witness, saved


def averaged(states):
    """The plain loop: what is a number of its own moves, counts and sizes are the last ones."""
    average = copy.deepcopy(states[0])
    for state in states[1:]:
        for name, value in state.items():
            floats = value.is_floating_point()
            average[name] = DECAY * average[name] + (1 - DECAY) * value if floats else value.clone()
    return average


def test_it_is_that_of_a_plain_loop_validates_and_is_the_model(tmp_path):
    module, witness, saved = fit(tmp_path)
    assert len(witness.trained) == 6
    expected = averaged(witness.trained)
    torch.testing.assert_close(saved["last"]["state_dict"], expected)
    torch.testing.assert_close(dict(module.state_dict()), expected)  # whoever goes on with the module has the average
    for epoch, seen in enumerate(witness.validated):
        torch.testing.assert_close(seen, averaged(witness.trained[: 2 * epoch + 2]))
    # What trains is what the optimizer made of it, and lies beside the average.
    for name, value in witness.trained[-1].items():
        assert torch.equal(saved["last"]["current_model_state"][name], value), name
    assert module.train_size.tolist() == [32, 32]  # a size that is averaged in floats would shrink


@pytest.mark.parametrize("monitor", [None, pytest.param("val/loss", marks=pytest.mark.slow)])
def test_training_goes_on_exactly_from_either_checkpoint(tmp_path, monitor):
    _, whole, saved = fit(tmp_path / "whole", monitor=monitor)
    fit(tmp_path / "half", epochs=1, monitor=monitor)
    for file in ("last", "best"):
        path = tmp_path / "half" / "checkpoints" / f"{file}.ckpt"
        _, rest, again = fit(tmp_path / file, path, monitor=monitor)
        for ours, theirs in zip(rest.trained, whole.trained[2:], strict=True):
            assert all(torch.equal(ours[name], value) for name, value in theirs.items())
        for name, value in saved["last"]["state_dict"].items():
            assert torch.equal(again["last"]["state_dict"][name], value), name


@pytest.mark.slow  # two trainings
def test_what_is_learnt_of_a_teacher_is_averaged_and_the_teacher_is_not(tmp_path):
    fit(tmp_path / "teacher", epochs=1)
    lessons = Distillation(str(tmp_path / "teacher" / "checkpoints" / "last.ckpt"), feature_weight=1.0)
    module, witness, saved = fit(tmp_path / "student", epochs=2, distillation=lessons)
    torch.testing.assert_close(saved["last"]["state_dict"], averaged(witness.trained))
    assert any(name.startswith("scaffold.") for name in saved["last"]["state_dict"])
    assert module.distiller is not None  # it taught on


def test_the_command_line_says_it_and_does_not_forget_it(tmp_path, monkeypatch, tiny, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--model=Baseline", "--model.backbone=test_resnet", "--data=RoomsDataModule", *tiny]
    main(["fit", *flags, "--ema.decay=0.5", "--name=run", "--trainer.limit_val_batches=0"])
    content = torch.load("runs/run/checkpoints/last.ckpt", weights_only=True)
    assert content["taskformer_recipe"]["ema_decay"] == 0.5
    assert any(not torch.equal(x, content["state_dict"][name]) for name, x in content["current_model_state"].items())
    with pytest.raises(SystemExit):  # what trains is not what the model is
        main(["fit", "--resume=runs/run", "--ema.decay=null", "--trainer.max_epochs=2"])
    assert "holds a moving average of weights; go on with one" in capsys.readouterr().err


def test_a_decay_of_one_would_never_move():
    with pytest.raises(ConfigError, match=r"ema\.decay must be in \[0, 1\), got 1\.0"):
        MovingAverage(1.0)
