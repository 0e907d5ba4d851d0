"""What a training draws is a function of (seed, epoch, index): of no process, worker, cache or earlier draw."""

import json
import random
from collections import Counter

import numpy as np
import pytest
import torch
from lightning import seed_everything
from torch.utils.data import Dataset

from taskformer.data import FolderDataModule, Label
from taskformer.data.loading import Draw, ResumableLoader, SeededSamples, TrainingOrder
from taskformer.data.transforms import PhotoMetricDistortion, RandomHorizontalFlip, RandomScaledCrop


class Noise(Dataset):
    """Samples that draw from every random stream a user's transform may use."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return torch.tensor([index, random.random(), np.random.rand(), torch.rand(()).item()])  # noqa: NPY002


def epoch_of(order, epoch):
    order.set_epoch(epoch)
    return list(order)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_an_epoch_is_divided_between_processes(processes):
    data = Noise(11)
    shares = [[draw.image for draw in epoch_of(TrainingOrder(data, processes, rank), 4)] for rank in range(processes)]
    seen = Counter(image for share in shares for image in share)

    assert all(len(share) == 11 // processes for share in shares)
    assert set(seen.values()) == {1}
    whole = [draw.image for draw in epoch_of(TrainingOrder(data), 4)]
    taken = 11 - 11 % processes
    assert [image for turn in zip(*shares, strict=True) for image in turn] == whole[:taken]


def test_epochs_and_seeds_have_unrelated_orders(monkeypatch):
    orders = []
    for seed in (0, 1, 2):
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        orders += [tuple(draw.image for draw in epoch_of(TrainingOrder(Noise(50)), epoch)) for epoch in range(3)]
    assert len(set(orders)) == 9  # seed 0 in epoch 1 is not seed 1 in epoch 0


def test_a_sample_follows_from_seed_epoch_and_index_and_leaves_the_process_alone(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    samples = SeededSamples(Noise(5))
    first = {(epoch, image): samples[Draw(epoch, image)] for epoch in (0, 1) for image in range(5)}
    assert len({tuple(values[1:].tolist()) for values in first.values()}) == 10

    seed_everything(7)
    expected = Noise(1)[0].tolist()
    seed_everything(7)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    assert torch.equal(samples[Draw(1, 3)], first[1, 3])  # whatever was drawn before
    assert Noise(1)[0].tolist() == expected

    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    assert not torch.equal(samples[Draw(1, 3)], first[1, 3])


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_loader_processes_change_nothing_and_an_epoch_goes_on_in_its_middle(workers):
    def loader():
        data = Noise(10)
        return ResumableLoader(SeededSamples(data), batch_size=3, sampler=TrainingOrder(data), drop_last=True,
                               num_workers=workers, persistent_workers=workers > 0)  # fmt: skip

    plain = SeededSamples(Noise(10))
    whole = loader()
    for epoch in range(2):
        whole.sampler.set_epoch(epoch)
        draws = epoch_of(TrainingOrder(Noise(10)), epoch)
        expected = [torch.stack([plain[draw] for draw in draws[start : start + 3]]) for start in (0, 3, 6)]
        for place, (batch, by_hand) in enumerate(zip(whole, expected, strict=True), start=1):
            assert torch.equal(batch, by_hand)
            assert whole.state_dict() == {"batches": place}
    later = loader()
    later.load_state_dict({"batches": 2})
    later.sampler.set_epoch(1)
    (last,) = later
    assert torch.equal(last, expected[2])
    later.sampler.set_epoch(0)
    assert len(list(later)) == 3  # only the first iteration starts in the middle


def test_a_finished_epoch_is_no_place_to_go_on_in():
    data = Noise(4)
    loader = ResumableLoader(SeededSamples(data), batch_size=2, sampler=TrainingOrder(data))
    loader.epoch_ended = lambda: True
    list(loader)
    assert loader.state_dict() == {"batches": 0}


def test_a_decoded_cache_and_workers_change_no_batch(small_rooms, tmp_path):
    augmentation = [RandomScaledCrop(0.8, 1.6, 96, 96), RandomHorizontalFlip(), PhotoMetricDistortion()]
    for split in ("train", "val"):
        records = json.loads((small_rooms / f"{split}.json").read_text())
        (tmp_path / f"{split}.txt").write_text("\n".join(record["id"] for record in records))
    (tmp_path / "rooms").symlink_to(small_rooms)
    labels = {"semseg": Label("rooms/semseg/{id}.png", {"classes": [str(number) for number in range(16)]})}
    splits = {"train": "train.txt", "val": "val.txt"}

    def batches(**options):
        data = FolderDataModule(str(tmp_path), image="rooms/image/{id}.jpg", labels=labels, splits=splits,
                                batch_size=2, train_transforms=augmentation, **options)  # fmt: skip
        data.build_caches()
        data.setup("fit")
        loader = data.train_dataloader()
        found = []
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            found += [(batch["image"], batch["targets"]["semseg"]) for batch in loader]
        return found

    plain = batches()
    assert len(plain) == 8
    assert not torch.equal(plain[0][0], plain[4][0])
    built_now = found = {"cache_dir": str(tmp_path / "cache")}
    for options in (built_now, found, {"num_workers": 1}):
        for (image, labelled), (expected, by_file) in zip(batches(**options), plain, strict=True):
            assert torch.equal(image, expected)
            assert torch.equal(labelled, by_file)
