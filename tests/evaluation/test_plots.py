"""Plots show what the files of a run say: values are read back from the axes."""

import csv
import json
import struct
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

import taskformer
from taskformer.cli import main
from taskformer.errors import ConfigError, UnknownNameError
from taskformer.evaluation.details import DETAILS
from taskformer.evaluation.plots import PLOTS, Kind
from taskformer.evaluation.plots.classes import draw_classes, draw_confusion
from taskformer.evaluation.plots.curves import draw_curves
from taskformer.evaluation.plots.errors import draw_angles, draw_precision_recall, draw_ranges
from taskformer.evaluation.plots.sources import CURVES, read_runs

CLASSES = ["wall", "floor", "chair", "unicorn"]
SEMSEG = {
    "headline": "mIoU", "unit": "%", "classes": CLASSES,
    "confusion": [[6, 2, 0, 0], [0, 9, 0, 0], [3, 0, 1, 0], [0, 0, 0, 0]],
}  # fmt: skip
DEPTH = {
    "headline": "rmse", "unit": "m", "ranges": [0.0, 2.0, 4.0],
    "pixels": [4, 0, 1], "squared": [16.0, 0.0, 9.0], "absolute": [6.0, 0.0, 3.0],
}  # fmt: skip
NORMALS = {"headline": "mean_angle", "unit": "deg", "angles": [30, 60, *[0] * 58, 10, *[0] * 119]}
EDGES = {
    "headline": "f_tolerant", "unit": "%", "thresholds": [0.2, 0.5, 0.9], "beta_squared": 1.0,
    "recall": [0.9, 0.6, 0.0], "precision": [0.3, 0.6, 0.0], "best": [0.6, 0.6],
}  # fmt: skip
DETAILS_OF_ALL = {"semseg": SEMSEG, "depth": DEPTH, "normals": NORMALS, "edges": EDGES, "heat": {"headline": "mae"}}


def write_run(folder, rows=(), details=None, metrics=None):
    """Write the files of a run folder that plots are drawn from."""
    if rows:
        path = folder / CURVES
        path.parent.mkdir(parents=True)
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, sorted({key for row in rows for key in row}))
            writer.writeheader()
            writer.writerows(rows)
    folder.mkdir(exist_ok=True, parents=True)
    for name, content in ((DETAILS, details), ("metrics.json", metrics)):
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    return folder


ROWS = [
    {"step": 0, "lr": 0.1, "lr/x0.3": 0.03},
    {"step": 9, "train/loss": 5.0, "epoch": 0},
    {"step": 9, "train/loss/depth": 2.0, "train/weight/depth": 0.7, "epoch": 0},
    {"step": 9, "val/loss": 4.0, "val/loss/depth": 1.5, "val/depth/rmse": 0.8, "val/depth/delta1": 0.9, "epoch": 0},
    {"step": 9, "val_smallest/depth/rmse": 0.95, "val/delta_m": -3.0, "epoch": 0},
    {"step": 19, "train/loss": 3.0, "val/loss": 3.5, "val/depth/rmse": 0.6, "val/delta_m": "nan", "epoch": 1},
]
RECORD = {"tasks": {"depth": {"rmse": 0.6, "delta1": 0.9}}}
METRICS = {"val": {**RECORD, "headline": {"depth": "delta1"}, "units": {"depth": {"delta1": "%"}}}}


def lines(axes):
    """What the axes' lines show, by their labels."""
    return {line.get_label(): np.transpose(line.get_data()).tolist() for line in axes.lines}


def panels(figure):
    return {axes.get_title(): axes for axes in figure.axes}


def test_curves_show_what_was_logged(tmp_path):
    figure = draw_curves(read_runs([write_run(tmp_path / "a", ROWS)]))
    found = {title: lines(axes) for title, axes in panels(figure).items()}
    assert found == {
        "loss": {"train/loss": [[9, 5], [19, 3]], "val/loss": [[9, 4], [19, 3.5]]},
        "delta_m, %": {"val/delta_m": [[9, -3]]},
        "learning rate": {"lr": [[0, 0.1]], "lr/x0.3": [[0, 0.03]]},
        "depth loss": {"train/loss/depth": [[9, 2]], "val/loss/depth": [[9, 1.5]]},
        "depth weight": {"train/weight/depth": [[9, 0.7]]},
    }
    rates = panels(figure)["learning rate"].lines
    assert len({line.get_linestyle() for line in rates}) == 2


def test_curves_of_metrics_are_those_of_the_headline_in_its_unit(tmp_path):
    figure = draw_curves(read_runs([write_run(tmp_path / "a", ROWS, metrics=METRICS)]))
    assert lines(panels(figure)["depth delta1, %"]) == {"val/depth/delta1": [[9, 90]]}
    # Runs of earlier versions name no headline; it comes first.
    figure = draw_curves(read_runs([write_run(tmp_path / "b", ROWS, metrics={"val": RECORD})]))
    found = panels(figure)["depth rmse"].lines
    assert [line.get_label() for line in found] == ["val/depth/rmse", "val_smallest/depth/rmse"]
    assert len({line.get_linestyle() for line in found}) == 2


def test_runs_on_one_axis_have_colours_and_a_legend(tmp_path):
    runs = read_runs([write_run(tmp_path / name, ROWS, metrics=METRICS) for name in "ab"])
    figure = draw_curves(runs)
    a, b = (line for line in panels(figure)["loss"].lines if line.get_label() == "val/loss")
    assert a.get_color() != b.get_color()
    assert a.get_marker() != b.get_marker()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "training", "validation"]
    colors = [handle.get_color() for handle in legend.legend_handles[:2]]
    assert colors == [a.get_color(), b.get_color()]


def test_many_points_become_a_running_mean(tmp_path):
    rows = [{"step": step, "train/loss": 5 + (-1) ** step} for step in range(400)]
    figure = draw_curves(read_runs([write_run(tmp_path / "a", rows)]))
    steps, values = panels(figure)["loss"].lines[0].get_data()
    assert np.ptp(steps) > 380
    assert np.abs(values - 5).max() < 0.1


def test_a_row_that_was_cut_is_left_out(tmp_path):
    folder = write_run(tmp_path / "a", ROWS)
    with (folder / CURVES).open("a") as stream:
        stream.write("1,0.1,0.0")
    (run,) = read_runs([folder])
    assert run.curves["lr"][0].tolist() == [0]


def test_class_bars_are_ious_in_percent_the_best_on_top():
    axes = draw_classes("semseg", {"a": SEMSEG}).axes[0]
    widths = [bar.get_width() for bar in axes.patches]
    # wall: 6 of 6 + 2 + 3; floor: 9 of 9 + 2; chair: 1 of 1 + 3.
    assert [label.get_text() for label in axes.get_yticklabels()] == ["floor", "wall", "chair"]
    assert widths == pytest.approx([100 * 9 / 11, 100 * 6 / 11, 25])
    assert "unicorn" in axes.get_xlabel()
    assert axes.yaxis_inverted()


def test_classes_of_several_runs_are_points(tmp_path):
    better = {**SEMSEG, "confusion": [[8, 0, 0, 0], [0, 9, 0, 0], [0, 0, 4, 0], [0, 0, 0, 0]]}
    axes = draw_classes("semseg", {"a": SEMSEG, "b": better}).axes[0]
    first, second = axes.collections[1:]
    assert first.get_offsets()[:, 0].tolist() == pytest.approx([100 * 9 / 11, 100 * 6 / 11, 25])
    assert second.get_offsets()[:, 0].tolist() == pytest.approx([100, 100, 100])
    with pytest.raises(ConfigError, match="semseg has other classes in b than in a; plot the runs one by one"):
        draw_classes("semseg", {"a": SEMSEG, "b": {**SEMSEG, "classes": ["x", "y", "z", "w"]}})


def test_the_confusion_matrix_is_in_percent_of_the_true_class():
    figure = draw_confusion("semseg", {"a": SEMSEG, "b": SEMSEG})
    assert [axes.get_title().split(":")[0] for axes in figure.axes] == ["semseg, a", "semseg, b"]
    shares = figure.axes[0].images[0].get_array()
    assert shares[0].tolist() == [75, 25, 0, 0]
    assert shares[2].tolist() == [75, 0, 25, 0]
    assert shares[3].mask.all()  # a class without a label
    assert [text.get_text() for text in figure.axes[0].texts] == ["75", "25", "100", "75", "25"]


def test_errors_are_drawn_in_the_middle_of_their_range():
    errors, pixels = draw_ranges("depth", {"a": DEPTH}).axes
    found = lines(errors)
    assert found["RMSE"][0] == [1, 2]
    assert found["mean error"][0] == [1, 1.5]
    assert np.isnan(found["RMSE"][1][1])
    assert found["RMSE"][2] == [5, 3]
    assert pixels.lines[0].get_data()[1].tolist() == pytest.approx([80, 0, 20])
    assert pixels.get_xlabel() == "true depth, m; the last point is all from 4"
    assert errors.get_ylabel() == "error, m"
    errors, pixels = draw_ranges("depth", {"a": DEPTH, "b": {**DEPTH, "squared": [4.0, 0.0, 4.0]}}).axes
    assert {name: points[0] for name, points in lines(errors).items()} == {"a": [1, 2], "b": [1, 1]}
    assert errors.get_ylabel() == "RMSE, m"


def test_angles_are_shares_of_the_pixels_single_and_added_up():
    single, total = draw_angles("normals", {"a": NORMALS}).axes
    assert single.patches[0].get_data().values[:3].tolist() == pytest.approx([30, 60, 0])
    below = dict(total.lines[0].get_xydata().tolist())
    assert [below[angle] for angle in (0, 1, 2, 60, 61)] == pytest.approx([0, 30, 90, 90, 100])
    assert {line.get_xdata()[0] for line in total.lines[1:]} == {11.25, 22.5, 30.0}


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_precision_and_recall_with_the_best_point(weight):
    axes = draw_precision_recall("edges", {"a": {**EDGES, "beta_squared": weight}}).axes[0]
    *orientation, curve, best = axes.lines
    assert np.transpose(curve.get_data()).tolist() == [[90, 30], [60, 60]]  # without the point of no prediction
    assert np.transpose(best.get_data()).tolist() == [[60, 60]]
    assert best.get_label() == "a: best F 60.00 %"
    for line, level in zip(orientation, (0.2, 0.4, 0.6, 0.8), strict=True):
        recall, precision = np.array(line.get_data()) / 100
        assert precision[0] == pytest.approx(1)
        f = (1 + weight) * precision * recall / (weight * precision + recall)
        assert f == pytest.approx(np.full(100, level))


def test_every_plot_of_a_run_lands_in_its_folder(tmp_path):
    run = write_run(tmp_path / "runs" / "a", ROWS, DETAILS_OF_ALL, METRICS)
    paths = taskformer.plot([run])
    names = ["semseg_classes", "semseg_confusion", "depth_ranges", "normals_angles", "edges_precision_recall"]
    assert [str(path.relative_to(run)) for path in paths] == ["curves.png", *(f"plots/{name}.png" for name in names)]
    for path in paths:
        width, _ = struct.unpack(">II", path.read_bytes()[16:24])
        assert width == 1600, path


@pytest.mark.parametrize("what", ["curves,ranges", "[curves, ranges]"])
def test_the_command_draws_several_runs_as_svg(what, tmp_path, capsys):
    runs = [write_run(tmp_path / name, ROWS, DETAILS_OF_ALL, METRICS) for name in ("first", "second")]
    main(["plot", *map(str, runs), f"--what={what}", f"--out={tmp_path}/out", "--format=svg"])
    paths = [tmp_path / "out" / name for name in ("curves.svg", "depth_ranges.svg")]
    assert capsys.readouterr().out.split() == [str(path) for path in paths]
    assert all("<svg" in path.read_text()[:1000] for path in paths)
    assert not (runs[0] / "plots").exists()


def test_several_runs_go_to_a_folder_of_their_own_and_are_called_by_their_paths_if_need_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [write_run(tmp_path / name / "run", details={"depth": DEPTH}) for name in "ab"]
    assert [str(path) for path in taskformer.plot(runs)] == ["plots/depth_ranges.png"]
    assert [run.name for run in read_runs(runs)] == [str(run) for run in runs]


def test_mistakes_are_one_sentence(tmp_path, capsys):
    run = write_run(tmp_path / "a", details={"depth": DEPTH})
    with pytest.raises(UnknownNameError, match=r"unknown plot 'curve' \(did you mean 'curves'\?\)"):
        taskformer.plot([run], what=["curve"])
    with pytest.raises(ConfigError, match="no run has what the plot 'curves' shows; `taskformer fit` leaves it"):
        taskformer.plot([run], what=["curves"])
    with pytest.raises(ConfigError, match=r"the run '.*' does not exist; `taskformer fit` writes the first"):
        taskformer.plot([tmp_path / "nothing"])
    with pytest.raises(ConfigError, match=r"has neither logs/fit/metrics\.csv nor details\.json"):
        taskformer.plot([tmp_path])
    for name in (DETAILS, "metrics.json"):
        broken = write_run(tmp_path / f"broken_{name}", details={"depth": DEPTH})
        (broken / name).write_text("{")
        with pytest.raises(ConfigError, match="writes it again"):
            taskformer.plot([broken])
    with pytest.raises(SystemExit):
        main(["plot", str(run), "--format=gif"])
    assert "png" in capsys.readouterr().err


def test_all_plots_are_named_in_the_guide():
    guide = (Path(__file__).parents[2] / "docs" / "plots.md").read_text()
    assert all(f"`{name}`" in guide for name in PLOTS)
    assert tuple(PLOTS) == get_args(Kind)
