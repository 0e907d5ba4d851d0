"""Whose fault an error is, and how it is told: real errors of torch, Lightning, Pillow and the operating system."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import wandb
import yaml
from lightning.pytorch import Trainer
from PIL import Image

from taskformer import cli
from taskformer.errors import LONGEST, ConfigError, mistake, require, suggest


def error_of(action):
    """What an action raises."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  # which one is what the tests are about
        action()
    return caught.value


def occupied_port():
    """Ask torch for a port that somebody has."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        torch.distributed.TCPStore("127.0.0.1", other.getsockname()[1], 1, is_master=True)


def write_to_a_full_disk():
    with Path("/dev/full").open("wb", buffering=0) as stream:
        stream.write(b"x")


def no_account():
    """What wandb 0.31 raises where nobody is logged in; it would really begin a run where somebody is."""
    raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.")


def text_as_image(folder):
    (folder / "x.png").write_text("hello")
    Image.open(folder / "x.png")


@pytest.mark.parametrize(
    ("action", "sentence"),
    [
        (lambda folder: (folder / "no").read_text(), "/no: No such file or directory"),
        (lambda folder: folder.read_text(), ": Is a directory"),
        (lambda folder: write_to_a_full_disk(), "No space left on device"),
        (lambda folder: torch.save(torch.zeros(10**6), "/dev/full"), "the disk may be full"),
        (lambda folder: occupied_port(), "EADDRINUSE"),
        (text_as_image, "cannot identify image file"),
        (lambda folder: Trainer(accelerator="tpu", devices=1, logger=False), "torch_xla"),
        (lambda folder: Trainer(limit_train_batches=-1, logger=False), "invalid value -1 for limit_train_batches"),
        (lambda folder: Trainer(strategy="nonsense", logger=False), "nonsense"),
        (lambda folder: torch.optim.AdamW([torch.zeros(1)], lr=-1.0), "Invalid learning rate: -1.0"),
        (lambda folder: torch.empty(10**15), "choose smaller sizes"),
        (lambda folder: yaml.safe_load("a: b: c"), "mapping values are not allowed here"),
        (lambda folder: b"\xff".decode(), "the file is not text"),
        (lambda folder: __import__("neptune"), "No module named 'neptune'"),
        (lambda folder: no_account(), "log in; WANDB_MODE=offline needs no account and no network"),
    ],
)
def test_what_a_person_can_mend_is_one_sentence(action, sentence, tmp_path):
    said = mistake(error_of(lambda: action(tmp_path)))
    assert said is not None
    assert sentence in said
    assert "\n" not in said
    assert len(said) < 500


@pytest.mark.parametrize(
    "action",
    [
        lambda: {}["x"],
        lambda: [][0],
        lambda: None.x,
        lambda: 1 + "",
        lambda: 1 // 0,
        lambda: torch.zeros(2) + torch.zeros(3),
        lambda: (_ for _ in ()).throw(AssertionError()),
        lambda: int("x"),
        lambda: __import__("taskformer.nonsense"),
    ],
)
def test_everything_else_is_a_bug(action):
    assert mistake(error_of(action)) is None


def test_our_errors_are_found_inside_of_a_parser_s():
    def wrapped():
        try:
            raise ConfigError("no such thing\n   as this")
        except ConfigError as error:
            raise RuntimeError("parser failed") from error

    assert mistake(error_of(wrapped)) == "no such thing as this"


def test_an_error_of_a_loader_process_is_its_last_line():
    text = "Caught ConfigError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File x\n"
    assert mistake(ConfigError(text + "taskformer.errors.ConfigError: a.png: is broken\n")) == "a.png: is broken"


def test_a_sentence_ends():
    assert len(mistake(ConfigError("x" * 10**6))) < LONGEST + 10


@pytest.mark.parametrize(
    ("interval", "good", "bad"),
    [
        ("[0, 1]", [0, 1, 0.5], [-0.1, 1.1, float("nan"), float("inf")]),
        ("[0, 1)", [0, 0.99], [1]),
        ("(0, 1]", [1], [0]),
        ("[1, inf)", [1, 10**30], [0, float("inf")]),
        ("(0, inf)", [1e-300, [1, 2], None], [0, [1, 0], (2, float("nan"))]),
    ],
)
def test_intervals_are_those_of_mathematics(interval, good, bad):
    for value in good:
        require(interval, setting=value)
    for value in bad:
        with pytest.raises(ConfigError) as caught:
            require(interval, setting=value)
        assert str(caught.value) == f"setting must be in {interval}, got {value}"


def test_a_hint_never_repeats_the_wrong_word():
    assert suggest("depth", ["depth", "semseg"]) == ""
    assert suggest("dept", ["depth", "semseg"]) == " (did you mean 'depth'?)"
    assert suggest("split", ["results", "seed"]) == ""


def run(monkeypatch, error):
    """Run a command that raises."""

    def fail(argv):
        raise error

    monkeypatch.setattr("taskformer.commands.pick.main", fail)
    cli.main(["search", "pick"])


def test_a_mistake_ends_with_status_2(monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, PermissionError(13, "Permission denied", "/x"))
    assert end.value.code == 2
    assert capsys.readouterr().err == "taskformer: /x: Permission denied\n"


def test_ctrl_c_ends_with_the_status_of_shells(monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, KeyboardInterrupt())
    assert end.value.code == 130
    assert capsys.readouterr().err == "taskformer: stopped by Ctrl-C\n"


def test_a_bug_keeps_its_traceback_and_asks_to_be_reported(monkeypatch):
    with pytest.raises(KeyError) as caught:
        run(monkeypatch, KeyError("x"))
    assert "this is a bug, not a mistake of yours; please report" in caught.value.__notes__[0]


def test_the_current_folder_is_importable_for_the_console_script(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "my_models.py").write_text("print('found')")
    # As pip writes it: the first place that is looked at is the script's own folder.
    script = tmp_path / "bin" / "taskformer"
    script.write_text("from taskformer.cli import main\nmain()\nimport my_models\n")
    done = subprocess.run(
        [sys.executable, str(script), "--version"], cwd=tmp_path / "mine", capture_output=True, text=True
    )
    assert done.stdout.endswith("found\n"), done.stderr
