"""A training that was stopped anywhere and goes on is, bit for bit, the one that was not stopped."""

import csv
import json
from pathlib import Path

import pytest
import torch

from taskformer.callbacks import checkpoints
from taskformer.cli import main

ROOT = Path(__file__).parent.parent.parent
DATA = f"--config={ROOT}/configs/data/rooms.yaml"
MODELS = {
    "mqtransformer": [f"--config={ROOT}/configs/model/mqtransformer.yaml", DATA, "--model.embed_dim=16",
                      "--model.head_dim=8"],
    "supernet": [f"--config={ROOT}/configs/experiment/autotaskformer_rooms.yaml", "--model.space.embed_dims=[32,64]",
                 "--model.space.depths=[1,2]", "--model.space.num_heads=[1,2]", "--model.space.mlp_ratios=[1.0,2.0]",
                 "--model.head.width=16", "--model.drop_path=0.1", "--data.holdout=0.0"],
}  # fmt: skip


class StoppedError(Exception):
    """What stops a training in these tests."""


@pytest.fixture
def flags(small_rooms):
    return [f"--data.root={small_rooms}", "--data.batch_size=2", "--trainer.accelerator=cpu", "--trainer.max_epochs=2",
            "--trainer.num_sanity_val_steps=0", "--trainer.enable_progress_bar=false", "--gallery.every_n_epochs=0",
            "--trainer.check_val_every_n_epoch=1", "--trainer.log_every_n_steps=1"]  # fmt: skip


def stop_at(monkeypatch, hook, step):
    """Let a training die in a hook of its checkpoint callback, as one that is killed there."""
    original = getattr(checkpoints.Checkpoints, hook)

    def dying(self, trainer, *args):
        if trainer.global_step >= step:
            raise StoppedError
        return original(self, trainer, *args)

    monkeypatch.setattr(checkpoints.Checkpoints, hook, dying)


def load(name, file="last"):
    return torch.load(f"runs/{name}/checkpoints/{file}.ckpt", weights_only=True)


def curves(name):
    """Rows of a run's ``metrics.csv``."""
    with Path(f"runs/{name}/logs/fit/metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def equal(first, second):
    """Whether weights and moments of two checkpoints are the same bits."""
    weights = all(torch.equal(value, second["state_dict"][name]) for name, value in first["state_dict"].items())
    pairs = zip(*(state["optimizer_states"][0]["state"].values() for state in (first, second)), strict=True)
    return weights and all(torch.equal(one[key], other[key]) for one, other in pairs for key in one)


@pytest.mark.parametrize(
    ("model", "extra", "hook", "step"),
    [
        ("mqtransformer", ["--checkpoint.every_n_train_steps=1"], "on_train_batch_end", 3),  # within the first epoch
        pytest.param("mqtransformer", ["--data.num_workers=1"], "on_validation_end", 8,  # of the second epoch
                     marks=pytest.mark.slow),
        ("supernet", ["--checkpoint.every_n_train_steps=2"], "on_train_batch_end", 7),  # within the second epoch
        ("supernet", ["--trainer.max_steps=7", "--trainer.accumulate_grad_batches=2", "--trainer.max_epochs=4",
                      "--trainer.limit_train_batches=3"], "on_train_epoch_end", 4),
    ],
)  # fmt: skip
def test_a_stopped_training_goes_on_as_if_it_had_not_been(model, extra, hook, step, flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["fit", *MODELS[model], *flags, *extra, "--name=whole"])
    with monkeypatch.context() as patch:
        stop_at(patch, hook, step)
        with pytest.raises(StoppedError):
            main(["fit", *MODELS[model], *flags, *extra, "--name=stopped"])
    assert load("stopped")["global_step"] < load("whole")["global_step"]

    main(["fit", "--resume", "runs/stopped"])

    assert equal(load("whole"), load("stopped"))
    assert equal(load("whole", "best"), load("stopped", "best"))
    whole, stopped = (
        {(row["step"], key): value for row in curves(name) for key, value in row.items()
         if value and not key.startswith("train/loss/")}
        for name in ("whole", "stopped")
    )  # fmt: skip
    assert whole == stopped  # but for means over an epoch that was interrupted


def test_going_on_for_longer_is_the_longer_schedule_and_says_so(flags, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    main(["fit", *MODELS["mqtransformer"], *flags, "--name=run", "--model.lr_scheduler.warmup=0.0"])
    with caplog.at_level("INFO"):
        main(["fit", "--resume=runs/run", "--trainer.max_epochs=4"])
    assert "the training goes on with another configuration: total_steps 8 -> 16" in caplog.text
    rates = [(int(row["step"]), float(row["lr"])) for row in curves("run") if row["lr"]]
    expected = [1e-3 * (1 - step / (8 if step < 8 else 16)) ** 0.9 for step in range(16)]
    assert [step for step, _ in rates] == list(range(16))
    assert [rate for _, rate in rates] == pytest.approx(expected)


def test_a_callback_follows_what_the_command_line_says_now(flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stopping = "--trainer.callbacks=[{class_path: EarlyStopping, init_args: {monitor: val/loss, patience: %d}}]"
    main(["fit", *MODELS["mqtransformer"], *flags, "--name=run", stopping % 3])
    patience = []

    def look(self, trainer, pl_module):
        patience.append(trainer.early_stopping_callback.patience)

    monkeypatch.setattr(checkpoints.Checkpoints, "on_train_start", look)
    main(["fit", "--resume=runs/run", "--trainer.max_epochs=3", stopping % 7])
    assert patience == [7]


def test_the_shortest_training_validates_and_tells_what_to_do_next(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["fit", *MODELS["mqtransformer"], *flags, "--name=short", "--trainer.max_epochs=1",
          "--trainer.check_val_every_n_epoch=6"])  # fmt: skip
    said = capsys.readouterr().out
    (loss,) = [row["val/loss"] for row in curves("short") if row["val/loss"]]
    assert f"best:       runs/short/checkpoints/best.ckpt, val/loss {float(loss):.4g}" in said
    assert "taskformer test runs/short" in said
    main(["test", "runs/short"])
    assert "test" in json.loads(Path("runs/short/metrics.json").read_text())


def test_weights_that_nobody_trained_are_only_scored_when_asked_for(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = [*MODELS["mqtransformer"], *flags]
    with pytest.raises(SystemExit) as error:
        main(["test", *model])
    assert error.value.code == 2
    assert "which weights are to be evaluated?" in capsys.readouterr().err
    assert not Path("runs").exists()
    main(["validate", *model, "--ckpt=initial", "--name=untrained"])
    assert "val" in json.loads(Path("runs/untrained/metrics.json").read_text())


def test_a_wrong_checkpoint_is_refused_before_anything_is_touched(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("broken.ckpt").write_bytes(b"PK\x03\x04 half of it")
    for path, reason in (("none.ckpt", "does not exist"), ("broken.ckpt", "is damaged"), (str(ROOT), "is a folder")):
        with pytest.raises(SystemExit):
            main(["fit", *MODELS["mqtransformer"], *flags, "--name=run", f"--ckpt_path={path}"])
        assert reason in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_run_that_cannot_begin_leaves_no_folder(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["fit", *MODELS["mqtransformer"], *flags, "--name=run", "--data.root=nowhere"])
    assert "nowhere" in capsys.readouterr().err
    assert not Path("runs/run").exists()
