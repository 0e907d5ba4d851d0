"""``taskformer benchmark``: what is measured, with what changed, and what is refused."""

import json
from pathlib import Path

import pytest

from taskformer.cli import main
from taskformer.commands.benchmark import _take_overrides

ROOT = Path(__file__).parent.parent.parent
MODEL, DATA = (str(ROOT / "configs" / name) for name in ("model/baseline.yaml", "data/rooms.yaml"))
RUN = str(ROOT / "tests" / "earlier" / "run")
QUICK = ["--rounds=1", "--batch=1", "--train=false", "--model.backbone=lcnet_050"]


def record(tmp_path, *words):
    main(["benchmark", *words, f"--json={tmp_path}/found.json"])
    return json.loads((tmp_path / "found.json").read_text())


def test_flags_of_configurations_are_told_from_others():
    words = ["a", "--model.x", "-1", "--batch", "2", "--against", "b", "--against.data.y=[z]", "--data=Rooms"]
    assert _take_overrides(words) == (
        ["a", "--batch", "2", "--against", "b"],
        ["--model.x=-1", "--data=Rooms"],
        ["--data.y=[z]"],
    )


def test_configurations_are_measured_at_the_size_of_their_training(tmp_path, capsys):
    found = record(tmp_path, MODEL, "--config", DATA, *QUICK, "--data.tasks=[depth]", f"--out={tmp_path}/out")
    (subject,) = found["subjects"]
    assert subject["size"] == [128, 160]
    assert list(subject["tasks"]) == ["depth"]
    assert list(subject["calls"]) == ["inference, batch 1"]
    assert subject["name"] == "baseline + rooms --model.backbone=lcnet_050 --data.tasks=[depth]"
    assert found["ratios"] == {}
    assert found["conditions"]["rounds"] == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "benchmark.json",
        "benchmark.md",
        "benchmark.png",
    ]
    said = capsys.readouterr().out
    assert "--data.tasks=[depth]" in " ".join(said.split())
    assert "…" not in said  # nothing is cut off, in 80 columns


def test_one_setting_is_compared_with_another(tmp_path, capsys):
    found = record(tmp_path, MODEL, DATA, *QUICK, "--size", "32", "48", "--against.model.embed_dim=8", "--rounds=2")
    ours, other = found["subjects"]
    assert other["name"] == "--model.embed_dim=8"
    assert ours["size"] == other["size"] == [32, 48]
    assert ours["cost"]["backbone"] == other["cost"]["backbone"]
    assert ours["cost"]["head"]["params"] > other["cost"]["head"]["params"]
    (ratios,) = found["ratios"].values()
    rounds = [subject["calls"]["inference, batch 1"]["rounds"] for subject in (ours, other)]
    paired = sorted(one["wall"] / two["wall"] for one, two in zip(*rounds, strict=True))
    assert ratios["seconds"]["median"] == pytest.approx(sum(paired) / 2)
    assert "…" not in capsys.readouterr().out


def test_another_model_has_the_first_one_s_data_and_a_run_is_itself(tmp_path):
    flags = ["--rounds=1", "--batch=1", "--train=false"]
    found = record(tmp_path, RUN, "--against", MODEL, "--against.model.backbone=lcnet_050", *flags)
    run, other = found["subjects"]
    assert run["name"] == RUN
    assert list(run["tasks"]) == list(other["tasks"]) == ["depth", "edges"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "what is to be measured? Give a run folder, a checkpoint or configurations"),
        ([MODEL], "baseline.yaml name no data; add a YAML file"),
        ([DATA], "rooms.yaml name no model; add a YAML file"),
        ([RUN, "--model.embed_dim=3"], "is taken as it is, without --model.embed_dim=3; only YAML configurations"),
        ([RUN, RUN], "is taken as it is, without"),
        (["nowhere"], "no checkpoint at 'nowhere'"),
        ([RUN, "--batch=0"], "batch"),
        ([RUN, "--size", "3"], "expected 2 arguments"),
        ([RUN, "--device=cuda:77"], "77"),
        ([MODEL, DATA, "--model.embed_dimm=3"], "embed_dimm"),
    ],
)
def test_mistakes_are_one_sentence(words, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["benchmark", *words])
    assert stopped.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in said
