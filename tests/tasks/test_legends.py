"""Legends say of a colour what is drawn in it: the words of each entry, drawn, give its colours."""

import numpy as np
import pytest

from taskformer.tasks import build_task
from taskformer.tasks.colors import INVALID_COLOR

NAN = np.nan


def colors_of(entry):
    return entry.colors[0].tolist()


def test_classes_that_are_there_have_a_name_and_a_colour():
    semseg = build_task("semseg", {"classes": ["wall", "floor", "chair", "lamp"]})
    target, prediction = np.array([[0, 3], [3, 0]]), np.array([[[0, 1], [3, 0]]], dtype=np.uint8)
    entries = semseg.legend(target, prediction)
    assert [entry.meaning for entry in entries] == ["wall", "floor", "lamp"]
    for k, entry in zip((0, 1, 3), entries, strict=True):
        assert entry.start == ""
        assert colors_of(entry) == [semseg.colorize(np.array([[k]]))[0, 0].tolist()]
    assert [entry.meaning for entry in semseg.legend()] == list(semseg.classes)


def test_pixels_without_a_label_are_named_where_there_are_any(task):
    if task.geometry == "image":
        assert task.legend(np.full(task.channels, 0.5)) == []
        return
    (entry,) = task.legend(task.invalid(2, 3).numpy())[-1:]
    assert entry.meaning == "no label"
    assert colors_of(entry) == [list(INVALID_COLOR)]
    assert "no label" not in [entry.meaning for entry in task.legend()]


@pytest.mark.parametrize(
    ("kind", "spec", "low", "high", "words"),
    [
        ("depth", {"max_depth": 7.0}, 0, 7, ("0 m", "7 m or more")),
        ("inverse_depth", {"max_inverse_depth": 0.25}, 0, 0.25, ("0 1/m", "0.25 1/m or more")),
        ("relative_inverse_depth", {}, 0, 0.2, ("0", "0.2 or more")),
        ("edges", {}, 0, 1, ("none", "certain edge")),
        ("regression", {"value_range": [20, 40]}, 20, 40, ("20", "40")),
    ],
)
def test_scales_end_where_the_colours_do(kind, spec, low, high, words):
    task = build_task(kind, spec)
    (entry,) = task.legend(np.array([[low, high]], dtype=np.float32))
    assert (entry.start, entry.meaning) == words
    drawn = task.colorize(np.linspace(low, high, 256)[None])
    assert np.abs(drawn.astype(int) - entry.colors).max() <= 3  # half a step
    assert colors_of(entry)[:: len(drawn[0]) - 1] == drawn[0, [0, -1]].tolist()


def test_normals_are_explained_by_directions():
    normals = build_task("normals", {})
    facing = {"left": [-1, 0, 0], "right": [1, 0, 0], "up": [0, -1, 0], "down": [0, 1, 0], "the camera": [0, 0, -1]}
    said = {entry.meaning: colors_of(entry) for entry in normals.legend()}
    assert said == {
        f"faces {name}": normals.colorize(np.array(vector, dtype=float).reshape(3, 1, 1))[0].tolist()
        for name, vector in facing.items()
    }


def test_values_of_several_channels_have_a_scale_each():
    curvature = build_task("regression", {"channels": 2, "value_range": [-1, 1]})
    first, second = curvature.legend(np.zeros((2, 1, 1)))
    assert [first.start, first.meaning, second.start] == ["value 1: -1", "1", "value 2: -1"]
    assert first.colors[0, -1].tolist() == [255, 0, 0]
    assert second.colors[0, -1].tolist() == [0, 255, 0]


def test_an_embedding_has_colours_without_a_meaning():
    assert build_task("embedding", {"channels": 3}).legend(np.zeros((3, 2, 2))) == []
