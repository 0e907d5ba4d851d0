"""Specs become tasks, and slips in them are explained."""

import json

import pytest

from taskformer.errors import ConfigError, UnknownNameError
from taskformer.tasks import Depth, Regression, build_tasks, register, registered

NAMES = {
    "semseg", "human_parts", "depth", "normals", "edges", "saliency", "regression", "classification", "reshading",
    "curvature", "keypoints2d", "keypoints3d", "edge_texture", "edge_occlusion", "class_object", "class_scene",
}  # fmt: skip


def test_known_names():
    assert set(registered()) >= NAMES


def test_order_and_names_are_those_of_the_specs():
    tasks = build_tasks(json.loads('{"normals": {}, "far": {"type": "depth", "max_depth": 80}, "edges": {}}'))
    assert list(tasks) == ["normals", "far", "edges"]
    assert isinstance(tasks["far"], Depth)
    assert tasks["far"].name == "far"
    assert tasks["far"].max_depth == 80


def test_specs_are_left_as_they_are():
    specs = {"heat": {"type": "regression", "channels": 2}}
    build_tasks(specs)
    assert specs == {"heat": {"type": "regression", "channels": 2}}


def test_presets_can_be_overruled():
    assert build_tasks({"curvature": {}})["curvature"].channels == 2
    assert build_tasks({"curvature": {"channels": 3}})["curvature"].channels == 3


@pytest.mark.parametrize(
    ("specs", "error", "message"),
    [
        ({"depht": {}}, UnknownNameError, r"unknown task type 'depht' \(did you mean 'depth'\?\); known: class"),
        ({"far": {"type": "normal"}}, UnknownNameError, r"unknown task type 'normal' \(did you mean 'normals'\?\)"),
        (
            {"depth": {"maxdepth": 3}},
            UnknownNameError,
            r"unknown option of task 'depth' 'maxdepth' \(did you mean 'max_depth'\?\); known: loss_weight, max_depth",
        ),
        ({"semseg": {}}, ConfigError, "task 'semseg' of type 'semseg' needs the option classes"),
        ({"semseg": {"classes": 40}}, ConfigError, "task 'semseg'.*got .*40"),
        ({"semseg": {"classes": "wall"}}, ConfigError, "list of 2 to 255 class names, got 'wall'"),
        ({"semseg": {"classes": ["wall"]}}, ConfigError, "list of 2 to 255 class names"),
        ({"semseg": {"classes": ["a", "b"], "colors": [[1, 2, 3]]}}, ConfigError, "2 classes and needs as many"),
        ({"semseg": {"classes": ["a", "b"], "colors": [[1, 2, 3], [1, 2, 300]]}}, ConfigError, "task 'semseg'.*300"),
        (
            {"semseg": {"classes": ["a", "b"], "class_weights": [1.0]}},
            ConfigError,
            "class_weights .* each of 2",
        ),
        ({"semseg": {"classes": ["a", "b"], "class_weights": [1.0, 0.0]}}, ConfigError, "class_weights above 0"),
        ({"normals": {"loss": "cos"}}, UnknownNameError, r"loss of task 'normals' 'cos' .did you mean 'cosine'"),
        ({"depth": {"max_depth": 0}}, ConfigError, "max_depth above 0"),
        ({"depth": {"max_depth": "far"}}, ConfigError, "task 'depth'.*'far'"),
        ({"edges": {"positive_weight": 1.0}}, ConfigError, r"positive_weight in \(0, 1\)"),
        ({"regression": {"channels": 0}}, ConfigError, "at least 1 channel"),
        ({"regression": {"value_range": [1, 0]}}, ConfigError, "value_range"),
        ({"class_scene": {"classes": []}}, ConfigError, "at least 2 class names"),
        ({"my.depth": {"type": "depth"}}, ConfigError, "letters, digits and underscores"),
    ],
)
def test_slips_are_explained(specs, error, message):
    with pytest.raises(error, match=message):
        build_tasks(specs)


def test_a_new_task_is_one_class_and_one_line(monkeypatch):
    monkeypatch.setattr("taskformer.tasks.registry._registry", {})

    @register("albedo", channels=3)
    class Albedo(Regression):
        pass

    task = build_tasks({"albedo": {}})["albedo"]
    assert isinstance(task, Albedo)
    assert task.channels == 3


@pytest.mark.parametrize("kind", ["semseg", "classification"])
def test_class_names_are_text_or_numbers(kind):
    assert build_tasks({"it": {"type": kind, "classes": ["a", 1]}})["it"].classes == ["a", "1"]
    with pytest.raises(ConfigError, match=r"task 'it': class 1 needs a name, got \['b'\]"):
        build_tasks({"it": {"type": kind, "classes": ["a", ["b"]]}})
