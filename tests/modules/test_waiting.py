"""No step of a training waits for the device: it runs, whole, on tensors without values, which nobody can look at."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from balancing_methods import Learned
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.optim import AdamW
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from taskformer.callbacks import Checkpoints, ProgressBar, Stopping, progress, stopping
from taskformer.callbacks.progress import may_look
from taskformer.modules import DWA, FAMO, AutoTaskFormer, Baseline, GeometricMean, MQTransformer
from taskformer.modules.autotaskformer_args import Head, Sampling, Space
from taskformer.modules.balancing import FixedWeights
from taskformer.tasks import base, build_task

KINDS = (
    "human_parts",
    "saliency",
    "depth",
    "inverse_depth",
    "normals",
    "edges",
    "regression",
    "image_vector",
    "embedding",
)
META = torch.device("meta")
#: A task of every kind.
TASKS = {name: {} for name in KINDS} | {name: {"classes": ["a", "b", "c"]} for name in ("semseg", "classification")}


class WaitedError(AssertionError):
    pass


class Device(Accelerator):
    """A device whose tensors have no values. All work on it is asynchronous in that nothing ever comes of it."""

    def setup_device(self, device):
        pass

    def teardown(self):
        pass

    @staticmethod
    def parse_devices(devices):
        return devices

    @staticmethod
    def get_parallel_devices(devices):
        return [META]

    @staticmethod
    def auto_device_count():
        return 1

    @staticmethod
    def is_available():
        return True

    @staticmethod
    def name():
        return "meta"


class Uploads(TorchDispatchMode):
    """Refuses copies of values that lie in ordinary memory to the device: it would have to have finished before."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.name()
        if name in ("aten::_to_copy", "aten::copy_") and result.device == META:
            source = args[0] if name == "aten::_to_copy" else args[1]
            if source.device.type == "cpu":
                raise WaitedError(f"values were copied to the device: {tuple(source.shape)}")
        return result


class Values(TorchFunctionMode):
    """Refuses tensors that are made on the device of values of Python."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function in (torch.tensor, torch.as_tensor) and result.device == META:
            raise WaitedError(f"a tensor was made of values: {args}")
        return result


class Steps(Callback):
    """Watches all but the first step, which prepares, and ends the training before the last one, which is logged."""

    def __init__(self):
        self.watched = 0
        self.stack = contextlib.ExitStack()

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx > 0:
            self.stack.enter_context(Uploads())
            self.stack.enter_context(Values())

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.stack.close()
        self.watched += batch_idx > 0
        if self.watched == 2:
            raise DoneError

    def on_exception(self, trainer, module, exception):
        self.stack.close()


class DoneError(Exception):
    pass


def batches(model, size=(32, 64)):
    targets = {name: torch.stack([task.invalid(*size)] * 2) for name, task in model.tasks.items()}
    return [{"image": torch.zeros(2, 3, *size), "targets": targets, "meta": {"id": ["a", "b"]}} for _ in range(6)]


def step(model, monkeypatch, tmp_path):
    """Train for three steps as `taskformer fit` does, and return how many of them did not wait."""
    # torch has no mixed precision for such tensors; what is left is float32 anyway.
    monkeypatch.setattr(base.torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    for loop in ("fit_loop", "evaluation_loop"):  # before the first step Lightning counts the batches of all devices
        monkeypatch.setattr(f"lightning.pytorch.loops.{loop}.has_len_all_ranks", lambda *_, **__: True)
    for module in (progress, stopping):  # the first losses of an epoch are looked at
        monkeypatch.setattr(module, "may_look", lambda *args: args[-1] > 0 and may_look(*args))
    steps = Steps()
    trainer = Trainer(
        strategy=SingleDeviceStrategy(META, accelerator=Device()),
        callbacks=[Checkpoints(), ProgressBar(), Stopping(), steps],
        gradient_clip_val=1.0,
        log_every_n_steps=50,
        max_epochs=1,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        enable_model_summary=False,
        logger=False,
        default_root_dir=tmp_path,
    )
    monkeypatch.setattr(trainer, "_teardown", lambda: None)  # there are no values to take back
    with pytest.raises(DoneError):
        trainer.fit(model, *[torch.utils.data.DataLoader(batches(model), batch_size=None)] * 2)
    return steps.watched


SPACE = Space("custom", embed_dims=[16, 32], depths=[1, 2], mlp_ratios=[2.0], num_heads=[1, 2], head_dim=8)


def mqtransformer(backbone="lcnet_050", **options):
    return MQTransformer(TASKS, embed_dim=16, num_queries=4, head_dim=8, backbone=backbone, **options)


def supernet(head="pup", **options):
    return AutoTaskFormer(TASKS, SPACE, Head(head, width=8), image_size=(32, 64), **options)


MODELS = {
    "fused": mqtransformer,
    "baseline": lambda: Baseline(TASKS, backbone="lcnet_050", head_dim=8, embed_dim=8, channels_last=True),
    "supernet": lambda: supernet(sampling=Sampling(distill=0.5)),
}
MORE = {
    "scales": lambda: mqtransformer(scales=[8, 16]),
    "swin": lambda: mqtransformer("swin_tiny_patch4_window7_224"),
    "dpt": lambda: Baseline(TASKS, decoder="dpt", backbone="lcnet_050", embed_dim=8),
    "aspp": lambda: Baseline(TASKS, decoder="aspp", backbone="lcnet_050", embed_dim=8),
    "supernet of queries": lambda: supernet("query"),
    "one of a supernet": lambda: supernet(architecture=SPACE.build(len(TASKS)).smallest().to_json()),
    "learned weights": lambda: mqtransformer(balancing=Learned),
    "weights of past epochs": lambda: mqtransformer(balancing=DWA),
    "a mean of another kind": lambda: mqtransformer(balancing=GeometricMean),
    "losses after the step": lambda: mqtransformer(balancing=FAMO),
    "another optimizer": lambda: mqtransformer(optimizer=lambda parameters: AdamW(parameters, foreach=True)),
}


@pytest.mark.parametrize("name", MODELS)
def test_no_step_waits_for_the_device(name, monkeypatch, tmp_path):
    assert step(MODELS[name](), monkeypatch, tmp_path) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_no_step_of_other_models_waits(name, monkeypatch, tmp_path):
    assert step(MORE[name](), monkeypatch, tmp_path) == 2


class Reading(FixedWeights):
    def forward(self, losses):
        total = super().forward(losses)
        self.last = total.item()
        return total


class Branching(FixedWeights):
    def forward(self, losses):
        return super().forward(losses) if losses["depth"] > 0 else losses["depth"]


class Selecting(FixedWeights):
    def forward(self, losses):
        stacked = torch.stack(list(losses.values()))
        return stacked[stacked > 0].sum()


class Uploading(FixedWeights):
    def forward(self, losses):
        return super().forward(losses) * torch.tensor(2.0, device=losses["depth"].device)


class Copying(FixedWeights):
    def forward(self, losses):
        return super().forward(losses) * torch.arange(2.0).to(losses["depth"].device).sum()


@pytest.mark.parametrize(
    ("balancing", "message"),
    [
        (Reading, "item"),
        (Branching, "item"),
        (Selecting, "nonzero"),
        (Uploading, "made of values"),
        (Copying, "copied to the device"),
    ],
)
def test_a_planted_wait_is_found(balancing, message, monkeypatch, tmp_path):
    model = Baseline({"depth": {}}, backbone="lcnet_050", head_dim=8, embed_dim=8, balancing=balancing)
    with pytest.raises((RuntimeError, NotImplementedError, WaitedError), match=message):
        step(model, monkeypatch, tmp_path)


@pytest.mark.parametrize(("device", "batch", "looks"), [
    ("cpu", 1, True), ("cuda", 0, True), ("cuda", 1, False), ("cuda", 50, True), ("cuda", 7, True),
])  # fmt: skip
def test_losses_are_looked_at_where_it_costs_nothing(device, batch, looks):
    trainer = SimpleNamespace(log_every_n_steps=50, is_last_batch=batch == 7)
    assert may_look(trainer, SimpleNamespace(device=torch.device(device)), batch) == looks


def test_without_a_logger_s_steps_the_last_losses_of_an_epoch_are_looked_at():
    trainer = SimpleNamespace(log_every_n_steps=0, is_last_batch=False)
    assert not may_look(trainer, SimpleNamespace(device=META), 0)
    trainer.is_last_batch = True
    assert may_look(trainer, SimpleNamespace(device=META), 0)


@pytest.mark.parametrize("protocol", base.PROTOCOLS)
def test_no_metric_of_a_validation_waits(protocol):
    for name, description in TASKS.items():
        task = build_task(name, description)
        metrics = task.metrics(protocol).to(META)
        size = () if task.geometry == "image" else (32, 48)
        output = torch.zeros(2, task.channels, *size, device=META)
        target = torch.stack([task.invalid(32, 48)] * 2).to(META)
        with Uploads(), Values():
            metrics.update(output, task.check(target, output))  # the first one also groups metrics
            metrics.update(output, task.check(target, output))
