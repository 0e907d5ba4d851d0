"""The loader's benchmark, checked on a few images: that all contenders do the same work, not how fast."""

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

ROOT = Path(__file__).parents[2]

sys.path.insert(0, str(ROOT / "benchmarks"))
import loading  # noqa: E402 - benchmarks are scripts, not a package


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nyud")
    loading.write_data(folder, Path("nowhere"), images=3)
    return folder


def test_the_contenders_give_batches_of_one_kind(root):
    torch.manual_seed(0)
    plain = next(iter(loading.plain_loader(root, workers=0, batch_size=2)))
    data = loading.data_module(root, workers=0)
    data.batch_size = 2
    ours = next(iter(data.train_dataloader()))
    kinds = [
        {name: (value.shape, value.dtype) for name, value in {"image": batch["image"], **batch["targets"]}.items()}
        for batch in (plain, ours)
    ]
    assert kinds[0] == kinds[1]
    assert kinds[0]["image"][0] == (2, 3, loading.HEIGHT, loading.WIDTH)


def averages(dataset, count=24):
    """What augmentation leaves on average: the image, its spread, and the share and mean of the valid pixels."""
    batch = default_collate([{**dataset[index % 3], "meta": {}} for index in range(count)])
    maps = {name: target.float().numpy() for name, target in batch["targets"].items()}
    maps["semseg"] = np.where(maps["semseg"] == 255, np.nan, maps["semseg"])
    values = {"image": batch["image"].mean(), "contrast": batch["image"].std()}
    for name, pixels in maps.items():
        values[f"{name} valid"] = np.isfinite(pixels).mean()
        values[name] = np.nanmean(np.abs(pixels))
    return {name: float(value) for name, value in values.items()}


def test_the_plain_implementation_follows_the_same_recipe(root):
    random.seed(0)  # what the plain implementation draws from
    torch.manual_seed(0)
    plain = averages(loading.PlainNYUD(root, "train"))
    ours = averages(loading.data_module(root, workers=0).datasets["train"])
    assert plain.keys() == ours.keys()
    for name, value in plain.items():
        tolerance = 0.25 if name == "image" else 0.06  # brightness alone varies by 0.15 from image to image
        assert ours[name] == pytest.approx(value, rel=0.15, abs=tolerance), name


def test_the_steps_of_the_plain_implementation(root):
    dataset = loading.PlainNYUD(root, "train")
    maps = dataset._load(dataset.ids[0])
    assert {name: pixels.dtype.str[1:] for name, pixels in maps.items()} == {
        "image": "u1",
        "semseg": "u1",
        "depth": "f4",
        "normals": "f4",
        "edges": "f4",
    }
    small = {name: pixels[:200, :300] for name, pixels in maps.items()}
    loading.pad_to_crop(small)
    loading.mark_invalid(small)
    assert np.isnan(small["depth"][0]).all()
    assert np.isnan(small["normals"][0]).all()
    assert np.isnan(small["edges"][:, 0]).all()
    assert (small["semseg"][-1] == 255).all()
    assert np.isfinite(small["depth"][113:312, 131:429]).all()


def test_measuring_and_reporting(root):
    contenders = loading.measure(root, workers=1, epochs=1, batch_size=1)
    assert list(contenders) == ["plain", "files", "cache"]
    for contender in contenders.values():
        assert len(contender.processes) == len(contender.rates) == 1
        assert contender.rates[0] > 0
        assert contender.milliseconds[0] >= 0
        assert contender.resident[0] > contender.private[0] > 0
    results = loading.report(contenders)
    assert results["plain"]["times_plain"] == 1
    assert json.loads(json.dumps(results)) == results


def test_photographs_are_used_where_there_are_some(tmp_path):
    if not loading.PHOTOS.exists():
        pytest.skip("the photographs are not here")
    text = loading.write_data(tmp_path, loading.PHOTOS, images=11)
    assert text.startswith("11 samples from 10 photographs")
    assert len(list((tmp_path / "normals").iterdir())) == 11
    sample = loading.data_module(tmp_path, workers=0).evaluation_dataset("train")[10]
    assert sample["image"].shape == (3, loading.HEIGHT, loading.WIDTH)
    assert 0.5 < sample["targets"]["depth"].nanmean() < 10
    assert sample["targets"]["normals"].isfinite().float().mean() > 0.8
