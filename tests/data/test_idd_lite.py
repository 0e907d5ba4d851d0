"""The configuration of real streets: what is read, and edges against a plain re-statement."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

import taskformer
from taskformer.tasks import build_tasks

PROJECT = Path(__file__).parents[2]
STREETS = PROJECT.parent / "shared" / "data" / "idd_lite"
pytestmark = pytest.mark.skipif(not STREETS.is_dir(), reason="the photographs of idd_lite are not here")


@pytest.fixture(scope="module")
def data():
    configs = [str(PROJECT / "configs" / kind) for kind in ("model/baseline.yaml", "data/idd_lite.yaml")]
    return taskformer.from_config(*configs, overrides=[f"--data.root={STREETS}", "--data.holdout=0.2"])[1]


def test_all_streets_are_found_and_the_validation_images_are_tested(data):
    data.setup("fit")
    data.setup("test")
    assert {split: len(dataset) for split, dataset in data.datasets.items()} == {"train": 320, "val": 80, "test": 204}
    assert data.dataset("test", build_tasks(data.task_specs), None).ids == data.evaluation_dataset("val").ids
    assert data.datasets["train"][0]["image"].shape == (3, 160, 224)
    assert data.datasets["test"][0]["image"].shape == (3, 256, 320)


@pytest.mark.parametrize("split", ["train", "val"])
def test_labels_are_the_stored_ones_and_edges_lie_between_them(data, split):
    dataset = data.dataset(split, build_tasks(data.task_specs), None)
    for number in range(0, len(dataset), 67):
        folder, name = dataset.ids[number].split("/")
        stored = np.asarray(Image.open(STREETS / "gtFine" / split / folder / f"{name}_label.png")).astype(int)
        sample = dataset[number]["targets"]
        np.testing.assert_array_equal(sample["semseg"], stored)
        assert set(np.unique(stored)) <= {*range(7), 255}
        near = ndimage.binary_dilation(stored == 255, np.ones((3, 3)))
        np.testing.assert_array_equal(np.isnan(sample["edges"]), near)
        lines, between = sample["edges"] == 1, differs(stored)
        assert not (lines & ~between).any()
        assert 0.3 < lines.sum() / between[~near].sum() < 0.7  # of two pixels on either side of a boundary one is left
        far = ndimage.distance_transform_edt(~lines)[between & ~near]
        assert np.mean(far <= 3) > 0.99  # the tolerance of the score
        assert far.max() < 6


def differs(labels):
    """Pixels of which a neighbour above, below, left or right has another label."""
    found = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        changes = np.diff(labels, axis=axis) != 0
        for side in ((1, 0), (0, 1)):
            found |= np.pad(changes, [side if axis == other else (0, 0) for other in (0, 1)])
    return found


def test_every_class_is_common_enough_to_be_learnt(data):
    dataset = data.dataset("train", build_tasks({"semseg": data.task_specs["semseg"]}), None)
    pixels: Counter[int] = Counter()
    for number in range(0, len(dataset), 20):
        pixels.update(dict(enumerate(np.bincount(dataset[number]["targets"]["semseg"].ravel(), minlength=7)[:7])))
    assert min(pixels.values()) > 0.005 * sum(pixels.values())
