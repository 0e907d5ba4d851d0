"""How a machine computes changes nothing that is computed: channels last, compiled, fused, in another precision."""

from functools import partial
from pathlib import Path

import pytest
import torch

import taskformer
from taskformer.cli import main
from taskformer.errors import ConfigError
from taskformer.modules import AutoTaskFormer, Balancing, Baseline, GradientBalancing, MQTransformer
from taskformer.modules.autotaskformer_args import Head, Space

TASKS = {"semseg": {"classes": ["a", "b", "c"]}, "depth": {}, "normals": {}}
MQ = {"embed_dim": 16, "num_queries": 4, "head_dim": 8, "drop_path": 0.0, "cross_drop_path": 0.0}
SPACE = Space("custom", embed_dims=[16, 32], depths=[1, 2], mlp_ratios=[2.0], num_heads=[1, 2], head_dim=8)
MODELS = {
    "fused": lambda **options: MQTransformer(TASKS, backbone="lcnet_050", **MQ, **options),
    "scales": lambda **options: MQTransformer(TASKS, backbone="test_resnet", scales=[4, 8], **MQ, **options),
    "baseline": lambda **options: Baseline(TASKS, backbone="test_resnet", embed_dim=8, head_dim=8, **options),
    "dpt": lambda **options: Baseline(TASKS, decoder="dpt", backbone="test_resnet", embed_dim=8, **options),
    "supernet": lambda **options: AutoTaskFormer(TASKS, SPACE, Head("pup", 8), drop_path=0.0, **options),
}
COMPILED = ("fused", "baseline")


@pytest.fixture
def images():
    return torch.randn(3, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def build(name, **options):
    torch.manual_seed(0)
    return MODELS[name](**options)


def gradients(model, outputs):
    """The whole gradient as one vector."""
    model.zero_grad()
    sum(output.square().mean() for output in outputs.values()).backward()
    return torch.cat([p.grad.flatten() for p in model.network.parameters() if p.grad is not None])


def assert_same(model, other, images, exact=1e-9):
    """Outputs agree in float32; outputs and gradients agree in float64, where batch norms enlarge no rounding."""
    with torch.no_grad():
        found, expected = (each.eval()(images) for each in (model, other))
    for task in TASKS:
        torch.testing.assert_close(found[task], expected[task], rtol=1e-5, atol=1e-5)
    for training in (False, True):
        found, expected = (each.double().train(training)(images.double()) for each in (model, other))
        for task in TASKS:
            torch.testing.assert_close(found[task], expected[task], rtol=exact, atol=exact)
        found, expected = gradients(model, found), gradients(other, expected)
        assert (found - expected).norm() <= exact * expected.norm()


@pytest.mark.parametrize("name", MODELS)
def test_channels_last_changes_the_layout_and_nothing_else(name, images):
    model, plain = build(name, channels_last=True), build(name)
    assert_same(model, plain, images)
    kernels = [module.weight for module in model.network.modules() if isinstance(module, torch.nn.Conv2d)]
    assert kernels
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert model.hparams == plain.hparams


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_is_float32_within_its_three_digits(name, channels_last, images):
    model, plain = build(name, channels_last=channels_last).eval(), build(name).eval()
    with torch.no_grad():
        expected = plain(images)
        with torch.autocast("cpu", torch.bfloat16):
            found = model(images)
    for task, values in expected.items():
        assert (found[task].float() - values).norm() <= 0.03 * values.norm(), task


@pytest.fixture
def compilations(monkeypatch):
    """Compile without a compiler of C++, and count how often."""
    from torch._dynamo.testing import CompileCounterWithBackend  # takes seconds

    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    torch._dynamo.reset()
    yield lambda: counter.frame_count
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_network_computes_the_same_and_is_compiled_once_for_a_batch_size(name, images, compilations):
    model, plain = build(name, compile=True), build(name)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert model.hparams == plain.hparams
    model.setup("fit")
    for training in (False, True):
        before = compilations()
        for batches, sizes in enumerate([(3,), (3, 2), (3, 2, 3, 2)], start=1):
            for size in sizes:
                assert compilations() - before <= batches
                for each in (model, plain):
                    each.train(training)
                torch.testing.assert_close(model(images[:size]), plain(images[:size]), rtol=1e-5, atol=1e-5)
        assert 1 <= compilations() - before <= 2
    assert_same(model, plain, images, exact=1e-5)  # torch's tracer resizes with float32 weights
    before = compilations()
    assert list(model.state_dict()) == list(plain.state_dict())
    model.teardown("fit")
    model(images[:, :, :32])
    assert compilations() == before  # photographs of any size are not compiled for


def test_a_supernet_is_not_compiled():
    with pytest.raises(ConfigError, match="compile: a supernet is another network at each step"):
        build("supernet", compile=True)


def test_precision_of_products_is_that_of_a_run_only():
    before = torch.get_float32_matmul_precision()
    other = "high" if before == "highest" else "highest"
    model = build("baseline", matmul_precision=other)
    model.setup("fit")
    assert torch.get_float32_matmul_precision() == other
    model.teardown("fit")
    assert torch.get_float32_matmul_precision() == before
    assert model.hparams == build("baseline").hparams


class Projected(GradientBalancing):
    def aggregate(self, gradients):
        return gradients.sum(dim=0)


@pytest.mark.parametrize("balancing", [None, Projected])
def test_gradients_lie_as_their_parameters_do(balancing, images):
    model = build("baseline", channels_last=True, **({"balancing": balancing} if balancing else {}))
    losses = {task: output.square().mean() for task, output in model(images).items()}
    total: Balancing = model.balancing(losses)
    model.balancing.backward(total, losses, list(model.network.parameters()))
    assert any(p.grad.stride() != p.grad.contiguous().stride() for p in model.network.parameters())
    assert all(p.grad.stride() == p.stride() for p in model.network.parameters() if p.ndim == 4 and min(p.shape) > 1)


FIT = ["fit", "--model=Baseline", "--model.backbone=test_resnet", "--model.optimizer=AdamW",
       "--model.optimizer.lr=0.003", "--trainer.gradient_clip_val=0.05", "--trainer.max_steps=4",
       "--trainer.enable_model_summary=false"]  # fmt: skip


@pytest.fixture
def fit(tiny, tmp_path, monkeypatch):
    """Train for four steps, return all weights of the last checkpoint."""
    monkeypatch.chdir(tmp_path)

    def run(name, *flags):
        main([*FIT, "--data=RoomsDataModule", "--data.tasks=[semseg,depth]", "--data.size=[32,48]", *tiny,
              "--trainer.max_epochs=2", f"--name={name}", *flags])  # fmt: skip
        return torch.load(Path("runs", name, "checkpoints", "last.ckpt"), weights_only=True)

    return run


def distance(first, second):
    """Largest difference of two trainings' weights over the largest step that either has made."""
    return max((first["state_dict"][key].float() - second["state_dict"][key].float()).abs().max()
               for key in first["state_dict"])  # fmt: skip


@pytest.mark.slow
def test_a_compiled_training_leaves_an_ordinary_run(fit, monkeypatch, capsys):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    plain = fit("plain")
    compiled = fit("compiled", "--model.compile=true")
    assert list(compiled["state_dict"]) == list(plain["state_dict"])
    assert compiled["hyper_parameters"] == plain["hyper_parameters"]
    assert distance(plain, compiled) < 1e-5
    model = taskformer.load("runs/compiled")
    assert not model.compiles
    main(["test", "runs/compiled"])
    main(["fit", "--resume=runs/compiled", "--trainer.max_steps=6", "--trainer.max_epochs=3", "--model.compile=false"])
    assert torch.load("runs/compiled/checkpoints/last.ckpt", weights_only=True)["global_step"] == 6


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_fused_optimizer_trains_the_same_with_clipped_gradients(fit, precision):
    plain = fit("plain", f"--trainer.precision={precision}")
    fused = fit("fused", f"--trainer.precision={precision}", "--model.optimizer.fused=true")
    assert plain["global_step"] == fused["global_step"] == 4
    assert distance(plain, fused) < 1e-5
    free = fit("free", f"--trainer.precision={precision}", "--model.optimizer.fused=true",
               "--trainer.gradient_clip_val=null")  # fmt: skip
    assert distance(free, fused) > 1e-4


def test_a_training_goes_on_with_another_way_to_compute(fit):
    """Plain for two steps, then as before, or fused and channels last, whose moments lie in another order."""
    states = []
    for name, *flags in [("same",), ("turned", "--model.channels_last=true", "--model.optimizer.fused=true")]:
        fit(name, "--trainer.max_epochs=1", "--trainer.precision=64-true")  # Adam enlarges rounding
        main(["fit", f"--resume=runs/{name}", "--trainer.max_epochs=2", *flags])
        states.append(torch.load(f"runs/{name}/checkpoints/last.ckpt", weights_only=True))
    assert [state["global_step"] for state in states] == [4, 4]
    assert distance(*states) < 1e-5
    kernels = [p for p in taskformer.load("runs/turned").network.parameters() if p.ndim == 4]
    assert all(kernel.is_contiguous() for kernel in kernels)
