"""The best constant prediction against predictions made by hand."""

import pytest
import torch

from taskformer.evaluation.constant import FITTED_TO, ConstantPredictor
from taskformer.tasks import build_tasks

SPECS = {"semseg": {"classes": ["wall", "floor", "lamp"]}, "depth": {}}


def samples(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    depth = 1 + torch.rand(count, 1, 4, 6, generator=generator)
    labels = torch.randint(0, 2, (count, 4, 6), generator=generator)
    return [
        {"image": None, "targets": {"depth": depth, "semseg": label}}
        for depth, label in zip(depth, labels, strict=True)
    ]


def batch(rows):
    return {name: torch.stack([row["targets"][name] for row in rows]) for name in SPECS}


def test_it_scores_what_the_majority_and_the_mean_score():
    training, test = samples(5), samples(4, seed=1)
    predictor = ConstantPredictor(build_tasks(SPECS), training)
    predictor.update(batch(test[:3]))
    predictor.update(batch(test[3:]))
    found = predictor.results()
    mean = torch.stack([row["targets"]["depth"] for row in training]).mean()
    truth = batch(test)
    assert found["depth"]["rmse"] == pytest.approx((truth["depth"] - mean).square().mean().sqrt().item(), rel=1e-5)
    majority = torch.stack([row["targets"]["semseg"] for row in training]).mode().values.mode().values.mode().values
    right = (truth["semseg"] == majority).double().mean().item()
    assert found["semseg"]["pixel_accuracy"] == pytest.approx(right)


def test_it_looks_at_some_images_only_and_leaves_out_unreadable_ones():
    looked = []

    class Images(list):
        def __getitem__(self, index):
            looked.append(index)
            return super().__getitem__(index)

    images = Images([*samples(FITTED_TO + 50), {"meta": {"id": "broken"}}])
    predictor = ConstantPredictor(build_tasks(SPECS), images)
    assert len(set(looked)) == FITTED_TO
    assert (min(looked), max(looked)) == (0, FITTED_TO + 50)
    predictor.update({})  # a batch without an image that could be read
    predictor.update(batch(samples(1)))
    assert predictor.results()["depth"]["rmse"] > 0
