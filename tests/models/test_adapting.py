"""What of an encoder trains: parameters counted by hand, adapters against weights added by hand."""

import pytest
import timm
import torch
from timm.models.eva import Eva
from torch.nn import functional as F

from taskformer.errors import ConfigError
from taskformer.models import Backbone
from taskformer.models.adapting import Lora, adapt, encoder_layers, fingerprint, merged

WIDTH, BLOCKS = 64, 6  # of timm's test_vit


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def filled(module):
    """Give all trained parameters values, so that adapters do something."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return module


def trained(module):
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def test_layers_are_the_stem_and_each_block():
    vit, resnet = (encoder_layers(timm.create_model(name, num_classes=0)) for name in ("test_vit", "test_resnet"))
    assert {name for name, layer in vit.items() if layer == 0} == {
        "cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"
    }  # fmt: skip
    for block in range(BLOCKS):
        assert {layer for name, layer in vit.items() if name.startswith(f"blocks.{block}.")} == {block + 1}
    assert vit["norm.weight"] == BLOCKS
    firsts = ["conv1.0.weight", "layer1.0.conv1.weight", "layer2.0.conv1.weight", "layer3.0.conv1.weight"]
    assert [resnet[name] for name in firsts] == [0, 1, 2, 3]
    with pytest.raises(ConfigError, match="timm does not say what the layers of a Linear are"):
        encoder_layers(torch.nn.Linear(1, 1))


def test_the_first_blocks_keep_their_weights_and_their_norms_statistics(images):
    backbone = Backbone("test_resnet", freeze=2)
    still = ("encoder.conv1", "encoder.bn1", "encoder.layer1", "encoder.layer2.0")
    assert {name.startswith(still) for name, p in backbone.named_parameters() if not p.requires_grad} == {True}
    assert all(p.requires_grad for name, p in backbone.named_parameters() if not name.startswith(still))
    before = {name: values.clone() for name, values in backbone.state_dict().items()}
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1)
    assert not backbone.frozen
    for _ in range(2):
        sum(x.square().mean() for x in backbone.train()(images)).backward()
        optimizer.step()
    moved = {name for name, values in backbone.state_dict().items() if not torch.equal(values, before[name])}
    assert not [name for name in moved if name.startswith(still)]
    assert moved >= {"encoder.layer4.0.bn1.running_mean", "encoder.layer4.0.conv1.weight"}


def test_a_frozen_encoder_runs_as_in_evaluation_and_without_gradients(images):
    backbone = Backbone("test_vit", drop_path_rate=0.5, freeze="all").train()
    assert backbone.frozen
    first, second = backbone.encode(images), backbone.encode(images)
    assert not any(x.requires_grad for x in first)
    for x, y, z in zip(first, second, backbone.eval().encode(images), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)
        torch.testing.assert_close(x, z, rtol=0, atol=0)
    sum(x.sum() for x in backbone.train()(images)).backward()
    assert {name.split(".")[0] for name, p in backbone.named_parameters() if p.grad is not None} == {"pyramid"}


def test_adapters_are_as_many_parameters_as_counted_by_hand_and_change_nothing_at_first(images):
    torch.manual_seed(0)
    plain = Backbone("test_vit").eval()
    torch.manual_seed(0)
    backbone = Backbone("test_vit", lora=Lora(rank=3)).eval()
    qkv, proj = 3 * (WIDTH + 3 * WIDTH), 3 * (WIDTH + WIDTH)
    assert trained(backbone.encoder) == BLOCKS * (qkv + proj)
    assert trained(backbone.pyramid) == trained(plain.pyramid)
    assert not backbone.frozen
    for x, y in zip(backbone.encode(images), plain.encode(images), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)


@pytest.mark.parametrize("targets", [None, ["fc1", "attn.proj"]])
def test_an_adapted_encoder_is_one_with_the_products_added_to_its_weights(targets, images):
    lora = Lora(rank=2, alpha=3.0, targets=targets)
    backbone = filled(Backbone("test_vit", lora=lora).eval())
    names = ["attn.qkv", "attn.proj"] if targets is None else ["mlp.fc1", "attn.proj"]
    state, plain = backbone.encoder.state_dict(), timm.create_model("test_vit", num_classes=0)
    for block in range(BLOCKS):
        for name in names:
            path = f"blocks.{block}.{name}"
            weight, down, up = (
                state.pop(f"{path}.parametrizations.weight.{part}") for part in ("original", "0.down", "0.up")
            )
            state[f"{path}.weight"] = weight + 3.0 / 2 * up @ down
    plain.load_state_dict(state)
    encoder = merged(backbone).encoder
    assert encoder.state_dict().keys() == plain.state_dict().keys()
    images = F.interpolate(images, (160, 160))  # what timm's own model takes
    expected = plain.eval().forward_features(images)
    for each in (backbone.encoder, encoder):
        torch.testing.assert_close(each.forward_features(images), expected, rtol=1e-5, atol=1e-5)


def test_layers_whose_weights_are_used_without_a_call_are_adapted_too():
    """Some of timm's attention multiplies by a layer's weight itself."""
    encoder = Eva(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0, qkv_fused=True)
    adapt(encoder, "eva", "none", Lora(rank=2))
    filled(encoder).forward_features(torch.randn(1, 3, 32, 32)).square().sum().backward()
    adapters = [p for p in encoder.parameters() if p.requires_grad]
    assert len(adapters) == 2 * 2 * 2  # two thin matrices in qkv and proj of two blocks
    assert all(p.grad.abs().sum() > 0 for p in adapters)


def test_a_network_without_adapters_is_merged_as_it_is():
    backbone = Backbone("test_vit", freeze="all")
    assert merged(backbone) is backbone


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("test_vit", {"freeze": 7}, "how many of the 6 blocks of 'test_vit', 1 to 6, got 7"),
        ("test_vit", {"freeze": 0}, "1 to 6, got 0"),
        ("test_vit", {"freeze": 2, "lora": Lora(2)}, "lora freezes the whole encoder but its adapters; leave out"),
        ("test_vit", {"lora": Lora(2, targets=["qkv", "fc3"])},
         "no linear layer of 'test_vit' is called fc3; its linear layers are called qkv, proj, fc1, fc2"),
        ("test_resnet", {"lora": Lora(2)}, "no linear layer of 'test_resnet' .*; it has no linear layers; freeze it"),
    ],
)  # fmt: skip
def test_what_an_encoder_lacks_is_said(name, options, message):
    with pytest.raises(ConfigError, match=message):
        Backbone(name, **options)


@pytest.mark.parametrize("options", [{"rank": -1}, {"rank": 2, "alpha": 0.0}])
def test_impossible_adapters_are_refused(options):
    with pytest.raises(ConfigError, match=r"lora\.(rank|alpha) must be in"):
        Lora(**options)


def test_a_fingerprint_is_of_the_values_and_not_of_where_they_lie():
    values = torch.randn(2, 3, 4, 5)
    last = values.to(memory_format=torch.channels_last)
    assert last.stride() != values.stride()
    assert fingerprint({"a": values}) == fingerprint({"a": last})
    other = values.clone()
    other[1, 2, 3, 4] = torch.nextafter(other[1, 2, 3, 4], torch.tensor(9.0))
    kinds = [{"a": values}, {"b": values}, {"a": other}, {"a": values.bfloat16()}, {"a": values.flatten()}, {}]
    assert len({fingerprint(tensors) for tensors in kinds}) == len(kinds)
