"""``taskformer.compare``: what is one row, what may stand in one table, what tables and files say."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

import taskformer
from taskformer.errors import ConfigError
from taskformer.evaluation import compare

FACTS = {"data": "rooms", "split": "test", "images": 9, "eval_transforms": [], "initialisation": "random"}
RECORD = {
    "protocol": "standard",
    "better": {"semseg": {"mIoU": "higher"}, "depth": {"rmse": "lower", "mae": "lower"}},
    "headline": {"semseg": "mIoU", "depth": "rmse"},
    "units": {"semseg": {"mIoU": "%"}, "depth": {"rmse": "m", "mae": "m"}},
    "channels": {"semseg": 16, "depth": 1},
}


def write_run(folder, rmse=1.0, images=None, split="test", seed=0, model="MQTransformer", facts=None, **record):
    """Write a run folder with a segmentation and the depth errors of each image, if there are any."""
    folder.mkdir(parents=True)
    found = {**RECORD, "tasks": {"semseg": {"mIoU": 0.4567}, "depth": {"mae": 0.5, "rmse": rmse}}, **record}
    found["facts"] = {**FACTS, "split": split, **(facts or {})}
    if images is not None:
        rows = [f"i{index},depth,rmse,{value}" for index, value in enumerate(images)]
        (folder / "per_image.csv").write_text("\n".join(["id,task,metric,value", *rows]) + "\n")
        found["per_image"] = "per_image.csv"
    (folder / "metrics.json").write_text(json.dumps({split: found}))
    data = {"class_path": "RoomsDataModule", "init_args": {"root": str(folder), "batch_size": 4}}
    config = {"seed_everything": seed, "model": {"class_path": model}, "data": data}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return str(folder)


def lines(found):
    """The table of results, each cell without its padding."""
    return [dict(zip(found.header(), row, strict=True)) for row in found.rows()]


def test_every_run_is_compared_with_the_first(tmp_path):
    more = {"x": 0, "y": -0.5, "z": 2}
    runs = [write_run(tmp_path / name, images=np.arange(9) + value, model=name) for name, value in more.items()]
    found = compare(runs, resamples=50)
    assert found.runs == dict(zip("ABC", runs, strict=True))
    assert [(row.other, row.difference, row.better) for row in found.differences] == [("B", -0.5, "B"), ("C", 2, "A")]
    assert found.as_dict()["c"] == runs[2]
    assert [{*row} & {*"abc"} for row in found.as_dict()["rows"]] == [{"a", "b"}, {"a", "c"}]
    assert [column.header.plain for column in found.tables()[1].columns][:2] == ["run", "task"]
    (third,) = compare([runs[0], runs[2]], resamples=50).differences
    assert (third.other, third.difference, third.low, third.high) == ("B", 2, 2, 2)


def test_what_a_run_says_is_shown_in_the_units_of_results(tmp_path):
    a = write_run(tmp_path / "a", parameters=4_560_000, macs=1_230_000_000, delta_m=1.234, baselines="x.json")
    b = write_run(tmp_path / "b", rmse=0.98765, model="Baseline")
    found = compare([a, b])
    assert lines(found) == [
        {"": "A", "run": a, "semseg mIoU, %": "45.67", "depth rmse, m": "1", "delta_m, %": "+1.23",
         "parameters, M": "4.56", "MACs, G": "1.23", "initialisation": "random"},
        {"": "B", "run": b, "semseg mIoU, %": "45.67", "depth rmse, m": "0.9877", "delta_m, %": "-",
         "parameters, M": "-", "MACs, G": "-", "initialisation": "random"},
    ]  # fmt: skip
    assert found.title == "rooms, test (9 images), protocol standard"
    header, rows = found.task_lines("depth")
    assert (header[2:], rows[1][2:]) == (["rmse, m", "mae, m"], ["0.9877", "0.5"])  # the headline first
    assert [table.title.plain for table in found.tables("all")] == [found.title, "semseg", "depth"]


def test_twenty_eight_runs_have_letters(tmp_path):
    runs = [write_run(tmp_path / str(number), seed=number, model=str(number)) for number in range(28)]
    assert list(compare(runs).runs)[24:] == ["Y", "Z", "AA", "AB"]


def test_runs_that_differ_in_their_seed_alone_are_one_row(tmp_path):
    values = {"mqt-0": 1.0, "mqt-1": 1.1, "mqt-2": 1.2, "base-0": 0.3, "base-1": 0.32}
    for seed, (name, rmse) in enumerate(values.items()):
        images = np.linspace(0, 1, 9) + rmse
        write_run(tmp_path / name, rmse, images, seed=seed, model=name.split("-")[0])
    found = compare([f"{tmp_path}/mqt-*", f"{tmp_path}/base-*"], resamples=100)
    assert found.runs == {"A": f"{tmp_path}/mqt-*", "B": f"{tmp_path}/base-*"}
    first, second = lines(found)
    assert (first["seeds"], second["seeds"]) == ("3", "2")
    assert first["depth rmse, m"] == "1.1 ± 0.1"
    assert second["depth rmse, m"] == "0.31 ± 0.014"
    depth = next(row for row in found.differences if (row.task, row.metric) == ("depth", "rmse"))
    # Over images the seeds' means differ by the same everywhere, over seeds by Welch's interval.
    assert (depth.images, depth.difference, depth.better) == (9, pytest.approx(-0.79), "B")
    assert depth.over_seeds.difference == pytest.approx(-0.79)
    assert depth.low == pytest.approx(depth.high)
    assert depth.over_seeds.low < -0.9 < -0.7 < depth.over_seeds.high < 0
    assert found.as_dict()["columns"]["a"]["scores"]["depth"]["rmse"] == pytest.approx(
        {"mean": 1.1, "spread": 0.1, "seeds": 3}
    )
    assert found.as_dict()["columns"]["b"]["seeds"] == [3, 4]


def test_a_difference_that_seeds_do_not_confirm_has_no_winner(tmp_path):
    for name, rmse in {"a0": 1.0, "a1": 3.0, "b0": 2.2, "b1": 4.2}.items():
        write_run(tmp_path / name, rmse, np.full(9, rmse), seed=int(name[1]), model=name[0])
    found = compare([f"{tmp_path}/a*", f"{tmp_path}/b*"], resamples=100)
    depth = next(row for row in found.differences if row.task == "depth")
    assert depth.low == pytest.approx(1.2)
    assert depth.over_seeds.low < 0 < depth.over_seeds.high
    assert depth.better == ""


def test_seeds_without_scores_of_images_are_compared_by_their_spread(tmp_path):
    for name, rmse in {"a0": 1.0, "a1": 1.01, "b0": 0.5, "b1": 0.51}.items():
        write_run(tmp_path / name, rmse, seed=int(name[1]), model=name[0])
    found = compare([f"{tmp_path}/a*", f"{tmp_path}/b*"])
    depth = next(row for row in found.differences if row.metric == "rmse")
    assert (depth.images, depth.first, depth.second, depth.better) == (0, 1.005, 0.505, "B")
    assert any(note.startswith("No intervals over images: A, B kept no scores") for note in found.notes)
    row = dict(zip(found.difference_header(), found.difference_rows()[1], strict=True))
    assert row.keys().isdisjoint(["images", "95 % interval"])
    assert row["better"] == "B"
    assert row["B - A over seeds"].startswith("-0.5000 (")


@pytest.mark.parametrize("change", [{"seed": 0}, {"facts": {"training": {"steps": 9}}}, {"model": "Baseline"}])
def test_what_is_of_one_seed_or_differs_in_more_stays_apart(tmp_path, change):
    a = write_run(tmp_path / "a", seed=0)
    b = write_run(tmp_path / "b", **{"seed": 1, **change})
    c = write_run(tmp_path / "c", model="other")
    assert len(compare([a, b, c]).runs) == 3


def test_seeds_alone_are_compared_with_each_other_and_summed_up(tmp_path):
    runs = [write_run(tmp_path / str(seed), 1 + seed, seed=seed) for seed in range(2)]
    found = compare(runs)
    assert list(found.runs.values()) == runs
    assert any(
        "over the seeds, semseg mIoU, %: 45.67 ± 0.00; depth rmse, m: 1.5 ± 0.71" in note for note in found.notes
    )


@pytest.mark.parametrize(
    ("fact", "values"),
    [
        ("data", ("rooms", "nyud")),
        ("images", (9, 8)),
        ("eval_transforms", ([], ["Resize(height=64)"])),
    ],
)
def test_what_may_not_be_mixed_is_refused_and_the_fact_named(tmp_path, fact, values):
    runs = [write_run(tmp_path / name, facts={fact: value}) for name, value in zip("ab", values, strict=True)]
    with pytest.raises(ConfigError) as error:
        compare(runs)
    said = str(error.value)
    assert all(str(value) in said for value in values)
    assert fact in said
    assert "\n" not in said


def test_other_protocols_and_classes_are_refused(tmp_path):
    a = write_run(tmp_path / "a")
    b = write_run(tmp_path / "b", protocol="invpt")
    c = write_run(tmp_path / "c", channels={"semseg": 40, "depth": 1})
    with pytest.raises(ConfigError, match=r"a was scored by the protocol standard and .*b scored by the protocol inv"):
        compare([a, b])
    with pytest.raises(ConfigError, match=r"semseg has 16 channels in .*a and 40 in .*c"):
        compare([a, c])


def test_what_a_reader_must_know_is_said(tmp_path):
    training = {"steps": 330, "precision": "32-true"}
    a = write_run(tmp_path / "a", facts={"training": training, "input_size": [128, 160]}, delta_m=1, baselines="x.json")
    changed = {"training": {**training, "steps": 660}, "initialisation": "imagenet1k", "input_size": [64, 80]}
    b = write_run(tmp_path / "b", facts=changed, delta_m=2, baselines="y.json")
    c = write_run(tmp_path / "c", facts={"eval_transforms": None, "training": training, "input_size": [128, 160]})
    notes = "\n".join(compare([a, b, c]).notes)
    assert "different weights (A: random, B: imagenet1k, C: random)" in notes
    assert "input_size (A: [128, 160], B: [64, 80], C: [128, 160])" in notes
    assert "training.steps (A: 330, B: 660, C: 330)" in notes
    assert "precision" not in notes
    assert "delta_m is against different single-task results (A: x.json, B: y.json)" in notes
    assert "Not known, and so not checked to be the same: C: eval_transforms" in notes


def test_validations_are_compared_where_nothing_was_tested(tmp_path):
    runs = [write_run(tmp_path / name, split="val", model=name, epoch=5) for name in "ab"]
    found = compare(runs)
    assert found.as_dict()["split"] == "val"
    assert any(note.startswith("A, B: the last validation of the training") for note in found.notes)
    tested = write_run(tmp_path / "c")
    with pytest.raises(ConfigError, match=r"c was tested and .*a was not"):
        compare([tested, runs[0]])
    with pytest.raises(ConfigError, match=r"c has no val results; get them with `taskformer validate .*c`"):
        compare([tested, runs[0]], split="val")


def test_a_sweep_is_its_finished_runs_named_after_what_differs(tmp_path):
    sweep = tmp_path / "sweep"
    trials = []
    for number, (model, seed) in enumerate([("mqtransformer", 0), ("mqtransformer", 1), ("baseline", 0), ("x", 0)]):
        folder = sweep / f"{number:04}"
        write_run(folder, 1 + number, split="val", seed=seed, model=model)
        settings = {"config": f"configs/model/{model}.yaml", "trainer.max_epochs": 1, "seed_everything": seed}
        state = "running" if model == "x" else "finished"
        trials.append({"run": f"elsewhere/sweep/{number:04}", "settings": settings, "state": state, "value": 1.0})
    (sweep / "trials.json").write_text(json.dumps(trials))
    found = compare([sweep])
    assert found.runs == {"A": "mqtransformer", "B": "baseline"}
    assert lines(found)[0]["depth rmse, m"] == "1.5 ± 0.71"
    assert found.as_dict()["columns"]["b"]["runs"] == [str(sweep / "0002")]
    assert f"1 of 4 runs of {sweep} are not finished and left out." in found.notes
    (sweep / "trials.json").write_text("[{}]")
    with pytest.raises(ConfigError, match=r"trials.json is no list of a sweep's runs"):
        compare([sweep])


def test_a_run_of_wandb_is_read_from_its_summary(tmp_path, monkeypatch):
    import wandb

    config = {"model.class_path": "taskformer.modules.Baseline", "data.class_path": "taskformer.data.RoomsDataModule",
              "model.init_args.weights": "random", "results.protocol": "standard", "seed_everything": 3,
              "parameters": 5_000_000, "macs": 2_000_000_000}  # fmt: skip
    summary = {"test/semseg/mIoU": 0.5, "test/depth/rmse": 0.9, "epoch": 4}
    summary |= {"val/depth/rmse": {"min": 0.8}, "val/delta_m": {"max": 2.5}}
    asked = []

    class Api:
        """Stands in for wandb's, which needs an account."""

        def run(self, path):
            asked.append(path)
            if path.endswith("gone"):
                message = "could not find\nthe run"
                raise wandb.errors.CommError(message)
            return SimpleNamespace(config=config, summary=summary)

    monkeypatch.setattr(wandb, "Api", Api)
    here = write_run(tmp_path / "here")
    found = compare([here, "wandb:me/rooms/1a2b"])
    assert asked == ["me/rooms/1a2b"]
    row = lines(found)[1]
    assert (row["semseg mIoU, %"], row["depth rmse, m"], row["parameters, M"]) == ("50.00", "0.9", "5.00")
    assert row["initialisation"] == "random"
    assert any("not checked to be the same: B: eval_transforms, images" in note for note in found.notes)
    best = compare(["wandb:me/rooms/1a2b", "wandb:me/rooms/3c4d"], split="val")
    assert (lines(best)[0]["depth rmse, m"], lines(best)[0]["delta_m, %"]) == ("0.8", "+2.50")
    assert any("A, B: the best value of each metric" in note for note in best.notes)
    nyud = write_run(tmp_path / "nyud", facts={"data": "nyud"})
    with pytest.raises(ConfigError, match="tested on the data nyud and wandb:me/rooms/1a2b tested on the data rooms"):
        compare([nyud, "wandb:me/rooms/1a2b"])
    with pytest.raises(ConfigError, match="gone cannot be read: could not find the run; log in with"):
        compare([here, "wandb:me/rooms/gone"])
    with pytest.raises(ConfigError, match="'wandb:rooms' is no run of wandb"):
        compare([here, "wandb:rooms"])


def test_files_hold_what_was_found(tmp_path):
    a = write_run(tmp_path / "a_1", images=[1.0, 2.0, 3.0], parameters=1_000_000)
    b = write_run(tmp_path / "b_2", images=[1.5, 2.5, 3.5], model="Baseline")
    found = compare([a, b], resamples=50, out=tmp_path / "out")
    text = (tmp_path / "out" / "compare.md").read_text()
    assert f"| A | {a} | 45.67 | 1 | 1.00 | random |" in text
    assert "| depth | rmse, m | 3 | 2 | 2.5 | +0.5000 | +0.5000 to +0.5000 | A |" in text
    tex = (tmp_path / "out" / "compare.tex").read_text().splitlines()
    assert tex[0] == r"\begin{tabular}{llllll}"
    assert r"b\_2 & 45.67 & 1 & - & random \\" in tex[3]
    with (tmp_path / "out" / "compare.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {(row["run"], row["task"], row["metric"], float(row["value"])) for row in rows} >= {
        (a, "semseg", "mIoU", 0.4567),
        (a, "", "parameters", 1e6),
        (b, "depth", "mae", 0.5),
    }
    assert found.as_dict()["rows"][0]["low"] == pytest.approx(0.5)


def test_parameters_that_train_have_a_column_where_somebody_has_counted_them(tmp_path):
    adapted = write_run(tmp_path / "a", parameters=1_000_000, trained_parameters=250_000)
    whole = write_run(tmp_path / "b", model="Baseline", parameters=2_000_000)
    found = lines(compare([adapted, whole]))
    assert [row["trained, M"] for row in found] == ["0.25", "-"]
    assert "trained, M" not in lines(compare([whole]))[0]


def test_networks_are_timed_in_turns(tmp_path, monkeypatch):
    from taskformer.evaluation.comparison import latency

    model = taskformer.create_model("baseline", ["depth"], backbone="lcnet_050", embed_dim=8)
    opened = []
    monkeypatch.setattr(latency.Subject, "open", _opening(latency.Subject.open, model, opened))
    monkeypatch.setattr(latency, "ROUNDS", 2)
    runs = [write_run(tmp_path / name, model=name, image_size=[32, 48]) for name in "ab"]
    found = compare(runs, latency=True)
    assert [(str(folder), size) for folder, size in opened] == [(run, (32, 48)) for run in runs]
    assert all(spread.low > 0 for spread in found.latency.values())
    assert float(lines(found)[1]["latency, ms"]) == pytest.approx(found.latency["B"].median * 1000, abs=0.06)


def _opening(real, model, opened):
    """Open a model in place of each folder, and note what was to be opened."""

    def opening(folder, name, size, device):
        opened.append((folder, size))
        return real(model, name, size, device)

    return opening


@pytest.mark.parametrize("options", [{"resamples": 0}, {"seed": -1}])
def test_impossible_settings_are_refused(options, tmp_path):
    with pytest.raises(ConfigError, match=f"{next(iter(options))} must be in"):
        compare([tmp_path, tmp_path], **options)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("nowhere", "nowhere does not exist; give run folders"),
        ("empty", "empty has no results; get them with `taskformer test empty`"),
        ("no*", r"there is no folder no\*; give run folders"),
    ],
)
def test_what_is_no_run_is_one_sentence(tmp_path, monkeypatch, word, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=message):
        compare([word])
    with pytest.raises(ConfigError, match="there are no runs to compare"):
        compare([])
