"""The benchmark on streets, checked with models that know the answers."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage

ROOT = Path(__file__).parents[2]

sys.path.insert(0, str(ROOT / "benchmarks"))
import real_streets  # noqa: E402 - benchmarks are scripts, not a package

pytestmark = pytest.mark.skipif(not real_streets.STREETS.is_dir(), reason="the photographs of idd_lite are not here")
IMAGES = 4


class Answering(torch.nn.Module):
    """Answers with given logits, one image after another."""

    def __init__(self, logits):
        super().__init__()
        self.tasks, self.logits = {"edges": None}, iter(logits)

    def forward(self, image):
        logits = next(self.logits)
        assert image.shape[-2:] == logits.shape[-2:]
        return {"edges": logits.view(1, 1, *logits.shape[-2:])}


@pytest.fixture
def truths(monkeypatch):
    """The edges of a few streets ``(H, W)``, NaN where there is no label, which are then all that there are."""
    data = real_streets.data_module(real_streets.CONFIG, root=str(real_streets.STREETS), tasks=["edges"])
    few = torch.utils.data.Subset(data.evaluation_dataset("val"), range(0, 50 * IMAGES, 50))
    monkeypatch.setattr(real_streets, "data_module", lambda *_, **__: SimpleNamespace(evaluation_dataset=lambda _: few))
    return [sample["targets"]["edges"][0].numpy() for sample in few]


def test_the_truth_scores_perfectly_and_edges_everywhere_as_many_right_as_lie_near_one(truths):
    perfect = real_streets.record(Answering(torch.tensor(np.where(each == 1, 9.0, -9.0)) for each in truths), Path())
    assert perfect["tasks"] == {"edges": {"f_tolerant": 1.0}}
    assert perfect["images"]["edges"] == [1.0] * IMAGES == [1.0] * len(set(perfect["images"]["ids"]))
    assert perfect["facts"] == {"split": "streets", "images": IMAGES}

    everywhere = real_streets.record(Answering(torch.full(each.shape, 9.0) for each in truths), Path())
    right = [np.isfinite(each) & (ndimage.distance_transform_edt(each != 1) <= 0.0075 * np.hypot(*each.shape))
             for each in truths]  # fmt: skip
    labelled = [np.isfinite(each).sum() for each in truths]
    precision = sum(map(np.sum, right)) / sum(labelled)
    assert everywhere["tasks"]["edges"]["f_tolerant"] == pytest.approx(2 * precision / (1 + precision), rel=1e-6)
    alone = [near.sum() / count for near, count in zip(right, labelled, strict=True)]
    assert everywhere["images"]["edges"] == pytest.approx([2 * each / (1 + each) for each in alone], rel=1e-5)


def test_a_model_without_edges_has_no_score():
    assert real_streets.record(SimpleNamespace(tasks={"depth": None}), Path("nowhere"))["tasks"] == {}
