"""Losses become one as their method says: every step compared with a plain torch loop written from the papers."""

import copy
import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from balancing_methods import Geometric, Learned, Surgery
from lightning.pytorch import Trainer
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD
from torch.utils.data import DataLoader

import taskformer
from taskformer.cli import main
from taskformer.errors import WeightsError
from taskformer.modules import AutoTaskFormer, Baseline, FixedWeights, MQTransformer
from taskformer.modules.autotaskformer_args import Sampling, Space

TASKS = {"semseg": {"classes": ["a", "b", "c"]}, "depth": {}, "saliency": {}}
WEIGHTS = {"semseg": 2.0, "depth": 3.0, "saliency": 5.0}
STEPS, ACCUMULATE, LR, CLIP, DISTILL = 4, 2, 0.02, 1.0, 0.25
ENCODER = {"backbone": "lcnet_050", "embed_dim": 16, "head_dim": 8}
MODELS = {
    "baseline": lambda **options: Baseline(TASKS, **ENCODER, **options),
    "mqtransformer": lambda **options: MQTransformer(
        TASKS, **ENCODER, num_queries=4, drop_path=0.0, cross_drop_path=0.0, **options
    ),
    "supernet": lambda **options: AutoTaskFormer(
        TASKS, Space("custom", embed_dims=[8, 16], depths=[1, 2], mlp_ratios=[2.0], num_heads=[1, 2], head_dim=8),
        sampling=Sampling("sandwich", DISTILL, sharing_warmup=0.0), image_size=(32, 48), drop_path=0.0, **options,
    ),
}  # fmt: skip


def batches():
    """Eight batches of two images; every third has no label of depth."""
    generator = torch.Generator().manual_seed(0)

    def one(index):
        depth = torch.rand(2, 1, 32, 48, generator=generator) + 0.5
        return {
            "image": torch.randn(2, 3, 32, 48, generator=generator),
            "targets": {
                "semseg": torch.randint(0, 3, (2, 32, 48), generator=generator),
                "depth": torch.full_like(depth, torch.nan) if index % 3 == 2 else depth,
                "saliency": torch.randint(0, 2, (2, 32, 48), generator=generator),
            },
            "meta": {},
        }

    return [one(index) for index in range(STEPS * ACCUMULATE)]


def build(model, method, **options):
    torch.manual_seed(0)
    optimizer = {"optimizer": lambda groups: SGD(groups, lr=LR, momentum=0.9), "lr_scheduler": None}
    return MODELS[model](balancing=method, loss_weights=WEIGHTS, **optimizer | options)


def train(module, folder, data=None, **options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "log_every_n_steps": 1}
    Trainer(
        default_root_dir=folder, accelerator="cpu", max_epochs=1, enable_model_summary=False, limit_val_batches=0,
        accumulate_grad_batches=ACCUMULATE, gradient_clip_val=CLIP, **quiet, **options,
    ).fit(module, *[DataLoader(data or batches(), batch_size=None)] * 2)  # fmt: skip


def plain_losses(module, network, batch, step):
    """Each task's loss; of a supernet the mean over what its sub-networks learn."""
    if not isinstance(module, AutoTaskFormer):
        outputs = network(batch["image"])
        return {name: task.loss(outputs[name], batch["targets"][name]) for name, task in module.tasks.items()}
    found = {name: [] for name in TASKS}
    for index, architecture in enumerate(module.sample(step)):
        outputs = network(batch["image"], architecture)
        if index == 0:
            teacher = outputs
        for name, task in module.tasks.items():
            loss = task.loss(outputs[name], batch["targets"][name])
            if index:
                loss = (1 - DISTILL) * loss + DISTILL * task.distance(outputs[name], teacher[name])
            found[name].append(loss)
    return {name: sum(losses) / len(losses) for name, losses in found.items()}


def learn_uncertainty(losses, network, logs):
    """Kendall's sum over the tasks that have something to learn."""
    total = sum(loss * torch.exp(-logs[name]) + logs[name] for name, loss in losses.items() if loss != 0)
    (total / ACCUMULATE).backward()


def learn_pcgrad(losses, network, logs):
    """Project each task's gradient of the shared parameters off those that are against it."""
    parameters = list(network.parameters())
    losses = [WEIGHTS[name] * loss / ACCUMULATE for name, loss in losses.items() if loss != 0]
    found = [torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in losses]
    counts = [sum(gradients[i] is not None for gradients in found) for i in range(len(parameters))]
    shared = [i for i, count in enumerate(counts) if count > 1]
    changed = [list(gradients) for gradients in found]
    for mine in changed:
        for others in found:
            pairs = [(mine[i], others[i]) for i in shared if mine[i] is not None and others[i] is not None]
            product = sum((a * b).sum() for a, b in pairs)
            if product < 0:
                norm = sum((others[i] ** 2).sum() for i in shared if others[i] is not None)
                for i in shared:
                    if others[i] is not None:
                        own = torch.zeros_like(others[i]) if mine[i] is None else mine[i]
                        mine[i] = own - product / norm * others[i]
    for i, parameter in enumerate(parameters):
        new = [gradients[i] for gradients in changed if gradients[i] is not None]
        if new:
            parameter.grad = sum(new) if parameter.grad is None else parameter.grad + sum(new)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("method", "learn"), [(Learned, learn_uncertainty), (Surgery, learn_pcgrad)])
def test_steps_are_those_of_a_plain_loop(model, method, learn, tmp_path):
    module = build(model, method)
    network = copy.deepcopy(module.network).double()
    logs = {name: torch.zeros((), dtype=torch.float64, requires_grad=True) for name in TASKS}
    first = copy.deepcopy(network.state_dict())
    train(module, tmp_path, precision="64-true")

    network.train()
    learnable = [*network.parameters(), *(logs.values() if method is Learned else ())]
    optimizer = SGD(learnable, lr=LR, momentum=0.9)
    data = iter(batches())
    for step in range(STEPS):
        optimizer.zero_grad()
        for _ in range(ACCUMULATE):
            batch = next(data)
            batch["image"] = batch["image"].double()
            learn(plain_losses(module, network, batch, step), network, logs)
        clip_grad_norm_(learnable, CLIP)
        optimizer.step()

    trained = module.network.state_dict()
    assert max((trained[key] - first[key]).abs().max().item() for key in first) > 1e-3
    for key, expected in network.state_dict().items():
        torch.testing.assert_close(trained[key], expected, rtol=0, atol=1e-6)
    if method is Learned:
        learned = {name: value.item() for name, value in module.balancing.log_variance.items()}
        assert learned == pytest.approx({name: value.item() for name, value in logs.items()}, abs=1e-6)
        assert min(abs(value) for value in learned.values()) > 1e-3


def test_gradients_are_changed_at_all(tmp_path):
    """The comparison above would pass a method that never projects if the plain loop never did."""
    ends = []
    for method in (Surgery, FixedWeights):
        module = build("baseline", method)
        train(module, tmp_path)
        ends.append(torch.cat([parameter.detach().flatten() for parameter in module.network.parameters()]))
    assert (ends[0] - ends[1]).abs().max() > 1e-4


def test_fixed_weights_are_the_weighted_sum_to_the_bit():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        losses = dict(zip(TASKS, torch.rand(3, generator=generator).requires_grad_(), strict=True))
        total = FixedWeights(WEIGHTS)(losses)
        assert torch.equal(total, sum((WEIGHTS[name] * loss for name, loss in losses.items()), start=torch.zeros(())))


@pytest.mark.parametrize("method", [FixedWeights, Learned, Geometric])
def test_a_task_without_labels_adds_nothing(method):
    balancing = method(WEIGHTS)
    values = {"semseg": 2.0, "depth": 0.0, "saliency": 0.5}
    losses = {name: torch.tensor(value, requires_grad=True) for name, value in values.items()}
    others = {name: loss for name, loss in losses.items() if name != "depth"}
    total = balancing(losses)
    assert torch.equal(total, balancing(others))
    total.backward()
    assert not losses["depth"].grad
    if method is Learned:
        assert balancing.log_variance["depth"].grad == 0  # not even the part that has no loss in it
        assert balancing.log_variance["semseg"].grad != 0


def test_the_weights_that_are_logged_are_those_of_the_losses():
    losses = {name: torch.tensor(value, requires_grad=True) for name, value in (("a", 1.0), ("b", 4.0), ("c", 0.0))}
    geometric = Geometric(dict.fromkeys(losses, 1.0))
    weights = geometric.weights_in(geometric(losses), losses)  # the derivatives of sqrt(a * b)
    assert {name: weight.item() for name, weight in weights.items()} == pytest.approx({"a": 1.0, "b": 0.25, "c": 0.0})
    fixed = FixedWeights({"a": 1.0, "b": 2.0, "c": 3.0})
    assert fixed.weights_in(fixed(losses), losses) == {}


def test_scaled_losses_have_scaled_gradients():
    """What a gradient scaler of half precision multiplies the total by, it divides the gradients by."""
    found = []
    for scale in (1.0, 4096.0):
        module = build("baseline", Surgery)
        batch = batches()[0]
        losses = module.task_losses(module(batch["image"]), batch["targets"])
        parameters = list(module.network.parameters())
        module.balancing.backward(scale * module.balancing(losses), losses, parameters)
        found.append([parameter.grad / scale for parameter in parameters])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_what_a_method_learns_is_optimised_without_decay():
    module = build("baseline", Learned, optimizer=lambda groups: SGD(groups, lr=LR, weight_decay=0.3))
    *_, own = module.configure_optimizers().param_groups
    assert own["params"] == list(module.balancing.parameters())
    assert (own["lr"], own["weight_decay"]) == (LR, 0.0)
    parameters = [p for group in module.configure_optimizers().param_groups for p in group["params"]]
    assert len(parameters) == len(set(parameters)) == len(list(module.parameters()))


def checkpoint_of(module):
    checkpoint = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    module.on_save_checkpoint(checkpoint)
    return checkpoint


def test_a_method_starts_anew_from_a_checkpoint_of_another():
    plain, learned = build("baseline", FixedWeights), build("baseline", Learned)
    for saved, model in ((plain, learned), (learned, plain)):
        checkpoint = checkpoint_of(saved)
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"])
    with torch.no_grad():
        learned.balancing.log_variance["depth"].fill_(7.0)
    checkpoint = checkpoint_of(learned)
    again = build("baseline", Learned)
    again.on_load_checkpoint(checkpoint)
    again.load_state_dict(checkpoint["state_dict"])
    assert again.balancing.log_variance["depth"] == 7.0
    checkpoint["state_dict"]["network.nonsense"] = torch.zeros(1)
    with pytest.raises(WeightsError, match=r"network.nonsense"):
        plain.on_load_checkpoint(checkpoint)


def test_a_method_is_one_line_of_the_command_line(small_rooms, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--model=Baseline", "--model.backbone=lcnet_050", "--model.embed_dim=8", "--model.head_dim=4",
             "--data=RoomsDataModule", f"--data.root={small_rooms}", "--data.tasks=[depth,semseg]",
             "--data.batch_size=2", "--data.size=[32,48]", "--trainer.accelerator=cpu", "--trainer.max_epochs=2",
             "--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=1",
             "--gallery.every_n_epochs=0"]  # fmt: skip
    method = ["--model.balancing=balancing_methods.Learned", "--model.balancing.start=0.5"]
    main(["fit", *flags, *method, "--name=learned"])
    with Path("runs/learned/logs/fit/metrics.csv").open(newline="") as stream:
        rows = [float(row["train/weight/depth"]) for row in csv.DictReader(stream) if row["train/weight/depth"]]
    assert len(rows) == 2
    assert rows[0] == pytest.approx(torch.tensor(-0.5).exp().item(), rel=0.05)
    assert rows[0] != rows[1]

    saved = torch.load("runs/learned/checkpoints/last.ckpt", weights_only=True)
    assert "balancing" not in saved["hyper_parameters"]
    logs = saved["state_dict"]["balancing.log_variance.depth"]
    model = taskformer.load("runs/learned/checkpoints/last.ckpt")  # without the class
    assert isinstance(model.balancing, FixedWeights)
    for key, value in model.network.state_dict().items():
        assert torch.equal(value, saved["state_dict"][f"network.{key}"])

    seen = {}
    start = Baseline.on_train_start

    def look(self):
        seen["logs"] = self.balancing.log_variance["depth"].clone()
        start(self)

    monkeypatch.setattr(Baseline, "on_train_start", look)
    main(["fit", "--resume=runs/learned", "--trainer.max_epochs=3"])
    assert torch.equal(seen["logs"], logs)


SCRIPT = """
import os, sys, torch
sys.path.insert(0, {tests!r})
import balancing_methods, test_balancing
from lightning.pytorch import Trainer
method, devices, rank = sys.argv[1], int(sys.argv[2]), int(os.environ.get("LOCAL_RANK", 0))
torch.set_num_threads(1)
for of_tasks in (test_balancing.TASKS, test_balancing.WEIGHTS):
    del of_tasks["saliency"]  # whose loss depends on how frequent it is in the batch
module = test_balancing.build("supernet", getattr(balancing_methods, method))
mine = slice(rank, rank + 1) if devices > 1 else slice(2)  # of the two images of a batch
cut = lambda x: {{name: cut(value) for name, value in x.items()}} if isinstance(x, dict) else x[mine]
strategy = "ddp_find_unused_parameters_true" if devices > 1 else "auto"
options = {{"precision": "64-true", "devices": devices, "strategy": strategy, "use_distributed_sampler": False}}
test_balancing.train(module, ".", [cut(batch) for batch in test_balancing.batches()], **options)
torch.save(module.state_dict(), f"{{devices}}_{{rank}}.pt")
"""


@pytest.mark.slow  # starts three processes per case
@pytest.mark.parametrize("method", [Surgery, Learned])
def test_two_processes_learn_what_one_does(method, tmp_path):
    (tmp_path / "run.py").write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    for devices in ("1", "2"):
        command = [sys.executable, "run.py", method.__name__, devices]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
    alone, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("1_0", "2_0", "2_1"))
    for key, value in alone.items():
        torch.testing.assert_close(first[key], value, rtol=0, atol=1e-6)
        assert torch.equal(second[key], first[key])
