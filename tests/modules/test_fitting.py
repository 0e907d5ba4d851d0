"""A checkpoint that is not of the model is refused in a sentence that says what differs."""

import re

import pytest
import torch

import taskformer
from taskformer.errors import WeightsError
from taskformer.modules import AutoTaskFormer, Baseline

SPECS = {"semseg": {"classes": ["wall", "floor", "door"]}, "depth": {}}
KIND = "SemanticSegmentation with"
SPACE = {"preset": "custom", "embed_dims": [64], "depths": [2], "mlp_ratios": [2.0], "head_dim": 32}


def checkpoint_of(model):
    """What Lightning saves of a model, as far as it matters here."""
    checkpoint = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    model.on_save_checkpoint(checkpoint)
    return checkpoint


def baseline(specs=SPECS, **options):
    return Baseline(specs, **{"embed_dim": 8, "head_dim": 4, **options})


def test_one_of_the_same_model_is_loaded_whatever_is_no_size():
    saved = baseline(loss_weights={"depth": 3.0}, backbone_lr_scale=0.1)
    model = baseline()
    model.on_load_checkpoint(checkpoint_of(saved))
    model.load_state_dict(saved.state_dict())


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ({"depth": {}}, "semseg, depth there, depth here"),
        (dict(reversed(SPECS.items())), "in the order semseg, depth there, depth, semseg here"),
        (SPECS | {"normals": {}}, "semseg, depth there, semseg, depth, normals here"),
        (SPECS | {"semseg": {"classes": ["wall", "floor"]}}, f"semseg is a {KIND} 3 channels there and a {KIND} 2 ch"),
        (SPECS | {"depth": {"type": "inverse_depth"}}, "depth is a Depth with 1 channels there and a InverseDepth"),
        (SPECS | {"semseg": {"classes": ["wall", "door", "floor"]}}, "class 1 of semseg is 'floor' there and 'door'"),
    ],
)  # fmt: skip
def test_other_tasks_or_classes_are_named(specs, message):
    with pytest.raises(WeightsError, match=re.escape(f"the checkpoint is of other tasks or classes: {message}")):
        baseline(specs).on_load_checkpoint(checkpoint_of(baseline()))


def test_other_classes_of_whole_images_are_named():
    there, here = ({"class_scene": {"classes": classes}} for classes in (["bath", "hall"], ["hall", "bath"]))
    with pytest.raises(WeightsError, match="class 0 of class_scene is 'bath' there and 'hall' here"):
        baseline(here).on_load_checkpoint(checkpoint_of(baseline(there)))


def test_settings_that_change_sizes_are_named():
    with pytest.raises(
        WeightsError, match=r"of other sizes: embed_dim 8 there, 16 here; head_dim 4 there, 2 here; give"
    ):
        baseline(embed_dim=16, head_dim=2).on_load_checkpoint(checkpoint_of(baseline(loss_weights={"depth": 3.0})))
    with pytest.raises(WeightsError, match=r"of other sizes: backbone 'resnet18' there, 'resnet26' here"):
        baseline(backbone="resnet26").on_load_checkpoint(checkpoint_of(baseline()))
    saved = checkpoint_of(AutoTaskFormer(SPECS, {**SPACE, "num_heads": [2]}, image_size=(32, 32)))
    with pytest.raises(WeightsError, match=r"of other sizes: space\.num_heads \[2\] there, \[1\] here; give"):
        AutoTaskFormer(SPECS, {**SPACE, "num_heads": [1]}, image_size=(32, 32)).on_load_checkpoint(saved)


def test_tensors_are_named_where_no_setting_differs():
    checkpoint = checkpoint_of(baseline())
    first, *_ = checkpoint["state_dict"]
    checkpoint["state_dict"] = {"new": torch.zeros(2)} | checkpoint["state_dict"]
    del checkpoint["state_dict"][first]
    with pytest.raises(WeightsError, match=rf"of other sizes: {first} none there, \(2,\) here; new \(2,\) there, none"):
        baseline().on_load_checkpoint(checkpoint)


def test_what_is_no_checkpoint_of_ours_is_refused():
    with pytest.raises(WeightsError, match="does not name its model's class"):
        baseline().on_load_checkpoint({"state_dict": {}})
    checkpoint = checkpoint_of(baseline())
    for missing in ("hyper_parameters", "state_dict"):
        with pytest.raises(WeightsError, match="does not name its tasks and weights"):
            baseline().on_load_checkpoint({key: value for key, value in checkpoint.items() if key != missing})
    checkpoint["hyper_parameters"]["tasks"] = {"smell": {}}
    with pytest.raises(WeightsError, match="tasks of the checkpoint are not known here: unknown task type 'smell'"):
        baseline().on_load_checkpoint(checkpoint)


def test_a_loaded_model_knows_what_it_was_trained_with(tmp_path):
    model = baseline()
    model.recipe = {"steps": 7, "optimizer": ["AdamW(lr=0.1)"]}
    torch.save(checkpoint_of(model), tmp_path / "x.ckpt")
    assert taskformer.load(tmp_path / "x.ckpt").recipe == model.recipe
    checkpoint = checkpoint_of(model)
    del checkpoint["taskformer_recipe"]  # as older ones
    torch.save(checkpoint, tmp_path / "old.ckpt")
    assert taskformer.load(tmp_path / "old.ckpt").recipe == {}
