"""Every method that is shipped, against its paper written down plainly, and where tasks have no labels."""

import copy
import csv
import math
import subprocess
import sys
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.optim import SGD, Adam
from torch.utils.data import DataLoader

from taskformer.cli import main
from taskformer.errors import ConfigError, MissingExtraError
from taskformer.modules import AutoTaskFormer, MultiTaskModule
from taskformer.modules.autotaskformer_args import Sampling, Space
from taskformer.modules.balancing import METHODS, LossBalancing, base, solvers

NAMES = {method.__name__: method for method in METHODS}
GRADIENTS = ("NormalisedGradients", "PCGrad", "UPGrad", "CAGrad", "NashMTL", "AlignedMTL")
TASKS = {name: {"type": "regression", "channels": 1} for name in ("a", "b")}
WEIGHTS = {"a": 2.0, "b": 0.5}
LR, EPOCHS, BATCHES = 0.05, 3, 2


class Toy(nn.Module):
    """Two tasks that share a layer and want the opposite of it."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Tanh())
        self.heads = nn.ModuleDict({name: nn.Conv2d(4, 1, 1) for name in TASKS})
        self.heads["b"].load_state_dict(self.heads["a"].state_dict())

    def forward(self, image):
        features = self.shared(image)
        return {name: head(features) for name, head in self.heads.items()}


def build(method, tasks=TASKS, **options):
    torch.manual_seed(0)
    optimizer = {"optimizer": lambda groups: SGD(groups, lr=LR), "lr_scheduler": None}
    return MultiTaskModule(tasks, Toy(), loss_weights=WEIGHTS, balancing=method, **optimizer | options)


def batches():
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(2, 3, 8, 8, generator=generator) for _ in range(BATCHES)]
    wanted = [image.mean(dim=1, keepdim=True).tanh() for image in images]
    return [
        {"image": image, "targets": {"a": target, "b": 0.3 - 2 * target}, "meta": {}}
        for image, target in zip(images, wanted, strict=True)
    ]


def train(module, folder, epochs=EPOCHS, precision="64-true", data=None, resume=None, **options):
    trainer = Trainer(
        default_root_dir=folder, accelerator="cpu", max_epochs=epochs, limit_val_batches=0, logger=False,
        precision=precision, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        **options,
    )  # fmt: skip
    trainer.fit(module, *[DataLoader(data or batches(), batch_size=None)] * 2, ckpt_path=resume, weights_only=True)
    return trainer


class Plain:
    """What happens around a step, in plain torch: the losses go in, gradients come out."""

    def __init__(self, module):
        self.tasks = module.tasks
        self.network = copy.deepcopy(module.network).double()
        self.extra = []
        self.epoch = -1

    def losses(self, batch, network=None):
        outputs = (network or self.network)(batch["image"].double())
        return [WEIGHTS[name] * task.loss(outputs[name], batch["targets"][name]) for name, task in self.tasks.items()]

    def learn(self, losses):
        sum(losses).backward()

    def after(self, batch):
        """Between two steps."""

    def run(self):
        optimizer = None
        for self.epoch in range(EPOCHS):
            for batch in batches():
                optimizer = optimizer or SGD([*self.network.parameters(), *self.extra], lr=LR)
                optimizer.zero_grad()
                self.learn(self.losses(batch))
                optimizer.step()
                self.after(batch)
        return self.network


class Uncertainty(Plain):
    def __init__(self, module):
        super().__init__(module)
        self.extra = [torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in TASKS]

    def learn(self, losses):
        sum((loss * torch.exp(-s) + s) / 2 for loss, s in zip(losses, self.extra, strict=True)).backward()


class IMTLL(Uncertainty):
    def learn(self, losses):
        sum(loss * torch.exp(s) - s for loss, s in zip(losses, self.extra, strict=True)).backward()


class GeometricMean(Plain):
    def learn(self, losses):
        (losses[0] * losses[1]).sqrt().backward()


class DWA(Plain):
    def __init__(self, module):
        super().__init__(module)
        self.seen = []

    def learn(self, losses):
        self.seen.append([loss.item() for loss in losses])
        means = np.mean(np.reshape(self.seen[: self.epoch * BATCHES], (self.epoch, BATCHES, 2)), axis=1)
        rates = means[-1] / means[-2] if self.epoch > 1 else np.ones(2)
        parts = np.exp(rates / 2.0)
        sum(2 * part / parts.sum() * loss for part, loss in zip(parts, losses, strict=True)).backward()


class FAMO(Plain):
    def __init__(self, module):
        super().__init__(module)
        self.logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        self.adam = Adam([self.logits], lr=0.025, weight_decay=1e-3)

    def learn(self, losses):
        losses = torch.stack(losses)
        shares = self.logits.softmax(0).detach()
        self.before = losses.detach()
        ((losses + 1e-8).log() * shares / (shares / (losses + 1e-8)).sum().detach()).sum().backward()

    def after(self, batch):
        with torch.no_grad():  # the copy, so that the statistics of the norm are those of training alone
            after = torch.stack(self.losses(batch, copy.deepcopy(self.network)))
        gains = (self.before + 1e-8).log() - (after + 1e-8).log()
        self.logits.grad = torch.autograd.grad(self.logits.softmax(0), self.logits, gains)[0]
        self.adam.step()


class OfGradients(Plain):
    """The shared gradient is a combination; heads have their own."""

    def __init__(self, module):
        super().__init__(module)
        self.batches = 0

    def learn(self, losses):
        shared = list(self.network.shared.parameters())
        rows = torch.stack([
            torch.cat([part.flatten() for part in torch.autograd.grad(loss, shared, retain_graph=True)])
            for loss in losses
        ])  # fmt: skip
        sum(losses).backward()
        combined = torch.as_tensor(self.combine(*rows.numpy()))
        for parameter, part in zip(shared, combined.split([p.numel() for p in shared]), strict=True):
            parameter.grad = part.view_as(parameter)


class NormalisedGradients(OfGradients):
    def combine(self, a, b):
        lengths = np.linalg.norm(a), np.linalg.norm(b)
        return np.mean(lengths) * (a / lengths[0] + b / lengths[1])


class PCGrad(OfGradients):
    def combine(self, a, b):  # of two tasks no order matters
        conflict = min(a @ b, 0)
        return a - conflict / (b @ b) * b + b - conflict / (a @ a) * a


class UPGrad(OfGradients):
    def combine(self, a, b):  # the nearest vector that is against neither: of two it is the same projection
        return PCGrad.combine(self, a, b) / 2


class CAGrad(OfGradients):
    def combine(self, a, b):
        mean = (a + b) / 2
        reach = 0.4 * np.linalg.norm(mean)

        def dual(share):
            mixed = share * a + (1 - share) * b
            return mixed @ mean + reach * np.linalg.norm(mixed)

        low, high = 0.0, 1.0
        for _ in range(200):  # the function is convex
            first, second = low + (high - low) / 3, high - (high - low) / 3
            low, high = (low, second) if dual(first) < dual(second) else (first, high)
        mixed = low * a + (1 - low) * b
        return mean + reach / np.linalg.norm(mixed) * mixed


class NashMTL(OfGradients):
    def combine(self, a, b):
        # a.a x^2 + a.b x y = 1 = b.b y^2 + a.b x y, hence |a| x = |b| y
        ratio = np.linalg.norm(a) / np.linalg.norm(b)
        x = 1 / math.sqrt(a @ a + ratio * (a @ b))
        gramian = np.array([[a @ a, a @ b], [a @ b, b @ b]])
        found = math.sqrt(np.linalg.norm(gramian)) * (x * a + ratio * x * b)
        return found / max(1, np.linalg.norm(found))


class AlignedMTL(OfGradients):
    def combine(self, a, b):
        left, values, right = np.linalg.svd(np.stack([a, b]), full_matrices=False)
        return values.min() * (left @ right).mean(axis=0)


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_those_of_the_paper(name, tmp_path):
    module = build(NAMES[name])
    expected = {"FixedWeights": Plain}.get(name, globals().get(name))(module).run().state_dict()
    plain = Plain(module).run().state_dict()
    train(module, tmp_path)
    for key, value in module.network.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-6)
    if name != "FixedWeights":  # the method matters at all, also to what the tasks share
        assert (plain["shared.0.weight"] - expected["shared.0.weight"]).abs().max() > 1e-4
    if name in GRADIENTS:
        assert module.balancing.found()["cosine/a/b"] < -0.1


def graph(values, count=40, seed=0):
    """Losses with given values, of shared parameters and one more for each; 0: without a label."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(count, generator=generator).requires_grad_()
    own = [torch.ones((), requires_grad=True) for _ in values]
    directions = torch.randn(len(values), count, generator=generator)
    losses = {
        f"task_{index}": value * (1 + direction @ (shared - shared.detach())) * extra
        for index, (value, direction, extra) in enumerate(zip(values, directions, own, strict=True))
    }
    return losses, [shared, *own]


def gradients(method, losses, parameters, scale=1.0):
    method.backward(scale * method(losses), losses, parameters)
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]


@pytest.mark.parametrize("name", NAMES)
def test_a_task_without_labels_is_not_there(name):
    (losses, parameters), (labelled, same) = (graph([2.0, 0.0, 0.5]) for _ in range(2))
    del labelled["task_1"]
    method = NAMES[name](dict.fromkeys(losses, 1.0))
    method.start_epoch()
    found = gradients(method, losses, parameters)
    few = NAMES[name](dict.fromkeys(labelled, 1.0))
    for mine, expected in zip(found, gradients(few, labelled, same), strict=True):
        torch.testing.assert_close(mine, expected)
    assert found[2] == 0
    method.after_step(lambda: losses)
    method.start_epoch()
    assert all(state.isfinite().all() for key, state in method.state_dict().items() if key != "means")
    assert method.weights_in(method(losses), losses).get("task_1", 0) == 0


@pytest.mark.parametrize("name", NAMES)
def test_without_any_label_nothing_is_learnt(name):
    losses, parameters = graph([0.0, 0.0])
    method = NAMES[name]({"task_0": 1.0, "task_1": 0.0})
    assert method(losses) == 0
    assert not any(gradient.any() for gradient in gradients(method, losses, parameters))
    method.after_step(lambda: losses)
    assert all(state.isfinite().all() for key, state in method.state_dict().items() if key != "means")


def test_a_task_without_labels_for_epochs_keeps_its_weight():
    method = NAMES["DWA"]({"a": 1.0, "b": 1.0, "c": 1.0})
    for loss in (4.0, 2.0, 1.0):
        method.start_epoch()
        total = method({"a": torch.tensor(loss), "b": torch.tensor(3.0), "c": torch.tensor(0.0)})
    parts = [math.exp(rate / 2) for rate in (0.5, 1.0, 1.0)]  # b fell to 1 of what it was, c is taken to have
    assert total.item() == pytest.approx(3 * (parts[0] * 1.0 + parts[1] * 3.0) / sum(parts))


@pytest.mark.parametrize("name", NAMES)
def test_scaled_losses_have_scaled_gradients(name):
    """What gradients are divided by later, because they are accumulated or of half precision, changes nothing else."""
    found = []
    for scale in (1.0, 4096.0):
        losses, parameters = graph([2.0, 3.0, 0.5])
        found.append(gradients(NAMES[name](dict.fromkeys(losses, 1.0)), losses, parameters, scale))
    for one, enlarged in zip(*found, strict=True):
        torch.testing.assert_close(enlarged / 4096, one)


@pytest.mark.parametrize("name", GRADIENTS)
def test_what_overflows_is_left_to_the_scaler(name):
    method = NAMES[name]({"task_0": 1.0, "task_1": 1.0})
    assert not gradients(method, *graph([2.0, 3.0]), scale=math.inf)[0].isfinite().all()
    assert gradients(method, *graph([2.0, 3.0]))[0].isfinite().all()


class Processes:
    """Several processes one after the other: the first round notes what each sends, the second adds it."""

    def __init__(self, count):
        self.sent = [[] for _ in range(count)]
        self.adding = False

    def is_available(self):
        return True

    is_initialized = is_available

    def get_world_size(self):
        return len(self.sent)

    def all_reduce(self, values):
        if self.adding:
            values.copy_(sum(sent[self.position] for sent in self.sent))
            self.position += 1
        else:
            self.sent[self.rank].append(values.clone())

    def run(self, build, of_ranks):
        for self.adding in (False, True):
            found = []
            for self.rank, of_rank in enumerate(of_ranks):
                self.position = 0
                found.append(gradients(build(), *of_rank()))
        return found


@pytest.mark.parametrize("name", NAMES)
def test_processes_agree_on_what_one_would_do(name, monkeypatch):
    def build():
        return NAMES[name](dict.fromkeys(("task_0", "task_1", "task_2"), 1.0))

    halves = [partial(graph, [2.0, 1.0, 0.5], seed=seed) for seed in (0, 1)]
    alone = gradients(build(), *whole([half() for half in halves]))
    monkeypatch.setattr(base, "distributed", Processes(2))
    first, second = base.distributed.run(build, halves)
    if name in GRADIENTS:  # these average over processes themselves
        assert torch.equal(first[0], second[0])
        torch.testing.assert_close(first[0], alone[0])
    else:
        torch.testing.assert_close((first[0] + second[0]) / 2, alone[0])


def whole(halves):
    """The mean of the losses of all processes, as functions of the same parameters."""
    shift = torch.zeros(40, requires_grad=True)
    found = {}
    for task in halves[0][0]:
        slopes = [
            torch.autograd.grad(losses[task], parameters[0], retain_graph=True)[0] for losses, parameters in halves
        ]
        values = [losses[task].detach() for losses, _ in halves]
        found[task] = sum(value + slope @ shift for value, slope in zip(values, slopes, strict=True)) / len(halves)
    return found, [shift]


@pytest.mark.parametrize("name", ["DWA", "FAMO", "PCGrad", "Uncertainty"])
def test_a_resumed_training_is_the_whole_one(name, tmp_path):
    whole = build(NAMES[name])
    train(whole, tmp_path, epochs=4, precision="32-true")
    part = build(NAMES[name])
    train(part, tmp_path, epochs=2, precision="32-true").save_checkpoint(tmp_path / "part.ckpt")
    rest = build(NAMES[name])
    train(rest, tmp_path, epochs=4, precision="32-true", resume=tmp_path / "part.ckpt")
    for key, value in whole.state_dict().items():
        assert torch.equal(value, rest.state_dict()[key]), key


def test_a_method_s_small_steps_survive_half_precision():
    method = NAMES["DWA"](WEIGHTS).to(torch.bfloat16)
    method.start_epoch()
    for _ in range(1000):
        method({"a": torch.tensor(1.0, dtype=torch.bfloat16), "b": torch.tensor(1.0, dtype=torch.bfloat16)})
    assert method.counts.tolist() == [1000, 1000]
    assert NAMES["FAMO"](WEIGHTS).double().logits.dtype == torch.float64


def test_a_supernet_s_losses_after_a_step_are_those_of_the_same_sub_networks(tmp_path):
    class Watched(NAMES["FAMO"]):
        def after_step(self, losses):
            self.gain = (self._before - self.values(losses())).abs().max()
            super().after_step(losses)

    space = Space("custom", embed_dims=[8, 16], depths=[1, 2], mlp_ratios=[2.0], num_heads=[1, 2], head_dim=8)
    for rate in (0.0, 0.1):
        module = AutoTaskFormer(
            TASKS, space, sampling=Sampling("sandwich", 0.5, sharing_warmup=0.0), image_size=(8, 8), patch_size=4,
            drop_path=0.5, balancing=Watched, optimizer=lambda groups, rate=rate: SGD(groups, lr=rate),
            lr_scheduler=None,
        )  # fmt: skip
        train(module, tmp_path, epochs=1, precision="32-true")
        assert (module.balancing.gain > 0) == (rate > 0)  # nothing but the step changes the losses


@pytest.mark.parametrize("name", ["GeometricMean", "DWA", "FAMO", "Uncertainty", "IMTLL"])
def test_losses_are_weighed_as_torchjd_weighs_them(name):
    from torchjd import scalarization

    theirs = getattr(scalarization, {"Uncertainty": "UW"}.get(name, name))
    theirs = theirs(3) if name in ("FAMO", "Uncertainty", "IMTLL") else theirs()
    method = NAMES[name](dict.fromkeys("abc", 1.0))
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        method.start_epoch()
        for _ in range(2):
            before, after = torch.rand(2, 3, generator=generator) + 0.1
            before.requires_grad_()
            losses = dict(zip("abc", before, strict=True))
            mine = torch.autograd.grad(method(losses), before)[0]
            torch.testing.assert_close(mine, torch.autograd.grad(theirs(before), before)[0])
            method.after_step(lambda after=after: dict(zip("abc", after, strict=True)))
            if name == "FAMO":
                theirs.update(after)
        if name == "DWA":
            theirs.step()


def random_gramian(count, dimensions, seed):
    rows = np.random.default_rng(seed).normal(size=(count, dimensions))
    return rows @ rows.T


GRAMIANS = [random_gramian(count, size, seed) for seed, (count, size) in enumerate([(3, 20), (4, 3), (4, 4), (5, 2)])]


@pytest.mark.parametrize("gramian", GRAMIANS)
def test_projections_are_the_shortest_allowed_sums(gramian):
    """Every set of weights that are more than they must be is tried; the shortest sum is the projection."""
    for own in np.eye(len(gramian)):
        lengths = []
        for free in product([False, True], repeat=len(gramian)):
            free, weights = np.array(free), own.copy()
            if free.any():
                weights[free] = np.linalg.lstsq(
                    gramian[np.ix_(free, free)], -gramian[np.ix_(free, ~free)] @ own[~free], rcond=None
                )[0]
            if (weights >= own - 1e-9).all():
                lengths.append(weights @ gramian @ weights)
        found = solvers.without_conflict(gramian, own)
        assert (found >= own - 1e-12).all()
        assert found @ gramian @ found == pytest.approx(min(lengths), abs=1e-7)
        assert (gramian @ found >= -1e-6).all()  # against no task


@pytest.mark.parametrize("gramian", GRAMIANS)
def test_what_is_averse_to_conflicts_does_most_for_the_worst(gramian):
    mean = np.full(len(gramian), 1 / len(gramian))
    reach = 0.4 * math.sqrt(mean @ gramian @ mean)

    def worst(weights):
        return (gramian @ weights).min()

    found = solvers.conflict_averse(gramian, 0.4)
    assert math.sqrt((found - mean) @ gramian @ (found - mean)) == pytest.approx(reach, rel=1e-6)
    random = np.random.default_rng(0)
    for spread in (1.0, 1e-2, 1e-3):
        for _ in range(300):
            other = found - mean + spread * random.normal(size=len(mean))
            other *= reach / math.sqrt(other @ gramian @ other)
            assert worst(mean + other) <= worst(found) + 1e-7


@pytest.mark.parametrize("gramian", [GRAMIANS[0], GRAMIANS[2], np.diag([1e-8, 1.0, 1e8])])
def test_a_bargain_gives_each_task_as_much(gramian):
    weights = solvers.bargain(gramian)
    assert (weights > 0).all()
    np.testing.assert_allclose(weights * (gramian @ weights), 1, rtol=1e-6)


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize("rows", [[[1.0, 2.0], [-1.0, -2.0]], [[1.0, 2.0], [1.0, 2.0]], [[1.0, 2.0], [1e-9, 0.0]],
                                  [[3.0, 1.0]], [[1.0, 0.0], [-0.5, 0.8], [-0.5, -0.8]]])  # fmt: skip
def test_gradients_that_depend_on_each_other_have_a_finite_sum(name, rows):
    rows = torch.tensor(rows)
    combined = NAMES[name](dict.fromkeys(map(str, range(len(rows))), 1.0)).aggregate(rows)
    assert combined.isfinite().all()
    assert combined.norm() <= 1.5 * rows.norm(dim=1).sum()


def test_orders_differ_from_batch_to_batch_and_not_from_run_to_run():
    rows = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    runs = []
    for _ in range(2):
        torch.rand(5)  # what else draws random numbers does not matter
        method = NAMES["PCGrad"](dict.fromkeys("abcd", 1.0))
        state = torch.random.get_rng_state()
        runs.append([method.aggregate(rows).tolist() for _ in range(4)])
        assert torch.equal(torch.random.get_rng_state(), state)
    assert runs[0] == runs[1]
    assert len({tuple(found) for found in runs[0]}) > 1


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchjd.aggregation", None)
    with pytest.raises(MissingExtraError, match=r"torchjd.*taskformer\[balancing\]"):
        NAMES["AlignedMTL"](WEIGHTS)
    with pytest.raises(ConfigError, match=r"a compiled network gives .* CAGrad needs each"):
        build(NAMES["CAGrad"], compile=True)
    with pytest.raises(ConfigError, match="temperature must be in"):
        NAMES["DWA"](WEIGHTS, temperature=0.0)


def test_a_weight_is_that_of_the_loss_as_it_is():
    losses, parameters = graph([2.0, 3.0])
    method = NAMES["GeometricMean"]({"task_0": 4.0, "task_1": 9.0})
    assert isinstance(method, LossBalancing)
    weights = method.weights_in(method(losses), losses)  # the derivatives of sqrt(4 * 2 * 9 * 3)
    mean = math.sqrt(8 * 27)
    assert [weight.item() for weight in weights.values()] == pytest.approx([mean / 2 / 2, mean / 2 / 3])
    method = NAMES["NormalisedGradients"]({"task_0": 4.0, "task_1": 9.0})
    method.backward(method(losses), losses, parameters)
    found = method.found()
    lengths = [torch.autograd.grad(loss, parameters[0], retain_graph=True)[0].norm() for loss in losses.values()]
    assert found["weight/task_0"] / found["weight/task_1"] == pytest.approx((lengths[1] / lengths[0]).item())


def test_weights_and_conflicts_are_logged(small_rooms, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["fit", "--model=Baseline", "--model.backbone=lcnet_050", "--model.embed_dim=8", "--model.head_dim=4",
          "--model.balancing=CAGrad", "--model.balancing.c=0.0", "--data=RoomsDataModule",
          f"--data.root={small_rooms}", "--data.tasks=[depth,semseg]", "--data.batch_size=2", "--data.size=[32,48]",
          "--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false",
          "--trainer.log_every_n_steps=1",
          "--gallery.every_n_epochs=0", "--name=logged", "--model.loss_weights={depth: 4.0}"])  # fmt: skip
    with Path("runs/logged/logs/fit/metrics.csv").open(newline="") as stream:
        (row,) = [row for row in csv.DictReader(stream) if row["train/weight/depth"]]
    assert float(row["train/weight/depth"]) == 2.0  # without a radius it is the mean of the two weighted losses
    assert -1 <= float(row["train/cosine/depth/semseg"]) <= 1


SCRIPT = """
import os, sys, torch
sys.path.insert(0, {tests!r})
from test_balancing_methods import NAMES, batches, build, train
torch.set_num_threads(1)
rank = int(os.environ.get("LOCAL_RANK", 0))
cut = lambda x: {{name: cut(value) for name, value in x.items()}} if isinstance(x, dict) else x[rank : rank + 1]
ends = {{}}
for name in NAMES:
    module = build(NAMES[name])
    train(module, ".", precision="bf16-mixed", data=[cut(batch) for batch in batches() * 2], devices=2, strategy="ddp",
          accumulate_grad_batches=2, gradient_clip_val=1.0, use_distributed_sampler=False)
    ends[name] = [dict(module.named_parameters()), module.balancing.state_dict()]
torch.save(ends, f"{{rank}}.pt")
"""


@pytest.mark.slow  # starts two processes
def test_two_processes_end_alike_in_mixed_precision(tmp_path):
    (tmp_path / "run.py").write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    done = subprocess.run([sys.executable, "run.py"], capture_output=True, text=True, timeout=500, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    start = dict(build(NAMES["FixedWeights"]).named_parameters())
    shared = {name: parameters["network.shared.0.weight"] for name, (parameters, _) in first.items()}
    for name, parts in first.items():
        for one, other in zip(parts, second[name], strict=True):
            for key, value in one.items():
                torch.testing.assert_close(value, other[key], rtol=0, atol=0, equal_nan=True, msg=f"{name} {key}")
        assert (shared[name] - start["network.shared.0.weight"]).abs().max() > 1e-3
        assert name == "FixedWeights" or not torch.equal(shared[name], shared["FixedWeights"])
