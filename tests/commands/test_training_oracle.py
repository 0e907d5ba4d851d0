"""Training does what its configuration says: every step compared with a plain torch loop written from it.

The command line trains ten optimizer steps in double precision. The loop gets the same first weights and the same
batches, and nothing else of the package but the network and the tasks' losses: their sum, groups, rates, weight decay,
clipping and accumulation are stated here once more. (The losses too, but those are only compared: they are of single
precision, and of what is left of a gradient that cancels Adam makes an update of full size.)
"""

import copy
import csv
import json
import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from taskformer.callbacks import RunFolder
from taskformer.cli import main

STEPS, EPOCHS, ACCUMULATE = 10, 5, 2
LR, DECAY, BACKBONE_SCALE, LAYER_DECAY, CLIP = 2e-3, 0.2, 0.3, 0.7, 1.0
LOSS_WEIGHTS = {"semseg": 1.0, "depth": 3.0, "normals": 10.0, "edges": 7.0}  # of semseg and normals: the defaults
SETTINGS = [
    "--data=RoomsDataModule", "--data.tasks=[semseg,depth,normals,edges]", "--data.size=[32,48]",
    "--data.batch_size=2", "--trainer.precision=64-true", f"--trainer.max_epochs={EPOCHS}",
    f"--trainer.accumulate_grad_batches={ACCUMULATE}", f"--trainer.gradient_clip_val={CLIP}",
    "--trainer.limit_val_batches=0", "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
]  # fmt: skip
WEIGHTED = "--model.loss_weights={depth: 3.0, edges: 7.0}"
ENCODER = ["--model.backbone=lcnet_050", "--model.embed_dim=16", "--model.head_dim=8",
           f"--model.backbone_lr_scale={BACKBONE_SCALE}"]  # fmt: skip
NO_DROP_PATH = ["--model.drop_path=0"]
SUPERNET = [
    "--model.space.preset=custom", "--model.space.embed_dims=[16,24]", "--model.space.depths=[2,3]",
    "--model.space.mlp_ratios=[1.0,2.0]", "--model.space.num_heads=[1,2]", "--model.space.head_dim=8",
    "--model.image_size=[32,48]", *NO_DROP_PATH,
    f"--model.layer_decay={LAYER_DECAY}",
]  # fmt: skip
SUBNET = {
    "embed_dim": 16, "depth": 2, "mlp_ratio": [1.0, 2.0], "num_heads": [2, 1],
    "sharing": [[0, 0, 0, 0], [1, 2, 3, 4], [0, 0, 0, 0], [1, 2, 3, 4]],
}  # fmt: skip
#: Arguments of the models, and the layers of the transformers that train.
MODELS = {
    "mqtransformer": (
        [
            "--model=MQTransformer",
            *ENCODER,
            "--model.num_queries=4",
            "--model.drop_path=0",
            "--model.cross_drop_path=0",
        ],
        None,
    ),
    "baseline": (["--model=Baseline", *ENCODER], None),
    "supernet": (["--model=AutoTaskFormer", *SUPERNET], 3),
    "subnet": (["--model=AutoTaskFormer", *SUPERNET, "--model.architecture=subnet.json"], 2),
}


def adamw(groups):
    return torch.optim.AdamW(groups, lr=LR)


def sgd(groups):
    return torch.optim.SGD(groups, lr=LR, momentum=0.9)


ADAMW = (adamw, ["--model.optimizer=torch.optim.AdamW"])
SGD = (sgd, ["--model.optimizer=torch.optim.SGD", "--model.optimizer.momentum=0.9"])
CONSTANT = ((lambda step: 1.0), ["--model.lr_scheduler=null"])


def poly(power, warmup):
    """PolyLR's documented formula, and its flags."""
    warm = warmup * STEPS

    def factor(step):
        return max(step, 1) / warm if step < warm else ((STEPS - step) / (STEPS - warm)) ** power

    flags = [f"--model.lr_scheduler.power={power}", f"--model.lr_scheduler.warmup={warmup}"]
    return factor, ["--model.lr_scheduler=taskformer.modules.PolyLR", *flags]


def plain_loss(outputs, targets):
    """The weighted sum of the four losses, from their definitions."""
    outputs = {task: output.float() for task, output in outputs.items()}
    targets = {task: target.float() if target.is_floating_point() else target for task, target in targets.items()}
    known = ~targets["depth"].isnan()
    depth = (outputs["depth"] - targets["depth"])[known].abs().mean()
    direction = outputs["normals"] / outputs["normals"].norm(dim=1, keepdim=True).clamp(min=1e-3)
    known = ~targets["normals"].isnan().any(dim=1)
    normals = (direction - targets["normals"]).abs().sum(dim=1)[known].mean()
    known = ~targets["edges"].isnan()
    edge, logit = targets["edges"][known], outputs["edges"][known]
    edges = -(0.8 * edge * F.logsigmoid(logit) + 0.2 * (1 - edge) * F.logsigmoid(-logit)).mean()
    semseg = F.cross_entropy(outputs["semseg"], targets["semseg"], ignore_index=255)
    found = {"semseg": semseg, "depth": depth, "normals": normals, "edges": edges}
    return sum(weight * found[task] for task, weight in LOSS_WEIGHTS.items())


def rate_scale(name, layers):
    """The rate of a parameter over the configured one."""
    if layers is None:
        return BACKBONE_SCALE if name.startswith("backbone.") else 1.0
    if name.startswith(("heads.", "norm.")):
        return 1.0
    unit = re.match(r"units\.(\d+)\.", name)  # units 0 and 1 are the first layer's attention and MLP
    return LAYER_DECAY ** (layers - (int(unit[1]) // 2 if unit else -1))


def decays(name, parameter):
    """Matrices and kernels decay; vectors, queries, positions, tokens and tables of relative positions do not."""
    return parameter.ndim > 1 and not re.search(r"queries|_pos$|pos_embed|cls_token|\.relative\.", name)


def total_loss(tasks, outputs, targets):
    """The weighted sum of the tasks' losses."""
    loss = sum(weight * tasks[task].loss(outputs[task], targets[task]) for task, weight in LOSS_WEIGHTS.items())
    assert loss.item() == pytest.approx(plain_loss(outputs, targets).item(), rel=1e-5)
    return loss


def plain_training(network, tasks, batches, optimizer, factor, layers, decay_all, architectures):
    """Train as anybody would without a framework; returns the different peak rates."""
    network.train()
    parameters = dict(network.named_parameters())
    peaks = {name: LR * rate_scale(name, layers) for name in parameters}
    optimizer = optimizer(
        [
            {"params": [parameter], "weight_decay": DECAY if decay_all or decays(name, parameter) else 0.0}
            for name, parameter in parameters.items()
        ]
    )
    batches = iter(batches)
    for step in range(STEPS):
        if architectures and step == 2:  # a fifth of the training: copies start from the shared weights
            for shared, *others in network.units:
                for other in others:
                    other.load_state_dict(shared.state_dict())
        for group, peak in zip(optimizer.param_groups, peaks.values(), strict=True):
            group["lr"] = peak * factor(step)
        optimizer.zero_grad()
        for _ in range(ACCUMULATE):
            batch = next(batches)
            chosen = [architectures[step]] if architectures else []
            loss = total_loss(tasks, network(batch["image"], *chosen), batch["targets"])
            (loss / ACCUMULATE).backward()
        clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
    assert next(batches, None) is None
    return set(peaks.values())


def train(monkeypatch, flags):
    """Train by the command line; returns the module, a copy of its first network, and all batches."""
    seen = {"batches": []}

    def record(self, trainer, module, batch, batch_idx):
        seen.setdefault("network", copy.deepcopy(module.network))
        seen.setdefault("module", module)
        seen["batches"].append(copy.deepcopy(batch))

    monkeypatch.setattr(RunFolder, "on_train_batch_start", record, raising=False)
    main(["fit", *flags])
    return seen["module"], seen["network"], seen["batches"]


@pytest.mark.parametrize(
    ("model", "optimizer", "schedule", "decay_all"),
    [
        ("mqtransformer", ADAMW, poly(0.9, 0.3), False),
        ("baseline", ADAMW, poly(0.9, 0.3), False),
        ("supernet", ADAMW, poly(0.9, 0.3), False),
        ("subnet", ADAMW, poly(1.0, 0.25), False),
        ("baseline", SGD, poly(2.0, 0.0), False),
        ("subnet", SGD, CONSTANT, False),
        ("subnet", ADAMW, CONSTANT, True),
    ],
    ids=["mqtransformer", "baseline", "supernet", "subnet", "sgd", "constant_rate", "all_decay"],
)
def test_ten_steps_are_those_of_a_plain_loop(model, optimizer, schedule, decay_all, small_rooms, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("subnet.json").write_text(json.dumps(SUBNET))
    arguments, layers = MODELS[model]
    build, optimizer_flags = optimizer
    factor, schedule_flags = schedule
    decay = [f"--model.optimizer.lr={LR}", f"--model.optimizer.weight_decay={DECAY}"]
    decay += ["--model.weight_decay_on=all"] if decay_all else []
    flags = [*arguments, *SETTINGS, WEIGHTED, *optimizer_flags, *decay, *schedule_flags]
    module, network, batches = train(monkeypatch, [*flags, f"--data.root={small_rooms}", "--name=run"])

    first = copy.deepcopy(network.state_dict())
    architectures = [module.sample(step)[0] for step in range(STEPS)] if model == "supernet" else []
    peaks = plain_training(network, module.tasks, batches, build, factor, layers, decay_all, architectures)

    trained = module.network.state_dict()
    assert max((trained[key].double() - first[key].double()).abs().max().item() for key in first) > 1e-3
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(
            trained[name], tensor, rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
    check_logged_rates(Path("runs/run/logs/fit/metrics.csv"), peaks, factor)


def check_logged_rates(file, peaks, factor):
    """The rate of every step is logged, for each peak rate one column."""
    with file.open() as handle:
        rows = [row for row in csv.DictReader(handle) if row.get("lr")]
    columns = [column for column in rows[0] if re.match(r"lr($|/|-)", column)]
    logged = {column: {int(row["step"]): float(row[column]) for row in rows} for column in columns}
    assert len(columns) == len(peaks)
    for rates, peak in zip(sorted(logged.values(), key=max_value), sorted(peaks), strict=True):
        assert rates == pytest.approx({step: peak * factor(step) for step in range(STEPS)}, rel=1e-6)


def max_value(rates):
    return max(rates.values())
