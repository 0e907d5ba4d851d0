"""Drawn samples against the model's own outputs, and scores of single images computed by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from taskformer.data import RoomsDataModule
from taskformer.evaluation.gallery import draw_sample
from taskformer.modules.base import MultiTaskModule
from taskformer.normalisation import normalise_bytes


class Plain(nn.Module):
    """Another scale and offset of each task for the mean of the colours."""

    def __init__(self, channels):
        super().__init__()
        self.layers = nn.ModuleDict({name: nn.Conv2d(3, count, 1) for name, count in channels.items()})
        self.dropout = nn.Dropout(0.5)

    def forward(self, image):
        return {name: layer(self.dropout(image)) for name, layer in self.layers.items()}


@pytest.fixture(scope="module")
def data(small_rooms):
    module = RoomsDataModule(root=str(small_rooms), tasks=["semseg", "depth", "normals", "edges"])
    return module.evaluation_dataset("test")


@pytest.fixture(scope="module")
def module(data):
    torch.manual_seed(0)
    offers = RoomsDataModule().task_offers()
    tasks = {name: offers[name] for name in data.tasks} | {"scene": {"type": "classification", "classes": ["a", "b"]}}
    channels = {name: task.channels for name, task in data.tasks.items()}
    return MultiTaskModule(tasks, Plain(channels | {"scene": 2}))


def with_scene(sample):
    return sample | {"targets": sample["targets"] | {"scene": torch.tensor([1.0, 0.0])}}


def test_a_drawn_sample_holds_what_the_model_decodes_and_the_data_set_gives(module, data):
    sample = with_scene(data[1])
    drawn = draw_sample(module.train(), sample)
    assert module.training
    assert drawn.name == sample["meta"]["id"]
    assert (normalise_bytes(drawn.image) - sample["image"]).abs().max() < 1e-5
    assert list(drawn.panels) == ["semseg", "depth", "normals", "edges"]  # of whole images there is no map to draw
    with torch.no_grad():
        decoded = module.eval().decode(module(sample["image"][None]))
    for name, panel in drawn.panels.items():
        assert panel.task is module.tasks[name]
        np.testing.assert_array_equal(panel.prediction, decoded[name][0])
        np.testing.assert_array_equal(panel.target, sample["targets"][name])
        np.testing.assert_array_equal(panel.target_picture, panel.task.colorize(panel.target))
        np.testing.assert_array_equal(panel.prediction_picture, panel.task.colorize(panel.prediction))


def test_scores_are_those_of_the_image_alone(module, data):
    panels = draw_sample(module, with_scene(data[0])).panels
    depth, semseg = panels["depth"], panels["semseg"]
    rmse = np.sqrt(np.nanmean((depth.prediction - depth.target) ** 2))
    assert depth.scores == {"rmse": pytest.approx(rmse, rel=1e-5)}
    assert depth.caption == f"rmse {rmse:.3g} m"
    labelled = semseg.target != 255
    seen, said = semseg.target[labelled], semseg.prediction[labelled]
    classes = np.union1d(seen, said)
    mean = np.mean([((seen == k) & (said == k)).sum() / ((seen == k) | (said == k)).sum() for k in classes])
    assert semseg.scores == {"mIoU": pytest.approx(mean, rel=1e-5)}
    assert semseg.caption == f"mIoU {100 * mean:.2f} %"


def test_without_a_label_there_is_no_score(module, data):
    sample = with_scene(data[0])
    targets = {name: module.tasks[name].invalid(128, 160) for name in sample["targets"]}
    panels = draw_sample(module, sample | {"targets": targets}).panels
    assert [(panel.scores, panel.caption) for panel in panels.values()] == [({}, "")] * 4
