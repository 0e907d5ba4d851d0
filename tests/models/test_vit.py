"""A supernet from a plain ViT computes what timm's model does, and its sub-networks have what matters most."""

from functools import partial

import pytest
import timm
import torch
from timm.layers import SwiGLU
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from taskformer.errors import ConfigError, WeightsError
from taskformer.models.autotaskformer import Architecture, SearchSpace, Supernet
from taskformer.models.autotaskformer.importance import measure_importance, sort_by_importance
from taskformer.models.autotaskformer.layers import Variant
from taskformer.models.autotaskformer.vit import PlainViT, _obstacles
from taskformer.normalisation import MEAN, STD

TASKS = {"depth": 1, "normals": 3}
SIZE = (48, 80)  # not the one that timm's models are made for: positions are resampled
#: A class token; no class token, but a register, and layer scale.
NAMES = ("test_vit", "test_vit3")


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Toys are too small to share; on a busy machine two threads wait for each other far longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def randomised(model):
    """Bring all parameters far from the start, where most terms are nearly nothing."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.5 if parameter.ndim < 3 and "weight" not in name else 0.1)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return model.eval()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Random weights under timm's names, as users have them."""
    folder = tmp_path_factory.mktemp("vits")
    for name in NAMES:
        torch.save(randomised(timm.create_model(name, num_classes=0)).state_dict(), folder / f"{name}.pth")
    return {name: folder / f"{name}.pth" for name in NAMES}


def original(name, file, **options):
    model = timm.create_model(name, num_classes=0, dynamic_img_size=True, **options)
    model.load_state_dict(torch.load(file))
    return model.eval()


def originals_features(model, image):
    """Return the normed tokens of every layer's patches, of an image in timm's own normalisation."""
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    pixels = image * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    with torch.no_grad():
        return model.forward_intermediates((pixels - mean) / std, norm=True, intermediates_only=True)


def space_of(shape, **options):
    return SearchSpace(
        (shape.embed_dim,), (shape.depth,), (shape.mlp_ratio,), (shape.num_heads,), head_dim=shape.head_dim,
        num_tasks=2, sharing="binary", **options,
    )  # fmt: skip


def supernet_of(vit, head="linear", size=SIZE, patch_size=None, **options):
    supernet = Supernet(
        space_of(vit.shape), TASKS, head, image_size=size, patch_size=patch_size or vit.shape.patch_size,
        variant=vit.shape.variant, **options,
    )  # fmt: skip
    vit.fill(supernet)
    return supernet.eval()


def picture(size=SIZE, batch=2):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def assert_close(found, expected, tolerance=1e-5):
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * expected.abs().max().item())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("max_relative", [0, 14])
@torch.no_grad()
def test_the_largest_sub_network_computes_what_timms_model_does(name, max_relative, files):
    supernet = supernet_of(PlainViT(name, str(files[name])), head="dpt", max_relative=max_relative)
    expected = originals_features(original(name, files[name]), picture())
    depth = len(expected)
    for taps in supernet.features(picture()).values():  # through the copies of each task
        for tap, layer in zip(taps, (-(-depth // 4), -(-depth // 2), -(-3 * depth // 4), depth), strict=True):
            assert_close(tap, expected[layer - 1])


@torch.no_grad()
def test_a_deit_of_timms_names_starts_a_supernet():
    model = randomised(timm.create_model("deit_tiny_patch16_224", num_classes=0, dynamic_img_size=True))
    vit = PlainViT("deit_tiny_patch16_224")
    vit.encoder.load_state_dict(model.state_dict())
    supernet = supernet_of(vit, size=(32, 48))
    assert (vit.shape.embed_dim, vit.shape.depth, vit.shape.num_heads, vit.shape.hidden) == (192, 12, 3, 768)
    expected = originals_features(model, picture((32, 48)))[-1]
    assert_close(supernet.features(picture((32, 48)))["depth"][-1], expected)


@torch.no_grad()
def test_patches_of_another_size_are_resampled_as_timm_does(files):
    from timm.models.vision_transformer import checkpoint_filter_fn

    model = timm.create_model("test_vit", num_classes=0, patch_size=8, dynamic_img_size=True, img_size=SIZE).eval()
    model.load_state_dict(checkpoint_filter_fn(original("test_vit", files["test_vit"]).state_dict(), model))
    supernet = supernet_of(PlainViT("test_vit", str(files["test_vit"])), patch_size=8)
    assert_close(supernet.features(picture())["depth"][-1], originals_features(model, picture())[-1])


def plain_features(model, image, width, layers, heads, hidden):
    """Compute a sub-network's last features from timm's weights, cut to the first of everything, layer by layer."""
    blocks = [model.blocks[layer] for layer in layers]
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    pixels = image * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    tokens = model._pos_embed(model.patch_embed((pixels - mean) / std))[..., :width]

    def norm(x, layer):
        return F.layer_norm(x, (width,), layer.weight[:width], layer.bias[:width], 1e-6)

    for block in blocks:
        attn, x = block.attn, norm(tokens, block.norm1)
        d, all_heads = attn.head_dim, attn.num_heads
        gamma1, gamma2 = (getattr(scale, "gamma", torch.ones(1000))[:width] for scale in (block.ls1, block.ls2))
        added = attn.proj.bias[:width].clone()
        for head in range(heads):
            q, k, v = (
                F.linear(x, attn.qkv.weight[rows, :width], attn.qkv.bias[rows])
                for rows in (
                    slice((kind * all_heads + head) * d, (kind * all_heads + head + 1) * d) for kind in range(3)
                )
            )
            mixture = (q @ k.transpose(1, 2) / d**0.5).softmax(-1) @ v
            added = added + mixture @ attn.proj.weight[:width, head * d : (head + 1) * d].T
        tokens = tokens + gamma1 * added
        mlp, x = block.mlp, norm(tokens, block.norm2)
        x = F.gelu(F.linear(x, mlp.fc1.weight[:hidden, :width], mlp.fc1.bias[:hidden]))
        tokens = tokens + gamma2 * F.linear(x, mlp.fc2.weight[:width, :hidden], mlp.fc2.bias[:width])
    patches = norm(tokens, model.norm)[:, model.num_prefix_tokens :]
    return patches.transpose(1, 2).unflatten(2, (SIZE[0] // 16, SIZE[1] // 16))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_sub_networks_have_the_first_parts_of_each_layer_and_the_most_important_layers(name, files):
    vit = PlainViT(name, str(files[name]))
    count = vit.shape.depth
    vit.layer_order = tuple(reversed(range(count)))  # the last ones first
    supernet = supernet_of(vit)
    small = Architecture(40, count - 2, (2.0,) * (count - 2), (1,) * (count - 2), ((1, 2),) * (2 * count - 4))
    expected = plain_features(original(name, files[name]), picture(), 40, range(2, count), heads=1, hidden=80)
    for network in (partial(supernet.features, architecture=small), supernet.extract(small).features):
        for taps in network(picture()).values():
            assert_close(taps[-1], expected)
    assert supernet.count_parameters(small) == sum(p.numel() for p in supernet.extract(small).parameters())


@torch.no_grad()
def test_what_a_part_adds_is_its_importance(files):
    vit = PlainViT("test_vit3", str(files["test_vit3"]))
    images = [picture(batch=2), picture(batch=1) + 0.5]
    importance = measure_importance(vit, images)
    model = original("test_vit3", files["test_vit3"])
    expected = [torch.zeros_like(values) for values in (importance.heads, importance.hidden, importance.layers)]
    for image in images:
        for one in image.split(1):
            mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
            own = (one * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1) - mean) / std
            whole = model.forward_intermediates(own, indices=1, norm=True, intermediates_only=True)[-1]
            x = model._pos_embed(model.patch_embed(own))
            for layer, block in enumerate(model.blocks):
                normed = block.norm1(x)
                bias = block.ls1(block.attn.proj.bias)
                for head in range(3):  # with the weights of this head alone
                    kept = block.attn.proj.weight.clone()
                    block.attn.proj.weight.zero_()
                    block.attn.proj.weight[:, 32 * head : 32 * head + 32] = kept[:, 32 * head : 32 * head + 32]
                    added = block.ls1(block.attn(normed)) - bias
                    expected[0][layer, head] += added.square().sum(-1).mean() / 3
                    block.attn.proj.weight.copy_(kept)
                x = x + block.ls1(block.attn(normed))
                hidden = block.mlp.act(block.mlp.fc1(block.norm2(x)))
                for channel in range(0, 192, 37):
                    added = block.ls2(hidden[..., channel : channel + 1] * block.mlp.fc2.weight[:, channel])
                    expected[1][layer, channel] += added.square().sum(-1).mean() / 3
                x = x + block.ls2(block.mlp(block.norm2(x)))
                without = nn.Sequential(*(other for other in model.blocks if other is not block))
                y = model.norm(without(model._pos_embed(model.patch_embed(own))))[:, 1:].transpose(1, 2)
                expected[2][layer] += (1 - F.cosine_similarity(y, whole.flatten(2), dim=1)).mean() / 3
    assert_close(importance.heads, expected[0])
    assert_close(importance.hidden[:, ::37], expected[1][:, ::37])
    assert_close(importance.layers, expected[2])


@pytest.mark.filterwarnings("ignore:weights .* fill 132 of the 145 tensors of 'test_vit3'; missing. attn_pool")
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_sorted_by_importance_it_computes_the_same_and_starts_with_the_most_important(name, files, tmp_path):
    vit = PlainViT(name, str(files[name]), [[0.4, 0.5, 0.6], [0.1, 0.2, 0.3]])
    before = measure_importance(vit, [picture()])
    sort_by_importance(vit, before)
    after = measure_importance(vit, [picture()])
    for found, sorted_ in ((after.heads, before.heads), (after.hidden, before.hidden)):
        assert_close(found, sorted_.sort(dim=1, descending=True).values)
    assert before.layers[list(vit.layer_order)].diff().max() <= 0
    vit.save(tmp_path / "vit.pth")
    again = PlainViT(name, str(tmp_path / "vit.pth"))  # no tensor is left over
    assert again.backbone.normalisation == [[0.4, 0.5, 0.6], [0.1, 0.2, 0.3]]
    assert again.layer_order == vit.layer_order != tuple(range(vit.shape.depth))
    supernet = supernet_of(again)
    assert supernet.layer_order == vit.layer_order
    model = original(name, files[name])
    model.pretrained_cfg |= {"mean": (0.4, 0.5, 0.6), "std": (0.1, 0.2, 0.3)}
    assert_close(supernet.features(picture())["depth"][-1], originals_features(model, picture())[-1])


@pytest.mark.parametrize(("prefix", "max_relative"), [(0, 14), (0, 0), (3, 2), (3, 0)])
@torch.no_grad()
def test_costs_with_other_tokens_and_without_relative_positions(prefix, max_relative):
    space = SearchSpace((12, 16), (2, 3), (2.0, 3.0), (1, 2), head_dim=8, num_tasks=2, sharing="binary")
    supernet = Supernet(
        space, TASKS, image_size=(16, 24), patch_size=8, max_relative=max_relative, variant=Variant(prefix, 1e-6, True)
    ).eval()
    supernet.layer_order = (2, 0, 1)
    assert (supernet.units_of(2), supernet.units_of(1)) == ([0, 1, 4, 5], [4, 5])
    for architecture in (space.smallest(), space.median(), space.largest()):
        subnet = supernet.extract(architecture)
        assert supernet.count_parameters(architecture) == sum(p.numel() for p in subnet.parameters())
        with FlopCounterMode(display=False) as counter:
            outputs = subnet(picture((16, 24), batch=1))
        assert supernet.count_macs(architecture, (16, 24)) == counter.get_total_flops() // 2
        for task, expected in supernet(picture((16, 24), batch=1), architecture).items():
            torch.testing.assert_close(outputs[task], expected)


def test_the_order_of_layers_is_part_of_the_state():
    space = SearchSpace((8,), (1, 2, 3), (2.0,), (1,), head_dim=8)
    first, second = (Supernet(space, {"depth": 1}, image_size=(16, 16), drop_path=0.5) for _ in range(2))
    first.layer_order = (2, 0, 1)
    state = first.state_dict()
    second.load_state_dict(state)
    assert second.layer_order == (2, 0, 1)
    state.pop("layer_order")  # as of earlier versions
    second.load_state_dict(state)
    assert second.layer_order == (0, 1, 2)
    assert state.keys() == second.state_dict().keys()
    shallow = Architecture(8, 2, (2.0, 2.0), (1, 1))
    subnet = first.extract(shallow)  # layers 0 and 2; stochastic depth rises as in one that is built anew
    assert [unit["0"].drop_path.drop_prob for unit in subnet.units] == [0.0, 0.0, 0.25, 0.25]
    assert torch.equal(subnet.units[2]["0"].proj.weight, first.units[4][0].proj.weight)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"qk_norm": True}, "norms inside its attention"),
        ({"scale_attn_norm": True}, "norms inside its attention"),
        ({"scale_mlp_norm": True}, "norms inside its MLPs"),
        ({"pre_norm": True}, "a norm before its layers"),
        ({"final_norm": False}, "no layer norm after its layers"),
        ({"norm_layer": "rmsnorm"}, "no layer norm after its layers"),
        ({"mlp_layer": SwiGLU}, "MLPs of the kind SwiGLU"),
        ({"act_layer": "gelu_tanh"}, r"the activation GELUTanh\(\)"),
        ({"block_fn": ParallelScalingBlock}, "layers of the kind ParallelScalingBlock"),
        ({"patch_size": (8, 16)}, "no stem of one convolution with square patches"),
    ],
)
def test_what_a_supernet_has_not_is_refused(options, reason):
    model = VisionTransformer(**{"img_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 2} | options)
    assert next(_obstacles(model)).startswith(reason.replace("\\", ""))


def test_refusals_name_the_model_and_the_reason():
    with pytest.raises(
        ConfigError, match=r"from 'test_vit2': it has no layer norm after its layers; choose a plain ViT"
    ):
        PlainViT("test_vit2")
    with pytest.raises(ConfigError, match=r"from 'test_resnet': it has timm's class ResNet and not VisionTransformer"):
        PlainViT("test_resnet")
    with pytest.raises(WeightsError, match="no file 'nothing'"):
        PlainViT("test_vit", "nothing")


def test_parts_that_nobody_knows_of_are_noticed(files):
    vit = PlainViT("test_vit", str(files["test_vit"]))
    vit.encoder.blocks[3].register_forward_hook(lambda _, inputs, output: 1.1 * output)
    with pytest.raises(ConfigError, match=r"features differ from timm's by \d+%"):
        supernet_of(vit)
