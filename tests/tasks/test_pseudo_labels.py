"""A teacher's outputs as labels: where it is sure, and such that its own answer is the best one."""

import math

import pytest
import torch

from taskformer.tasks import build_task


def test_classes_need_the_probability():
    task = build_task("semseg", {"classes": ["a", "b", "c"]})
    output = torch.tensor([[0.0, 0.0, 0.0], [math.log(8), 0.0, 0.0], [0.0, math.log(2), 0.0]]).T.view(1, 3, 1, 3)
    # Probabilities of the likeliest: 1/3, 8/10, 2/4.
    assert task.pseudo_label(output).flatten().tolist() == [0, 0, 1]
    assert task.pseudo_label(output, 0.5).flatten().tolist() == [255, 0, 1]
    assert task.pseudo_label(output, 0.79).flatten().tolist() == [255, 0, 255]
    task.loss(output, task.pseudo_label(output, 0.79))


def test_an_image_whose_class_is_unsure_has_no_label():
    task = build_task("class_scene", {"classes": ["in", "out"]})
    label = task.pseudo_label(torch.tensor([[math.log(3), 0.0], [0.0, math.log(9)]]), 0.8)
    torch.testing.assert_close(label, torch.tensor([[torch.nan] * 2, [0.1, 0.9]]), equal_nan=True)


def test_values_always_count():
    task = build_task("depth", {})
    assert task.pseudo_label(torch.tensor([[[[2.0, -1.0]]]]), 0.99).flatten().tolist() == [2.0, 0.0]  # 0 is invalid
    normals = build_task("normals", {}).pseudo_label(torch.tensor([0.0, 0.0, -2.0]).view(1, 3, 1, 1), 0.99)
    assert normals.flatten().tolist() == [0.0, 0.0, -1.0]


@pytest.mark.parametrize("weight", [0.5, 0.8, 0.95])
def test_a_student_that_says_what_its_teacher_says_of_edges_has_the_least_loss(weight):
    task = build_task("edges", {"positive_weight": weight})
    teacher = torch.linspace(-4, 4, 9).view(1, 1, 1, 9)
    label = task.pseudo_label(teacher)
    student = teacher.clone().requires_grad_()
    task.loss(student, label).backward()
    torch.testing.assert_close(student.grad, torch.zeros_like(teacher), atol=1e-7, rtol=0)
    assert task.pseudo_label(teacher, 0.9).isnan().flatten().tolist() == [False, False, *[True] * 5, False, False]


@pytest.mark.parametrize("kind", ["semseg", "depth", "normals", "class_scene", "curvature"])
def test_the_teachers_own_answer_has_the_least_loss(kind):
    spec = {"classes": ["a", "b"]} if kind in ("semseg", "class_scene") else {}
    task = build_task(kind, spec)
    shape = (2, task.channels) if kind == "class_scene" else (2, task.channels, 3, 4)
    teacher = torch.randn(shape, generator=torch.Generator().manual_seed(0)).abs() + 0.5
    label = task.pseudo_label(teacher)
    best = task.loss(teacher * (100 if kind == "semseg" else 1), label)
    for seed in range(5):
        other = teacher + torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        assert task.loss(other, label) > best
