"""Several data sets in one training."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch.utils.data import DistributedSampler

from taskformer.cli import main
from taskformer.data import CombinedDataModule, FolderDataModule, Label, RoomsDataModule
from taskformer.data.datamodules.combined import PartBatches
from taskformer.data.images import write_png
from taskformer.errors import ConfigError, UnknownNameError
from taskformer.modules import Baseline

#: Real photographs that are not part of the repository.
SHARED = Path(__file__).parents[3] / "shared" / "data"

ROOT = Path(__file__).parents[2]
H, W = 32, 48
CLASSES = ["road", "sky", "car"]


def write(root, name, count, size=(H, W)):
    """A folder of images whose first pixel counts them, with one constant label map each."""
    for index in range(count):
        image = np.full((*size, 3), index, np.uint8)
        stored = np.full(size, 1000 + index, np.uint16) if name == "depth" else np.full(size, index % 3, np.uint8)
        write_png(root / "img" / f"{index}.png", image)
        write_png(root / name / f"{index}.png", stored)
    return root


def folder(root, name, **changes):
    spec = {"classes": CLASSES} if name == "semseg" else {}
    label = Label(f"{name}/{{id}}.png", spec=spec, divide_by=1000 if name == "depth" else 1)
    splits = {"train": 0.6, "val": 0.4}
    return FolderDataModule(str(root), "img/{id}.png", {name: label}, changes.pop("splits", splits), **changes)


@pytest.fixture
def parts(tmp_path):
    """Indoor depth and street segmentation, of different sizes."""
    write(tmp_path / "indoor", "depth", 30)
    write(tmp_path / "street", "semseg", 20, (H, 40))
    return [folder(tmp_path / "indoor", "depth"), folder(tmp_path / "street", "semseg")]


def batches(loader):
    return [list(zip(batch["meta"]["part"], batch["meta"]["id"], strict=True)) for batch in loader]


def test_tasks_are_the_union_and_batches_mix_the_parts(parts):
    data = CombinedDataModule(parts, batch_size=7)
    assert list(data.task_specs) == ["depth", "semseg"]
    data.setup("fit")
    assert len(data.datasets["train"]) == sum(len(part.datasets["train"]) for part in parts)
    mixed = 0
    for batch in data.train_dataloader():
        assert batch["image"].shape[1:] == (3, H, W) or batch["image"].shape[1:] == (3, H, 40)
        has_depth = batch["targets"]["depth"].isfinite().any(dim=(1, 2, 3))
        has_classes = (batch["targets"]["semseg"] != 255).any(dim=(1, 2))
        assert (has_depth ^ has_classes).all()
        sizes = [size[1] for size in batch["meta"]["size"]]
        assert has_depth.tolist() == [width == W for width in sizes]
        mixed += len(set(sizes)) == 2
    assert mixed


def test_an_epoch_has_every_image_as_often_as_it_says(parts):
    data = CombinedDataModule(parts, repeat=[1, 3], batch_size=1)
    data.setup("fit")
    seen = [
        (tuple(batch["meta"]["size"][0]), batch["meta"]["id"][0])
        for batch in data.train_dataloader()
    ]  # fmt: skip
    expected = [((H, W), name) for name in parts[0].datasets["train"].ids]
    expected += [((H, 40), name) for name in parts[1].datasets["train"].ids] * 3
    assert sorted(seen) == sorted(expected)
    assert len(data.evaluation_dataset("train")) == sum(len(part.datasets["train"]) for part in parts)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_evaluation_batches_hold_one_part_and_every_image_once(parts, batch_size):
    data = CombinedDataModule(parts, repeat=[1, 3], batch_size=batch_size, num_workers=0)
    data.setup("validate")
    loader = data.val_dataloader()
    found = list(loader)
    assert len(found) == len(loader)
    assert all(len(set(batch["meta"]["size"])) == 1 for batch in found)
    metas = [batch["meta"] for batch in found]
    seen = [pair for meta in metas for pair in zip(meta["size"], meta["id"], strict=True)]
    expected = [((H, W), name) for name in parts[0].datasets["val"].ids]
    expected += [((H, 40), name) for name in parts[1].datasets["val"].ids]
    assert sorted(seen) == sorted(expected)
    assert [meta["size"][0] for meta in metas[:2]] == [(H, W), (H, 40)]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_batches_of_several_processes_keep_the_parts_apart(processes):
    ends = [5, 12, 13]
    seen = []
    for rank in range(processes):
        sampler = DistributedSampler(range(13), processes, rank, shuffle=False)
        chosen = PartBatches(sampler, 2, False, ends)
        assert len(list(chosen)) == len(chosen)
        for batch in chosen:
            assert len({sum(index >= end for end in ends) for index in batch}) == 1
            seen += batch
    assert set(seen) == set(range(13))
    assert len(seen) < 13 + processes  # the sampler fills up to equal numbers


def test_metrics_are_those_of_the_parts(parts):
    data = CombinedDataModule(parts, repeat=[1, 2], batch_size=3)
    torch.manual_seed(0)
    model = Baseline(data.task_specs, weights="random", embed_dim=8, head_dim=4).eval()
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    (logged,) = trainer.validate(model, data, verbose=False)
    losses = {}
    for part in parts:
        (name,) = part.task_names
        task = model.tasks[name]
        metrics = task.metrics()
        for sample in part.evaluation_dataset("val"):
            with torch.no_grad():
                output, target = model(sample["image"][None])[name], sample["targets"][name][None]
            metrics.update(output, target)
            losses.setdefault(name, []).append(float(task.loss(output, target)))
        expected = {key: float(value) for key, value in metrics.compute().items()}
        assert model.results["val"][name] == pytest.approx(expected, rel=1e-4)
        assert {key: logged[f"val/{name}/{key}"] for key in expected} == pytest.approx(expected, rel=1e-4)
    images = sum(len(values) for values in losses.values())
    # Unlabelled images add 0 to a loss that is a mean over all images.
    expected = sum(model.loss_weights[name] * sum(values) / images for name, values in losses.items())
    assert logged["val/loss"] == pytest.approx(expected, rel=1e-4)


def test_the_same_task_with_other_classes_is_refused_and_may_be_renamed(tmp_path):
    streets = folder(write(tmp_path / "street", "semseg", 12), "semseg")
    rooms = RoomsDataModule(tasks=["semseg", "depth"])
    message = (
        r"the task 'semseg' means SemanticSegmentation with the 16 classes wall, floor.* in data/rooms and "
        r".*3 classes road, sky, car in .*street; choose different tasks.*rename=\[\{\}, \{semseg: folder_semseg\}\]"
    )
    with pytest.raises(ConfigError, match=message):
        CombinedDataModule([rooms, streets])
    data = CombinedDataModule([rooms, streets], rename=[{}, {"semseg": "street_semseg"}])
    assert list(data.task_specs) == ["semseg", "depth", "street_semseg"]
    assert data.task_specs["street_semseg"] == {"type": "semseg", "classes": CLASSES}
    with pytest.raises(UnknownNameError, match=r"task to rename of .*street 'semsg' .did you mean 'semseg'"):
        CombinedDataModule([rooms, streets], rename=[{}, {"semsg": "x"}])


def test_renamed_targets_go_with_their_new_name(parts):
    data = CombinedDataModule(parts, rename=[{"depth": "indoor_depth"}, {}], batch_size=4)
    data.setup("validate")
    first = next(iter(data.val_dataloader()))
    ids = [int(name) for name in first["meta"]["id"]]
    assert first["targets"]["indoor_depth"][:, 0, 0, 0].tolist() == pytest.approx([1 + k / 1000 for k in ids])
    assert (first["targets"]["semseg"] == 255).all()
    assert set(first["targets"]) == {"indoor_depth", "semseg"}


def test_the_same_task_may_come_from_two_parts(tmp_path):
    paths = [write(tmp_path / name, "depth", 12) for name in ("a", "b")]
    parts = [folder(path, "depth") for path in paths]
    parts[0].labels["depth"].spec["max_depth"] = 80.0  # colours only
    data = CombinedDataModule(parts)
    assert data.task_specs == {"depth": {"max_depth": 80.0}}


def test_parts_keep_their_caches(parts, tmp_path):
    parts[0].cache_dir = str(tmp_path / "cache")
    data = CombinedDataModule(parts)
    data.build_caches()
    data.setup("fit")
    assert [part.datasets["train"].cache is not None for part in data.parts] == [True, False]


def test_chosen_tasks_leave_parts_out(parts):
    data = CombinedDataModule(parts, tasks=["semseg"], repeat=[1, 2])
    data.setup("fit")
    assert [part.task_names for part in data.parts] == [["semseg"]]
    assert len(data.datasets["train"]) == 2 * len(parts[1].datasets["train"])


def test_settings_that_do_not_fit_the_parts_are_refused(parts):
    with pytest.raises(ConfigError, match=r"repeat must have one entry for each of the 2 parts.*got \[1\]"):
        CombinedDataModule(parts, repeat=[1])
    with pytest.raises(ConfigError, match="at least 1"):
        CombinedDataModule([])
    with pytest.raises(ConfigError, match="look at its parts: folder, folder"):
        CombinedDataModule(parts).dataset("train", {}, None)


MIXTURE = """
data:
  class_path: CombinedDataModule
  init_args:
    parts:
      - class_path: RoomsDataModule
        init_args:
          root: {rooms}
          tasks: [depth]
          train_transforms: &crop
            - class_path: taskformer.data.transforms.RandomCrop
              init_args: {{height: 96, width: 128}}
            - class_path: taskformer.data.transforms.RandomHorizontalFlip
      - class_path: FolderDataModule
        init_args:
          root: {shared}/idd_lite
          image: "leftImg8bit/{{split}}/{{id}}_image.jpg"
          labels:
            semseg:
              file: "gtFine/{{split}}/{{id}}_label.png"
              spec: {{classes: [drivable, non-drivable, living things, vehicles, roadside objects, far objects, sky]}}
          splits: {{train: train, val: val}}
          size: [114, 160]
          train_transforms: *crop
    batch_size: 4
"""


@pytest.mark.parametrize("model", ["mqtransformer", pytest.param("baseline", marks=pytest.mark.slow)])
def test_indoor_depth_and_street_segmentation_train_together(tmp_path, monkeypatch, small_rooms, model):
    if not (SHARED / "idd_lite").is_dir():
        pytest.skip("the photographs of idd_lite are not here")
    monkeypatch.chdir(tmp_path)
    Path("data.yaml").write_text(MIXTURE.format(rooms=small_rooms, shared=SHARED))
    flags = [
        "--model.embed_dim=16", "--model.head_dim=8", "--trainer.accelerator=cpu", "--trainer.max_epochs=1",
        "--trainer.num_sanity_val_steps=0", "--trainer.log_every_n_steps=1", "--trainer.limit_train_batches=2",
        "--trainer.limit_val_batches=2", "--trainer.limit_test_batches=2", "--trainer.enable_progress_bar=false",
        "--gallery.images=2",
    ]  # fmt: skip
    main(["fit", f"--config={ROOT}/configs/model/{model}.yaml", "--config=data.yaml", "--name=both", *flags])
    checkpoint = "runs/both/checkpoints/best.ckpt"
    main(["test", "--config=runs/both/config.yaml", f"--ckpt_path={checkpoint}", "--results.constant=true"])
    record = json.loads(Path("runs/both/metrics.json").read_text())["test"]
    assert list(record["tasks"]) == ["depth", "semseg"]
    for results in (record["tasks"], record["constant"]):
        assert 0 < results["depth"]["rmse"] < 20
        assert 0 <= results["semseg"]["mIoU"] <= 1
    assert Path("runs/both/gallery/test.png").exists()
