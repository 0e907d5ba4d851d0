"""Frozen encoders in half precision and from disk: the same training, without encoding anything twice."""

import pytest
import torch
from lightning import Trainer

from taskformer.data import RoomsDataModule
from taskformer.data.transforms import RandomHorizontalFlip, RandomScaledCrop
from taskformer.errors import ConfigError
from taskformer.models import Backbone
from taskformer.models.feature_cache import FeatureCache
from taskformer.modules import Baseline

TASKS = {"depth": {}, "normals": {}}


def build(encoder="test_vit", **settings):
    torch.manual_seed(0)
    return Baseline(TASKS, backbone=encoder, freeze="all", embed_dim=8, head_dim=4, **settings)


def count_encoded(model):
    """Count the images that the encoder sees, whatever asks it to."""
    seen = []
    encoder = model.backbone.encoder
    original = encoder.forward_intermediates

    def counting(image, **options):
        seen.append(len(image))
        return original(image, **options)

    encoder.forward_intermediates = counting
    return seen


def fit(model, root, augmented=False):
    """Train for two epochs, and return the loss of each step."""
    losses = []
    backward = model.backward
    model.backward = lambda loss, *args, **kwargs: (losses.append(loss.item()), backward(loss, *args, **kwargs))
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    torch.manual_seed(1)
    steps = [RandomScaledCrop(1.0, 1.5, 96, 128), RandomHorizontalFlip()] if augmented else []
    data = RoomsDataModule(str(root), list(TASKS), batch_size=4, num_workers=0, train_transforms=steps)
    Trainer(accelerator="cpu", max_epochs=2, num_sanity_val_steps=0, **quiet).fit(model, data)
    return losses


def weights(model):
    return {name: x for name, x in model.state_dict().items() if not name.startswith("network.backbone.encoder")}


@pytest.mark.parametrize(("encoder", "augmented"), [("test_vit", False), ("test_resnet", True)])
def test_features_from_disk_train_as_those_that_are_encoded(small_rooms, tmp_path, encoder, augmented):
    """A Vision Transformer with its pyramid, and a network with batch norms on images that each epoch changes."""
    plain = build(encoder)
    expected = fit(plain, small_rooms, augmented)
    settings = {"feature_cache": {"folder": str(tmp_path / "features"), "gigabytes": 1}}
    first = build(encoder, **settings)
    encoded = count_encoded(first)
    assert fit(first, small_rooms, augmented) == pytest.approx(expected, rel=1e-5)
    assert sum(encoded) == (2 if augmented else 1) * 8 + 3  # 8 images train in each epoch, 3 validate
    again = build(encoder, **settings)
    encoded = count_encoded(again)
    assert fit(again, small_rooms, augmented) == pytest.approx(expected, rel=1e-5)
    assert not encoded  # the augmentation of an epoch is the same in every run of a seed
    for model in (first, again):
        for name, values in weights(plain).items():
            torch.testing.assert_close(weights(model)[name], values, rtol=1e-4, atol=1e-5, msg=name)


def test_other_weights_are_another_encoder(tmp_path):
    cache = FeatureCache(tmp_path, 1)
    backbone, image = Backbone("test_resnet", freeze="all", cache=cache).eval(), torch.rand(2, 3, 64, 64)
    before = backbone.encode(image)
    same = Backbone("test_resnet", freeze="all", cache=cache).eval()
    assert not torch.equal(same.encode(image)[-1], before[-1])  # random weights of its own
    same.load_state_dict(backbone.state_dict())
    for found, expected in zip(same.encode(image), before, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    with torch.no_grad():
        next(p for p in same.encoder.parameters()).mul_(2)
    assert not torch.equal(same.encode(image)[0], before[0])


def test_another_precision_is_another_entry(tmp_path):
    """What is computed in half precision is never taken for the exact maps, nor the other way round."""
    image, cache = torch.rand(1, 3, 64, 64), FeatureCache(tmp_path, 1)
    exact = Backbone("test_vit", freeze="all", cache=cache).eval()
    half = Backbone("test_vit", freeze="all", frozen_precision="bfloat16", cache=cache).eval()
    half.load_state_dict(exact.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        around = exact.encode(image)
    assert not torch.equal(around[0].float(), exact._encode(image)[0])
    for again in (exact, half, exact, half):
        for found, own in zip(again.encode(image), again._encode_frozen(image), strict=True):
            torch.testing.assert_close(found, own.float(), rtol=0, atol=0)
    assert not torch.equal(exact.encode(image)[0], half.encode(image)[0])
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_only_the_encoders(precision):
    image = torch.rand(2, 3, 64, 64)
    backbone = Backbone("test_vit", freeze="all", frozen_precision=precision).train()
    with torch.autocast("cpu", getattr(torch, precision)), torch.no_grad():
        expected = [x.to(getattr(torch, precision)).float() for x in backbone._encode(image)]
    found = backbone.encode(image)
    exact = backbone._encode(image)
    for maps, same, near in zip(found, expected, exact, strict=True):
        assert maps.dtype == torch.float32
        torch.testing.assert_close(maps, same, rtol=0, atol=0)
        assert not torch.equal(maps, near)
        torch.testing.assert_close(maps, near, rtol=0, atol=0.05 * float(near.abs().max()))
    sum(level.sum() for level in backbone(image)).backward()
    trained = [name for name, p in backbone.named_parameters() if p.grad is not None]
    assert trained
    assert all(name.startswith("pyramid") for name in trained)


def test_how_a_machine_computes_is_in_no_checkpoint(tmp_path):
    model = build(frozen_precision="bfloat16", feature_cache={"folder": str(tmp_path)})
    assert not {"frozen_precision", "feature_cache"} & set(model.hparams)
    assert model.backbone.cache.limit == 20e9
    assert model.backbone.encode(torch.rand(1, 3, 64, 64))[0].dtype == torch.float32


@pytest.mark.parametrize("wrong", [{"freeze": "none"}, {"freeze": 1}, {"freeze": "none", "lora": {"rank": 2}}])
@pytest.mark.parametrize("setting", [{"frozen_precision": "bfloat16"}, {"feature_cache": {"folder": "features"}}])
def test_an_encoder_that_trains_is_refused(wrong, setting):
    with pytest.raises(ConfigError, match="for an encoder that is frozen as a whole; set freeze to 'all'"):
        Baseline(TASKS, backbone="test_vit", embed_dim=8, head_dim=4, **wrong, **setting)


def test_a_compiled_network_reads_no_files(tmp_path):
    with pytest.raises(ConfigError, match="feature_cache reads files, which a compiled program cannot"):
        build(feature_cache={"folder": str(tmp_path)}, compile=True)
