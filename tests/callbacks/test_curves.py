"""``metrics.csv`` keeps what was written before, up to the step that a training goes on from."""

import csv

from taskformer.callbacks import Curves


def rows(folder):
    with (folder / "fit" / "metrics.csv").open(newline="") as stream:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(stream)]


def test_every_row_is_on_disk_at_once(tmp_path):
    curves = Curves(tmp_path, "fit")
    curves.log_metrics({"loss": 1.5}, step=0)
    assert rows(tmp_path) == [{"loss": "1.5", "step": "0"}]
    curves.log_metrics({"val": 2.0}, step=0)
    assert rows(tmp_path) == [{"loss": "1.5", "step": "0"}, {"val": "2.0", "step": "0"}]


def test_a_training_that_goes_on_keeps_earlier_rows_and_drops_later_ones(tmp_path):
    before = Curves(tmp_path, "fit")
    for step in range(4):
        before.log_metrics({"loss": float(step)}, step)
    with (tmp_path / "fit" / "metrics.csv").open("a") as stream:
        stream.write("9")  # a row that was cut when the process was killed
    after = Curves(tmp_path, "fit", first_step=2)
    after.log_metrics({"loss": 20.0, "rate": 0.1}, 2)
    assert rows(tmp_path) == [
        {"loss": "0.0", "step": "0"}, {"loss": "1.0", "step": "1"}, {"loss": "20.0", "rate": "0.1", "step": "2"},
    ]  # fmt: skip
    assert [path.name for path in (tmp_path / "fit").iterdir()] == ["metrics.csv"]


def test_a_new_training_starts_new_curves(tmp_path):
    Curves(tmp_path, "fit").log_metrics({"loss": 1.0}, 0)
    Curves(tmp_path, "fit").log_metrics({"other": 3.0}, 0)
    assert rows(tmp_path) == [{"other": "3.0", "step": "0"}]
