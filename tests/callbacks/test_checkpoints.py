"""``last.ckpt`` is the last state, ``best.ckpt`` the best by its metric's own direction, and both are whole."""

import errno
import math

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader

from taskformer.callbacks import Checkpoints, WholeCheckpoints
from taskformer.callbacks.checkpoints import has_finite_weights, monitors
from taskformer.errors import ConfigError, TaskformerError, UnknownNameError, WeightsError
from taskformer.modules import Baseline

TASKS = {"semseg": {"classes": ["a", "b"]}, "depth": {}}


def batches(count):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        image = torch.randn(2, 3, 32, 32, generator=generator)
        targets = {"semseg": torch.zeros(2, 32, 32, dtype=torch.int64), "depth": torch.ones(2, 1, 32, 32)}
        yield {"image": image, "targets": targets, "meta": {"id": ["a", "b"]}}


def build(cls=Baseline):
    torch.manual_seed(0)
    return cls(TASKS, embed_dim=8, head_dim=4)


def fit(folder, model, callback, **options):
    options = {"max_epochs": 3, "limit_val_batches": 1, "num_sanity_val_steps": 0} | options
    trainer = Trainer(default_root_dir=folder, callbacks=[callback], accelerator="cpu", logger=False,
                      enable_progress_bar=False, enable_model_summary=False, **options)  # fmt: skip
    trainer.strategy.checkpoint_io = WholeCheckpoints()
    trainer.fit(model, *(DataLoader(list(batches(count)), batch_size=None) for count in (2, 1)))
    return {path.stem: torch.load(path, weights_only=True) for path in (folder / "checkpoints").glob("*.ckpt")}


@pytest.mark.parametrize(
    ("monitor", "values", "best"),
    [
        ("val/semseg/pixel_accuracy", [0.2, 0.9, 0.4], 1),  # more is better
        ("val/depth/rmse", [0.2, 0.9, 0.4], 0),  # less is better
        ("val/depth/rmse", [math.nan, math.inf, 0.4], 2),  # no number is never best
    ],
)
def test_the_best_is_best_by_the_metrics_own_direction(tmp_path, monkeypatch, monitor, values, best):
    scripted = property(lambda self: {monitor: torch.tensor(values[self.current_epoch])})
    monkeypatch.setattr(Trainer, "callback_metrics", scripted)
    callback = Checkpoints(monitor)
    saved = fit(tmp_path, build(), callback)

    assert saved["best"]["epoch"] == best
    assert saved["last"]["epoch"] == 2
    assert callback.best_score == pytest.approx(values[best])


def test_the_last_state_is_there_without_any_validation_and_is_then_the_best(tmp_path):
    model = build()
    saved = fit(tmp_path, model, Checkpoints(), limit_val_batches=0)

    assert saved["last"]["global_step"] == saved["best"]["global_step"] == 6
    for name, value in model.state_dict().items():
        assert torch.equal(saved["last"]["state_dict"][name], value)


def test_without_a_value_to_choose_by_the_last_state_is_the_best(tmp_path):
    saved = fit(tmp_path, build(), Checkpoints(monitor=None))
    assert saved["last"]["global_step"] == saved["best"]["global_step"] == 6


def test_steps_within_an_epoch_are_saved_where_an_optimizer_step_was_made(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(Checkpoints, "_save", lambda self, trainer, name: saved.append((trainer.global_step, name)))
    fit(tmp_path, build(), Checkpoints(every_n_train_steps=1), max_epochs=1, accumulate_grad_batches=1)
    assert saved == [(1, "last.ckpt"), (2, "best.ckpt"), (2, "last.ckpt")]


def test_a_value_that_nobody_logs_is_refused_before_the_first_step(tmp_path):
    model = build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UnknownNameError, match=r"'val/semseg/miou' .did you mean 'val/semseg/mIoU'"):
        fit(tmp_path, model, Checkpoints("val/semseg/miou"))
    with pytest.raises(ConfigError, match="val/delta_m, which this training does not log"):
        fit(tmp_path, model, Checkpoints("val/delta_m"))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ConfigError, match="every_n_train_steps is 0"):
        Checkpoints(every_n_train_steps=-1)


def test_every_value_that_can_be_monitored_is_logged(tmp_path):
    model = build()
    fit(tmp_path, model, Checkpoints(), max_epochs=1)
    assert set(monitors(model)) <= set(model.trainer.callback_metrics)


def test_weights_that_are_not_finite_are_neither_best_nor_last(tmp_path):
    class Broken(Baseline):
        def on_train_batch_end(self, *args):
            if self.current_epoch == 1:
                with torch.no_grad():
                    next(self.network.parameters()).fill_(math.nan)

    saved = fit(tmp_path, build(Broken), Checkpoints())
    assert saved["last"]["epoch"] == 0
    assert saved["best"]["epoch"] == 0
    assert not has_finite_weights(nn.Linear(1, 1).requires_grad_(False).apply(lambda m: m.weight.fill_(math.inf)))


def test_a_full_disk_leaves_the_checkpoint_before_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    files = WholeCheckpoints()
    files.save_checkpoint({"taskformer_class": "x", "step": 1}, path)

    def full(value, stream):
        stream.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("taskformer.callbacks.checkpoints.torch.save", full)
    with pytest.raises(TaskformerError, match=r"last\.ckpt cannot be written \(No space left on device\)"):
        files.save_checkpoint({"taskformer_class": "x", "step": 2}, path)
    assert files.load_checkpoint(path) == {"taskformer_class": "x", "step": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_damaged_checkpoint_is_not_gone_on_from(tmp_path):
    path = tmp_path / "last.ckpt"
    WholeCheckpoints().save_checkpoint({"weights": torch.arange(1000.0)}, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="is damaged"):
        WholeCheckpoints().load_checkpoint(path)
