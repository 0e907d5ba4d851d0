"""TensorBoard and MLflow keep of a run what wandb does; each is read back with the library's own reader."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger
from PIL import Image

from taskformer.callbacks.trackers import LocalMLFlowLogger, recall, trackers
from taskformer.cli import main
from taskformer.evaluation.gallery import DrawnSample, Panel
from taskformer.tasks import build_tasks

MlflowClient = pytest.importorskip("mlflow").MlflowClient
EventAccumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator

# MLflow 3.17 uses what SQLAlchemy 2.1 has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

CONFIG = {"model.init_args.embed_dim": 32, "model.init_args.tasks": ["depth"], "trainer.precision": None}
FACTS = {"git": "1f3a", "parameters": 4500}
SENSES = {"val/depth/rmse": "lower", "val/semseg/mIoU": "higher"}
RED = np.full((4, 6, 3), (255, 0, 0), np.uint8)


ROOT = Path(__file__).parents[2]


@pytest.fixture
def sample():
    task = build_tasks({"depth": {}})["depth"]
    target = np.ones((1, 8, 10), np.float32)
    picture = np.full((8, 10, 3), 200, np.uint8)
    panel = Panel(task, target, target, picture, picture // 2, {"rmse": 0.25})
    return DrawnSample("room 7", picture, {"depth": panel})


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(RED).save(tmp_path / "front.png")
    return tmp_path / "front.png"


def keep(tracker, sample, picture):
    """Keep one of everything."""
    tracker.describe(CONFIG, FACTS)
    tracker.define(SENSES)
    tracker.best({"val/depth/rmse": 0.25}, SENSES)
    for epoch in (1, 2):
        tracker.gallery("gallery", [sample], epoch)
    tracker.table("test/images", ["id", "rmse", "depth"], [["a", 0.5, RED], ["b", float("nan"), None]])
    tracker.picture("search/front", picture)
    tracker.picture("curves", picture, step=3)
    tracker.values({"search/hypervolume": 0.5}, step=10)
    tracker.values({"test/depth/rmse": 0.75})
    tracker.artifact(picture, "front", "search", {"networks": 5})


def test_tensorboard_keeps_everything(tmp_path, sample, picture):
    logger = TensorBoardLogger(tmp_path, name="", version="tensorboard", default_hp_metric=False)
    (tracker,) = trackers([logger])
    keep(tracker, sample, picture)
    logger.finalize("success")
    read = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"tensors": 0, "images": 0}).Reload()
    assert [(one.step, one.value) for one in read.Scalars("search/hypervolume")] == [(10, 0.5)]
    assert read.Scalars("test/depth/rmse")[0].value == 0.75
    assert read.Scalars("best/val/depth/rmse")[0].value == 0.25
    slider = read.Images("gallery/room 7")
    assert [one.step for one in slider] == [1, 2]
    assert slider[0].width == 402  # two columns of 200 and the line between them
    assert read.Images("curves")[0].step == 3
    assert (read.Images("search/front")[0].width, read.Images("search/front")[0].height) == (6, 4)
    assert read.Images("test/images/a/depth")[0].width == 6
    text = {tag: tensor(read, tag) for tag in ("config", "facts", "better", "test/images", "artifact/front")}
    assert "| model.init_args.embed_dim | 32 |" in text["config"]
    assert "| parameters | 4500 |" in text["facts"]
    assert "| val/depth/rmse | lower |" in text["better"]
    assert "| a | 0.5 |  |" in text["test/images"]
    assert f"| file | {picture} |" in text["artifact/front"]


def tensor(read, tag):
    (event,) = read.Tensors(f"{tag}/text_summary")
    return event.tensor_proto.string_val[0].decode()


def test_tensorboard_compares_runs_by_what_rates_them(tmp_path):
    from tensorboard.plugins.hparams import metadata

    logger = TensorBoardLogger(tmp_path, name="", version="tensorboard", default_hp_metric=False)
    (tracker,) = trackers([logger])
    tracker.describe(CONFIG, FACTS)
    tracker.define(SENSES)
    logger.finalize("success")
    read = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    content = read.PluginTagToContent("hparams")
    experiment = metadata.parse_experiment_plugin_data(content["_hparams_/experiment"])
    assert {one.name.tag for one in experiment.metric_infos} == {f"best/{name}" for name in SENSES}
    started = metadata.parse_session_start_info_plugin_data(content["_hparams_/session_start_info"]).hparams
    assert started["model.init_args.embed_dim"].number_value == 32
    assert started["model.init_args.tasks"].string_value == "['depth']"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder to work in."""
    folder = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(folder)
        yield folder


@pytest.fixture
def store(workplace):
    """MLflow's store there."""
    return f"sqlite:///{workplace}/mlflow.db"


def test_mlflow_keeps_everything(tmp_path, store, sample, picture):
    logger = MLFlowLogger("rooms", run_name="demo", tracking_uri=store)
    (tracker,) = trackers([logger])
    keep(tracker, sample, picture)
    logger.finalize("success")
    client = MlflowClient(store)
    run = client.get_run(tracker.identity["run_id"])
    assert run.info.run_name == "demo"
    assert run.info.status == "FINISHED"
    assert run.data.params == {name: str(value) for name, value in CONFIG.items()}
    assert run.data.tags["git"] == "1f3a"
    assert run.data.metrics == {
        "parameters": 4500, "best/val/depth/rmse": 0.25, "search/hypervolume": 0.5, "test/depth/rmse": 0.75,
    }  # fmt: skip
    assert client.get_metric_history(run.info.run_id, "search/hypervolume")[0].step == 10

    def kept(path):
        return Path(client.download_artifacts(run.info.run_id, path))

    assert json.loads(kept("better.json").read_text()) == SENSES
    images = [file.path for file in client.list_artifacts(run.info.run_id, "images") if file.path.endswith("png")]
    assert sum("gallery~room 7+step+1" in name for name in images) == 1
    assert sum("gallery~room 7+step+2" in name for name in images) == 1
    assert sum("curves+step+3" in name for name in images) == 1
    assert np.asarray(Image.open(kept("search/front/front.png"))).tolist() == RED.tolist()
    table = json.loads(kept("test/images.json").read_text())
    assert table["columns"] == ["id", "rmse", "depth"]
    assert table["data"][1] == ["b", None, None]
    assert np.asarray(Image.open(kept(table["data"][0][2]["filepath"]))).tolist() == RED.tolist()
    assert json.loads(run.data.tags["mlflow.loggedArtifacts"]) == [{"path": "test/images.json", "type": "table"}]
    assert json.loads(kept("search/front/metadata.json").read_text()) == {"networks": 5}


def test_mlflow_goes_on_with_a_run_whose_settings_have_changed(store):
    logger = MLFlowLogger("changes", tracking_uri=store)
    (first,) = trackers([logger])
    first.describe({"trainer.max_epochs": 1, "many": "x" * 9000}, {})
    (again,) = trackers([MLFlowLogger("changes", tracking_uri=store, run_id=logger.run_id)])
    again.describe({"trainer.max_epochs": 2, "model.lr": 0.1}, {"parameters": 3})
    (run,) = MlflowClient(store).search_runs([logger.experiment_id])
    assert (run.data.params["trainer.max_epochs"], run.data.params["model.lr"]) == ("1", "0.1")
    assert run.data.tags["trainer.max_epochs"] == "2"


@pytest.fixture(scope="module")
def runs(workplace, tiny):
    """A run that both keep: trained for an epoch, resumed for another, and tested."""
    configs = [f"--config={ROOT}/configs/{name}.yaml" for name in ("model/baseline", "data/rooms")]
    flags = [*configs, *tiny, "--data.tasks=[semseg,depth]", "--gallery.every_n_epochs=1", "--gallery.images=2"]
    for logger in ("tensorboard", "mlflow"):
        run = f"runs/{logger}"
        main(["fit", *flags, f"--config={ROOT}/configs/logger/{logger}.yaml", f"--name={logger}"])
        main(["fit", f"--resume={run}", "--trainer.max_epochs=2"])
        main(["test", run, "--results.per_image=true", "--tracking.images=1"])
    return workplace / "runs"


def rows(file):
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def curve(file, key):
    """Read the values of a key and their steps from metrics.csv."""
    return [(int(row["step"]), float(row[key])) for row in rows(file) if row[key]]


def test_tensorboard_keeps_a_run_in_its_folder(runs):
    run = runs / "tensorboard"
    read = EventAccumulator(str(run / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    expected = curve(run / "logs" / "fit" / "metrics.csv", "val/depth/rmse")
    assert len(expected) == 2
    found = [(one.step, one.value) for one in read.Scalars("val/depth/rmse")]
    assert found == [(step, pytest.approx(value)) for step, value in expected]
    assert read.Scalars("best/val/depth/rmse")[-1].value == pytest.approx(min(value for _, value in expected))
    sliders = [tag for tag in read.Tags()["images"] if tag.startswith("gallery/")]
    assert [[one.step for one in read.Images(tag)] for tag in sliders] == [[0, 1], [0, 1]]
    assert sum(tag.startswith("test/images/") for tag in read.Tags()["images"]) == 5  # one image with two tasks
    text = [read.Tensors("test/results/text_summary")[0].tensor_proto.string_val[0].decode()]
    record = json.loads((run / "metrics.json").read_text())["test"]["tasks"]["depth"]["rmse"]
    assert f"| depth | rmse | {record:.4g} | m |" in text[0]


def test_mlflow_has_one_run_of_all_commands(runs):
    client = MlflowClient(f"sqlite:///{runs}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("taskformer")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "mlflow"
    assert run.data.tags["group"] == "baseline-rooms"
    assert run.data.params["model.init_args.embed_dim"] == "16"
    assert (run.data.params["trainer.max_epochs"], run.data.tags["trainer.max_epochs"]) == ("1", "2")
    expected = curve(runs / "mlflow" / "logs" / "fit" / "metrics.csv", "val/depth/rmse")
    history = client.get_metric_history(run.info.run_id, "val/depth/rmse")
    assert sorted((one.step, one.value) for one in history) == [
        (step, pytest.approx(value)) for step, value in expected
    ]
    assert run.data.metrics["best/val/depth/rmse"] == pytest.approx(min(value for _, value in expected))
    record = json.loads((runs / "mlflow" / "metrics.json").read_text())["test"]["tasks"]["depth"]["rmse"]
    assert run.data.metrics["test/depth/rmse"] == pytest.approx(record)
    tables = [each["path"] for each in json.loads(run.data.tags["mlflow.loggedArtifacts"])]
    assert sorted(tables) == ["test/classes.json", "test/images.json", "test/results.json"]
    images = [file.path for file in client.list_artifacts(run.info.run_id, "images") if file.path.endswith("png")]
    assert [sum("gallery~" in name and f"+step+{epoch}+" in name for name in images) for epoch in (0, 1)] == [2, 2]
    assert Path(run.info.artifact_uri).is_relative_to(runs / "mlflow")
    assert recall(runs / "mlflow") == {"mlflow": {"run_id": run.info.run_id}}


def test_metrics_are_in_the_run_folder_whatever_the_logger(runs):
    for name in ("tensorboard", "mlflow"):
        assert curve(runs / name / "logs" / "fit" / "metrics.csv", "train/loss")


@pytest.mark.parametrize("extra", ["tensorboard", "mlflow"])
def test_a_missing_extra_is_one_sentence(extra, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, extra, None)
    names = ("model/baseline", "data/rooms", f"logger/{extra}")
    with pytest.raises(SystemExit):
        main(["fit", *(f"--config={ROOT}/configs/{name}.yaml" for name in names), *tiny])
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f'taskformer: this needs the package {extra!r}: pip install "taskformer[{extra}]"'


def test_a_store_that_is_named_takes_the_place_of_the_folder_s(tmp_path, store):
    logger = LocalMLFlowLogger(tracking_uri=store, save_dir=str(tmp_path))
    assert logger._tracking_uri == store
    assert not list(tmp_path.iterdir())
    logger = LocalMLFlowLogger(tracking_uri="http://localhost:1", run_id="a")
    logger._initialized = True  # else it asks the server for the run
    assert trackers([logger])[0].identity == {"run_id": "a", "tracking_uri": "http://localhost:1"}
