"""Schedules and optimizers: what the configuration says, at every step, also after going on with another one."""

import re

import pytest
import torch
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from taskformer.errors import ConfigError
from taskformer.models.autotaskformer import Architecture
from taskformer.modules import AutoTaskFormer, Baseline, MQTransformer, PolyLR
from taskformer.modules.optimisation import configuration, rates_by_name, reconfigure, require_same_kind

TASKS = {"depth": {}}


def build(steps=40, lr=2.0, warmup=0.25, power=0.9, scales=(1.0, 0.1)):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr * scale, "lr_scale": scale} for scale in scales]
    optimizer = SGD(groups, lr=lr, momentum=0.5)
    schedule = PolyLR(optimizer, power, warmup)
    schedule.span(steps)
    return optimizer, schedule


def by_hand(step, steps=40, warmup=0.25, power=0.9):
    """The documented formula."""
    ramp = warmup * steps
    return max(step, 1) / ramp if step < ramp else ((steps - step) / (steps - ramp)) ** power


def test_every_step_has_the_rate_of_the_formula_from_the_first_on():
    optimizer, schedule = build()
    for step in range(41):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(2.0 * by_hand(step)), step
        assert rates_by_name(optimizer)["lr/x0.1"] == pytest.approx(0.2 * by_hand(step))
        optimizer.step()
        schedule.step()


def test_a_schedule_that_knows_no_length_trains_nothing_and_says_so():
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = PolyLR(optimizer, warmup=0.05)
    assert optimizer.param_groups[0]["lr"] == 0
    optimizer.step()
    with pytest.raises(ConfigError, match="does not know how long the training is"):
        schedule.step()


def test_a_warm_up_of_less_than_a_step_does_not_exceed_the_peak():
    schedule = PolyLR(SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), power=1.0, warmup=0.05, total_steps=10)
    assert schedule.factor(0) == 1
    assert schedule.factor(1) == pytest.approx(0.9 / 0.95)


@pytest.mark.parametrize(
    "wrong", [{"warmup": 1.0}, {"warmup": -0.1}, {"warmup": float("nan")}, {"power": -1.0}, {"total_steps": 0}]
)
def test_impossible_schedules_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        PolyLR(SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), **wrong)


@pytest.mark.parametrize("wrong", [{"loss_weights": {"depth": -1.0}}, {"backbone_lr_scale": -0.1},
                                   {"loss_weights": {"depth": float("nan")}}])  # fmt: skip
def test_negative_weights_and_scales_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"at least 0 and finite|must be in \[0, inf\)"):
        Baseline(TASKS, embed_dim=8, head_dim=4, **wrong)


def test_all_parameters_decay_where_a_recipe_says_so():
    model = Baseline(TASKS, embed_dim=8, head_dim=4, weight_decay_on="all",
                     optimizer=lambda parameters: AdamW(parameters, weight_decay=0.3), lr_scheduler=None)  # fmt: skip
    groups = model.configure_optimizers().param_groups
    assert [group["weight_decay"] for group in groups] == [0.3]
    assert len(groups[0]["params"]) == len(list(model.network.parameters()))


def test_what_a_network_declares_does_not_decay(monkeypatch):
    model = Baseline(TASKS, embed_dim=8, head_dim=4)
    name = next(name for name, parameter in model.network.named_parameters() if parameter.ndim == 4)
    monkeypatch.setattr(type(model.network), "no_weight_decay", lambda self: {name}, raising=False)
    parameter = model.network.get_parameter(name)
    (group,) = [g for g in model._parameter_groups() if any(p is parameter for p in g["params"])]
    assert group["weight_decay"] == 0


SUPERNET = {
    "space": "custom", "embed_dims": [8, 16], "depths": [2, 3], "mlp_ratios": [2.0], "num_heads": [1, 2], "head_dim": 8,
    "image_size": (32, 48), "layer_decay": 0.5,
}  # fmt: skip
QUERIES = {"head": "query", "num_queries": [2, 4], "num_scales": [1, 2], "decoder_widths": [8, 16]}
SUBNET = Architecture(8, 2, (2.0, 2.0), (2, 1), ((1, 2), (0, 0), (0, 1), (0, 0)))
SETTINGS = {
    "vit": (Baseline, {"backbone": "vit_tiny_patch16_224", "embed_dim": 8, "head_dim": 4, "backbone_lr_scale": 0.3}),
    "swin": (Baseline, {"backbone": "swin_tiny_patch4_window7_224", "embed_dim": 8, "head_dim": 4}),
    "mqtransformer": (MQTransformer, {"embed_dim": 16, "head_dim": 8, "num_queries": 4, "backbone_lr_scale": 0.3}),
    "scales": (MQTransformer, {"embed_dim": 16, "head_dim": 8, "scales": [8, 16], "num_blocks": 2}),
    "supernet": (AutoTaskFormer, SUPERNET),
    "queries": (AutoTaskFormer, SUPERNET | QUERIES | {"sharing": "tree", "copies": 2}),
    "subnet": (AutoTaskFormer, SUPERNET | {"architecture": SUBNET.to_json()}),
}


def rate_by_name(model, name):
    """The rate of a parameter over the optimizer's, read from its name: by hand what networks say of themselves."""
    if not isinstance(model, AutoTaskFormer):
        return model.backbone_lr_scale if name.startswith("backbone.") else 1.0
    if name.startswith(("heads.", "norm.")):
        return 1.0
    unit = re.match(r"units\.(\d+)\.", name)
    before = int(unit[1]) // 2 if unit else -1
    depth = model.single.depth if model.single else model.space.super_depth
    return 0.5 ** (depth - before)


@pytest.mark.parametrize("setting", SETTINGS)
def test_groups_are_those_that_names_tell(setting):
    cls, options = SETTINGS[setting]
    model = cls({"depth": {}, "edges": {}}, **cls.upgraded(options))
    parts = r"(queries|_pos|_embed|_token|bias_table)$|\.relative\."
    expected = {}
    for name, parameter in model.network.named_parameters():
        decays = parameter.ndim >= 2 and not re.search(parts, name)
        expected.setdefault((rate_by_name(model, name), decays), []).append(parameter)
    groups = model._parameter_groups()
    assert [(group["lr_scale"], "weight_decay" not in group) for group in groups] == list(expected)
    assert len(groups) > 1
    for group, members in zip(groups, expected.values(), strict=True):
        assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in members]


def go_on(saved, now, steps):
    """Train with one configuration, save, and go on with another; returns the optimizer and what changed."""
    optimizer, schedule = build(**saved)
    before = configuration(optimizer, schedule)
    for _ in range(steps):
        optimizer.step()
        schedule.step()
    other, later = build(**now)
    after = configuration(other, later)
    require_same_kind(before, after)
    other.load_state_dict(optimizer.state_dict())
    later.load_state_dict(schedule.state_dict())
    return other, later, reconfigure(other, later, before, after)


def test_going_on_for_longer_spans_the_new_length():
    optimizer, schedule, changes = go_on({"steps": 40}, {"steps": 80}, steps=40)
    assert changes == ["total_steps 40 -> 80"]
    for step in range(40, 81):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(2.0 * by_hand(step, steps=80))
        optimizer.step()
        schedule.step()


def test_going_on_with_another_peak_and_shape():
    now = {"steps": 40, "lr": 0.5, "power": 2.0}
    optimizer, _, changes = go_on({"steps": 40}, now, steps=20)
    assert set(changes) == {"lr 0.2 -> 0.05", "power 0.9 -> 2.0"}
    assert optimizer.param_groups[1]["lr"] == pytest.approx(0.05 * by_hand(20, power=2.0))


def test_going_on_as_before_touches_nothing():
    optimizer, schedule, changes = go_on({}, {}, steps=7)
    assert changes == []
    assert optimizer.param_groups[0]["lr"] == 2.0 * schedule.factor(7)


def test_schedules_of_torch_follow_a_new_peak():
    rates = []
    for start, peak in ((1.0, 1.0), (1.0, 3.0)):
        optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=start)
        schedule = CosineAnnealingLR(optimizer, 10)
        before = configuration(optimizer, schedule)
        for _ in range(4):
            optimizer.step()
            schedule.step()
        other = SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
        reconfigure(optimizer, schedule, before, configuration(other, CosineAnnealingLR(other, 10)))
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[1] == pytest.approx(3 * rates[0])


def test_another_optimizer_or_grouping_is_refused():
    optimizer, schedule = build()
    before = configuration(optimizer, schedule)
    adam = AdamW([torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(ConfigError, match="begun with the optimizer SGD, the configuration now says AdamW"):
        require_same_kind(before, configuration(adam, None))
    with pytest.raises(ConfigError, match=r"groups of \[1, 1\] parameters, the configuration now makes \[1\]"):
        require_same_kind(before, configuration(*build(scales=(1.0,))))
