"""``taskformer baselines``: single-task runs and the entry made of them."""

import json
from pathlib import Path

import pytest

from taskformer.cli import main
from taskformer.errors import TaskformerError
from taskformer.evaluation import reference_runs

ROOT = Path(__file__).parents[2]
CONFIGS = [f"--config={ROOT}/configs/model/baseline.yaml", f"--config={ROOT}/configs/data/rooms.yaml"]
FACTS = {
    "data": "rooms",
    "backbone": "resnet18",
    "initialisation": "timm",
    "input_size": [128, 160],
    "protocol": "standard",
    "split": "test",
    "images": 3,
    "training": {"steps": 6, "epochs": 3},
}
VALUES = {"semseg": {"mIoU": 0.4}, "depth": {"rmse": 0.6}}
#: What the runs of a seed have more.
OF_SEEDS = {0: 0.0, 1: 0.1, 2: 0.3}
NAME = "rooms_resnet18_timm_128x160_{}_6steps.json"


@pytest.fixture
def called(monkeypatch, tmp_path, small_rooms):
    """Instead of running, note the command lines and leave what a run leaves; returns them."""
    monkeypatch.chdir(tmp_path)
    lines = []

    def run(arguments):
        lines.append(arguments)
        folder = Path(arguments[arguments.index("--runs_dir") + 1]) / arguments[arguments.index("--name") + 1]
        *_, task, seed = folder.name.split("-")
        folder.mkdir(parents=True, exist_ok=True)
        if arguments[0] == "fit":
            (folder / "environment.json").write_text('{"git_revision": "abc"}')
            (folder / "metrics.json").write_text('{"val": {"protocol": "standard", "epoch": 2}}')  # of the last epoch
            return
        protocol = arguments[arguments.index("--results.protocol") + 1]
        stage = {"test": "test", "validate": "val"}[arguments[0]]
        facts = FACTS | {"protocol": protocol} | ({"split": "val", "images": 5} if stage == "val" else {})
        more = OF_SEEDS[int(seed.removeprefix("seed"))] + (1 if stage == "val" else 0)
        scores = {metric: value + more for metric, value in VALUES[task].items()}
        path = folder / "metrics.json"
        record = {"protocol": protocol, "facts": facts, "tasks": {task: scores}}
        path.write_text(json.dumps(json.loads(path.read_text()) | {stage: record}))

    monkeypatch.setattr(reference_runs, "run_command", run)
    return lines


def make(small_rooms, *flags):
    main(["baselines", *CONFIGS, f"--data.root={small_rooms}", "--data.tasks=[semseg,depth]", "--name=tiny", *flags])


def test_every_task_trains_alone_and_the_entry_says_what_it_is(called, small_rooms):
    make(small_rooms, "--trainer.max_epochs=3")
    assert [line[0] for line in called] == ["fit", "test", "validate"] * 2
    first = called[0]
    assert first[-8:] == [
        "--name", "tiny-single-semseg-seed0", "--runs_dir", "runs", "--data.init_args.tasks=[semseg]",
        "--model.init_args.loss_weights=null",
        "--model.init_args.balancing=taskformer.modules.FixedWeights", "--seed_everything=0",
    ]  # fmt: skip
    assert "--trainer.max_epochs=3" in first
    for line in called[1:3]:
        assert line[1:5] == [
            "--config", "runs/tiny-single-semseg-seed0/config.yaml",
            "--ckpt_path", "runs/tiny-single-semseg-seed0/checkpoints/best.ckpt",
        ]  # fmt: skip
    entry = json.loads((Path("configs/baselines") / NAME.format("standard")).read_text())
    assert entry["facts"] == FACTS
    assert entry["val_images"] == 5
    assert entry["model"] == "Baseline"
    assert entry["tasks"]["depth"] == {
        "metric": "rmse", "higher_is_better": False, "channels": 1, "value": 0.6, "spread": None,
        "val": {"value": 1.6, "spread": None}, "seeds": [0], "runs": ["tiny-single-depth-seed0"],
        "git_revisions": ["abc"],
    }  # fmt: skip
    assert entry["tasks"]["semseg"]["higher_is_better"]


def test_several_seeds_give_mean_and_spread(called, small_rooms):
    make(small_rooms, "--seeds", "0", "1", "2", "--out=entry.json")
    fits = [line for line in called if line[0] == "fit"]
    assert [line[-1] for line in fits] == ["--seed_everything=0", "--seed_everything=1", "--seed_everything=2"] * 2
    depth = json.loads(Path("entry.json").read_text())["tasks"]["depth"]
    # 0.6, 0.7 and 0.9: mean 0.7333, squared deviations 0.01778, 0.00111 and 0.02778, over two.
    assert depth["value"] == pytest.approx(2.2 / 3)
    assert depth["spread"] == pytest.approx((0.0466667 / 2) ** 0.5, rel=1e-5)
    assert depth["val"] == pytest.approx({"value": 1 + 2.2 / 3, "spread": (0.0466667 / 2) ** 0.5}, rel=1e-5)
    assert depth["seeds"] == [0, 1, 2]
    assert depth["runs"] == [f"tiny-single-depth-seed{seed}" for seed in (0, 1, 2)]


def test_without_seeds_it_is_that_of_the_command_line(called, small_rooms):
    make(small_rooms, "--seed_everything=2", "--out=entry.json")
    assert json.loads(Path("entry.json").read_text())["tasks"]["depth"]["seeds"] == [2]


@pytest.mark.parametrize("seeds", [["1", "1"], ["-1"], ["x"], []])
def test_impossible_seeds_are_refused(called, small_rooms, seeds, capsys):
    with pytest.raises(SystemExit):
        make(small_rooms, "--seeds", *seeds)
    assert "--seeds" in capsys.readouterr().err
    assert not called


def test_finished_runs_are_kept_and_interrupted_ones_go_on(called, small_rooms):
    make(small_rooms, "--out=entry.json")
    before = Path("entry.json").read_text()
    Path("runs/tiny-single-depth-seed0/metrics.json").write_text("{")  # broken: not tested
    last = Path("runs/tiny-single-depth-seed0/checkpoints/last.ckpt")
    last.parent.mkdir()
    last.touch()
    called.clear()
    make(small_rooms, "--out=entry.json")
    assert [line[0] for line in called] == ["fit", "test", "validate"]
    assert called[0][-2:] == ["--ckpt_path", str(last)]
    assert Path("entry.json").read_text() == before


def test_another_protocol_is_another_entry(called, small_rooms):
    make(small_rooms)
    make(small_rooms, "--results.protocol=invpt")
    found = {path.name for path in Path("configs/baselines").iterdir()}
    assert found == {NAME.format("standard"), NAME.format("invpt")}


def test_runs_of_an_older_configuration_are_not_mixed_in(called, small_rooms, capsys):
    make(small_rooms, "--out=entry.json")
    path = Path("runs/tiny-single-depth-seed0/metrics.json")
    path.write_text(path.read_text().replace("resnet18", "resnet50"))
    with pytest.raises(SystemExit):
        make(small_rooms, "--out=entry.json")
    message = capsys.readouterr().err
    said = (
        "runs/tiny-single-depth-seed0 and the runs before it differ in backbone (resnet18 there, resnet50 here); delete"
    )
    assert said in message
    path.write_text(path.read_text().replace('"training"', '"trained"'))
    with pytest.raises(SystemExit):
        make(small_rooms, "--out=entry.json")
    assert "runs/tiny-single-depth-seed0 does not say what it was trained with" in capsys.readouterr().err


def test_results_of_other_runs_are_not_replaced_unless_named(called, small_rooms, capsys):
    make(small_rooms)
    path = Path("configs/baselines") / NAME.format("standard")
    other = path.read_text().replace('"epochs": 3', '"epochs": 4')
    path.write_text(other)
    with pytest.raises(SystemExit):
        make(small_rooms)
    assert "differ in training.epochs (4 there, 3 here); name another file: --out" in capsys.readouterr().err
    assert path.read_text() == other
    path.write_text("{")
    make(small_rooms)
    assert json.loads(path.read_text())["facts"] == FACTS


def test_a_failing_run_ends_it_in_one_sentence(monkeypatch, tmp_path, capfd):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TaskformerError, match="`taskformer nonsense` failed with status 2"):
        reference_runs.run_command(["nonsense"])
    assert "unknown command 'nonsense'" in capfd.readouterr().err


@pytest.mark.slow  # six processes that import Lightning, about 90 s
def test_a_run_is_compared_with_its_single_tasks(tmp_path, monkeypatch, tiny, capsys):
    monkeypatch.chdir(tmp_path)
    flags = [*CONFIGS, *tiny, "--data.tasks=[depth]", "--name=run"]
    main(["baselines", *flags, "--seeds", "0", "1"])
    (path,) = Path("configs/baselines").iterdir()
    entry = json.loads(path.read_text())["tasks"]["depth"]
    runs = [json.loads((Path("runs") / name / "metrics.json").read_text()) for name in entry["runs"]]
    singles = {split: [run[split]["tasks"]["depth"]["rmse"] for run in runs] for split in ("test", "val")}
    assert singles["test"][0] != singles["test"][1]
    assert entry["value"] == pytest.approx(sum(singles["test"]) / 2)
    assert entry["spread"] == pytest.approx(abs(singles["test"][0] - singles["test"][1]) / 2**0.5)

    main(["fit", *flags, "--seed_everything=2", "--checkpoint.monitor=val/delta_m"])
    capsys.readouterr()
    main(["test", "runs/run"])
    said = capsys.readouterr().out
    records = json.loads(Path("runs/run/metrics.json").read_text())
    for split, values in singles.items():
        single = sum(values) / 2
        gain = 100 * (single - records[split]["tasks"]["depth"]["rmse"]) / single
        assert records[split]["delta_m"] == pytest.approx(gain)
    assert f"delta_m:    {records['test']['delta_m']:+.2f} % against {path} (2 seeds)" in said
    assert (Path("runs/run/results.md").read_text()).count("| delta_m |") == 1
