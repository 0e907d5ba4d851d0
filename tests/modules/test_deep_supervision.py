"""Auxiliary predictions train the network and are no part of it."""

import copy
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import taskformer
from taskformer.errors import ConfigError
from taskformer.modules import MQTransformer

ROOT = Path(__file__).parent.parent.parent
TASKS = {"semseg": {"classes": ["a", "b", "c"]}, "depth": {}, "class_scene": {"classes": ["in", "out"]}}
build = partial(MQTransformer, TASKS, embed_dim=8, num_heads=2, num_queries=2, head_dim=4, backbone="test_resnet")


def seeded(**options):
    torch.manual_seed(0)
    return build(**{"drop_path": 0.2} | options)


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(1)
    targets = {
        "semseg": torch.randint(3, (2, 40, 56), generator=generator),
        "depth": torch.rand(2, 1, 40, 56, generator=generator) + 0.5,
        "class_scene": torch.tensor([[1.0, 0.0], [0.3, 0.7]]),
    }
    return {"image": torch.randn(2, 3, 40, 56, generator=generator), "targets": targets, "meta": {}}


def gradients(module, loss):
    """The gradients of all parameters by name."""
    module.zero_grad()
    loss.backward()
    return {name: parameter.grad for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("scales", ["fused", [8, 32]])
@pytest.mark.parametrize("wiring", ["clean", "released"])
def test_losses_and_gradients_are_those_of_a_plain_restatement(batch, scales, wiring):
    module = seeded(scales=scales, wiring=wiring, auxiliary_weight=0.3)
    generator = torch.get_rng_state()
    losses = module.objectives(module.predictions(batch["image"]), batch)
    found = gradients(module, sum(losses.values()))

    torch.set_rng_state(generator)
    network, predictors = module.network, module.scaffold["auxiliary"]
    padded = F.pad(batch["image"], (0, 64 - 56, 0, 64 - 40))
    features = network.backbone(padded)
    head = network.head
    early = []
    for level, project, predict in zip(head.levels, head.project, predictors, strict=True):
        outputs = predict(project([features[i] for i in level]), (64, 64))
        outputs = {name: x[..., :40, :56] for name, x in outputs.items()}
        early.append(outputs | {"class_scene": outputs["class_scene"].mean((2, 3))})
    torch.set_rng_state(generator)  # stochastic depth draws in the head alone
    final = network(batch["image"])
    expected = {}
    for name, task in module.tasks.items():
        auxiliary = sum(task.loss(outputs[name], batch["targets"][name]) for outputs in early) / len(early)
        expected[name] = task.loss(final[name], batch["targets"][name]) + 0.3 * auxiliary
    torch.testing.assert_close(losses, expected)
    for name, gradient in gradients(module, sum(expected.values())).items():
        torch.testing.assert_close(found[name], gradient, msg=name)
        assert gradient is not None, name  # every parameter takes part: DDP needs no search for unused ones


def test_the_network_is_the_same_with_and_without(batch):
    plain, deep = seeded(), seeded(auxiliary_weight=1.0)
    assert {name: x.shape for name, x in deep.network.state_dict().items()} == {
        name: x.shape for name, x in plain.network.state_dict().items()
    }
    for module in (plain, deep):
        module.eval()
    torch.testing.assert_close(deep(batch["image"]), plain(batch["image"]), rtol=0, atol=0)
    assert len(plain.predictions(batch["image"])) == 1
    assert not plain.scaffold


def test_it_trains_beside_the_network(batch):
    module = seeded(auxiliary_weight=0.5)
    before = copy.deepcopy(module.state_dict())
    names = {parameter: name for name, parameter in module.named_parameters()}
    module.lr_scheduler = None
    optimizer = module.configure_optimizers()
    trained = [names[p] for group in optimizer.param_groups for p in group["params"]]
    assert sorted(trained) == sorted(names.values())
    norms = {names[p] for group in optimizer.param_groups if group["weight_decay"] == 0 for p in group["params"]}
    assert {"scaffold.auxiliary.0.bottleneck.1.weight", "scaffold.auxiliary.0.logits.depth.bias"} <= norms
    losses = module.objectives(module.predictions(batch["image"]), batch)
    module.balancing.backward(module.balancing(losses), losses, list(module.parameters()))
    optimizer.step()
    moved = [name for name in names.values() if not torch.equal(module.state_dict()[name], before[name])]
    assert any(name.startswith("scaffold.auxiliary.0.logits") for name in moved)


def test_a_task_without_labels_adds_nothing(batch):
    module = seeded(auxiliary_weight=1.0)
    targets = batch["targets"] | {"depth": torch.full((2, 1, 40, 56), torch.nan)}
    losses = module.objectives(module.predictions(batch["image"]), batch | {"targets": targets})
    assert losses["depth"].item() == 0
    assert losses["semseg"].item() > 0
    assert all(g is None or g.isfinite().all() for g in gradients(module, sum(losses.values())).values())


def test_a_checkpoint_with_it_loads_into_a_model_without_and_back(tmp_path, batch):
    """What only training needs starts anew where the checkpoint has none of it, or is left out."""
    for there, here in ((1.0, 0.0), (0.0, 1.0), (1.0, 2.0)):
        saved, own = seeded(auxiliary_weight=there), build(auxiliary_weight=here)
        content = {
            "state_dict": saved.state_dict(), "hyper_parameters": dict(saved.hparams), "global_step": 0,
        }  # fmt: skip
        saved.on_save_checkpoint(content)
        path = tmp_path / f"{there}_{here}.ckpt"
        torch.save(content, path)
        own.on_load_checkpoint(content)
        own.load_state_dict(content["state_dict"])
        torch.testing.assert_close(own.eval()(batch["image"]), saved.eval()(batch["image"]))
        torch.testing.assert_close(taskformer.load(path)(batch["image"]), saved(batch["image"]))


def test_the_weight_is_a_finite_number():
    with pytest.raises(ConfigError, match="auxiliary_weight must be in"):
        build(auxiliary_weight=-1.0)


@pytest.mark.slow  # torch's tracer takes 20 s
def test_compiled_it_predicts_the_same(batch, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    plain, compiled = (seeded(auxiliary_weight=1.0, drop_path=0.0, compile=on) for on in (False, True))
    compiled.setup("fit")
    for module in (plain, compiled):
        module.network.head.exchanges[0].between_tasks.drop_path.drop_prob = 0.0
    expected, found = (gradients(m, sum(m.objectives(m.predictions(batch["image"]), batch).values()))
                       for m in (plain, compiled))  # fmt: skip
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    compiled.teardown("fit")
    assert compiled._compiled_deep is None


@pytest.mark.slow  # two processes that import Lightning, about 40 s
def test_two_processes_train_it_and_a_moving_average_in_bfloat16(tmp_path, tiny):
    """DDP without a search for unused parameters: the auxiliary predictions and the average are on both."""
    configs = [f"--config={ROOT}/configs/{name}.yaml" for name in ("model/mqtransformer", "data/rooms")]
    several = ["--trainer.strategy=ddp", "--trainer.devices=2", "--trainer.precision=bf16-mixed",
               "--model.backbone=test_resnet", "--model.weights=random", "--model.auxiliary_weight=0.5",
               "--ema.decay=0.5", "--data.batch_size=2", "--name=ddp"]  # fmt: skip
    command = [sys.executable, "-m", "taskformer", "fit", *configs, *tiny, *several]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    content = torch.load(tmp_path / "runs" / "ddp" / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["global_step"] == 2
    scaffold = [name for name in content["state_dict"] if name.startswith("scaffold.auxiliary.")]
    assert scaffold
    assert not all(torch.equal(content["state_dict"][n], content["current_model_state"][n]) for n in scaffold)
