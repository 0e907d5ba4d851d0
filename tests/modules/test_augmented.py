"""Test-time augmentation averages what it says, of every kind of task, and is told wherever its numbers stand."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import taskformer
from taskformer.cli import main
from taskformer.data import RoomsDataModule
from taskformer.data.geometry import mirror, zoom_values
from taskformer.errors import ConfigError
from taskformer.modules import Baseline
from taskformer.modules.augmented import TTA, augmented
from taskformer.modules.base import MultiTaskModule
from taskformer.tasks import build_tasks

TASKS = {
    "semseg": {"classes": ["a", "b", "c"]},
    "saliency": {},
    "edges": {},
    "depth": {},
    "inverse_depth": {},
    "normals": {},
    "curvature": {},
    "segment_unsup2d": {"channels": 4},
    "class_scene": {"classes": ["in", "out"]},
    "vanishing_point": {"channels": 2},
}
SCALES = (0.5, 1.0, 1.5)


class Noise(nn.Module):
    """Other outputs for each image, whose sides they know of."""

    def __init__(self, tasks):
        super().__init__()
        torch.manual_seed(0)
        self.convolutions = nn.ModuleDict(
            {name: nn.Conv2d(3, task.channels, 3, padding=1) for name, task in tasks.items()}
        )
        self.whole = {name for name, task in tasks.items() if task.geometry == "image"}

    def forward(self, image):
        maps = {name: 3 * layer(image) for name, layer in self.convolutions.items()}
        return {name: x.amax((2, 3)) if name in self.whole else x for name, x in maps.items()}


@pytest.fixture(scope="module")
def module():
    return MultiTaskModule(TASKS, Noise(build_tasks(TASKS))).eval()


@pytest.fixture(scope="module")
def image():
    return torch.randn(2, 3, 20, 24, generator=torch.Generator().manual_seed(1))


def by_hand(module, image, name):
    """Each view's output of a task, brought back with what the training's augmentation does to its targets."""
    found = []
    for scale in SCALES:
        for flipped in (False, True):
            pictures = [x.movedim(0, -1).numpy() for x in image]
            turned = torch.stack([torch.from_numpy(mirror(x).copy()).movedim(-1, 0) for x in pictures])
            seen = turned if flipped else image
            if scale != 1:
                size = (round(20 * scale), round(24 * scale))
                seen = F.interpolate(seen, size, mode="bilinear", align_corners=False, antialias=True)
            output = module.network(seen)[name]
            if output.ndim == 2:
                found.append(output)
                continue
            kind = module.tasks[name].geometry
            output = F.interpolate(output, (20, 24), mode="bilinear", align_corners=False)
            maps = [x.movedim(0, -1).numpy() for x in output]
            maps = [zoom_values(x, kind, 1 / scale) for x in maps]
            # Logits and embeddings move with the pixels as values do.
            maps = [mirror(x, kind) if flipped else x for x in maps]
            found.append(torch.stack([torch.from_numpy(x.reshape(20, 24, -1).copy()).movedim(-1, 0) for x in maps]))
    return found


def mean(values):
    return torch.stack(list(values)).mean(0)


@torch.no_grad()
def test_every_task_averages_what_its_values_mean(module, image):
    outputs = augmented(module, flip=True, scales=SCALES)(image)
    tasks = module.tasks
    for name in ("depth", "inverse_depth", "curvature", "segment_unsup2d"):
        torch.testing.assert_close(outputs[name], mean(by_hand(module, image, name)), msg=name)
    for name in ("semseg", "saliency", "class_scene"):
        expected = mean(x.softmax(1) for x in by_hand(module, image, name))
        torch.testing.assert_close(outputs[name].exp(), expected, msg=name)
        torch.testing.assert_close(outputs[name].softmax(1), expected, msg=name)
    expected = mean(x.sigmoid() for x in by_hand(module, image, "edges"))
    torch.testing.assert_close(outputs["edges"].sigmoid(), expected)
    expected = mean(F.normalize(x, dim=1) for x in by_hand(module, image, "normals"))
    torch.testing.assert_close(tasks["normals"].decode(outputs["normals"]), F.normalize(expected, dim=1))
    # What is about the camera is only right of the image as it is.
    torch.testing.assert_close(outputs["vanishing_point"], module(image)["vanishing_point"])
    assert {name: x.shape for name, x in outputs.items()} == {name: x.shape for name, x in module(image).items()}


@torch.no_grad()
def test_certain_probabilities_stay_finite(module):
    tasks = module.tasks
    logits = torch.tensor([200.0, -200.0, 0.0]).view(1, 3, 1, 1)
    assert tasks["semseg"].averaged([logits, logits]).isfinite().all()
    for value in (300.0, -300.0):
        edge = torch.full((1, 1, 1, 1), value)
        torch.testing.assert_close(tasks["edges"].averaged([edge, edge]), edge)


def test_nothing_to_average_is_the_model_itself(module):
    assert augmented(module) is module
    assert TTA().facts is None
    assert TTA(scales=(2.0,)).facts == {"flip": False, "scales": [2.0]}


def test_a_mirrored_room_has_mirrored_maps():
    """The average over both views of an image is that of its mirror image, mirrored: of a network without symmetry."""
    torch.manual_seed(0)
    model = Baseline({"normals": {}, "depth": {}}, embed_dim=8, head_dim=4, backbone="test_resnet").eval()
    model.tta = TTA(flip=True)
    picture = torch.rand(3, 32, 48)
    maps, mirrored = model.predict_image(picture), model.predict_image(picture.flip(-1))
    torch.testing.assert_close(torch.from_numpy(maps["depth"]), torch.from_numpy(mirrored["depth"][..., ::-1].copy()))
    turned = mirrored["normals"][..., ::-1] * torch.tensor([-1.0, 1, 1]).view(3, 1, 1).numpy()
    torch.testing.assert_close(torch.from_numpy(maps["normals"]), torch.from_numpy(turned.copy()))


@pytest.mark.parametrize("scales", [[0.0], [-1.0, 1.0], [float("nan")], []])
def test_impossible_scales_are_refused(scales):
    with pytest.raises(ConfigError, match="scales"):
        TTA(scales=scales)


def test_a_task_about_the_camera_needs_the_image_as_it_is(module):
    with pytest.raises(ConfigError, match=r"vanishing_point is about the camera .* add the scale 1 to \[0\.5, 2\.0\]"):
        augmented(module, scales=[0.5, 2.0])


def test_results_say_it_and_tables_do_not_mix_it_silently(tmp_path, monkeypatch, tiny, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--model=Baseline", "--model.backbone=test_resnet", "--data=RoomsDataModule", "--data.tasks=[depth]"]
    main(["fit", *flags, *tiny, "--name=plain", "--trainer.limit_val_batches=0"])
    shutil.copytree("runs/plain", "runs/averaged")
    for run, options in {"plain": [], "averaged": ["--test.tta.flip=true", "--test.tta.scales=[1,1.5]"]}.items():
        main(["test", f"runs/{run}", *options])
    records = [json.loads(Path(f"runs/{run}/metrics.json").read_text())["test"] for run in ("plain", "averaged")]
    plain, averaged = records
    assert plain["facts"]["tta"] is None
    assert averaged["facts"]["tta"] == {"flip": True, "scales": [1.0, 1.5]}
    assert "averaged over flips, scales 1 and 1.5" in Path("runs/averaged/results.md").read_text()
    capsys.readouterr()
    main(["compare", "runs/plain", "runs/averaged"])
    assert "tta.flip (A: none, B: True)" in " ".join(capsys.readouterr().out.split())

    model, data = taskformer.load("runs/averaged"), RoomsDataModule(tasks=["depth"], root=tiny[0].split("=")[1])
    data.setup("test")
    squares = []
    for sample in data.datasets["test"]:
        image, depth = sample["image"].unsqueeze(0), sample["targets"]["depth"]
        large = F.interpolate(image, scale_factor=1.5, mode="bilinear")
        views = [(image, 1.0), (image.flip(-1), 1.0), (large, 1.5), (large.flip(-1), 1.5)]
        outputs = [1.5 * model(x)["depth"] if scale == 1.5 else model(x)["depth"] for x, scale in views]
        outputs = [F.interpolate(x, depth.shape[-2:], mode="bilinear") for x in outputs]
        outputs = [x.flip(-1) if k % 2 else x for k, x in enumerate(outputs)]
        squares.append((mean(outputs).clamp(min=0)[0] - depth).square()[depth > 0])
    assert averaged["tasks"]["depth"]["rmse"] == pytest.approx(torch.cat(squares).mean().sqrt().item(), rel=1e-4)
    assert averaged["tasks"]["depth"]["rmse"] != plain["tasks"]["depth"]["rmse"]

    # Photographs, too: of one without symmetry the average over both views is that of the two predictions.
    picture = torch.randint(256, (40, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(picture.numpy()).save("photo.png")
    main(["predict", "runs/averaged", "photo.png", "--tta.flip=true", "--out=out"])
    ways = [model.predict_image(picture.numpy())["depth"], model.predict_image(picture.flip(1).numpy())["depth"]]
    expected = (ways[0] + ways[1][..., ::-1]) / 2
    assert ways[0].min() > 0  # otherwise the average of clamped values would be another one
    np.testing.assert_allclose(np.load("out/raw/depth/photo.npy"), expected, atol=1e-5)
    assert json.loads(Path("out/predictions.json").read_text())["tta"] == {"flip": True, "scales": [1.0]}
