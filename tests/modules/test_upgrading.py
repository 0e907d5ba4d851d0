"""Checkpoints of networks that had parameters without effect: their training goes on as it would have."""

import pytest
import torch
from torch import nn

import taskformer
from taskformer.cli import main
from taskformer.models.mqtransformer.attention import MultiHead

FIT = [
    "fit",
    "--config=configs/model/mqtransformer.yaml",
    "--config=configs/data/rooms.yaml",
    "--trainer.accelerator=cpu",
    "--trainer.limit_train_batches=2",
    "--trainer.limit_val_batches=0",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.enable_progress_bar=false",
    "--trainer.log_every_n_steps=1",
    "--model.backbone=test_efficientnet",
    "--model.weights=random",
    "--model.embed_dim=8",
    "--model.num_queries=2",
    "--model.num_heads=2",
    "--model.head_dim=4",
    "--model.drop_path=0",
    "--model.cross_drop_path=0",
    "--model.balancing=balancing_methods.Learned",
    "--model.lr_scheduler.total_steps=4",
    "--data.batch_size=2",
    "--data.num_workers=0",
]


@pytest.fixture
def older(monkeypatch):
    """The network as it was: the norm of an attention's keys has a shift."""
    init = MultiHead.__init__

    def with_shift(self, dim, num_heads):
        init(self, dim, num_heads)
        self.norm_k = nn.LayerNorm(dim)

    with monkeypatch.context() as patch:
        patch.setattr(MultiHead, "__init__", with_shift)
        patch.setattr(MultiHead, "obsolete", ())
        yield patch


def last(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def test_training_goes_on_as_if_nothing_had_been_taken_away(older, tmp_path):
    runs = [f"--runs_dir={tmp_path}"]
    main([*FIT, *runs, "--name=whole", "--trainer.max_epochs=2"])
    main([*FIT, *runs, "--name=run", "--trainer.max_epochs=1"])
    assert any(name.endswith("norm_k.bias") for name in last(tmp_path / "run")["state_dict"])
    older.undo()
    image = torch.randn(1, 3, 64, 64)
    outputs = taskformer.load(tmp_path / "run")(image)
    main(["fit", f"--resume={tmp_path / 'run'}", *runs, "--trainer.max_epochs=2"])
    found, expected = last(tmp_path / "run"), last(tmp_path / "whole")
    names = [name for name in expected["state_dict"] if not name.endswith("norm_k.bias")]
    assert list(found["state_dict"]) == names
    for name in names:
        torch.testing.assert_close(found["state_dict"][name], expected["state_dict"][name], atol=1e-5, rtol=1e-4)
    changed = taskformer.load(tmp_path / "run")(image)
    assert any(not torch.allclose(outputs[task], changed[task], atol=1e-4) for task in outputs)
