"""The report is made of the JSON files alone, and says what is missing."""

import csv
import shutil
from pathlib import Path

import pytest
from PIL import Image

from taskformer.studies import write_report

FOLDER = Path("docs/studies/small")


def table():
    with (FOLDER / "table.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_report_needs_the_json_files_alone(study):
    assert not Path("runs").exists()
    text = write_report(study, resamples=500).read_text()
    assert text.startswith("# Small\n")
    assert "* Runs: 8 of 8 are finished\n" in text
    assert "* Data: rooms, test split, protocol standard\n" in text
    assert "* Git revision: 0123abc\n" in text
    assert "| plain | 2 | +5.00 ± 21.21 | 47.50 ± 3.54 | 0.425 ± 0.18 | 1.00 | 2.00 | 2.0 | 1.0 |" in text
    assert "| single | 2 |  | 50.00 ± 14.14 | 0.5 ± 0 | 2.00 | 4.00 | 4.0 | 2.0 |" in text
    assert "| wide | `model.yaml`, `data.yaml`, `recipe.yaml` | `model.init_args.embed_dim=128` |" in text
    assert "another configuration" not in text
    with Image.open(FOLDER / "test.png") as picture:
        assert picture.width == 1600
    assert {path.name for path in FOLDER.iterdir()} == {"README.md", "table.csv", "test.png", "runs"}


def test_the_table_for_programs_has_the_same_numbers(study):
    write_report(study, resamples=500)
    rows = {(row["arm"], row["task"]): row for row in table()}
    wide = rows["wide", "delta_m"]
    assert (wide["evaluation"], wide["unit"], wide["better"], wide["seeds"]) == ("test", "%", "higher", "0 1")
    assert float(wide["mean"]) == pytest.approx(10.0)
    assert float(wide["low"]) < float(wide["difference"]) < float(wide["high"])
    assert rows["plain", "delta_m"]["difference"] == ""
    assert float(rows["single", "semseg"]["mean"]) == 0.5  # a fraction
    assert len(rows) == 2 + 3 + 3


def test_missing_runs_are_named(study):
    for name in ("wide-seed1", "single-semseg-seed0", "single-semseg-seed1"):
        (FOLDER / "runs" / f"{name}.json").unlink()
    text = write_report(study, resamples=500).read_text()
    assert "* Runs: 5 of 8 are finished; missing: single-semseg-seed0, single-semseg-seed1, wide-seed1\n" in text
    assert "delta_m, %" not in text
    assert "| wide | 1 |" in text


def test_one_seed_marks_no_difference(study):
    assert "**" in write_report(study, resamples=500).read_text()
    (FOLDER / "runs" / "wide-seed1.json").unlink()
    text = write_report(study, resamples=500).read_text()
    assert "| wide | depth rmse, m | -0.1 (" in text
    assert "**" not in text


def test_a_study_without_a_run_has_a_report(write):
    text = write_report(write()).read_text()
    assert "* Runs: 0 of 8 are finished; missing: single-semseg-seed0" in text
    assert "interval" not in text


def test_runs_of_another_configuration_are_named(study):
    shutil.copy("recipe.yaml", "before.yaml")
    Path("recipe.yaml").write_text(Path("recipe.yaml").read_text().replace("max_epochs: 6", "max_epochs: 7"))
    from taskformer.studies import read_study

    text = write_report(read_study("small.yaml"), resamples=500).read_text()
    assert "Trained with another configuration than the files say now: single-semseg, single-depth, plain, wide" in text
