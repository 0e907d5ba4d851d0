"""AutoTaskFormer from a plain ViT: sizes, all copies, checkpoints; `taskformer import vit`, which prepares its file."""

import json
from pathlib import Path

import pytest
import timm
import torch

import taskformer
from taskformer.cli import main
from taskformer.errors import ConfigError, UnknownNameError, WeightsError
from taskformer.models import Backbone
from taskformer.models.autotaskformer.vit import PlainViT
from taskformer.modules import AutoTaskFormer
from taskformer.modules.autotaskformer_args import Head, Space

ROOT = Path(__file__).parents[2]
SIZE = (32, 48)
TASKS = {"depth": {}, "normals": {}}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A small ViT's random weights, far from their start."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    path = tmp_path_factory.mktemp("vit") / "test_vit.pth"
    torch.save(model.state_dict(), path)
    return path


def build(weights="random", tasks=TASKS, **changes):
    torch.manual_seed(0)
    options = {
        "space": Space("vit", vit="test_vit"),
        "head": Head("linear"),
        "image_size": SIZE,
        "weights": str(weights),
    }
    return AutoTaskFormer(tasks, **options | changes).eval()


def picture():
    return torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def features(network, **options):
    with torch.no_grad():
        return {task: taps[-1] for task, taps in network.features(picture(), **options).items()}


def written(model, path):
    checkpoint = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams), "global_step": 1}
    model.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    return path


@pytest.fixture(scope="module")
def prepared(file, small_rooms, tmp_path_factory):
    """The file of `taskformer import vit`, and what it said."""
    out = tmp_path_factory.mktemp("import") / "vit.pth"
    words = ["import", "vit", str(file), "--backbone=test_vit", f"--images={small_rooms}/image", f"--out={out}"]
    main([*words, "--size", *map(str, SIZE), "--count=3"])
    return out


def test_imported_weights_are_timms_and_start_a_supernet(file, prepared):
    content = torch.load(prepared, weights_only=True)
    model = timm.create_model("test_vit", num_classes=0)
    model.load_state_dict(content["state_dict"])  # all keys
    (expected,) = Backbone("test_vit", str(file), last_only=True).eval().encode(picture())
    supernet = build(prepared).network
    assert sorted(supernet.layer_order) == list(range(6))
    assert list(supernet.layer_order) == content["layer_order"] != sorted(content["layer_order"])
    for found in features(supernet).values():  # each task through copies of its own
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    unsorted = Backbone("test_vit", str(file)).encoder.state_dict()
    assert not torch.equal(unsorted["blocks.0.mlp.fc1.weight"], content["state_dict"]["blocks.0.mlp.fc1.weight"])


def test_the_space_follows_the_vit():
    model = build()
    space = model.space
    assert (space.embed_dims, space.depths, space.mlp_ratios, space.num_heads) == (
        (48, 56, 64), (5, 6), (1.5, 2.25, 3.0), (1, 2),
    )  # fmt: skip
    assert (space.head_dim, model.network.patch_size, model.network.norm.eps) == (32, 16, 1e-6)
    chosen = build(
        space=Space("vit", vit="test_vit", embed_dims=[16, 64], sharing="none"), patch_size=8, max_relative=0
    )
    assert (chosen.space.embed_dims, chosen.space.depths, chosen.network.patch_size) == ((16, 64), (5, 6), 8)
    json.dumps({name: chosen.hparams[name] for name in ("space", "head", "sampling", "variant", "patch_size")})


@pytest.mark.parametrize(
    ("space", "error", "message"),
    [
        ({"preset": "vit"}, ConfigError, r"goes with space.preset='vit', got space.vit=None"),
        ({"vit": "test_vit"}, ConfigError, r"got space.vit='test_vit' and space.preset='tiny'"),
        ({"preset": "vit", "vit": "test_vitt"}, UnknownNameError, "did you mean 'test_vit"),
        ({"preset": "vit", "vit": "test_vit", "depths": [3]}, ConfigError, r"largest of space.depths .* 6, got \[3\]"),
        ({"preset": "vit", "vit": "test_vit", "num_heads": [4]}, ConfigError, r"of space.num_heads .* 2, got \[4\]"),
    ],
)  # fmt: skip
def test_spaces_that_do_not_fit_are_refused(space, error, message):
    with pytest.raises(error, match=message):
        build(space=Space(**space))


def test_weights_of_another_vit_are_refused(tmp_path):
    torch.save(timm.create_model("test_vit3", num_classes=0).state_dict(), tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="of 'test_vit'"):
        build(tmp_path / "other.pth")


def test_checkpoints_need_no_vit_and_keep_the_order_of_the_layers(prepared, tmp_path):
    model = build(prepared)
    checkpoint = written(model, tmp_path / "supernet.ckpt")
    small = model.space.smallest()
    kept = model.network.units_of(small.depth)
    assert kept != list(range(2 * small.depth))
    loaded = taskformer.load(checkpoint)
    assert loaded.network.units_of(small.depth) == kept
    again = build(checkpoint, architecture=small.to_json())  # of the preset "vit", from the supernet's weights
    single = taskformer.load(written(again, tmp_path / "single.ckpt"))
    expected = features(model.network, architecture=small)
    for found in (features(loaded.network, architecture=small), features(again.network), features(single.network)):
        for task, values in expected.items():
            torch.testing.assert_close(found[task], values)
    model.on_load_checkpoint(torch.load(checkpoint))  # as `fit --resume` does


def test_weights_come_out_of_a_checkpoint_of_a_network_with_that_encoder(tmp_path):
    from taskformer.modules import Baseline

    model = Baseline(TASKS, backbone="test_vit", decoder="linear").eval()
    checkpoint = written(model, tmp_path / "baseline.ckpt")
    with pytest.warns(UserWarning, match="fill 78 of the 78 tensors"):  # what is not the encoder's is left out
        supernet = build(checkpoint).network
    expected = model.network.backbone.encode(picture())[-1]
    torch.testing.assert_close(features(supernet)["depth"], expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["vit", "random"], "backbone"),
        (["vit", "random", "--backbone=test_vit", "--images=nowhere"], "no image at 'nowhere'"),
        (["vit", "random", "--backbone=test_vit2"], "it has no layer norm after its layers"),
        (["vitt"], r"unknown kind of import 'vitt' \(did you mean 'vit'\?\)"),
    ],
)
def test_imports_that_cannot_be_are_one_sentence(words, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["import", *words, *([f"--out={tmp_path / 'vit.pth'}"] if "--backbone" in " ".join(words) else [])])
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message.replace("\\", "") in line
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_it_trains_goes_on_is_tested_searched_and_exported(prepared, small_rooms, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "vit.pth"
    weights.write_bytes(prepared.read_bytes())
    flags = [
        f"--config={ROOT}/configs/data/rooms.yaml", "--model=AutoTaskFormer", f"--data.root={small_rooms}",
        "--model.space.preset=vit", "--model.space.vit=test_vit", f"--model.weights={weights}",
        "--model.image_size=[128,160]", "--data.tasks=[semseg,depth]", "--data.batch_size=4", "--name=run",
        "--trainer.accelerator=cpu", "--trainer.num_sanity_val_steps=0", "--trainer.log_every_n_steps=1",
        "--trainer.enable_progress_bar=false",
    ]  # fmt: skip
    main(["fit", *flags, "--trainer.max_epochs=1"])
    first = taskformer.load("runs/run")
    order = first.network.layer_order
    assert order == PlainViT("test_vit", str(prepared)).layer_order != tuple(range(6))
    main(["fit", "--resume=runs/run", "--trainer.max_epochs=2"])
    main(["test", "runs/run"])
    main(["search", "runs/run", "--population=2", "--generations=1", "--references=false"])
    weights.unlink()  # a checkpoint does not depend on it
    model = taskformer.load("runs/run")
    assert model.network.layer_order == order
    small = model.space.smallest()
    (tmp_path / "small.json").write_text(small.to_json())
    main(["export", "runs/run", "--architecture=small.json", "--format=torch", "--out=small.pt2"])
    image = torch.randn(1, 3, 128, 160)
    found = torch.export.load("small.pt2").module()(image)
    with torch.no_grad():
        for task, expected in model.network(image, small).items():
            torch.testing.assert_close(found[task], expected, rtol=1e-3, atol=1e-4)
