"""What a training notes of itself: what the configuration says, in plain values."""

import json
from functools import partial

import albumentations as A
import pytest
import torch
from lightning import Callback, Trainer
from torch.optim.lr_scheduler import MultiStepLR, OneCycleLR

from taskformer.data import CombinedDataModule, RoomsDataModule
from taskformer.data.transforms import RandomHorizontalFlip, Resize
from taskformer.modules import AutoTaskFormer, Baseline, PolyLR
from taskformer.modules.autotaskformer_args import Space

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


class EnoughError(Exception):
    """The training has begun, no step is needed."""


class Stop(Callback):
    """End the training before its first step."""

    def on_train_start(self, trainer, pl_module):
        raise EnoughError


def recipe(model, *data, **options):
    """Begin to train and return what the model noted."""
    options = {"max_epochs": 3, "limit_val_batches": 0, "limit_train_batches": 2, **options}
    trainer = Trainer(**options, **QUIET, accelerator="cpu", callbacks=[Stop()])
    with pytest.raises(EnoughError):
        trainer.fit(model, *data)
    return model.recipe


def model(specs, **options):
    return Baseline(specs, head_dim=4, embed_dim=8, **options)


def test_the_recipe_is_what_was_configured(small_rooms):
    data = RoomsDataModule(
        str(small_rooms), ["depth"], batch_size=2, size=(64, 80),
        train_transforms=[RandomHorizontalFlip(p=0.25), A.ToGray(p=0.5)], eval_transforms=[Resize(32, 32)],
    )  # fmt: skip
    found = recipe(
        model(
            data.task_specs,
            optimizer=partial(torch.optim.SGD, lr=0.2, momentum=0.9, nesterov=True),
            lr_scheduler=partial(PolyLR, power=2.0, warmup=0.5),
            backbone_lr_scale=0.25,
            backbone_drop_path=0.125,
        ),
        data,
        accumulate_grad_batches=2,
        gradient_clip_val=0.5,
    )
    augmentation = found.pop("augmentation")
    assert augmentation[:2] == ["loaded at 64x80", "RandomHorizontalFlip(p=0.25)"]
    assert augmentation[2].startswith("ToGray(p=0.5")
    # Two batches of two make one step; three epochs.
    assert found == {
        "steps": 3,
        "epochs": 3,
        "batch_size": 4,
        "optimizer": ["SGD(dampening=0, lr=0.2, momentum=0.9, nesterov=True, weight_decay=0)"],
        "lr_scheduler": ["PolyLR(power=2.0, warmup=0.5)"],
        "gradient_clip_val": 0.5,
        "precision": "32-true",
        "ema_decay": None,
        "labels": [],
        "backbone_lr_scale": 0.25,
        "weight_decay_on": "weights",
        "backbone_drop_path": 0.125,
        "freeze": None,
        "lora": None,
        "layer_decay": None,
    }


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (None, []),
        (partial(OneCycleLR, max_lr=0.5, total_steps=6), ["OneCycleLR(", "max_lr=0.5"]),
        (partial(MultiStepLR, milestones=[2, 4], gamma=0.5), ["MultiStepLR(", "gamma=0.5", "2", "4"]),
        (partial(PolyLR, total_steps=100), ["PolyLR(power=0.9, total_steps=100, warmup=0.0)"]),
    ],
)
def test_every_schedule_is_described_with_its_settings(small_rooms, scheduler, expected):
    data = RoomsDataModule(str(small_rooms), ["depth"], batch_size=2)
    found = recipe(model(data.task_specs, lr_scheduler=scheduler), data)["lr_scheduler"]
    assert len(found) == bool(expected)
    assert all(part in found[0] for part in expected)


def test_neither_seed_nor_weights_of_losses_count(small_rooms):
    found = []
    for seed, weights in ((0, None), (1, {"depth": 5.0})):
        torch.manual_seed(seed)
        data = RoomsDataModule(str(small_rooms), ["depth"], batch_size=2)
        found.append(recipe(model(data.task_specs, loss_weights=weights), data))
    assert found[0] == found[1]


def test_a_mixture_names_the_augmentation_of_each_part(small_rooms):
    parts = [RoomsDataModule(str(small_rooms), [task], train_transforms=[Resize(32, size)])
             for task, size in (("depth", 32), ("semseg", 64))]  # fmt: skip
    data = CombinedDataModule(parts, batch_size=2)
    found = recipe(model(data.task_specs), data)
    assert [text.split("(")[0] for text in found["augmentation"]] == ["rooms: Resize", "rooms: Resize"]
    assert found["augmentation"][0] != found["augmentation"][1]


def test_labels_that_are_left_out_are_noted(small_rooms):
    root = str(small_rooms)
    data = RoomsDataModule(root, ["depth"], batch_size=2, label_share=0.5, one_label_of=["semseg", "depth"])
    assert recipe(model(data.task_specs), data)["labels"] == ["0.5 of the images", "one of depth, semseg on each"]
    parts = [RoomsDataModule(root, ["depth"]), RoomsDataModule(root, ["semseg"], label_share=0.5)]
    data = CombinedDataModule(parts, batch_size=2)
    assert recipe(model(data.task_specs), data)["labels"] == ["rooms: 0.5 of the images"]


def test_sub_networks_note_theirs_and_it_is_plain(small_rooms):
    data = RoomsDataModule(str(small_rooms), ["depth"], batch_size=2, size=(32, 32))
    network = AutoTaskFormer(
        data.task_specs, Space("custom", embed_dims=[64], depths=[2], mlp_ratios=[2.0], num_heads=[2], head_dim=32),
        image_size=(32, 32), layer_decay=0.75,
    )  # fmt: skip
    found = recipe(network, data)
    assert found["layer_decay"] == 0.75
    assert json.loads(json.dumps(found)) == found


def test_trainings_without_a_data_module_have_one_too():
    loader = torch.utils.data.DataLoader([0, 1])
    found = recipe(model({"depth": {}}), loader, loader, max_epochs=2)
    assert (found["steps"], found["batch_size"], found["augmentation"]) == (4, 0, [])
