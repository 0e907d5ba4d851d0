"""Scores of saved predictions, from Python."""

import numpy as np
import pytest
import yaml

from taskformer.data import RoomsDataModule
from taskformer.data.transforms import Pad
from taskformer.errors import ConfigError, UnknownNameError
from taskformer.evaluation import evaluate


@pytest.fixture
def run(small_rooms, tmp_path):
    """A run folder whose depth predictions are half a metre too far."""
    dataset = RoomsDataModule(str(small_rooms), ["depth"]).evaluation_dataset("test")
    folder = tmp_path / "run" / "predictions" / "depth"
    folder.mkdir(parents=True)
    for index, name in enumerate(dataset.ids):
        np.save(folder / f"{name}.npy", dataset[index]["targets"]["depth"][0].numpy() + 0.5)
    config = {"data": {"class_path": "RoomsDataModule", "init_args": {"root": str(small_rooms), "tasks": ["depth"]}}}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "run"


def test_a_runs_predictions_are_scored_on_its_own_data(run):
    found = evaluate(run, workers=0)
    assert (found.data, found.split, found.images) == ("rooms", "test", 3)
    assert found.results["depth"]["rmse"] == pytest.approx(0.5, rel=1e-5)
    assert found.as_dict()["protocols"] == {"standard": found.results}
    assert evaluate(run / "predictions", workers=0).as_dict() == found.as_dict()


def test_the_data_set_can_be_named_in_any_way(run, small_rooms):
    expected = evaluate(run, workers=0).as_dict()
    assert evaluate(run, "rooms", str(small_rooms), workers=0).as_dict() == expected
    assert evaluate(run, run, tasks=["depth"], workers=0).as_dict() == expected
    assert evaluate(run, run / "config.yaml", workers=0).as_dict() == expected
    assert evaluate(run, RoomsDataModule(str(small_rooms)), workers=0).as_dict() == expected


def test_a_data_module_is_left_as_it_is(run, small_rooms):
    data = RoomsDataModule(str(small_rooms), ["semseg", "depth"], eval_transforms=[Pad(140, 175)])
    assert evaluate(run, data, workers=0).results["depth"]["rmse"] == pytest.approx(0.5, rel=1e-5)
    assert data.task_names == ["semseg", "depth"]
    assert len(data.eval_transforms) == 1


def test_what_does_not_fit_together_is_refused(run, small_rooms):
    data = RoomsDataModule(str(small_rooms))
    with pytest.raises(ConfigError, match="has its folder"):
        evaluate(run, data, str(small_rooms))
    with pytest.raises(UnknownNameError, match=r"unknown task of RoomsDataModule 'deep' \(did you mean 'depth'\?\)"):
        evaluate(run, data, tasks=["deep"])
    with pytest.raises(UnknownNameError, match="unknown data set 'romos'"):
        evaluate(run, "romos")
