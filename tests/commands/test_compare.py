"""``taskformer compare``: paired bootstrap of two runs' images."""

import json

import numpy as np
import pytest

from taskformer.cli import main

BETTER = {"semseg": {"mIoU": "higher"}, "depth": {"rmse": "lower"}, "edges": {"threshold": ""}}


def write_run(folder, values, protocol="standard", **facts):
    """A run folder with the values of each (task, metric), image by image."""
    folder.mkdir()
    record = {"protocol": protocol, "better": BETTER, "per_image": "per_image.csv", "facts": facts}
    (folder / "metrics.json").write_text(json.dumps({"test": record}))
    count = len(next(iter(values.values())))
    rows = [
        f"i{index},{task},{metric},{column[index]}"
        for index in range(count)
        for (task, metric), column in values.items()
    ]
    (folder / "per_image.csv").write_text("\n".join(["id,task,metric,value", *rows]) + "\n")
    return str(folder)


def rows(tmp_path, a, b, *flags):
    main(["compare", a, b, f"--json={tmp_path}/out.json", *flags])
    record = json.loads((tmp_path / "out.json").read_text())
    return {(row["task"], row["metric"]): row for row in record["rows"]}


def test_a_small_gain_on_every_image_shows_among_images_that_differ_much(tmp_path, capsys):
    rng = np.random.default_rng(0)
    score, error = rng.uniform(0, 1, 50), rng.uniform(0, 5, 50)
    keys = [(task, metric) for task, metrics in BETTER.items() for metric in metrics]
    a = write_run(tmp_path / "a", dict(zip(keys, [score, error, score], strict=True)))
    noise = rng.normal(0, 0.01, 50)
    b = write_run(tmp_path / "b", dict(zip(keys, [score + 0.02 + noise, error + 0.02 + noise, score + 1], strict=True)))
    found = rows(tmp_path, a, b, "--resamples=2000")
    assert [found[key]["better"] for key in keys] == ["B", "A", ""]  # a larger error is worse, a threshold neither
    row = found["semseg", "mIoU"]
    assert row["difference"] == pytest.approx(0.02 + noise.mean())
    assert row["low"] < row["difference"] < row["high"]
    assert (row["a"], row["images"]) == (pytest.approx(score.mean()), 50)
    said = capsys.readouterr().out
    assert "protocol standard" in " ".join(said.split())
    assert "…" not in said  # nothing is cut off, in 80 columns
    assert rows(tmp_path, a, b, "--resamples=2000") == found
    assert rows(tmp_path, a, b, "--resamples=2000", "--seed=1") != found


@pytest.mark.parametrize("labels", [("imagenet1k (timm)", "ade20k (upernet.pth)"), ("imagenet1k (timm)",) * 2])
def test_runs_that_began_from_different_weights_are_told_apart(tmp_path, capsys, labels):
    values = {("depth", "rmse"): [1.0, 2.0]}
    runs = [write_run(tmp_path / name, values, initialisation=label) for name, label in zip("ab", labels, strict=True)]
    rows(tmp_path, *runs)
    assert json.loads((tmp_path / "out.json").read_text())["initialisations"] == dict(zip("ab", labels, strict=True))
    said = " ".join(capsys.readouterr().out.split())
    warning = f"different weights (A: {labels[0]}, B: {labels[1]})"
    assert (warning in said) == (labels[0] != labels[1])


def test_noise_is_no_winner(tmp_path):
    rng = np.random.default_rng(3)
    values = [{("semseg", "mIoU"): rng.normal(0.5, 0.1, 40)} for _ in range(2)]
    found = rows(tmp_path, write_run(tmp_path / "a", values[0]), write_run(tmp_path / "b", values[1]))
    assert found["semseg", "mIoU"]["better"] == ""


def test_images_without_a_value_are_left_out(tmp_path):
    a = write_run(tmp_path / "a", {("depth", "rmse"): [1.0, np.nan, 3.0, 4.0]})
    b = write_run(tmp_path / "b", {("depth", "rmse"): [2.0, 9.0, 4.0, np.nan]})
    row = rows(tmp_path, a, b)["depth", "rmse"]
    assert (row["images"], row["a"], row["b"], row["difference"]) == (2, 2.0, 3.0, 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": "invpt"}, "was scored by the protocol standard and"),
        ({"count": 4}, "was tested on 3 images and"),
        ({"count": 1}, "was tested on 3 images and"),
        ({"rename": True}, "different images: number 2 is 'i1' and 'j1'"),
        ({"key": ("normals", "mean_angle")}, "have no task in common"),
        ({"bare": True}, "--results.per_image true"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(tmp_path, capsys, change, message):
    a = write_run(tmp_path / "a", {("depth", "rmse"): [1.0, 2.0, 3.0]})
    values = {change.get("key", ("depth", "rmse")): [1.0] * change.get("count", 3)}
    b = write_run(tmp_path / "b", values, change.get("protocol", "standard"))
    path = tmp_path / "b" / "per_image.csv"
    if change.get("rename"):
        path.write_text(path.read_text().replace("i1", "j1"))
    if change.get("bare"):
        path.unlink()
    with pytest.raises(SystemExit) as error:
        main(["compare", a, b])
    assert error.value.code == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert "\n" not in said


@pytest.mark.parametrize("option", ["--seed=-1", "--resamples=0"])
def test_impossible_numbers_are_one_sentence(option, capsys):
    with pytest.raises(SystemExit):
        main(["compare", "a", "b", option])
    said = capsys.readouterr().err.strip()
    assert "does not conform to restriction" in said
    assert "\n" not in said


def test_one_image_is_too_little(tmp_path, capsys):
    a, b = (write_run(tmp_path / name, {("depth", "rmse"): [1.0]}) for name in "ab")
    assert rows(tmp_path, a, b) == {}
    assert "at least 2 images" in capsys.readouterr().out


def test_a_metric_with_a_value_of_one_image_does_not_stop_the_others(tmp_path):
    values = {("depth", "rmse"): [1.0, 2.0, 3.0], ("semseg", "mIoU"): [0.5, np.nan, np.nan]}
    a, b = (write_run(tmp_path / name, values) for name in "ab")
    assert list(rows(tmp_path, a, b)) == [("depth", "rmse")]


def test_another_data_set_is_refused_though_its_images_have_the_same_names(tmp_path, capsys):
    a, b = (write_run(tmp_path / name, {("depth", "rmse"): [1.0, 2.0, 3.0]}) for name in "ab")
    for name, data in (("a", "rooms"), ("b", "nyud")):
        path = tmp_path / name / "metrics.json"
        record = json.loads(path.read_text())
        record["test"]["facts"] = {"data": data, "split": "test"}
        path.write_text(json.dumps(record))
    with pytest.raises(SystemExit):
        main(["compare", a, b])
    assert "was tested on the data rooms and" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["i3,depth,rmse", "i3,depth,rmse,x"])
def test_a_damaged_table_is_one_sentence(line, tmp_path, capsys):
    a = write_run(tmp_path / "a", {("depth", "rmse"): [1.0, 2.0, 3.0]})
    path = tmp_path / "a" / "per_image.csv"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(SystemExit):
        main(["compare", a, a])
    assert "has no scores of single images" in capsys.readouterr().err
