"""One example of every kind of task, with outputs and valid targets."""

import pytest
import torch

from taskformer.tasks import build_tasks

SPECS = {
    "semseg": {"classes": ["wall", "floor", "chair", "lamp"]},
    "weighted_semseg": {"type": "semseg", "classes": ["wall", "floor", "chair"], "class_weights": [0.5, 1.0, 2.0]},
    "human_parts": {},
    "saliency": {},
    "depth": {"max_depth": 10.0},
    "inverse_depth": {},
    "normals": {},
    "cosine_normals": {"type": "normals", "loss": "cosine"},
    "edges": {"positive_weight": 0.8},
    "reshading": {},
    "curvature": {},
    "class_scene": {"classes": ["kitchen", "bath", "hall"]},
}


@pytest.fixture(params=SPECS)
def task(request):
    return build_tasks(SPECS)[request.param]


@pytest.fixture
def batch(task):
    """Raw output and canonical target without an invalid pixel."""
    torch.manual_seed(1)
    n, h, w = 2, 6, 8
    if task.geometry == "image":
        return torch.randn(n, task.channels), torch.randn(n, task.channels).softmax(1)
    output = torch.randn(n, task.channels, h, w)
    if task.geometry == "label":
        return output, torch.randint(0, task.channels, (n, h, w))
    if task.geometry == "vector":
        into_the_scene = torch.tensor([0.3, 0.0, 1.0]).view(1, 3, 1, 1)
        return output, torch.nn.functional.normalize(into_the_scene + torch.randn(n, 3, h, w), dim=1)
    return output, torch.rand(n, task.channels, h, w) * 0.8 + 0.1
