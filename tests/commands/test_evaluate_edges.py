"""``taskformer evaluate edges`` through the real entry point."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from taskformer.cli import main
from taskformer.evaluation import edges
from taskformer.evaluation.edge_files import read_probability
from taskformer.metrics import EdgeScores

BENCH = Path(__file__).parents[3] / "shared" / "data" / "bsds_bench"
needs_bench = pytest.mark.skipif(not BENCH.is_dir(), reason=f"the benchmark's five images are not in {BENCH}")


def lines(*columns, size=(24, 32)):
    image = np.zeros(size)
    for column, value in columns:
        image[:, column] = value
    return image


@pytest.fixture
def folders(tmp_path):
    """Predictions and true edges of two images; a match may be a pixel off with --max-dist 0.025."""
    pred, truth = tmp_path / "pred", tmp_path / "gt"
    pred.mkdir()
    truth.mkdir()
    for name, image, edge in (
        ("a", lines((10, 0.8), (20, 0.4)), lines((11, 255))),
        ("b", lines((5, 0.4)), lines((5, 255))),
    ):
        Image.fromarray((image * 255).astype(np.uint8)).save(pred / f"{name}.png")
        Image.fromarray(edge.astype(np.uint8)).save(truth / f"{name}.png")
    return pred, truth


def run(folders, out, *flags, thresholds="3", nms="false"):
    pred, truth = folders
    main([
        "evaluate", "edges", f"--pred={pred}", f"--gt={truth}", f"--thresholds={thresholds}", "--max-dist=0.025",
        f"--nms={nms}", f"--json={out}", "--workers=0", *flags,
    ])  # fmt: skip
    return json.loads(Path(out).read_text())


def fails(folders, tmp_path, capsys, *flags, **options):
    """Run a command that ends with a sentence, and return it."""
    with pytest.raises(SystemExit) as done:
        run(folders, tmp_path / "out.json", *flags, **options)
    assert done.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def counted(monkeypatch):
    """Names of the images that are scored from now on."""
    names = []
    count = edges.count_pair

    def spy(pair, settings):
        names.append(pair.name)
        return count(pair, settings)

    monkeypatch.setattr(edges, "count_pair", spy)
    return names


def test_the_report_by_hand(folders, tmp_path, capsys):
    report = run(folders, tmp_path / "out.json")
    # At .25: all 48 found, 72 predicted. At .5 and .75 only the 24 of image a, without a mistake.
    rows = [[row[key] for key in ("threshold", "found", "true", "right", "predicted")] for row in report["thresholds"]]
    assert rows == [[0.25, 48, 48, 48, 72], [0.5, 24, 48, 24, 24], [0.75, 24, 48, 24, 24]]
    assert [row["f"] for row in report["thresholds"]] == pytest.approx([0.8, 2 / 3, 2 / 3])
    # Between .25 and .5 recall falls from 1 to .5 as precision rises from 2/3 to 1: F has its best on that line,
    # R = 1 - s / 2, P = 2/3 + s / 3; of s = k / 99 the best is found by trying.
    s = np.arange(100) / 99
    best = (2 * (1 - s / 2) * (2 / 3 + s / 3) / (5 / 3 - s / 6)).max()
    assert report["ods"] == pytest.approx(best)
    assert report["ois"] == report["ois_recall"] == report["ois_precision"] == 1
    # On the grid of .01 from .5 to 1 precision falls linearly from 1 to 2/3.
    assert report["ap"] == pytest.approx(51 * (5 / 6) * 0.01)
    assert (report["scored"], report["expected"]) == (2, 2)
    assert report["images"]["a"]["threshold"] == 0.5
    assert report["images"]["b"]["f"] == 1
    assert report["images"]["b"]["predicted"] == [24, 0, 0]
    out = capsys.readouterr().out
    assert "2 images" in out
    assert f"{best:.4f}" in out


def test_the_files_score_what_the_metric_scores(folders, tmp_path):
    report = run(folders, tmp_path / "out.json", "--thin-truth", nms="true")
    metric = EdgeScores(0.025, [0.25, 0.5, 0.75], as_bytes=True)
    for name in "ab":
        pred, truth = (np.array(Image.open(folder / f"{name}.png")) for folder in folders)
        logits = torch.logit(torch.from_numpy((pred + 0.01).clip(max=255) / 255)).float()
        metric.update(logits[None, None], torch.from_numpy(truth / 255).float()[None, None])
    values = {name: float(value) for name, value in metric.compute().items()}
    assert 0 < values["odsF"] < 1
    assert [report[key] for key in ("ods", "ois", "ap", "ods_threshold")] == pytest.approx(list(values.values()))


def test_npy_mat_and_a_file_of_thresholds(folders, tmp_path):
    pred, truth = folders
    listed = tmp_path / "thresholds.txt"
    listed.write_text(".25\n.5\n.75\n")
    expected = run(folders, tmp_path / "png.json")
    for path in pred.glob("*.png"):
        np.save(path.with_suffix(".npy"), np.array(Image.open(path)).astype(np.float32) / 255)
        path.unlink()
    for path in truth.glob("*.png"):
        drawn = np.empty((1, 2), object)
        for place in range(2):
            drawn[0, place] = {"Boundaries": np.array(Image.open(path)) > 0, "Segmentation": np.ones((24, 32))}
        scipy.io.savemat(path.with_suffix(".mat"), {"groundTruth": drawn})
        path.unlink()
    report = run(folders, tmp_path / "npy.json", thresholds=listed)
    # Two annotators who agree: twice the true pixels, the same scores.
    assert [row["true"] for row in report["thresholds"]] == [96] * 3
    for key in ("ods", "ois", "ap", "ods_threshold"):
        assert report[key] == pytest.approx(expected[key])


def test_only_what_has_changed_is_scored_again(folders, tmp_path, monkeypatch):
    out = tmp_path / "out.json"
    first = run(folders, out)
    names = counted(monkeypatch)
    assert run(folders, out) == first
    assert names == []
    Image.fromarray(np.zeros((24, 32), np.uint8)).save(folders[0] / "b.png")
    os.utime(folders[0] / "b.png", (1, 1))
    assert run(folders, out)["images"]["b"]["found"] == [0, 0, 0]
    assert names == ["b"]
    run(folders, out, thresholds="4")
    assert names == ["b", "a", "b"]
    (folders[1] / "b.png").unlink()
    assert run(folders, out, thresholds="4")["scored"] == 1
    assert len(names) == 3


def test_images_before_a_broken_one_are_kept(folders, tmp_path, capsys, monkeypatch):
    (folders[0] / "b.png").write_bytes(b"rubbish")
    error = fails(folders, tmp_path, capsys)
    assert "1 of 2 images could not be scored" in error
    assert "b.png" in error
    report = json.loads((tmp_path / "out.json").read_text())
    assert list(report["images"]) == ["a"]
    assert (report["scored"], report["expected"]) == (1, 2)
    Image.fromarray(np.zeros((24, 32), np.uint8)).save(folders[0] / "b.png")
    names = counted(monkeypatch)
    run(folders, tmp_path / "out.json")
    assert names == ["b"]


def test_several_processes_score_the_same(folders, tmp_path, monkeypatch):
    alone = run(folders, tmp_path / "one.json")
    monkeypatch.setattr("taskformer.parallel.PATIENCE_S", -1.0)
    assert run(folders, tmp_path / "two.json", "--workers=2") == alone


def test_what_is_missing_is_named(folders, tmp_path, capsys):
    (folders[0] / "b.png").unlink()
    assert "lacks the predictions (ID.png or ID.npy) of 1 of 2 images: b" in fails(folders, tmp_path, capsys)
    assert "no true edges" in fails((folders[0], tmp_path / "nothing"), tmp_path, capsys)


@pytest.mark.parametrize("text", ["0", "none.txt", ".5"])
def test_impossible_thresholds_are_one_sentence(text, folders, tmp_path, capsys):
    assert f"--thresholds {text}" in fails(folders, tmp_path, capsys, thresholds=text)


def test_thresholds_must_increase(folders, tmp_path, capsys):
    listed = tmp_path / "thresholds.txt"
    listed.write_text(".5 .4")
    assert "increase within (0, 1]" in fails(folders, tmp_path, capsys, thresholds=listed)


def test_sizes_that_differ_are_named(folders, tmp_path, capsys):
    Image.fromarray(np.zeros((24, 31), np.uint8)).save(folders[0] / "a.png")
    error = fails(folders, tmp_path, capsys)
    assert "(24, 31)" in error
    assert "(24, 32)" in error


def test_probabilities_within_rounding_are_taken(folders, tmp_path):
    pred, _ = folders
    expected = run(folders, tmp_path / "png.json")
    for path in pred.glob("*.png"):
        values = np.array(Image.open(path)) / 255
        path.unlink()
        values[values == 0] = -1e-9
        np.save(path.with_suffix(".npy"), np.where(values > 0.7, 1.0000001, values))
    read = read_probability(pred / "a.npy")
    assert (read.min(), read.max()) == (0, 1)
    found = run(folders, tmp_path / "npy.json")
    assert [row["predicted"] for row in found["thresholds"]] == [row["predicted"] for row in expected["thresholds"]]


@pytest.mark.parametrize(
    "values",
    [np.full((24, 32), 1.5), np.full((24, 32), np.nan), np.zeros((1, 24, 32)), np.full((24, 32), 1.00001),
     np.full((24, 32), -1e-4)],
)  # fmt: skip
def test_what_is_no_probability_is_named(values, folders, tmp_path, capsys):
    (folders[0] / "a.png").unlink()
    np.save(folders[0] / "a.npy", values)
    assert "must be a map (height, width) of probabilities in [0, 1]" in fails(folders, tmp_path, capsys)


def test_a_mat_file_of_something_else_is_named(folders, tmp_path, capsys):
    (folders[1] / "a.png").unlink()
    scipy.io.savemat(folders[1] / "a.mat", {"LabelMap": np.ones((24, 32))})
    assert "does not hold groundTruth{k}.Boundaries as BSDS has it" in fails(folders, tmp_path, capsys)


def test_other_files_are_not_overwritten(folders, tmp_path, capsys):
    out = tmp_path / "out.json"
    out.write_text('{"loss": 1}')
    assert "would be overwritten" in fails(folders, tmp_path, capsys)
    assert out.read_text() == '{"loss": 1}'


@pytest.mark.parametrize("place", [".", "pred/a.png/out.json"])
def test_places_that_cannot_be_written_are_refused_before_the_work(place, folders, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(folders, tmp_path / place)
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("images", [{"a": {}}, None, {"a": 1}])
def test_a_damaged_result_is_one_sentence(images, folders, tmp_path, capsys):
    out = tmp_path / "out.json"
    report = run(folders, out)
    out.write_text(json.dumps(report | {"images": images}))
    assert "is no result of this command" in fails(folders, tmp_path, capsys)


def test_two_files_of_true_edges_are_named(folders, tmp_path, capsys):
    scipy.io.savemat(folders[1] / "a.mat", {"groundTruth": np.zeros((1, 0))})
    assert "two files of true edges of the image a" in fails(folders, tmp_path, capsys)


def test_a_negative_distance_is_refused(folders, tmp_path, capsys):
    assert "--max-dist" in fails(folders, tmp_path, capsys, "--max-dist=-1")


def test_every_option_is_explained(capsys):
    with pytest.raises(SystemExit) as done:
        main(["evaluate", "edges", "--help"])
    assert done.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for flag in ("--pred", "--gt", "--thresholds", "--max-dist", "--nms", "--thin-truth", "--json", "--workers"):
        assert flag in text
    assert "as BSDS has them, with all annotators" in text


@needs_bench
def test_the_official_numbers(tmp_path):
    main([
        "evaluate", "edges", f"--pred={BENCH / 'png'}", f"--gt={BENCH / 'groundTruth'}", "--thresholds=5",
        "--max-dist=0.0075", "--nms=false", f"--json={tmp_path / 'out.json'}", "--workers=1",
    ])  # fmt: skip
    report = json.loads((tmp_path / "out.json").read_text())
    official = np.loadtxt(BENCH / "test_2" / "eval_bdry.txt")
    keys = ("ods_threshold", "ods_recall", "ods_precision", "ods", "ois_recall", "ois_precision", "ois")
    assert [report[key] for key in keys] == pytest.approx(official[:7], abs=1e-3, rel=0)
    assert report["ap"] == pytest.approx(official[7], abs=5e-4)
    assert [row["predicted"] for row in report["thresholds"]] == [12573, 7109, 5812, 5533, 3847]
    assert sorted(report["images"]) == ["2018", "3063", "5096", "6046", "8068"]


def test_files_are_found_whatever_their_names(tmp_path):
    for folder, names in {"gt": ("a.PNG", "b.png", "._b.png"), "pred": ("a.png", "b.NPY", "._a.png")}.items():
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).touch()
    pairs = edges.find_pairs(tmp_path / "pred", tmp_path / "gt")
    assert [(pair.name, pair.prediction.name, pair.truth.name) for pair in pairs] == [
        ("a", "a.png", "a.PNG"), ("b", "b.NPY", "b.png")
    ]  # fmt: skip
