"""``taskformer baselines``: single-task runs and the entry made of them."""

import json
from pathlib import Path

import pytest

from taskformer.cli import main
from taskformer.commands import baselines

ROOT = Path(__file__).parents[2]
CONFIGS = [f"--config={ROOT}/configs/model/baseline.yaml", f"--config={ROOT}/configs/data/rooms.yaml"]
FACTS = {
    "data": "rooms",
    "backbone": "resnet18",
    "initialisation": "timm",
    "input_size": [128, 160],
    "protocol": "standard",
}
VALUES = {"semseg": {"mIoU": 0.4}, "depth": {"rmse": 0.6}}


@pytest.fixture
def called(monkeypatch, tmp_path, small_rooms):
    """Instead of running, note the command lines and leave what a run leaves; returns them."""
    monkeypatch.chdir(tmp_path)
    lines = []

    def run(arguments):
        lines.append(arguments)
        folder = Path(arguments[arguments.index("--runs_dir") + 1]) / arguments[arguments.index("--name") + 1]
        task = folder.name.rsplit("-", 1)[-1]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "environment.json").write_text('{"git_revision": "abc"}')
        if arguments[0] == "test":
            protocol = arguments[arguments.index("--results.protocol") + 1]
            record = {"protocol": protocol, "facts": FACTS | {"protocol": protocol}, "tasks": {task: VALUES[task]}}
            (folder / "metrics.json").write_text(json.dumps({"test": record}))

    monkeypatch.setattr(baselines, "run_command", run)
    return lines


def make(small_rooms, *flags):
    main(["baselines", *CONFIGS, f"--data.root={small_rooms}", "--data.tasks=[semseg,depth]", "--name=tiny", *flags])


def test_every_task_trains_alone_and_the_entry_says_what_it_is(called, small_rooms):
    make(small_rooms, "--trainer.max_epochs=3")
    assert [line[0] for line in called] == ["fit", "test", "fit", "test"]
    first = called[0]
    assert first[-6:] == [
        "--name", "tiny-single-semseg", "--runs_dir", "runs", "--data.init_args.tasks=[semseg]",
        "--model.init_args.loss_weights=null",
    ]  # fmt: skip
    assert "--trainer.max_epochs=3" in first
    assert called[1][:5] == [
        "test", "--config", "runs/tiny-single-semseg/config.yaml",
        "--ckpt_path", "runs/tiny-single-semseg/checkpoints/best.ckpt",
    ]  # fmt: skip
    entry = json.loads(Path("configs/baselines/rooms_resnet18_timm_128x160_standard.json").read_text())
    assert entry["facts"] == FACTS
    assert entry["model"] == "Baseline"
    assert entry["tasks"]["depth"] == {
        "metric": "rmse", "higher_is_better": False, "channels": 1, "value": 0.6, "run": "tiny-single-depth",
        "git_revision": "abc",
    }  # fmt: skip
    assert entry["tasks"]["semseg"]["higher_is_better"]


def test_finished_runs_are_kept_and_interrupted_ones_go_on(called, small_rooms):
    make(small_rooms, "--out=entry.json")
    before = Path("entry.json").read_text()
    Path("runs/tiny-single-depth/metrics.json").unlink()
    last = Path("runs/tiny-single-depth/checkpoints/last.ckpt")
    last.parent.mkdir()
    last.touch()
    called.clear()
    make(small_rooms, "--out=entry.json")
    assert [line[0] for line in called] == ["fit", "test"]
    assert called[0][-2:] == ["--ckpt_path", str(last)]
    assert Path("entry.json").read_text() == before


def test_another_protocol_is_another_entry(called, small_rooms):
    make(small_rooms)
    make(small_rooms, "--results.protocol=invpt")
    assert {path.stem.rsplit("_", 1)[-1] for path in Path("configs/baselines").iterdir()} == {"standard", "invpt"}


def test_runs_of_an_older_configuration_are_not_mixed_in(called, small_rooms, capsys):
    make(small_rooms, "--out=entry.json")
    path = Path("runs/tiny-single-depth/metrics.json")
    path.write_text(path.read_text().replace("resnet18", "resnet50"))
    with pytest.raises(SystemExit):
        make(small_rooms, "--out=entry.json")
    message = capsys.readouterr().err
    assert "runs/tiny-single-depth has the backbone resnet50 and the runs before it resnet18; delete" in message


def test_a_failing_run_ends_it_in_one_sentence(monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(baselines.TaskformerError, match="`taskformer nonsense` failed with status 2"):
        baselines.run_command(["nonsense"])
    assert "unknown command 'nonsense'" in capfd.readouterr().err


@pytest.mark.slow  # four processes that import Lightning, about 60 s
def test_a_run_is_compared_with_its_single_tasks(tmp_path, monkeypatch, tiny, capsys):
    monkeypatch.chdir(tmp_path)
    flags = [*CONFIGS, *tiny, "--data.tasks=[depth,edges]", "--name=both"]
    main(["baselines", *flags])
    main(["fit", *flags])
    capsys.readouterr()
    main(["test", "--config=runs/both/config.yaml", "--ckpt_path=runs/both/checkpoints/best.ckpt"])
    record = json.loads(Path("runs/both/metrics.json").read_text())["test"]
    (path,) = Path("configs/baselines").iterdir()
    entry = json.loads(path.read_text())
    single, both = entry["tasks"]["depth"]["value"], record["tasks"]["depth"]["rmse"]
    assert record["improvement"]["depth"] == pytest.approx(100 * (single - both) / single)
    assert record["delta_m"] == pytest.approx(sum(record["improvement"].values()) / 2)
    assert f"delta_m:    {record['delta_m']:+.2f} % against {path}" in capsys.readouterr().out
    assert (Path("runs/both/results.md").read_text()).count("| delta_m |") == 1
