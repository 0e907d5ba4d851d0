"""Offline runs of wandb are read as wandb wrote them, whole or cut."""

import pytest
import wandb

from taskformer.errors import ConfigError
from taskformer.evaluation.offline_wandb import read_offline_runs

#: So long that it takes several blocks of the file.
LONG = "ä" * 100_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of two segments, the second with a long setting, and another run."""
    folder = tmp_path_factory.mktemp("offline")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"MODE": "offline", "SILENT": "true", "CONSOLE": "off", "DATA_DIR": folder / "data"}.items():
            patch.setenv(f"WANDB_{name}", str(value))
        wandb.teardown()  # it reads variables once in a process
        for id, values in {"one": [3.0, 1.0], "two": [4.0], "ONE": [2.0]}.items():
            run = wandb.init(
                project="of tests", id=id.lower(), resume="allow", dir=folder, config={"a.b": 1, "text": id * 2},
                group="group" if id == "one" else None, notes=id,
            )  # fmt: skip
            run.define_metric("loss", summary="min")
            if id == "ONE":
                run.config.update({"text": LONG}, allow_val_change=True)
                run.log({"table": wandb.Table(["name", "value"], [["x", 1.5], ["y", None]])})
            for value in values:
                run.log({"loss": value, "last": value})
            run.finish()
        wandb.teardown()
    return folder


def test_segments_of_one_id_are_one_run(folder):
    one, two = read_offline_runs(folder)
    assert (one.id, two.id) == ("one", "two")
    assert (one.project, one.group, one.notes) == ("of tests", "group", "ONE")
    assert one.config == {"a.b": 1, "text": LONG}
    assert two.config == {"a.b": 1, "text": "twotwo"}
    assert [(row["_step"], row.get("loss")) for row in one.history] == [(0, 3.0), (1, 1.0), (2, None), (3, 2.0)]
    assert one.values("loss") == [3.0, 1.0, 2.0]
    assert one.summaries == {"loss": ["min"]}
    assert one.summary["last"] == 2.0
    assert two.summary["loss"] == {"min": 4.0}
    assert len(one.files) == 2


def test_tables_are_read_and_missing_ones_are_named(folder):
    one, two = read_offline_runs(folder)
    assert one.table("table") == [{"name": "x", "value": 1.5}, {"name": "y", "value": None}]
    for path in one.staged.values():
        path.unlink()  # as after an upload
    assert one.table("table") == [{"name": "x", "value": 1.5}, {"name": "y", "value": None}]
    with pytest.raises(ConfigError, match="run one has no table 'tables'; there are table"):
        one.table("tables")
    with pytest.raises(ConfigError, match="run two has no table 'table'; there are none"):
        two.table("table")
    with pytest.raises(ConfigError, match=r"has no file 'media/x.png'"):
        one.file("media/x.png")


def test_a_killed_process_leaves_what_it_had_written(folder, tmp_path):
    (path,) = [path for path in folder.rglob("*.wandb") if path.stem == "run-two"]
    data = path.read_bytes()
    copy = tmp_path / "offline-run-x" / "run-two.wandb"
    copy.parent.mkdir()
    losses = []
    for size in range(len(data) - 1, len(data) // 2, -97):
        copy.write_bytes(data[:size])
        (run,) = read_offline_runs(tmp_path)
        losses.append(len(run.values("loss")))
        assert run.config["a.b"] == 1
    assert losses == sorted(losses, reverse=True)
    assert losses[0] == 1
    copy.write_bytes(data[:7])
    with pytest.raises(ConfigError, match="names no run: wandb has not written it yet"):
        read_offline_runs(tmp_path)
    copy.write_bytes(b"PK" + data)
    with pytest.raises(ConfigError, match="is no file of wandb"):
        read_offline_runs(tmp_path)


def test_where_there_is_no_run_the_error_says_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError, match="there is no offline run of wandb below"):
        read_offline_runs(tmp_path)
