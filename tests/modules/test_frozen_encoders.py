"""Trainings of a part of the encoder: rates by hand, checkpoints without what the weights give again."""

import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

import taskformer
from taskformer.cli import main
from taskformer.errors import WeightsError
from taskformer.evaluation.benchmark.cost import Cost, count, counts
from taskformer.modules import Baseline
from taskformer.modules.checkpoints import restore
from taskformer.modules.loading import load

TASKS = {"semseg": {"classes": ["a", "b", "c"]}, "depth": {}}
HEAD = {"decoder": "pup", "embed_dim": 4}
BLOCKS, WIDTH, RANK = 6, 64, 2  # of timm's test_vit, and of the adapters
ADAPTERS = BLOCKS * RANK * ((WIDTH + 3 * WIDTH) + (WIDTH + WIDTH))
LITE0 = {"backbone": "tf_efficientnet_lite0", "weights": "bundled", "freeze": "all"}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Weights of a small plain ViT, on disk."""
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("weights") / "vit.pth"
    torch.save(timm.create_model("test_vit", num_classes=0).state_dict(), path)
    return path


@pytest.fixture
def vit(file):
    return {"backbone": "test_vit", "weights": str(file), "lora": {"rank": RANK}}


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def moved(model):
    """Give what trains other values, as a training does."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def save(model, path, **entries):
    """Write a model as Lightning does, as far as it matters here."""
    content = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams), **entries}
    model.on_save_checkpoint(content)
    torch.save(content, path)
    return content


def assert_same(first, second, images):
    with torch.no_grad():
        found, expected = first.eval()(images), second.eval()(images)
    for task, values in expected.items():
        torch.testing.assert_close(found[task], values, rtol=0, atol=0)


@pytest.mark.parametrize("encoder", ["vit", "lite0"])
def test_a_checkpoint_of_what_trained_is_small_and_gives_equal_outputs(encoder, vit, images, tmp_path):
    settings = HEAD | (vit if encoder == "vit" else LITE0)
    model = moved(Baseline(TASKS, **settings))
    save(model, tmp_path / "last.ckpt")
    whole = Baseline(TASKS, **settings | {"weights": "random"})
    save(whole, tmp_path / "whole.ckpt")
    sizes = [(tmp_path / name).stat().st_size for name in ("last.ckpt", "whole.ckpt")]
    assert sizes[0] < 0.1 * sizes[1]
    loaded = load(tmp_path / "last.ckpt")
    assert_same(loaded, model, images)
    assert loaded.hparams == model.hparams


def test_random_weights_are_kept_for_nothing_gives_them_again(images, tmp_path):
    model = moved(Baseline(TASKS, backbone="test_vit", freeze="all", **HEAD))
    content = save(model, tmp_path / "last.ckpt")
    assert content["state_dict"].keys() == model.state_dict().keys()
    assert_same(load(tmp_path / "last.ckpt"), model, images)


def test_what_is_no_longer_what_the_weights_gave_is_kept(vit, images, tmp_path):
    model = moved(Baseline(TASKS, **vit | HEAD))
    model.backbone.encoder.blocks[3].mlp.fc1.bias.data[5] += 1e-3
    content = save(model, tmp_path / "last.ckpt")
    assert content["state_dict"].keys() == model.state_dict().keys()
    assert_same(load(tmp_path / "last.ckpt"), model, images)


def test_both_weights_of_a_training_that_averages_are_small_and_whole_again(vit, tmp_path):
    average, present = moved(Baseline(TASKS, **vit | HEAD)), moved(Baseline(TASKS, **vit | HEAD))
    content = save(average, tmp_path / "last.ckpt", current_model_state=present.state_dict())
    assert content["current_model_state"].keys() == content["state_dict"].keys() < average.state_dict().keys()
    average.on_load_checkpoint(content)
    for key, model in {"state_dict": average, "current_model_state": present}.items():
        assert content[key].keys() == model.state_dict().keys()
        assert all(torch.equal(values, content[key][name]) for name, values in model.state_dict().items())


def test_weights_that_are_gone_or_others_are_refused_and_may_lie_elsewhere(vit, file, images, tmp_path):
    here, there = tmp_path / "vit.pth", tmp_path / "moved.pth"
    shutil.copy(file, here)
    model = moved(Baseline(TASKS, **vit | HEAD | {"weights": str(here)}))
    save(model, tmp_path / "last.ckpt")
    here.rename(there)
    with pytest.raises(WeightsError, match=r"last.ckpt leaves out its frozen encoder, .* had again: .* no file"):
        load(tmp_path / "last.ckpt")
    again = Baseline(TASKS, **vit | HEAD | {"weights": str(there)})
    restore(again, taskformer.modules.checkpoints.open_checkpoint(tmp_path / "last.ckpt"))
    assert_same(again, model, images)
    assert again.hparams["weights"] == str(there)  # and so do the checkpoints that it writes
    save(again, tmp_path / "next.ckpt")
    assert_same(load(tmp_path / "next.ckpt"), model, images)
    state = torch.load(there, weights_only=True)
    state["blocks.0.norm1.weight"] += 1e-3
    torch.save(state, here)
    with pytest.raises(WeightsError, match=r"leaves out the frozen encoder, .*vit.pth' gives another one now: bring"):
        load(tmp_path / "last.ckpt")


def test_another_encoder_is_named_before_its_weights_are_compared(vit, tmp_path):
    content = save(Baseline(TASKS, **vit | HEAD), tmp_path / "last.ckpt")
    with pytest.raises(WeightsError, match="backbone 'test_vit' there, 'test_resnet' here"):
        Baseline(TASKS, backbone="test_resnet", **HEAD).on_load_checkpoint(content)


def test_rates_fall_from_layer_to_layer():
    model = Baseline(TASKS, backbone="test_vit", backbone_lr_scale=0.5, layer_decay=0.8)
    rates = model.lr_scales()
    parameters = dict(model.network.named_parameters())
    assert rates.keys() == {name for name in parameters if name.startswith("backbone.")}
    block = [f"backbone.encoder.blocks.{number}.attn.qkv.weight" for number in range(BLOCKS)]
    expected = [0.5 * 0.8 ** (BLOCKS - number) for number in range(BLOCKS)]
    assert [rates[name] for name in block] == pytest.approx(expected)
    assert rates["backbone.encoder.pos_embed"] == pytest.approx(0.5 * 0.8 ** (BLOCKS + 1))
    assert rates["backbone.encoder.norm.weight"] == pytest.approx(0.5 * 0.8)
    assert {rate for name, rate in rates.items() if "pyramid" in name} == {0.5}
    adapted = Baseline(TASKS, backbone="test_vit", layer_decay=0.8, lora={"rank": RANK}).lr_scales()
    name = "backbone.encoder.blocks.2.attn.proj.parametrizations.weight.0.up"
    assert adapted[name] == pytest.approx(0.8**4)


def test_parameters_that_train_are_counted_with_the_adapters(vit):
    plain = Baseline(TASKS, backbone="test_vit", **HEAD)
    model = Baseline(TASKS, **vit | HEAD)
    image = torch.zeros(1, 3, 64, 96)
    before, found = (count(each.network, image) for each in (plain, model))
    head = sum(parameter.numel() for parameter in model.network.head.parameters())
    assert found["backbone"].params == before["backbone"].params + ADAPTERS
    assert {part: cost.trained for part, cost in found.items()} == {
        "total": ADAPTERS + head, "backbone": ADAPTERS, "head": head
    }  # fmt: skip
    assert {part: cost.macs for part, cost in found.items()} == {part: cost.macs for part, cost in before.items()}
    assert counts(found["total"])["trained_parameters"] == ADAPTERS + head
    assert "trained_parameters" not in counts(Cost(3, 4))


FIT = ["--data=RoomsDataModule", "--data.tasks=[semseg,depth]", "--data.size=[64,96]", "--data.batch_size=4",
       "--data.num_workers=0", "--trainer.accelerator=cpu", "--trainer.num_sanity_val_steps=0",
       "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
       "--trainer.log_every_n_steps=1", "--plots.draw=false"]  # fmt: skip
MODEL = ["--model=Baseline", "--model.decoder=pup", "--model.embed_dim=4", "--model.backbone=test_vit"]
LORA = f"--model.lora.rank={RANK}"


@pytest.fixture
def fit(small_rooms, file, tmp_path, monkeypatch):
    """Train for some epochs of two steps and return the last checkpoint."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(file, "vit.pth")

    def run(name, *flags, epochs=1):
        main(["fit", *MODEL, LORA, "--model.weights=vit.pth", *FIT, f"--data.root={small_rooms}", f"--name={name}",
              f"--trainer.max_epochs={epochs}", *flags])  # fmt: skip
        return torch.load(Path("runs", name, "checkpoints", "last.ckpt"), weights_only=True)

    return run


def test_a_training_of_adapters_leaves_the_encoder_as_it_was(fit, file, images):
    checkpoint = fit("adapted")
    assert not [name for name in checkpoint["state_dict"] if name.endswith(("original", "norm1.weight", "pos_embed"))]
    moments = checkpoint["optimizer_states"][0]["state"].values()
    model = load("runs/adapted")
    trained = [parameter for parameter in model.network.parameters() if parameter.requires_grad]
    assert sum(state["exp_avg"].numel() for state in moments) == sum(parameter.numel() for parameter in trained)
    state = torch.load(file, weights_only=True)
    own = model.backbone.encoder.state_dict()
    assert all(torch.equal(own[name], values) for name, values in state.items() if name in own)
    path = "blocks.0.attn.qkv"
    assert torch.equal(own[f"{path}.parametrizations.weight.original"], state[f"{path}.weight"])
    assert own[f"{path}.parametrizations.weight.0.up"].abs().max() > 0
    assert model.recipe["lora"] == {"rank": RANK, "alpha": 16.0, "targets": None}
    assert (model.recipe["freeze"], model.recipe["layer_decay"]) == (None, None)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--ema.decay=0.5",)], ids=["plain", "averaged"])
def test_a_training_that_was_stopped_is_the_one_that_was_not(fit, flags):
    steady = "--model.lr_scheduler=null"  # whose rate does not depend on the length of the training
    whole = fit("whole", steady, *flags, epochs=2)
    fit("halves", steady, *flags)
    Path("vit.pth").rename("elsewhere.pth")
    main(["fit", "--resume=runs/halves", "--trainer.max_epochs=2", "--model.weights=elsewhere.pth"])
    halves = torch.load("runs/halves/checkpoints/last.ckpt", weights_only=True)
    assert whole["global_step"] == halves["global_step"] == 4
    for key in {"state_dict", "current_model_state"} & whole.keys():
        assert halves[key].keys() == whole[key].keys()
        assert all(torch.equal(values, halves[key][name]) for name, values in whole[key].items())
    assert load("runs/halves").hparams["weights"] == "elsewhere.pth"


@pytest.mark.slow
def test_a_frozen_training_may_go_on_with_everything(fit, file):
    frozen = fit("run", "--model.lora.rank=0", "--model.freeze=all")
    name = "network.backbone.encoder.blocks.0.attn.qkv.weight"
    assert name not in frozen["state_dict"]
    main(["fit", "--resume=runs/run", "--trainer.max_epochs=2", "--model.freeze=none"])
    whole = torch.load("runs/run/checkpoints/last.ckpt", weights_only=True)
    assert whole["state_dict"].keys() == load("runs/run").state_dict().keys()
    before = torch.load(file, weights_only=True)[name.removeprefix("network.backbone.encoder.")]
    assert 0 < (whole["state_dict"][name] - before).abs().max() < 0.1


@pytest.mark.slow
def test_a_run_without_its_encoder_is_tested_predicts_and_is_exported(fit, images):
    onnx, onnxruntime = map(pytest.importorskip, ("onnx", "onnxruntime"))
    fit("run")
    main(["test", "runs/run"])
    card = Path("runs/run/model_card.md").read_text()
    model = load("runs/run")
    parameters = list(model.network.parameters())
    total, trained = (sum(p.numel() for p in parameters if p.requires_grad or every) for every in (True, False))
    assert f"* Parameters: {total / 1e6:.2f} M, {trained / 1e6:.2f} M of them trained" in card
    Image.new("RGB", (70, 50), (200, 100, 50)).save("photo.png")
    main(["predict", "runs/run", "photo.png", "--out=predicted"])
    assert list(Path("predicted").rglob("*.npy"))
    main(["export", "runs/run", "--out=model.onnx"])
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    found = session.run(["depth"], {"image": images.numpy()})[0]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), model.eval()(images)["depth"], rtol=1e-3, atol=1e-4)
    shapes = {tuple(tensor.dims) for tensor in onnx.load("model.onnx").graph.initializer}
    assert not shapes & {(RANK, WIDTH), (WIDTH, RANK), (3 * WIDTH, RANK)}  # the adapters are in the weights


@pytest.mark.slow  # two processes that import Lightning, about 30 s each
@pytest.mark.parametrize("adapted", ["--model.freeze=2", "--model.freeze=all", LORA], ids=["blocks", "all", "lora"])
def test_processes_wait_for_no_frozen_parameter(adapted, small_rooms, file, tmp_path):
    several = ["--trainer.strategy=ddp", "--trainer.devices=2", "--trainer.precision=bf16-mixed"]
    command = [sys.executable, "-m", "taskformer", "fit", *MODEL, adapted, f"--model.weights={file}", *FIT, *several,
               f"--data.root={small_rooms}", "--data.batch_size=2", "--trainer.max_epochs=1", "--name=ddp"]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert load(tmp_path / "runs" / "ddp").backbone.frozen == (adapted == "--model.freeze=all")


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"freeze": "all"}, {"freeze": 2}, {"lora": {"rank": RANK}}])
def test_compiled_and_channels_last_it_computes_the_same(options, images, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    models = []
    for computation in ({}, {"compile": True, "channels_last": True}):
        torch.manual_seed(0)
        models.append(Baseline(TASKS, backbone="test_vit", **options, **HEAD, **computation))
        models[-1].setup("fit")
    gradients = []
    for model in models:
        sum(output.square().mean() for output in model.train()(images).values()).backward()
        gradients.append({name: p.grad for name, p in model.network.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, values in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], values, rtol=1e-3, atol=1e-5)
    models[1].teardown("fit")
