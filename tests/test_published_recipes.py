"""Every row of the tables of NYUD-v2 and PASCAL-Context is trained as its paper says.

The papers' numbers stand here once more, and their losses and learning rates as plain torch. The networks are built on
the meta device: they have shapes, but neither values nor memory.
"""

from functools import cache
from pathlib import Path

import pytest
import timm
import torch
from lightning import Trainer
from torch.nn import functional as F

from taskformer.commands.trainer import TaskformerCLI
from taskformer.datatools.miniature import writer
from taskformer.models import Backbone
from taskformer.modules import MQTransformer, dense
from taskformer.modules.recipe import initialisation

ROOT = Path(__file__).parent.parent
EXPERIMENTS = ROOT / "configs" / "experiment"
ENCODERS = ("hrnet18", "hrnet48", "swin_t", "swin_s", "swin_b", "swin_l", "vit_b", "vit_l")
VARIANTS = (
    "nyud_mqtransformer_swin_t_adamw",
    "pascal_mqtransformer_swin_t_adamw",
    "nyud_mqtransformer_v1_swin_t",
    "nyud_mqtransformer_vit_b_taskprompter",
    "nyud_mqtransformer_vit_b_deep",
)
ROWS = [f"{data}_mqtransformer_{encoder}" for data in ("nyud", "pascal") for encoder in ENCODERS]
#: Channels of an encoder's maps, and what its weights were trained on.
CHANNELS = {
    "hrnet18": [18, 36, 72, 144],
    "hrnet48": [48, 96, 192, 384],
    "swin_t": [96, 192, 384, 768],
    "swin_s": [96, 192, 384, 768],
    "swin_b": [128, 256, 512, 1024],
    "swin_l": [192, 384, 768, 1536],
    "vit_b": [768] * 4,
    "vit_l": [1024] * 4,
}
LARGE = ("swin_b", "swin_l", "vit_b", "vit_l")
TASKS = {
    "nyud": ["semseg", "depth", "normals", "edges"],
    "pascal": ["semseg", "human_parts", "saliency", "normals", "edges"],
}
WEIGHTS = {"semseg": 1, "depth": 1, "human_parts": 2, "saliency": 5, "normals": 10, "edges": 50}
VALIDATED_EVERY = {"nyud": 10, "pascal": 3}
HRNET_RATE = {"nyud": 1e-2, "pascal": 5e-3}


@pytest.fixture(autouse=True)
def _in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@cache
def build(row):
    """What the command line makes of a row, but for weights that would be downloaded; an encoder is built once."""
    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense, "Backbone", encoder)
        path = EXPERIMENTS / f"{row}.yaml"
        return TaskformerCLI([f"--config={path}", "--model.weights=random"], run=False)


encoder = cache(Backbone)


def test_no_row_is_left_out():
    assert {path.stem for path in EXPERIMENTS.glob("*_mqtransformer_*.yaml")} == {*ROWS, *VARIANTS}


@pytest.mark.parametrize("name", [*ROWS, *VARIANTS])
def test_a_row_is_trained_as_published(name, monkeypatch):
    cli = build(name)
    data, _, variant = name.partition("_mqtransformer_")
    encoder = variant.removeprefix("v1_")
    for suffix in ("_adamw", "_taskprompter", "_deep"):
        encoder = encoder.removesuffix(suffix)
    invpt, adamw = encoder.startswith("vit"), variant.endswith("_adamw")
    clipped, deep = variant.endswith("_taskprompter"), variant.endswith("_deep")
    model, config = cli.model, cli.config

    assert isinstance(model, MQTransformer)
    assert config.name == name
    assert list(model.tasks) == TASKS[data]
    assert model.loss_weights == {task: WEIGHTS[task] for task in TASKS[data]}
    assert model.tasks["edges"].positive_weight == (0.95 if invpt or data == "pascal" else 0.8)

    # The encoder, and what it starts from.
    assert model.network.backbone.channels == CHANNELS[encoder]
    assert model.hparams.backbone_drop_path == (0.15 if invpt else 0.0 if encoder.startswith("hrnet") else 0.1)
    label = "imagenet22k" if encoder in LARGE else "imagenet1k"
    assert initialisation({**model.hparams, "weights": "timm"}) == f"{label} (timm)"
    assert model.hparams.backbone in timm.list_pretrained(model.hparams.backbone)
    assert ("in21k" in model.hparams.backbone or "in22k" in model.hparams.backbone) == (encoder in LARGE)

    # The head.
    head = [model.hparams[key] for key in ("embed_dim", "num_queries", "wiring", "scales")]
    assert head == ([256, 64, "clean", [4, 8, 16, 32]] if "v1" in variant else [256, 64, "released", "fused"])

    # Length, batches, images.
    assert (config.trainer.max_steps, config.trainer.max_epochs) == (40_000, -1)
    assert config.trainer.check_val_every_n_epoch == VALIDATED_EVERY[data]
    assert config.trainer.sync_batchnorm
    assert cli.datamodule.batch_size == (4 if clipped else 6 if invpt else 8)
    assert config.trainer.gradient_clip_val == (10 if clipped else None)
    assert model.auxiliary_weight == (1 if deep else 0)
    crop = config.data.init_args.train_transforms[-1].init_args
    published = (512, 512) if data == "pascal" else (448, 576) if invpt else (425, 560)
    assert (crop.height, crop.width) == published
    assert config.results.protocol == ("invpt" if invpt else "atrc")
    assert config.checkpoint.monitor is None  # the last weights are tested

    # Optimizer and schedule.
    monkeypatch.setattr(MQTransformer, "_training_steps", lambda self: config.trainer.max_steps)
    built = model.configure_optimizers()
    optimizer, scheduler = built["optimizer"], built["lr_scheduler"]["scheduler"]
    kind, rate, decay = torch.optim.SGD, 1e-3, 5e-4
    if invpt:
        kind, rate, decay = torch.optim.Adam, 2e-5, 1e-6
    if adamw:
        kind, rate, decay = torch.optim.AdamW, 2e-5, 1e-6
    if encoder.startswith("hrnet"):
        rate = HRNET_RATE[data]
    assert type(optimizer) is kind
    assert [group.get("momentum", 0.9) for group in optimizer.param_groups] == [0.9]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [decay]
    decaying = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    assert decaying == {*model.network.parameters(), *model.scaffold.parameters()}
    assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)
    for step in (0, 1, 20_000, 39_999):
        found = scheduler.base_lrs[0] * scheduler.lr_lambdas[0](step)
        assert found == pytest.approx(rate * (1 - step / 40_000) ** 0.9)


def published_loss(outputs, targets, edge_weight):
    """The loss of spec and papers, pixel by pixel."""
    total = F.cross_entropy(outputs["semseg"], targets["semseg"], ignore_index=255)
    if "depth" in outputs:
        known = ~targets["depth"].isnan()
        total += (outputs["depth"] - targets["depth"])[known].abs().mean()
    if "human_parts" in outputs:
        total += 2 * F.cross_entropy(outputs["human_parts"], targets["human_parts"], ignore_index=255)
    if "saliency" in outputs:
        valid = targets["saliency"] != 255
        salient = (targets["saliency"][valid] == 1).float().mean()
        pixels = F.cross_entropy(outputs["saliency"], targets["saliency"], ignore_index=255, reduction="none")[valid]
        balance = torch.where(targets["saliency"][valid] == 1, 1 - salient, salient)
        total += 5 * (balance * pixels).mean()
    known = ~targets["normals"].isnan().any(1)
    direction = outputs["normals"] / outputs["normals"].norm(dim=1, keepdim=True)
    total += 10 * (direction - targets["normals"]).abs().sum(1)[known].mean()
    known = ~targets["edges"].isnan()
    edge, logit = targets["edges"][known], outputs["edges"][known]
    weight = torch.where(edge == 1, edge_weight, 1 - edge_weight)
    return total + 50 * F.binary_cross_entropy_with_logits(logit, edge, weight=weight)


def random_maps(tasks):
    """Raw outputs and targets of two images, a tenth of whose pixels has no label."""
    generator = torch.Generator().manual_seed(0)
    size = (2, 6, 8)
    outputs, targets = {}, {}
    for name, task in tasks.items():
        outputs[name] = torch.randn(2, task.channels, 6, 8, generator=generator)
        unknown = torch.rand(size, generator=generator) < 0.1
        if name in ("semseg", "human_parts", "saliency"):
            targets[name] = torch.randint(task.channels, size, generator=generator).masked_fill(unknown, 255)
            continue
        values = torch.rand(2, task.channels, 6, 8, generator=generator)
        if name == "normals":
            values = F.normalize(values - 0.5, dim=1)
        if name == "edges":
            values = (values > 0.7).float()
        targets[name] = values.masked_fill(unknown.unsqueeze(1), torch.nan)
    return outputs, targets


@pytest.mark.parametrize(
    ("row", "edge_weight"),
    [
        ("nyud_mqtransformer_swin_t", 0.8),
        ("pascal_mqtransformer_hrnet18", 0.95),
        ("nyud_mqtransformer_vit_b", 0.95),
        ("pascal_mqtransformer_vit_b", 0.95),
    ],
)
def test_the_loss_is_the_weighted_sum_of_the_published_ones(row, edge_weight):
    model = build(row).model
    outputs, targets = random_maps(model.tasks)
    expected = published_loss(outputs, targets, edge_weight)
    torch.testing.assert_close(model.compute_losses(outputs, targets)["total"], expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ROWS, *VARIANTS])
def test_a_row_takes_a_step_at_full_size(name, tmp_path):
    """One image of the size that the data set has; the largest networks need 6 GB of memory."""
    kind, size = ("nyud", (425, 560)) if name.startswith("nyud") else ("pascal_context", (375, 500))
    root = writer(kind)(tmp_path, counts={"train": 1, "val": 1}, size=size)
    small = [f"--data.root={root}", "--data.batch_size=1", "--data.num_workers=0", "--model.weights=random"]
    cli = TaskformerCLI([f"--config={EXPERIMENTS / name}.yaml", *small], run=False)
    model = cli.model
    trainer = Trainer(max_steps=1, accelerator="cpu", limit_val_batches=0, logger=False, enable_checkpointing=False,
                      enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(model, cli.datamodule)
    crop = cli.config.data.init_args.train_transforms[-1].init_args
    assert trainer.global_step == 1
    assert model.train_size.tolist() == [crop.height, crop.width]
    assert torch.isfinite(model.train_losses["total"])
    trained = [parameter for parameter in model.network.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trained)
