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
    """Two untrained networks, ``runs/a`` and ``runs/b``, tested image by image, and the flags of both."""
    folder = tmp_path_factory.mktemp("work")
    before = Path.cwd()
    os.chdir(folder)
    configs = [f"--config={ROOT}/configs/{name}.yaml" for name in ("model/baseline", "data/rooms")]
    flags = [*configs, *tiny, "--data.tasks=[semseg,depth]", "--results.per_image=true"]
    for seed, name in enumerate("ab"):
        main(["test", *flags, f"--name={name}", f"--seed_everything={seed}"])
    yield flags
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


def test_without_single_task_results_the_reason_is_said(tested, capsys):
    main(["test", *tested, "--name=alone"])
    said = " ".join(capsys.readouterr().out.split())
    assert "no delta_m: configs/baselines holds no single-task results" in said
    assert "delta_m" not in record("alone")


def test_delta_m_is_printed_and_saved_against_the_fitting_entry(tested, capsys, tmp_path):
    scores, facts = record("a")["tasks"], record("a")["facts"]
    tasks = {
        "semseg": {"metric": "mIoU", "higher_is_better": True, "channels": 16, "value": scores["semseg"]["mIoU"] / 2},
        "depth": {"metric": "rmse", "higher_is_better": False, "channels": 1, "value": scores["depth"]["rmse"] * 2},
    }
    path = tmp_path / "entry.json"
    path.write_text(json.dumps({"facts": facts, "tasks": tasks}))
    main(["test", *tested, "--name=against", f"--results.baselines={tmp_path}"])
    found = record("against")
    # Twice the mIoU is +100 %, half the error +50 %.
    assert found["improvement"] == pytest.approx({"semseg": 100, "depth": 50})
    assert found["delta_m"] == pytest.approx(75)
    assert found["baselines"] == str(path)
    assert "| delta_m |  |  | +75.00 | % | higher |" in Path("runs/against/results.md").read_text()
    assert "delta\\_m &  &  & +75.00 & \\% & higher \\\\" in Path("runs/against/results.tex").read_text()
    said = capsys.readouterr().out
    assert "+100.00" in said
    assert f"delta_m: +75.00 % against {path}" in " ".join(said.split())
    path.write_text(json.dumps({"facts": facts | {"input_size": [425, 560]}, "tasks": tasks}))
    main(["test", *tested, "--name=other_size", f"--results.baselines={tmp_path}"])
    assert "entry.json, differ in input_size ([425, 560] there, [0, 0] here)" in capsys.readouterr().out
    assert "delta_m" not in record("other_size")


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
