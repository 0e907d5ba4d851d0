"""A newcomer adds one file outside the package, imports it by a flag and trains with it; no file of ours is touched."""

import json
import sys
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch
from PIL import Image

import taskformer
from taskformer.cli import main
from taskformer.search.storage import open_storage
from taskformer.search.study import read_records

ROOMS = Path(__file__).parent.parent / "data" / "rooms"

TASK = '''
"""Warmth: how much redder than blue the light is, from -1 to 1."""

import numpy as np
from torch.nn import functional as F
from torchmetrics import MeanSquaredError

from taskformer.tasks import ValueMapTask, register


class Error(MeanSquaredError):
    def update(self, output, target):
        super().update(output.flatten(), target.flatten())


@register("warmth")
class Warmth(ValueMapTask):
    geometry = "value"
    headline = "mse"
    units = {"mse": ""}
    higher_is_better = False

    def __init__(self, name, loss_weight: float = 3.0):
        super().__init__(name, channels=1, loss_weight=loss_weight)

    def _loss(self, output, target):
        valid = target.isfinite()
        return F.mse_loss(output[valid], target[valid])

    def _metrics(self, protocol, stage):
        return {"mse": Error()}

    def colorize(self, values):
        return np.repeat((255 * np.clip(values.reshape(*values.shape[-2:], 1), 0, 1)).astype(np.uint8), 3, axis=2)
'''

DATA = '''
"""Stripes: photographs of stripes, and which pixels are on one."""

from taskformer.data import MultiTaskDataModule, MultiTaskDataset
from taskformer.data.images import read_ids, read_rgb


class Stripes(MultiTaskDataset):
    def _ids(self):
        return sorted(path.stem for path in (self.root / self.split).glob("*.jpg"))

    def files(self, index):
        image = self.root / self.split / f"{self.ids[index]}.jpg"
        return {"image": image, "semseg": image.with_suffix(".png")}

    def decode(self, key, files):
        return read_rgb(files[key]) if key == "image" else read_ids(files[key])


class StripesDataModule(MultiTaskDataModule):
    """Stripes.

    Args:
        root: The folder.
        **kwargs: The options that all data modules share.
    """

    name = "stripes"
    offers = {"semseg": {"classes": ["ground", "stripe"]}}

    def __init__(self, root: str = "data/stripes", **kwargs) -> None:
        super().__init__(root, **kwargs)

    def splits(self):
        return ["train", "val"]

    def dataset(self, split, tasks, transform):
        return Stripes(self.root, "train" if split == "train" else "val", tasks, transform, self.size, self.on_error)
'''

MODEL = '''
"""The smallest model: one convolution for each task."""

from typing import Any

from torch import nn

from taskformer.modules import MultiTaskModule
from taskformer.modules.base import output_channels


class Convolutions(nn.Module):
    def __init__(self, channels, size):
        super().__init__()
        self.layers = nn.ModuleDict({task: nn.Conv2d(3, n, size, padding="same") for task, n in channels.items()})

    def forward(self, image):
        return {task: layer(image) for task, layer in self.layers.items()}


class Smallest(MultiTaskModule):
    """One convolution for each task.

    Args:
        tasks: The tasks.
        size: Width of the convolution's kernel.
        **kwargs: Settings of every model.
    """

    def __init__(self, tasks: dict[str, dict[str, Any]], size: int = 3, **kwargs: Any) -> None:
        super().__init__(tasks, Convolutions(output_channels(tasks), size), **kwargs)
'''

DECODER = '''
"""A decoder that averages all maps."""

from torch import nn
from torch.nn import functional as F

from taskformer.models.decoders import TaskDecoder, register_decoder


@register_decoder("averaged")
class Averaged(TaskDecoder):
    def __init__(self, channels, strides, outputs):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(n, outputs, kernel_size=1) for n in channels)

    def forward(self, maps):
        outputs = [layer(each) for layer, each in zip(self.layers, maps)]
        return sum(F.interpolate(each, size=outputs[0].shape[-2:]) for each in outputs) / len(outputs)
'''

BALANCING = '''
"""Equal weights by a learnt scale: a parameter for each task."""

import torch
from torch import nn

from taskformer.modules import Weighting


class Learnt(Weighting):
    def __init__(self, weights, start: float = 0.5):
        super().__init__(weights)
        self.scales = nn.ParameterDict({task: nn.Parameter(torch.tensor(start)) for task in weights})

    def weigh(self, losses):
        return {task: self.scales[task] for task in losses}
'''

PRUNER = '''
"""Stops every sub-network whose first images are worse than those of the last finished one."""

from taskformer.search import Pruner

CALLS = []


class Impatient(Pruner):
    def __init__(self, slack: float = 0.0):
        self.slack = slack

    def prune(self, course, costs, history):
        CALLS.append(len(course))
        return True
'''

TINY = (
    *("--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.limit_train_batches=1"),
    *("--trainer.limit_val_batches=1", "--trainer.num_sanity_val_steps=0"),
    *("--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false"),
    *("--trainer.enable_model_summary=false", "--data.batch_size=2", "--name=new"),
)
BASELINE = ("--model=Baseline", "--model.backbone=lcnet_050", "--model.embed_dim=8")
SUPERNET = (
    *("--model=AutoTaskFormer", "--model.space.preset=custom", "--model.space.embed_dims=[8]"),
    *("--model.space.depths=[1,2]", "--model.space.mlp_ratios=[1.0]", "--model.space.num_heads=[1]"),
    *("--model.space.head_dim=8", "--model.image_size=[32,48]"),
)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The newcomer's package, with nothing in it."""
    folder = tmp_path_factory.mktemp("home") / "newcomer"
    folder.mkdir()
    (folder / "__init__.py").touch()
    return folder


@pytest.fixture(autouse=True)
def newcomer(package, tmp_path, monkeypatch):
    """The package where Python finds it, and a folder to work in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(package.parent)
    return package


@pytest.fixture
def rooms(small_rooms):
    """Flags of a few small rooms."""
    return [
        "--data=RoomsDataModule",
        f"--data.root={small_rooms}",
        "--data.tasks=[depth,normals]",
        "--data.size=[32,48]",
    ]


def fit(*flags):
    """Train for a step and return the model of the run that this leaves."""
    main(["fit", *TINY, *flags])
    assert torch.load("runs/new/checkpoints/last.ckpt", weights_only=True)["global_step"] == 1
    return taskformer.load("runs/new")


def test_a_task(newcomer):
    (newcomer / "task.py").write_text(TASK)
    labels = {"warmth": {"file": "reshading/{id}.png", "divide_by": 255}}
    model = fit(
        *("--import", "newcomer.task", *BASELINE, "--data=FolderDataModule", f"--data.root={ROOMS}"),
        *("--data.image=image/{id}.jpg", f"--data.labels={json.dumps(labels)}", "--data.size=[32,48]"),
    )
    assert type(model.tasks["warmth"]).__name__ == "Warmth"
    assert model.loss_weights == {"warmth": 3.0}
    assert "warmth" in taskformer.list_tasks()
    assert model.predict_image(np.zeros((32, 48, 3), np.uint8))["warmth"].shape == (1, 32, 48)
    assert np.isfinite(json.loads(Path("runs/new/metrics.json").read_text())["val"]["tasks"]["warmth"]["mse"])


def test_a_data_set(newcomer, tmp_path, capsys):
    (newcomer / "data.py").write_text(DATA)
    for split, count in {"train": 2, "val": 1}.items():
        (tmp_path / "stripes" / split).mkdir(parents=True)
        for number in range(count):
            stripes = np.tile((np.arange(64) // 8 + number) % 2, (64, 1)).astype(np.uint8)
            place = tmp_path / "stripes" / split / f"{number}.jpg"
            Image.fromarray(np.repeat(stripes[..., None] * 255, 3, axis=2)).save(place)
            Image.fromarray(stripes).save(place.with_suffix(".png"))
    model = fit("--import=newcomer.data", *BASELINE, "--data=StripesDataModule", "--data.root=stripes")
    assert model.tasks["semseg"].classes == ["ground", "stripe"]
    assert "stripes" in taskformer.list_datasets()
    capsys.readouterr()
    main(["data", "stats", "stripes", "--root=stripes", "--workers=0", "--import=newcomer.data"])
    assert "stripe" in capsys.readouterr().out


def test_a_model(newcomer, rooms):
    (newcomer / "model.py").write_text(MODEL)
    model = fit("--model.size=5", "--model=Smallest", *rooms, "--import=newcomer.model")
    assert type(model).__name__ == "Smallest"
    assert model.network.layers["depth"].kernel_size == (5, 5)
    assert "smallest" in taskformer.list_models()


def test_a_decoder(newcomer, rooms):
    (newcomer / "decoder.py").write_text(DECODER)
    flags = ["--model=Baseline", "--model.backbone=lcnet_050", "--model.decoder=averaged", *rooms]
    model = fit(*flags, "--import=newcomer.decoder")
    assert [name for name, module in model.network.named_modules() if type(module).__name__ == "Averaged"]


def test_a_balancing_method(newcomer, rooms):
    (newcomer / "balancing.py").write_text(BALANCING)
    fit(*BASELINE, *rooms, "--model.balancing=newcomer.balancing.Learnt", "--model.balancing.start=0.25")
    state = torch.load("runs/new/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    for task in ("depth", "normals"):  # both have learnt
        assert 0 < abs(state[f"balancing.scales.{task}"].item() - 0.25) < 0.01


def test_a_pruner(newcomer, rooms):
    (newcomer / "pruner.py").write_text(PRUNER)
    fit(*SUPERNET, *rooms)
    main(["search", "runs/new", "--pruner=newcomer.pruner.Impatient", "--generations=2", "--population=2",
          "--references=false"])  # fmt: skip
    calls = sys.modules["newcomer.pruner"].CALLS
    storage = open_storage("runs/new/search/study.db")
    records = read_records(optuna.load_study(study_name="search", storage=storage))
    assert calls
    assert sum(record.state == optuna.trial.TrialState.PRUNED for record in records) == len(calls)
