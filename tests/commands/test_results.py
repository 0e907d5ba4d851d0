"""What ``taskformer test`` says beyond the metrics: classes, single images, protocol, delta_m."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import taskformer
from taskformer.cli import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tested(tmp_path_factory, tiny):
    """Two networks after two steps, ``runs/a`` and ``runs/b``, tested image by image, and the flags of both."""
    folder = tmp_path_factory.mktemp("work")
    before = Path.cwd()
    os.chdir(folder)
    configs = [f"--config={ROOT}/configs/{name}.yaml" for name in ("model/baseline", "data/rooms")]
    flags = [*configs, *tiny, "--data.tasks=[semseg,depth]", "--results.per_image=true"]
    for seed, name in enumerate("ab"):
        main(["fit", *flags, f"--name={name}", f"--seed_everything={seed}"])
        main(["test", *flags, f"--name={name}", f"--ckpt_path=runs/{name}/checkpoints/last.ckpt"])
    yield [*flags, "--ckpt_path=runs/a/checkpoints/last.ckpt"]
    os.chdir(before)


def record(name):
    return json.loads(Path(f"runs/{name}/metrics.json").read_text())["test"]


def test_every_class_has_its_iou(tested):
    found = record("a")
    ious = found["per_class"]["semseg"]
    seen = [value for value in ious.values() if value is not None]
    assert np.mean(seen) == pytest.approx(found["tasks"]["semseg"]["mIoU"], rel=1e-6)
    text = Path("runs/a/results.md").read_text()
    assert "## semseg: IoU of each class" in text
    for name, value in ious.items():
        assert (f"| {name} |  |" if value is None else f"| {name} | {value * 100:.2f} |") in text


def test_every_image_is_scored_alone(tested, small_rooms):
    with Path("runs/a/per_image.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    images = [entry["id"] for entry in json.loads((small_rooms / "test.json").read_text())]
    assert list(dict.fromkeys(row["id"] for row in rows)) == images
    # All images have the same number of labelled pixels, so that the mean of their accuracies is the accuracy of all.
    accuracies = [float(row["value"]) for row in rows if row["metric"] == "pixel_accuracy"]
    assert len(accuracies) == len(images)
    assert np.mean(accuracies) == pytest.approx(record("a")["tasks"]["semseg"]["pixel_accuracy"], rel=1e-6)


def test_the_runs_can_be_compared(tested, capsys):
    main(["compare", "runs/a", "runs/b", "--json=out.json", "--resamples=100"])
    rows = {(row["task"], row["metric"]): row for row in json.loads(Path("out.json").read_text())["rows"]}
    difference = record("b")["tasks"]["semseg"]["pixel_accuracy"] - record("a")["tasks"]["semseg"]["pixel_accuracy"]
    assert rows["semseg", "pixel_accuracy"]["difference"] == pytest.approx(difference, abs=1e-6)
    assert "A: runs/a, B: runs/b, protocol standard" in " ".join(capsys.readouterr().out.split())


def entry(folder, facts, **values):
    """Write single-task results; each value is of the test split, or of test and validation."""
    kinds = {"semseg": ("mIoU", True, 16), "depth": ("rmse", False, 1)}
    tasks = {}
    for name, value in values.items():
        test, val = value if isinstance(value, tuple) else (value, 1.0)
        facts_of = dict(zip(("metric", "higher_is_better", "channels"), kinds[name], strict=True))
        seeds = {"spread": 0.25, "seeds": [0, 1, 2], "val": {"value": val, "spread": 0.1}}
        tasks[name] = {**facts_of, "value": test, **seeds}
    path = folder / "entry.json"
    path.write_text(json.dumps({"facts": facts, "val_images": 3, "tasks": tasks}))
    return path


def test_without_single_task_results_the_reason_is_said(tested, capsys):
    main(["test", *tested, "--name=alone"])
    said = " ".join(capsys.readouterr().out.split())
    assert "no delta_m: configs/baselines holds no single-task results" in said
    assert "delta_m" not in record("alone")
    main(["test", *tested[:-1], "--name=untrained", "--ckpt=initial"])
    said = " ".join(capsys.readouterr().out.split())
    assert "no delta_m: the weights do not say what they were trained with: they are untrained, or of an older" in said


def test_delta_m_is_printed_and_saved_against_the_fitting_entry(tested, capsys, tmp_path):
    scores, facts = record("a")["tasks"], record("a")["facts"]
    values = {"semseg": scores["semseg"]["mIoU"] / 2, "depth": scores["depth"]["rmse"] * 2}
    path = entry(tmp_path, facts, **values)
    main(["test", *tested, "--name=against", f"--results.baselines={tmp_path}"])
    found = record("against")
    # Twice the mIoU is +100 %, half the error +50 %.
    assert found["improvement"] == pytest.approx({"semseg": 100, "depth": 50})
    assert found["delta_m"] == pytest.approx(75)
    assert found["baselines"] == str(path)
    assert found["single_task"]["depth"] == {"value": values["depth"], "spread": 0.25, "seeds": 3}
    text = Path("runs/against/results.md").read_text()
    assert "| delta_m |  |  |  | +75.00 | % | higher |" in text
    assert f"| {values['depth']:.4g} ± 0.25 | +50.00 | m | lower |" in text
    assert "delta\\_m &  &  &  & +75.00 & \\% & higher \\\\" in Path("runs/against/results.tex").read_text()
    said = capsys.readouterr().out
    assert "+100.00" in said
    line = f"delta_m: +75.00 % against {path} (3 seeds)"
    assert line in " ".join(said.split())
    assert line in " ".join(Path("runs/against/model_card.md").read_text().split())
    assert "* Training: {'steps': 2, 'epochs': 1, 'batch_size': 4, " in Path("runs/against/model_card.md").read_text()
    entry(tmp_path, facts | {"input_size": [425, 560]}, **values)
    main(["test", *tested, "--name=other_size", f"--results.baselines={tmp_path}"])
    assert "entry.json, differ in input_size ([425, 560] there, [128, 160] here)" in capsys.readouterr().out
    assert "delta_m" not in record("other_size")


def test_what_a_checkpoint_was_trained_with_counts_not_what_the_command_line_says(tested, capsys, tmp_path):
    facts = record("a")["facts"]
    training = facts["training"]
    assert {key: training[key] for key in ("steps", "epochs", "batch_size", "backbone_lr_scale")} == {
        "steps": 2, "epochs": 1, "batch_size": 4, "backbone_lr_scale": 1.0,
    }  # fmt: skip
    entry(tmp_path, facts, semseg=1.0, depth=1.0)
    longer = [
        "--trainer.max_epochs=24",
        "--model.optimizer=SGD",
        "--model.optimizer.lr=3",
        f"--results.baselines={tmp_path}",
    ]
    main(["test", *tested, *longer, "--name=same"])
    assert "delta_m" in record("same")
    entry(tmp_path, facts | {"training": training | {"steps": 48, "epochs": 24}}, semseg=1.0, depth=1.0)
    capsys.readouterr()
    main(["test", *tested, *longer, "--name=longer"])
    said = " ".join(capsys.readouterr().out.split())
    assert "differ in training.steps (48 there, 2 here), training.epochs (24 there, 1 here)" in said
    assert "delta_m" not in record("longer")


def test_a_training_logs_delta_m_of_its_validations(tested, tmp_path, capsys):
    path = entry(tmp_path, record("a")["facts"], semseg=(1.0, 0.02), depth=(1.0, 3.0))
    flags = [flag for flag in tested[:-1] if "per_image" not in flag]
    flags += [f"--results.baselines={path}", "--checkpoint.monitor=val/delta_m"]
    main(["fit", *flags, "--name=watched"])
    found = json.loads(Path("runs/watched/metrics.json").read_text())["val"]
    gains = [(found["tasks"]["semseg"]["mIoU"] - 0.02) / 0.02, (3.0 - found["tasks"]["depth"]["rmse"]) / 3.0]
    assert found["delta_m"] == pytest.approx(50 * sum(gains))
    with next(Path("runs/watched/logs").rglob("metrics.csv")).open() as lines:
        logged = [float(row["val/delta_m"]) for row in csv.DictReader(lines) if row["val/delta_m"]]
    assert logged == pytest.approx([50 * sum(gains)], rel=1e-5)
    best = torch.load("runs/watched/checkpoints/best.ckpt", weights_only=True)
    assert float(best["callbacks"]["Checkpoints"]["best_score"]) == pytest.approx(logged[0])
    # A training of another length is told why before its first step, and logs none.
    capsys.readouterr()
    main(["fit", *flags[:-1], "--name=unwatched", "--trainer.max_epochs=2"])
    with next(Path("runs/unwatched/logs").rglob("metrics.csv")).open() as lines:
        assert "val/delta_m" not in csv.DictReader(lines).fieldnames


@pytest.mark.parametrize("text", ['{"test": {"tas', "[]", '{"test": 1}', "\xff"])
def test_a_broken_file_of_metrics_is_set_aside_and_costs_nothing(tested, text, capsys):
    folder = Path("runs/damaged")
    folder.mkdir(exist_ok=True)
    before = len(list(folder.glob("metrics.broken*")))
    (folder / "metrics.json").write_bytes(text.encode("latin-1"))
    main(["test", *tested, "--name=damaged"])
    assert record("damaged")["tasks"] == record("a")["tasks"]
    aside = folder / f"metrics.broken{before + 1}"
    assert aside.read_bytes() == text.encode("latin-1")
    assert f"is now {aside.name}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("text", ["{", '{"facts": {}, "tasks": {"depth": 0}}', '{"facts": null}'])
def test_a_broken_entry_costs_no_results(tested, tmp_path, text, capsys):
    (tmp_path / "entry.json").write_text(text)
    main(["test", *tested, "--name=broken_entry", f"--results.baselines={tmp_path}"])
    assert record("broken_entry")["tasks"] == record("a")["tasks"]
    assert f"no delta_m: {tmp_path}/entry.json" in " ".join(capsys.readouterr().out.split())


def test_results_are_printed_even_if_they_cannot_be_saved(tested, monkeypatch, capsys):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("taskformer.evaluation.report.write_json", full)
    with pytest.raises((OSError, SystemExit)):
        main(["test", *tested, "--name=full"])
    assert "pixel_accuracy" in capsys.readouterr().out


def test_the_protocol_is_used_and_named(tested, capsys):
    main(["test", *tested, "--name=peers", "--results.protocol=adashare"])
    found = record("peers")
    assert found["protocol"] == found["facts"]["protocol"] == "adashare"
    assert found["tasks"].keys() == record("a")["tasks"].keys()
    assert "test, protocol adashare" in capsys.readouterr().out
    assert "test, protocol adashare" in Path("runs/peers/model_card.md").read_text()
    with pytest.raises(SystemExit):
        main(["test", *tested, "--results.protocol=invpd"])
    assert "unknown protocol 'invpd' (did you mean 'invpt'?)" in capsys.readouterr().err


def test_a_module_scores_by_the_protocol_it_is_given(tested):
    model, _ = taskformer.from_config(
        f"{ROOT}/configs/model/baseline.yaml",
        f"{ROOT}/configs/data/rooms.yaml",
        overrides=["--data.tasks=[saliency]", "--model.weights=random"],
    )
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(1, 2, 16, 16, generator=generator)
    target = torch.randint(0, 2, (1, 16, 16), generator=generator)
    values = {}
    for protocol in ("standard", "invpt", "standard"):
        model.protocol = protocol
        ((_, metrics),) = model._stage_metrics("test")
        metrics.update(output, target)
        expected = model.tasks["saliency"].metrics(protocol, "test")
        expected.update(output, target)
        values[protocol] = float(metrics.compute()["maxF"])
        assert values[protocol] == float(expected.compute()["maxF"])
    assert values["standard"] != values["invpt"]
