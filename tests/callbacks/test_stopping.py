"""How a training ends before its time: by signals, by numbers that are not finite, by the death of a process."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import taskformer
from taskformer.callbacks import RunFolder, Stopping
from taskformer.cli import main
from taskformer.errors import TrainingStoppedError, WeightsError
from taskformer.modules import MultiTaskModule
from taskformer.seeds import derive

MODEL = ["--model=Baseline", "--model.backbone=lcnet_050", "--model.embed_dim=8", "--model.head_dim=4",
         "--data=RoomsDataModule", "--data.tasks=[semseg,depth]", "--data.size=[32,48]"]  # fmt: skip
TRAINER = ["--trainer.accelerator=cpu", "--trainer.max_epochs=2", "--trainer.num_sanity_val_steps=0",
           "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false",
           "--trainer.enable_model_summary=false"]  # fmt: skip


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder to work in, with signals as they were found afterwards."""
    monkeypatch.chdir(tmp_path)
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    yield tmp_path
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.fixture
def fit(work, small_rooms):
    """Train on eight images, two or more steps per epoch."""

    def run(name, *flags):
        main(["fit", *MODEL, *TRAINER, f"--data.root={small_rooms}", "--data.batch_size=2", f"--name={name}", *flags])

    return run


@pytest.fixture
def at(monkeypatch):
    """Do something at a moment of the training: before a batch, counted over all epochs, or in the first validation."""

    def arrange(moment, action):
        count = iter(range(1000))
        name, number = ("on_validation_batch_start", 0) if moment == "validation" else ("on_train_batch_start", moment)
        monkeypatch.setattr(RunFolder, name, lambda *_: next(count) == number and action(), raising=False)

    return arrange


def last(run):
    return torch.load(Path("runs", run, "checkpoints", "last.ckpt"), weights_only=True)


def same_weights(first, second):
    return all(torch.equal(first["state_dict"][key], second["state_dict"][key]) for key in first["state_dict"])


def test_a_loss_that_is_not_finite_names_task_and_images(fit, monkeypatch, capsys):
    batches = []
    compute = MultiTaskModule.task_losses

    def spoilt(self, outputs, targets):
        losses = compute(self, outputs, targets)
        if not self.training:
            return losses
        bad = float("nan") if len(batches) == 6 else 1.0  # the second of the second epoch
        return losses | {"depth": losses["depth"] * bad}

    monkeypatch.setattr(MultiTaskModule, "task_losses", spoilt)
    monkeypatch.setattr(
        RunFolder, "on_train_batch_start", lambda self, trainer, module, batch, _: batches.append(batch), raising=False
    )
    with pytest.raises(SystemExit) as end:
        fit("nan")
    assert end.value.code == 2
    (said,) = re.findall("taskformer: .*", capsys.readouterr().err)
    assert f"depth nan; the images were {', '.join(batches[5]['meta']['id'])};" in said
    assert len(batches) == 6
    assert "semseg" not in said
    assert "the last good state is runs/nan/checkpoints/last.ckpt" in said
    assert last("nan")["global_step"] == 4  # of the first epoch


def test_weights_that_the_last_step_spoils_are_neither_last_nor_best(fit, capsys):
    with pytest.raises(SystemExit) as end:
        fit("inf", "--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=.inf", "--trainer.limit_train_batches=1")
    assert end.value.code == 2
    assert "weights are not finite" in capsys.readouterr().err
    assert not list(Path("runs/inf").rglob("*.ckpt"))


def test_weights_that_are_not_finite_are_neither_loaded_nor_scored(fit, capsys):
    fit("good", "--trainer.max_epochs=1", "--trainer.limit_train_batches=1")
    taskformer.load("runs/good")
    file = Path("runs/good/checkpoints/best.ckpt")
    checkpoint = torch.load(file, weights_only=True)
    name = next(name for name in checkpoint["state_dict"] if name.endswith("bias"))
    checkpoint["state_dict"][name][0] = float("nan")
    torch.save(checkpoint, file)
    with pytest.raises(WeightsError, match=r"best.ckpt holds weights that are not finite \(network"):
        taskformer.load("runs/good")
    for command in ("test", "validate"):
        with pytest.raises(SystemExit):
            main([command, "runs/good"])
        assert f"not finite ({name})" in capsys.readouterr().err


def test_skipped_steps_of_a_scaler_are_usual_but_not_too_many_in_a_row():
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    trainer = SimpleNamespace(
        precision_plugin=SimpleNamespace(scaler=scaler), global_step=0, current_epoch=0, log_every_n_steps=1,
        world_size=1, is_last_batch=False, default_root_dir="runs/x",
    )  # fmt: skip
    module = SimpleNamespace(device=torch.device("cpu"), train_losses={})
    stopping = Stopping(max_skipped_steps=3)

    def step(factor):
        loss = (weight * factor).sum()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        trainer.global_step += 1
        module.train_losses = {"depth": loss.detach(), "total": loss.detach()}
        stopping.on_train_batch_end(trainer, module, None, {"meta": {"id": ["a", "b"]}}, 0)

    for factor in [float("inf"), float("inf"), 1.0] * 3:
        step(factor)
    step(float("inf"))
    step(float("inf"))
    with pytest.raises(TrainingStoppedError, match=r"3 steps in a row overflowed .*depth inf; the images were a, b"):
        step(float("inf"))


@pytest.mark.parametrize(
    ("moment", "number", "accumulate", "workers", "steps"),
    [
        (1, signal.SIGTERM, 1, 1, 2),  # before the second batch: it is finished
        (5, signal.SIGINT, 1, 0, 6),
        (4, signal.SIGTERM, 2, 0, 3),  # the step of two batches is finished
        (3, signal.SIGTERM, 1, 0, 4),  # the last one of an epoch: validation and the epoch's end follow
        ("validation", signal.SIGINT, 1, 1, 4),
    ],
)
def test_a_training_that_a_signal_ended_goes_on_exactly(fit, at, moment, number, accumulate, workers, steps, capsys):
    flags = [f"--trainer.accumulate_grad_batches={accumulate}", f"--data.num_workers={workers}"]
    fit("whole", *flags)

    def signal_all():
        for process in [*multiprocessing.active_children(), SimpleNamespace(pid=os.getpid())]:
            os.kill(process.pid, number)

    at(moment, signal_all)
    with pytest.raises(SystemExit) as end:
        fit("stopped", *flags)
    assert not multiprocessing.active_children()
    assert end.value.code == 128 + number
    said = capsys.readouterr().err
    assert f"stopped by {number.name} after {steps} steps; go on with `taskformer fit --resume runs/stopped`" in said
    assert last("stopped")["global_step"] == steps
    at(moment, lambda: None)
    main(["fit", "--resume", "runs/stopped"])
    assert same_weights(last("stopped"), last("whole"))
    curves = [Path("runs", name, "logs/fit/metrics.csv").read_text().count("\n") for name in ("whole", "stopped")]
    assert curves[0] == curves[1]


def test_the_second_signal_ends_a_training_at_once(fit, at):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    at(1, twice)
    with pytest.raises(SystemExit) as end:
        fit("twice")
    assert end.value.code == 130
    assert not list(Path("runs/twice").rglob("*.ckpt"))


def test_an_evaluation_ends_at_once(fit, monkeypatch):
    fit("run", "--trainer.max_epochs=1", "--trainer.limit_train_batches=1")
    kill = lambda *_: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    monkeypatch.setattr(RunFolder, "on_test_batch_start", kill, raising=False)
    with pytest.raises(SystemExit) as end:
        main(["test", "runs/run"])
    assert end.value.code == 143


def test_a_slurm_job_goes_back_into_the_queue_with_its_state_and_goes_on(fit, at, work, monkeypatch):
    scontrol = work / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {work}/asked\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    for name, value in {"NTASKS": "1", "JOB_ID": "77", "JOB_NAME": "train", "PROCID": "0", "LOCALID": "0",
                        "NODEID": "0", "NTASKS_PER_NODE": "1"}.items():  # fmt: skip
        monkeypatch.setenv(f"SLURM_{name}", value)
    fit("whole")
    at(1, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    with pytest.raises(SystemExit) as end:
        fit("job")
    assert end.value.code == 128 + signal.SIGUSR1
    assert (work / "asked").read_text() == "requeue 77\n"
    assert last("job")["global_step"] == 2
    at(1, lambda: None)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    fit("job")  # the same command, as SLURM gives it
    assert same_weights(last("job"), last("whole"))


SPOILT = """
import multiprocessing, os, signal
from taskformer.modules import Baseline

class Spoilt(Baseline):
    def on_train_start(self):
        super().on_train_start()
        open("began", "w").close()

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        fault, rank = os.environ["FAULT"].split("@")
        if self.global_rank != int(rank) or self.global_step != 3:
            return loss
        if fault == "worker":
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        elif fault == "nan":
            self.train_losses["depth"] *= float("nan")
            self.train_losses["total"] *= float("nan")
        elif fault.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, fault))
        return loss
"""


def on_two_processes(folder, rooms, fault, *flags):
    """Train on two processes, with a fault on one of them in the fourth step.

    Returns:
        Status, what was said, and the seconds from the first step to the end of the last process.
    """
    (folder / "spoilt.py").write_text(SPOILT)
    flags = [*MODEL[1:], *TRAINER, f"--data.root={rooms}", "--data.batch_size=1", "--trainer.max_epochs=3", *flags]
    several = ["--trainer.strategy=ddp", "--trainer.devices=2"]
    command = [sys.executable, "-m", "taskformer", "fit", "--model=spoilt.Spoilt", *flags, *several]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FAULT": fault}
    with (folder / "said").open("w+") as said:
        process = subprocess.Popen(
            command, cwd=folder, stdout=said, stderr=said, env=environment, start_new_session=True
        )
        try:
            status = process.wait(timeout=200)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        for _ in range(300):
            if left(process.pid):
                time.sleep(0.2)
        said.seek(0)
        text = said.read()
    assert not left(process.pid), text
    return status, text, time.time() - (folder / "began").stat().st_mtime


def left(session):
    """The processes of a session that there still are."""
    found = subprocess.run(["ps", "-o", "pid=", "-s", str(session)], capture_output=True, text=True, check=False)
    return found.stdout.split()


def sentences(text):
    return [line for line in text.splitlines() if line.startswith("taskformer: ")]


@pytest.mark.slow  # two processes that import Lightning, about 15 s each
@pytest.mark.parametrize(
    ("fault", "flags", "status", "sentence"),
    [
        ("SIGKILL@1", [], 128 + 9, "process 1 of the training was killed (SIGKILL), the others end; go on with"),
        ("SIGKILL@0", [], -9, "the first process of the training died, the others end; go on with"),
        ("nan@1", [], 2, r"training stopped in epoch 0 at step 4: the loss is not finite: depth nan; the images were"),
        ("worker@1", ["--data.num_workers=1"], None, "DataLoader worker"),
    ],
)
def test_no_process_outlives_another(fault, flags, status, sentence, tmp_path, small_rooms):
    found, text, seconds = on_two_processes(tmp_path, small_rooms, fault, "--name=run", *flags)
    assert seconds < 60
    assert found == status or (status is None and found > 0), text
    if status:
        assert len(sentences(text)) == 1, text
        assert "Traceback" not in text
    assert sentence in text


@pytest.mark.slow  # two processes that import Lightning, about 15 s
def test_a_broken_image_on_one_process_is_one_sentence(tmp_path, small_rooms):
    order = torch.randperm(8, generator=torch.Generator().manual_seed(derive("order", 0)))
    broken = json.loads((small_rooms / "train.json").read_text())[order[1::2][2]]["id"]  # rank 1 reads it third
    rooms = tmp_path / "rooms"
    rooms.mkdir()
    for entry in small_rooms.iterdir():
        if entry.name != "semseg":
            (rooms / entry.name).symlink_to(entry)
    shutil.copytree(small_rooms / "semseg", rooms / "semseg")
    (rooms / "semseg" / f"{broken}.png").write_bytes(b"nothing")
    status, text, seconds = on_two_processes(tmp_path, rooms, "none@0", "--name=run")
    assert (status, len(sentences(text))) == (2, 1), text
    assert f"semseg/{broken}.png" in sentences(text)[0]
    assert seconds < 60


@pytest.mark.slow  # three trainings of two processes, about 60 s
@pytest.mark.parametrize("fault", ["SIGTERM@0", "SIGINT@1"])
def test_two_processes_that_a_signal_ended_go_on_exactly(fault, tmp_path, small_rooms, monkeypatch):
    monkeypatch.chdir(tmp_path)
    on_two_processes(tmp_path, small_rooms, "none@0", "--name=whole")
    status, text, _ = on_two_processes(tmp_path, small_rooms, fault, "--name=stopped")
    assert status == 128 + getattr(signal, fault.split("@")[0]), text
    assert "Traceback" not in text
    assert last("stopped")["global_step"] == 4
    status, text, _ = on_two_processes(tmp_path, small_rooms, "none@0", "--resume=runs/stopped")
    assert status == 0, text
    assert same_weights(last("stopped"), last("whole"))
