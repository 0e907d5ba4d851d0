"""The worst images and classes, from files of a run that are written by hand."""

import json

import numpy as np
import pytest

from taskformer.errors import ConfigError
from taskformer.insight import class_errors, errors_by_range, worst_images
from taskformer.insight import worst as module
from taskformer.tasks import build_tasks

TASKS = build_tasks({"depth": {}, "semseg": {"classes": ["a", "b"]}})


@pytest.fixture
def run(tmp_path):
    """A run whose five test images were scored alone; the third has no label."""
    record = {"protocol": "standard", "better": {}, "per_image": "per_image.csv"}
    (tmp_path / "metrics.json").write_text(json.dumps({"test": record}))
    lines = ["id,task,metric,value"]
    for name, depth, semseg in zip("vwxyz", (0.2, 0.9, "nan", 0.5, 0.9), (0.1, 0.8, "nan", 0.3, 0.2), strict=True):
        lines += [f"{name},depth,rmse,{depth}", f"{name},semseg,mIoU,{semseg}", f"{name},semseg,pixel_accuracy,0.0"]
    (tmp_path / "per_image.csv").write_text("\n".join(lines))
    return tmp_path


def test_worse_is_what_the_task_says(run):
    depth, semseg = (worst_images(run, TASKS[name], 3) for name in ("depth", "semseg"))
    assert [(image.name, image.score, image.position) for image in depth] == [
        ("w", 0.9, 1),
        ("z", 0.9, 4),
        ("y", 0.5, 3),
    ]
    assert [image.name for image in semseg] == ["v", "z", "y"]
    assert len(worst_images(run, TASKS["depth"], 9)) == 4


def test_without_scores_of_single_images_the_way_to_them_is_said(run):
    with pytest.raises(ConfigError, match=r"no maxF of single images for saliency; `taskformer test .* --results"):
        worst_images(run, build_tasks({"saliency": {}})["saliency"])


def test_images_are_found_behind_those_that_could_not_be_read(run, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(module, "draw_sample", lambda _, sample: drawn.append(sample["image"]))
    monkeypatch.setattr(module, "gallery_sheet", lambda _: _Sheet())
    dataset = [
        {"meta": {"id": "broken"}},
        *({"image": number, "meta": {"id": name}} for number, name in enumerate("vwxyz")),
    ]
    module.draw_images(tmp_path / "out.png", None, dataset, worst_images(run, TASKS["depth"], 2))
    assert drawn == [1, 4]
    with pytest.raises(ConfigError, match="the image 'z', which is not in the run's data"):
        module.draw_images(tmp_path / "out.png", None, dataset[:4], worst_images(run, TASKS["depth"], 2)[1:])


class _Sheet:
    def save(self, path):
        path.touch()


def test_classes_come_worst_first_and_absent_ones_last():
    confusion = np.array([[6, 2, 0, 0], [1, 0, 3, 0], [0, 0, 8, 0], [0, 0, 0, 0]])
    found = class_errors({"classes": list("abcd"), "confusion": confusion.tolist()})
    assert [one.name for one in found] == ["b", "a", "c", "d"]
    worst, *_, absent = found
    assert (worst.iou, worst.share, worst.taken_for, worst.taken) == (0, 0.2, "c", 0.75)
    assert np.isnan(absent.iou)
    assert (absent.share, absent.taken_for, absent.taken) == (0, "", 0)


def test_errors_of_ranges_are_those_of_their_pixels():
    truth, error = np.array([0.5, 0.7, 2.5, 3.0]), np.array([0.1, -0.3, 0.2, 0.4])
    inside = [(truth < 1), (truth >= 1) & (truth < 2), truth >= 2]
    sums = {"squared": error**2, "absolute": abs(error), "pixels": np.ones(4)}
    details = {name: [values[mask].sum() for mask in inside] for name, values in sums.items()}
    first, empty, last = errors_by_range({"ranges": [0.0, 1.0, 2.0], **details})
    assert (first.low, first.high, last.low, last.high) == (0, 1, 2, None)
    assert first.rmse == pytest.approx(np.sqrt(np.mean(error[:2] ** 2)))
    assert last.absolute == pytest.approx(0.3)
    assert (first.share, empty.share) == (0.5, 0)
    assert np.isnan(empty.rmse)
