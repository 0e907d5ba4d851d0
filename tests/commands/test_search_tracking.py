"""What is done with a trained network is logged to its run: fit, resume, test, search and predictions are one run."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import wandb
from PIL import Image

from taskformer.callbacks.search_tracking import EVALUATED
from taskformer.callbacks.trackers import recall
from taskformer.cli import main
from taskformer.evaluation.offline_wandb import read_offline_runs

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_CONSOLE": "off"}
PHOTO = next((ROOT / "data" / "rooms").rglob("*.jpg"))
SEARCH = ["--generations=2", "--population=4", "--batch=2", "--pruner=NopPruner"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder to work in, in which wandb also keeps what it wants to upload."""
    folder = tmp_path_factory.mktemp("searched")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
            patch.delenv(name)
        for name, value in {**ENVIRONMENT, "WANDB_DATA_DIR": str(folder / "staging")}.items():
            patch.setenv(name, value)
        patch.chdir(folder)
        wandb.teardown()  # it reads variables once in a process
        yield folder
        wandb.teardown()


@pytest.fixture(scope="module")
def supernet(small_rooms):
    """Flags of a supernet that trains in a moment."""
    settings = {
        "model": "AutoTaskFormer",
        "model.space.preset": "custom",
        "model.space.embed_dims": [8, 16],
        "model.space.depths": [1, 2],
        "model.space.mlp_ratios": [1.0, 2.0],
        "model.space.num_heads": [1, 2],
        "model.space.head_dim": 8,
        "model.image_size": [128, 160],
        "model.patch_size": 32,
        "data": "RoomsDataModule",
        "data.root": small_rooms,
        "data.tasks": ["semseg", "depth"],
        "data.batch_size": 2,
        "data.holdout": 0.3,
        "trainer.accelerator": "cpu",
        "trainer.num_sanity_val_steps": 0,
        "trainer.log_every_n_steps": 1,
        "trainer.enable_progress_bar": "false",
        "gallery.images": 2,
        "gallery.every_n_epochs": 1,
    }
    return [f"--{name}={value}" for name, value in settings.items()]


@pytest.fixture(scope="module")
def tracked(workplace, supernet):
    """The run of a supernet after one command of each kind."""
    wandb_config = f"--config={ROOT}/configs/logger/wandb.yaml"
    main(["fit", *supernet, wandb_config, "--name=all", "--trainer.max_epochs=1", "--tracking.checkpoint=true"])
    main(["fit", "--resume=runs/all", "--trainer.max_epochs=2"])
    main(["test", "runs/all"])
    main(["search", "runs/all", *SEARCH])
    main(["predict", "runs/all", str(PHOTO), "--out=seen", "--log=true"])
    wandb.teardown()  # waits until wandb's own process has written everything
    (run,) = read_offline_runs("runs/all")
    return run


def test_fit_resume_test_search_and_predict_are_one_run(tracked):
    assert len(tracked.files) == 5
    assert recall(Path("runs/all"))["wandb"]["id"] == tracked.id
    assert (tracked.name, tracked.job_type) == ("all", "fit")
    assert [row["_step"] for row in tracked.history] == list(range(len(tracked.history)))
    assert tracked.config["model.init_args.space.embed_dims"] == [8, 16]
    assert tracked.config["search.population"] == 4
    for key in (
        "train/loss",
        "val/depth/rmse",
        "gallery",
        "test/depth/rmse",
        "test/results",
        "search/front",
        "predict/photographs",
    ):
        assert tracked.values(key), key


def test_the_progress_has_an_axis_of_its_own(tracked):
    rows = [row for row in tracked.history if EVALUATED in row]
    evaluated = [row[EVALUATED] for row in rows]
    assert evaluated == sorted(set(evaluated))
    front = json.loads(Path("runs/all/search/pareto.json").read_text())
    assert evaluated[-1] == sum(front["evaluated"].values())
    assert all("trainer/global_step" not in row for row in rows)
    best = [row["search/best/delta_m"] for row in rows]
    assert best == sorted(best)
    assert best[-1] == max(one["values"]["delta_m"] for one in front["front"])
    assert rows[-1]["search/best/params"] == min(one["values"]["params"] for one in front["front"])
    assert rows[-1]["search/front_size"] == len(front["front"])
    volumes = json.loads(Path("runs/all/search/hypervolume.json").read_text())["progress"]["evolution"]["shares"]
    assert rows[-1]["search/hypervolume"] == pytest.approx(volumes[-1])


def test_the_front_and_the_hypervolume_are_tables_and_pictures(tracked):
    front = json.loads(Path("runs/all/search/pareto.json").read_text())["front"]
    table = tracked.table("search/front")
    assert [row["name"] for row in table] == [one["name"] for one in front]
    assert [row["delta_m, %"] for row in table] == pytest.approx([one["values"]["delta_m"] for one in front])
    millions = [one["values"]["params"] / 1e6 for one in front]
    assert [row["parameters, millions"] for row in table] == pytest.approx(millions)
    curves = json.loads(Path("runs/all/search/hypervolume.json").read_text())["progress"]
    found = [tuple(row.values()) for row in tracked.table("search/hypervolume_curve")]
    expected = [
        (origin, evaluated, pytest.approx(share * 100))
        for origin, curve in curves.items()
        for evaluated, share in zip(curve["evaluations"], curve["shares"], strict=True)
    ]
    assert found == expected
    for key, name in (("search/front_picture", "pareto"), ("search/hypervolume_picture", "hypervolume")):
        (logged,) = tracked.values(key)
        with Image.open(tracked.file(logged["path"])) as kept, Image.open(f"runs/all/search/{name}.png") as drawn:
            assert np.array_equal(np.asarray(kept.convert("RGB")), np.asarray(drawn.convert("RGB")))


def test_the_architectures_are_an_artifact_where_that_is_wanted(tracked):
    assert tracked.artifacts["all-search"] == "architectures"
    names = {Path(name).name for name in tracked.staged}
    front = json.loads(Path("runs/all/search/pareto.json").read_text())["front"]
    assert {Path(one["file"]).name for one in front} <= names


def test_predictions_are_a_table_of_pictures(tracked):
    (row,) = tracked.table("predict/photographs")
    assert row["name"] == PHOTO.stem
    for task in ("semseg", "depth"):
        with Image.open(row[task]) as kept, Image.open(f"seen/{task}/{PHOTO.stem}.png") as written:
            assert np.array_equal(np.asarray(kept.convert("RGB")), np.asarray(written.convert("RGB")))
    (overview,) = tracked.values("predict/overview")
    assert tracked.file(overview["path"]).is_file()


@pytest.fixture(scope="module")
def untracked(workplace, supernet):
    """Run folder of a supernet that was trained without any logger."""
    main(["fit", *supernet, "--name=plain", "--trainer.max_epochs=1", "--gallery.every_n_epochs=0"])
    return Path("runs/plain")


def test_a_search_can_be_logged_where_the_training_was_not(untracked):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    main(["search", str(untracked), *SEARCH, f"--config={ROOT}/configs/logger/tensorboard.yaml", "--study=boards"])
    read = EventAccumulator(str(untracked / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    front = json.loads((untracked / "boards" / "pareto.json").read_text())
    best = read.Scalars("search/best/delta_m")
    assert best[-1].step == sum(front["evaluated"].values())
    assert best[-1].value == pytest.approx(max(one["values"]["delta_m"] for one in front["front"]))
    drawings = {f"search/front/{one['name']}/architecture" for one in front["front"]}
    assert drawings | {"search/front_picture", "search/hypervolume_picture"} <= set(read.Tags()["images"])
    (table,) = read.Tensors("search/front/text_summary")
    assert all(f"| {one['name']} |" in table.tensor_proto.string_val[0].decode() for one in front["front"])
    main(
        ["search", str(untracked), *SEARCH, f"--config={ROOT}/configs/logger/wandb.yaml", "--study=boards", "--worker"]
    )
    assert not (untracked / "wandb").exists()  # a worker leaves that to the main process


def test_predictions_are_not_logged_where_nothing_is(untracked, capsys):
    with pytest.raises(SystemExit):
        main(["predict", str(untracked), str(PHOTO), "--log=true"])
    assert "runs/plain has no logger that keeps pictures; train it" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # by SQLAlchemy 2.1
def test_a_search_that_fails_is_logged_as_failed(untracked, capsys):
    mlflow = pytest.importorskip("mlflow")
    logger = f"--config={ROOT}/configs/logger/mlflow.yaml"
    with pytest.raises(SystemExit):
        main(["search", str(untracked), *SEARCH, logger, "--constraint.params", "1", "2"])
    client = mlflow.MlflowClient(f"sqlite:///{untracked.absolute()}/mlflow.db")
    run = client.get_run(recall(untracked)["mlflow"]["run_id"])
    assert (run.info.run_name, run.info.status) == ("plain", "FAILED")
    assert run.data.params["search.population"] == "4"
