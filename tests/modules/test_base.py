"""What every LightningModule of the project does with losses, parameters and learning rates."""

import pytest
import torch
from torch.optim import SGD

from taskformer.errors import UnknownNameError
from taskformer.modules import Baseline, MQTransformer, PolyLR

TASKS = {"semseg": {"classes": ["a", "b", "c"]}, "depth": {}, "normals": {}, "edges": {}, "saliency": {}}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return MQTransformer(TASKS, embed_dim=16, num_queries=4, head_dim=8, loss_weights={"depth": 3.0})


def batch(model, labelled):
    """Two images; tasks outside ``labelled`` have no label."""
    generator = torch.Generator().manual_seed(0)
    targets = {}
    for name, task in model.tasks.items():
        target = torch.stack([task.invalid(32, 32)] * 2)
        if name in labelled:
            random = torch.rand(target.shape, generator=generator)
            target = (random * 2).long() if target.dtype == torch.int64 else random + 0.1
        targets[name] = target.clamp(max=1) if name == "edges" else target
    return {"image": torch.randn(2, 3, 32, 32, generator=generator), "targets": targets, "meta": {}}


def test_the_total_is_the_weighted_sum(model):
    data = batch(model, TASKS)
    losses = model.compute_losses(model(data["image"]), data["targets"])
    weights = {"semseg": 1, "depth": 3, "normals": 10, "edges": 50, "saliency": 5}
    expected = sum(weights[name] * losses[name] for name in TASKS)
    torch.testing.assert_close(losses["total"], expected)


def test_a_task_without_labels_costs_nothing_and_the_others_train(model):
    data = batch(model, {"depth"})
    losses = model.compute_losses(model(data["image"]), data["targets"])
    assert {name for name, loss in losses.items() if loss.item() == 0} == set(TASKS) - {"depth"}
    losses["total"].backward()
    gradients = [parameter.grad for parameter in model.network.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    model.zero_grad()


def test_losses_are_float32_under_autocast(model):
    data = batch(model, TASKS)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.compute_losses(model(data["image"]), data["targets"])
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())


def test_loss_weights_name_tasks_that_exist():
    with pytest.raises(UnknownNameError, match=r"'dept' .did you mean 'depth'"):
        Baseline(TASKS, loss_weights={"dept": 1.0})


def test_every_parameter_is_in_one_group_with_its_rate_and_decay():
    model = Baseline(
        TASKS, embed_dim=8, head_dim=4, backbone_lr_scale=0.1, lr_scheduler=None,
        optimizer=lambda parameters: SGD(parameters, lr=0.5, weight_decay=0.01),
    )  # fmt: skip
    groups = model.configure_optimizers().param_groups
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in groups) == len(list(model.network.parameters()))
    for name, parameter in model.network.named_parameters():
        rate = 0.05 if name.startswith("backbone.") else 0.5
        decay = 0.01 if name.endswith("weight") and parameter.ndim > 1 else 0.0
        assert found[id(parameter)] == (pytest.approx(rate), decay), name


def test_queries_and_their_layers_have_a_rate_of_their_own():
    model = MQTransformer(
        TASKS, embed_dim=8, num_queries=2, head_dim=4, backbone_lr_scale=0.1, query_lr_scale=0.2, lr_scheduler=None,
        optimizer=lambda parameters: SGD(parameters, lr=0.5),
    )  # fmt: skip
    groups = model.configure_optimizers().param_groups
    found = {id(p): group["lr"] for group in groups for p in group["params"]}
    rates = {"backbone": 0.05, "head.project": 0.5, "head.predict": 0.5}
    for name, parameter in model.network.named_parameters():
        expected = next((rate for part, rate in rates.items() if name.startswith(f"{part}.")), 0.1)
        assert found[id(parameter)] == pytest.approx(expected), name


def test_queries_do_not_decay(model):
    for group in model._parameter_groups():
        if any(parameter is model.network.head.queries for parameter in group["params"]):
            assert group["weight_decay"] == 0


@pytest.mark.parametrize(
    ("power", "warmup", "expected"),
    [(0.9, 0.0, [1, 0.75**0.9, 0.5**0.9, 0]), (1.0, 0.5, [1 / 40 / 0.5, 0.5, 1, 0])],
)
def test_poly_schedule_follows_its_formula(power, warmup, expected):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = SGD([parameter], lr=2.0)
    schedule = PolyLR(optimizer, power, warmup, total_steps=40)
    rates = []
    for _ in range(41):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert [rates[0] / 2, rates[10] / 2, rates[20] / 2, rates[40] / 2] == pytest.approx(expected)


@pytest.mark.parametrize("cls", [MQTransformer, Baseline])
def test_tasks_about_the_whole_image_train_and_predict_beside_maps(cls):
    model = cls({"class_scene": {"classes": ["kitchen", "office", "bath"]}, "depth": {}}, embed_dim=8, head_dim=4)
    outputs = model(torch.randn(2, 3, 40, 50))
    assert outputs["class_scene"].shape == (2, 3)
    target = torch.tensor([[0.2, 0.8, 0.0], [torch.nan] * 3])  # the second image has no label
    loss = model.compute_losses(outputs, {"class_scene": target, "depth": torch.ones(2, 1, 40, 50)})["class_scene"]
    expected = -(target[0] * outputs["class_scene"][0].log_softmax(0)).sum()
    torch.testing.assert_close(loss, expected)
    maps = model.predict_image(torch.zeros(40, 50, 3, dtype=torch.uint8).numpy())
    assert maps["depth"].shape == (1, 40, 50)
    assert maps["class_scene"].shape == (3,)
