import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning import LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI
from miniature_rooms import write_rooms

import taskformer.data
from taskformer.data import MultiTaskDataModule, RoomsDataModule, datamodules, datasets
from taskformer.data.configured import data_module
from taskformer.data.transforms import Pad, RandomCrop, RandomHorizontalFlip, RandomScale, TaskCompose
from taskformer.errors import ConfigError, DatasetNotFoundError, UnknownNameError
from taskformer.modules import Baseline
from taskformer.parsing import read_layers
from taskformer.tasks import build_tasks

PROJECT = Path(__file__).parents[2]
CONFIGS = sorted((PROJECT / "configs" / "data").glob("*.yaml"))
REAL = PROJECT / "data" / "rooms"


@pytest.fixture
def root(tmp_path):
    return str(write_rooms(tmp_path / "rooms"))


class Probe(LightningModule):
    """A model that only looks at its batches and sums up its losses."""

    def __init__(self, tasks: dict | None = None):
        super().__init__()
        self.specs = tasks
        self.tasks = build_tasks(tasks)
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.ids = []

    def training_step(self, batch, index):
        self.ids += batch["meta"]["id"]
        size = batch["image"].shape[-2:]
        outputs = {
            name: self.weight.expand(len(batch["image"]), task.channels, *size) for name, task in self.tasks.items()
        }
        return sum(task.loss(outputs[name], batch["targets"][name]) for name, task in self.tasks.items())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class ProbeCLI(LightningCLI):
    def add_arguments_to_parser(self, parser):
        parser.link_arguments(
            "data", "model.init_args.tasks", compute_fn=lambda data: data.task_specs, apply_on="instantiate"
        )


@pytest.fixture(autouse=True)
def _no_command_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["taskformer"])  # LightningCLI warns when it gets both
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning 2.6 uses jsonargparse's old names


def build(config, *args):
    cli = ProbeCLI(
        Probe,
        MultiTaskDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        run=False,
        seed_everything_default=0,
        save_config_callback=None,
        trainer_defaults={"logger": False, "accelerator": "cpu"},
        args=["--model", f"{__name__}.Probe", "--config", yaml.safe_dump(read_layers(config)), *args],
    )
    return cli.model, cli.datamodule


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_configs_build_transforms_and_link_tasks(config):
    model, data = build(config)
    if data.name == "folder":
        assert data.root == f"data/{config.stem}"
    elif data.name != "combined":  # which has no root of its own
        assert config.stem.startswith(data.name)
        assert data.root == f"data/{data.name}"
    for part in getattr(data, "parts", [data]):
        assert part.train_transforms
    TaskCompose(data.train_transforms, model.tasks)
    assert model.specs == data.task_specs
    assert json.loads(json.dumps(model.specs)) == model.specs


@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")  # Lightning 2.6 with torch 2.14
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader` but have no `validation_step`")
@pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller than the logging interval")
def test_rooms_train_from_the_config(root):
    model, data = build(
        PROJECT / "configs" / "data" / "rooms.yaml", f"--data.init_args.root={root}", "--data.init_args.batch_size=2"
    )
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data)
    assert len(set(model.ids)) == 4


def test_batches_follow_the_contract(root):
    data = RoomsDataModule(root, batch_size=2, train_transforms=[RandomScale(0.8, 1.5), RandomCrop(6, 8), Pad(6, 8)])
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (2, 3, 6, 8)
    assert {name: tuple(target.shape) for name, target in batch["targets"].items()} == {
        "semseg": (2, 6, 8),
        "depth": (2, 1, 6, 8),
        "normals": (2, 3, 6, 8),
        "edges": (2, 1, 6, 8),
        "saliency": (2, 6, 8),
        "human_parts": (2, 6, 8),
        "reshading": (2, 1, 6, 8),
    }
    assert isinstance(batch["meta"]["id"], list)
    assert batch["meta"]["size"] == [(8, 10)] * 2
    for name, task in build_tasks(data.task_specs).items():
        assert torch.isfinite(task.loss(torch.zeros(2, task.channels, 6, 8), batch["targets"][name]))


def test_training_shuffles_and_drops_the_rest_and_evaluation_does_not(root):
    data = RoomsDataModule(root, tasks=["depth"], batch_size=2)
    data.setup("fit")
    data.setup("test")

    def ids(loader):
        return [name for batch in loader for name in batch["meta"]["id"]]

    loader = data.train_dataloader()
    epochs = set()
    for epoch in range(6):
        loader.sampler.set_epoch(epoch)  # as Lightning does
        epochs.add(tuple(ids(loader)))
    assert len(epochs) > 1
    assert all(len(epoch) == 4 for epoch in epochs)
    assert ids(data.val_dataloader()) == ["val_0", "val_1", "val_2"]
    assert ids(data.test_dataloader()) == ids(data.predict_dataloader()) == ["test_0", "test_1"]


def test_only_training_is_augmented(root):
    flip = [RandomHorizontalFlip(p=1.0)]
    augmented = RoomsDataModule(root, tasks=["semseg"], batch_size=1, train_transforms=flip)
    plain = RoomsDataModule(root, tasks=["semseg"], batch_size=1)
    for data in (augmented, plain):
        data.setup("fit")
    for split, same in {"train": False, "val": True}.items():
        pair = [data.datasets[split][0]["targets"]["semseg"] for data in (augmented, plain)]
        assert torch.equal(*pair) == same


@pytest.mark.parametrize(
    ("stage", "splits"), [("fit", {"train", "val"}), ("validate", {"val"}), ("test", {"test"}), ("predict", {"test"})]
)
def test_a_stage_builds_only_its_splits(root, stage, splits):
    data = RoomsDataModule(root)
    data.setup(stage)
    assert data.datasets.keys() == splits


def test_task_specs_need_no_files():
    specs = RoomsDataModule("nowhere", tasks=["normals", "semseg"]).task_specs
    assert list(specs) == ["normals", "semseg"]
    assert len(specs["semseg"]["classes"]) == len(specs["semseg"]["colors"]) == 16
    assert list(RoomsDataModule("nowhere").task_specs) == list(RoomsDataModule.offers)


def test_unknown_tasks_get_a_suggestion():
    with pytest.raises(UnknownNameError, match=r"task of RoomsDataModule 'dept' .did you mean 'depth'"):
        RoomsDataModule(tasks=["dept"])


def test_a_missing_data_set_is_explained(tmp_path):
    with pytest.raises(DatasetNotFoundError, match=r"nowhere.*data.init_args.root"):
        RoomsDataModule(str(tmp_path / "nowhere")).setup("fit")


def test_a_batch_larger_than_the_data_set_is_refused(root):
    data = RoomsDataModule(root, batch_size=6)
    data.setup("fit")
    with pytest.raises(ConfigError, match="5 training images"):
        data.train_dataloader()


def test_evaluation_does_not_depend_on_the_number_of_workers(root):
    batches = []
    for workers in (0, 2):
        data = RoomsDataModule(root, batch_size=2, num_workers=workers)
        data.setup("validate")
        batches.append([batch["image"] for batch in data.val_dataloader()])
    torch.testing.assert_close(*batches)


def test_importing_the_package_leaves_albumentations_alone():
    code = "import sys, taskformer.data.datamodules; print({'albumentations', 'litdata', 'skimage'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_the_face_shows_every_data_set_and_module_and_imports_them_when_they_are_asked_for():
    code = (
        "import sys, taskformer.data as face; import taskformer.data.names; quick = 'torch' not in sys.modules; "
        "face.Rooms; print(quick, 'lightning' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["True", "False"]
    assert sorted(taskformer.data.__all__) == sorted([*datamodules.__all__, *datasets.__all__])
    assert all(getattr(taskformer.data, name) for name in taskformer.data.__all__)
    assert set(taskformer.data.__all__) <= set(dir(taskformer.data))
    with pytest.raises(AttributeError, match="no attribute 'Room'"):
        taskformer.data.Room  # noqa: B018


@pytest.mark.skipif(not (REAL / "rooms.json").exists(), reason="data/rooms is not rendered")
def test_the_rendered_rooms_load_and_bring_the_same_colours():
    _, data = build(PROJECT / "configs" / "data" / "rooms.yaml", f"--data.init_args.root={REAL}")
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape[-2:] == (128, 160)
    assert json.loads((REAL / "rooms.json").read_text())["palette"] == data.task_specs["semseg"]["colors"]


@pytest.mark.parametrize("cached", [False, True])
def test_held_out_images_validate_and_do_not_train(root, tmp_path, cached):
    crop = [RandomCrop(4, 4)]
    data = RoomsDataModule(root, batch_size=1, train_transforms=crop, holdout=0.4)
    data.cache_dir = str(tmp_path / "cache") if cached else None
    data.prepare_data()
    data.setup("fit")
    train = [sample["meta"]["id"] for sample in data.datasets["train"]]
    held = [sample["meta"]["id"] for sample in data.datasets["val"]]
    everything = data.evaluation_dataset("train").ids
    assert held
    assert [*train, *held] == list(everything)
    assert len(held) == -(-len(everything) * 4 // 10)
    # What validates is not augmented.
    assert data.datasets["val"][0]["image"].shape[-2:] == (8, 10)
    assert data.datasets["train"][0]["image"].shape[-2:] == (4, 4)
    data.setup("test")
    assert not set(data.datasets["test"].ids) & {*train, *held}


def test_a_holdout_that_is_no_share_is_refused(root):
    with pytest.raises(ConfigError, match=r"holdout must be in \[0, 1\), got 1.5"):
        RoomsDataModule(root, holdout=1.5)


def test_a_recipes_loss_weights_reach_the_tasks_and_the_models_win():
    data = RoomsDataModule("nowhere", ["depth", "edges"], loss_weights={"depth": 3.0, "normals": 7.0})
    assert data.task_specs["depth"]["loss_weight"] == 3
    assert "loss_weight" not in data.task_specs["edges"]
    assert RoomsDataModule.offers["depth"] == {"max_depth": 7.0}
    model = Baseline(data.task_specs, loss_weights={"edges": 2.0})
    assert model.loss_weights == {"depth": 3.0, "edges": 2.0}
    assert Baseline(data.task_specs, loss_weights={"depth": 1.0}).loss_weights == {"depth": 1.0, "edges": 50.0}


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ({"depht": 1.0}, UnknownNameError, "task of RoomsDataModule 'depht' .did you mean 'depth'"),
        ({"depth": -1.0}, ConfigError, r"loss_weights must be in \[0, inf\), got \[-1.0\]"),
    ],
)
def test_wrong_loss_weights_are_refused(weights, error, message):
    with pytest.raises(error, match=message):
        RoomsDataModule("nowhere", loss_weights=weights)


@pytest.mark.parametrize("name", ["nyud", "pascal_context"])
def test_the_weight_of_edges_is_between_0_and_1(name):
    module = data_module(name, root="nowhere", edge_weight=0.3, tasks=["edges"])
    assert module.task_specs["edges"]["positive_weight"] == 0.3
    with pytest.raises(ConfigError, match=r"edge_weight must be in \(0, 1\), got 1.0"):
        data_module(name, root="nowhere", edge_weight=1.0)
