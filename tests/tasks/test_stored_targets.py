"""What targets may hold as data sets give them, what is counted of them, and how far outputs are apart."""

import numpy as np
import pytest
import torch

from taskformer.tasks import build_task, build_tasks

NAN, INF = float("nan"), float("inf")
SPECS = {
    "semseg": {"classes": ["a", "b", "c"]},
    "saliency": {},
    "depth": {},
    "inverse_depth": {},
    "normals": {},
    "edges": {},
    "curvature": {},
    "class_scene": {"classes": ["a", "b"]},
    "vanishing_point": {"channels": 3},
    "segment_unsup2d": {},
}
TASKS = build_tasks(SPECS)
#: A right target of each task with one place, or one image, without a label.
RIGHT = {
    "semseg": np.array([[0, 2], [2, 255]], np.uint8),
    "saliency": np.array([[0, 1], [1, 255]], np.uint8),
    "depth": np.array([[1, 2], [4, NAN]], np.float32),
    "inverse_depth": np.array([[0, 2], [4, NAN]], np.float32),
    "normals": np.array([[[0, 0, 1], [1, 0, 0]], [[0, -1, 0], [NAN, 0, 0]]], np.float32),
    "edges": np.array([[0, 1], [0, NAN]], np.float32),
    "curvature": np.array([[[3, -1], [2, -1]], [[1, -1], [NAN, 5]]], np.float32),
    "class_scene": np.array([NAN, NAN], np.float32),
    "vanishing_point": np.array([0.5, -1, 2], np.float32),
    "segment_unsup2d": np.array([[7, 7], [254, 255]], np.uint8),
}


@pytest.mark.parametrize("name", SPECS)
def test_right_targets_fit_and_hold_nothing_wrong(name):
    task, target = TASKS[name], RIGHT[name]
    assert task.misfit(target) is None
    assert list(task.wrong_values(target)) == []
    assert task.wrong_classes(target) is None
    valid = task.valid(target)
    expected = {"class_scene": False, "vanishing_point": True}.get(name, [[True, True], [True, False]])
    assert valid.dtype == bool
    assert valid.tolist() == expected


@pytest.mark.parametrize(
    ("name", "target", "reason"),
    [
        ("semseg", np.zeros((2, 2), np.float32), r"the semseg map is float32 (2, 2), expected integers (H, W)"),
        ("segment_unsup2d", np.zeros((2, 2, 1), np.uint8), "uint8 (2, 2, 1), expected integers (H, W)"),
        ("depth", np.zeros((2, 2), np.uint16), "uint16 (2, 2), expected floats (H, W) with 1 channels"),
        ("normals", np.zeros((2, 2), np.float32), "float32 (2, 2), expected floats (H, W) with 3 channels"),
        ("class_scene", np.zeros((2, 2), np.float32), "float32 (2, 2), expected floats (2,)"),
    ],
)
def test_targets_of_another_shape_or_type_do_not_fit(name, target, reason):
    assert TASKS[name].misfit(target).endswith(reason)


@pytest.mark.parametrize(
    ("name", "value", "reasons"),
    [
        ("semseg", 3, ["has the class ids 3; there are 0..2, and 255 where there is no label"]),
        ("segment_unsup2d", 200, []),
        ("depth", 0, ["1 depths are 0; where depth is missing, it must be NaN"]),
        ("depth", 2000, ["1 values lie outside [0, 1000], e.g. 2000"]),
        ("depth", INF, ["1 values are infinite"]),
        ("inverse_depth", 0, []),
        ("inverse_depth", -1, ["1 values lie outside [0, inf], e.g. -1"]),
        ("edges", 1.5, ["1 values lie outside [0, 1], e.g. 1.5"]),
        ("normals", [0, 0, 2], ["1 normals are not of length 1, e.g. 2"]),
        ("normals", [0, INF, 1], ["1 values are infinite"]),
        ("curvature", [-1e9, 1e9], []),
    ],
)
def test_values_that_cannot_be_are_named(name, value, reasons):
    target = RIGHT[name].copy()
    target[0, 1] = value
    assert list(TASKS[name].wrong_values(target)) == reasons


def test_whole_images_have_probabilities_within_limits():
    assert list(TASKS["class_scene"].wrong_values(np.array([-0.5, 1.5], np.float32))) == [
        "2 values lie outside [0, 1], e.g. -0.5"
    ]


@pytest.mark.parametrize(
    ("name", "scale", "sentence"),
    [
        ("depth", 100, "the median is 200, from 0.01 to 100 was expected: is it in the unit of 'depth'?"),
        ("depth", 1, None),
        ("edges", 1, None),
        ("semseg", 1, None),
        ("curvature", 1e6, None),
    ],
)
def test_a_median_far_from_the_unit_is_doubted(name, scale, sentence):
    assert TASKS[name].doubtful_median(RIGHT[name] * np.asarray(scale, RIGHT[name].dtype)) == sentence


def test_classes_are_counted_by_pixel_and_by_image():
    pixels, images = TASKS["semseg"].count_classes(RIGHT["semseg"])
    assert (pixels.tolist(), images.tolist()) == ([1, 0, 2], [1, 0, 1])
    pixels, images = TASKS["class_scene"].count_classes(np.array([0.25, 0.75], np.float32))
    assert (pixels.tolist(), images.tolist()) == ([0.25, 0.75], [0, 1])
    pixels, images = TASKS["class_scene"].count_classes(RIGHT["class_scene"])
    assert (pixels.tolist(), images.tolist()) == ([0, 0], [0, 0])
    assert {name for name in SPECS if TASKS[name].count_classes(RIGHT[name])} == {"semseg", "saliency", "class_scene"}
    assert {name for name in SPECS if TASKS[name].classes} == {"semseg", "saliency", "class_scene"}


def test_quantities_are_the_valid_values_that_can_be_averaged():
    found = {name: TASKS[name].quantities(RIGHT[name]).tolist() for name in SPECS}
    assert found["depth"] == [1, 2, 4]
    assert found["curvature"] == [3, -1, 2, -1, 1, -1]
    assert found["vanishing_point"] == [0.5, -1, 2]
    assert [name for name in SPECS if not found[name]] == [
        "semseg", "saliency", "normals", "class_scene", "segment_unsup2d"
    ]  # fmt: skip


# Distances of two networks' outputs

OUTPUTS = {name: (2, task.channels) if task.geometry == "image" else (2, task.channels, 4, 5)
           for name, task in TASKS.items()}  # fmt: skip


@pytest.mark.parametrize("name", OUTPUTS)
def test_equal_outputs_leave_nothing_to_learn(name):
    task, shape = TASKS[name], OUTPUTS[name]
    teacher = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert task.distance(teacher, teacher).item() == pytest.approx(0, abs=1e-6)
    student = (teacher.detach() + torch.linspace(-1, 1, teacher.numel()).view(shape)).requires_grad_()
    loss = task.distance(student, teacher)
    assert loss > 0.01
    loss.backward()
    assert teacher.grad is None
    assert student.grad.isfinite().all()
    assert task.distance(student - 0.01 * student.grad / student.grad.norm(), teacher) < loss


@pytest.mark.parametrize("name", ["semseg", "saliency", "class_scene"])
def test_classes_are_compared_as_probabilities(name):
    student, teacher = torch.randn(2, *OUTPUTS[name], generator=torch.Generator().manual_seed(1))
    p, q = teacher.softmax(1), student.softmax(1)
    torch.testing.assert_close(TASKS[name].distance(student, teacher), (p * (p / q).log()).sum(1).mean())


def test_edges_are_compared_as_probabilities():
    student, teacher = torch.tensor([[[[0.3]]]]), torch.tensor([[[[-1.2]]]])
    p, q = teacher.sigmoid(), student.sigmoid()
    expected = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    torch.testing.assert_close(build_task("edges", {}).distance(student, teacher), expected.squeeze())


def test_vectors_are_compared_by_their_angle_and_values_by_their_difference():
    student, teacher = torch.tensor([3.0, 0, 0]).view(1, 3, 1, 1), torch.tensor([1.0, 0, 1]).view(1, 3, 1, 1)
    assert TASKS["normals"].distance(student, teacher).item() == pytest.approx(1 - 0.5**0.5)
    assert TASKS["depth"].distance(student[:, :1], teacher[:, :1]).item() == 2


def test_distances_are_float32_under_autocast():
    student, teacher = torch.full((1, 1, 300, 300), 80.0).half(), torch.ones(1, 1, 300, 300).half()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distance = TASKS["depth"].distance(student, teacher)
    assert (distance.dtype, distance.item()) == (torch.float32, 79)
