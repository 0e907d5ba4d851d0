"""The progress bar: it shows the training loss, on a CPU of every step."""

import pytest
from lightning.pytorch.callbacks import TQDMProgressBar

from taskformer.callbacks import ProgressBar
from taskformer.cli import main


@pytest.fixture
def fit(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = [flag for flag in tiny if "progress_bar" not in flag]
    return lambda *more: main(["fit", "--model=Baseline", "--model.backbone=test_resnet", "--data=RoomsDataModule",
                               "--data.tasks=[depth]", "--data.size=[32,48]", "--trainer.enable_model_summary=false",
                               *flags, *more])  # fmt: skip


def test_the_bar_shows_the_loss_of_every_step(fit, monkeypatch):
    shown, trained = [], []
    show = ProgressBar.get_metrics

    def get_metrics(self, trainer, module):
        numbers = show(self, trainer, module)
        if trainer.training:
            shown.append(numbers["train/loss"])
            trained.append(module.train_losses["total"].item())
        return numbers

    monkeypatch.setattr(ProgressBar, "get_metrics", get_metrics)
    fit()
    assert len(set(trained)) == 2  # 8 images, batches of 4
    assert shown == trained


def test_who_brings_a_bar_has_that_one(fit, monkeypatch):
    bars = []
    monkeypatch.setattr(TQDMProgressBar, "on_train_start", lambda self, *_: bars.append(type(self)))
    for hook in ("on_train_epoch_start", "on_train_batch_end", "on_train_epoch_end", "on_train_end"):
        monkeypatch.setattr(TQDMProgressBar, hook, lambda *_: None)
    for hook in ("on_validation_start", "on_validation_batch_start", "on_validation_batch_end", "on_validation_end"):
        monkeypatch.setattr(TQDMProgressBar, hook, lambda *_: None)
    fit("--trainer.callbacks=TQDMProgressBar")
    assert bars == [TQDMProgressBar]
