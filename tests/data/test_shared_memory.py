import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from taskformer.data.datamodules.base import collate
from taskformer.data.memory import shared_empty


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8])
def test_shared_tensors_are_ordinary_ones(dtype):
    tensor = shared_empty((2, 3, 5), dtype)
    assert tensor.shape == (2, 3, 5)
    assert tensor.dtype == dtype
    assert tensor.is_contiguous()
    assert tensor.is_shared()
    tensor.numpy()[:] = np.arange(30).reshape(2, 3, 5)
    assert tensor.sum() == 435


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_stacked_and_padded_in_every_process(workers):
    samples = [
        {
            "image": torch.full((3, 4 + size, 5), float(size)),
            "targets": {"semseg": torch.full((4 + size, 5), size)},
            "meta": {},
        }
        for size in (0, 0, 0, 2)
    ]
    even, padded = DataLoader(samples, batch_size=2, num_workers=workers, collate_fn=collate)
    assert even["image"].shape == (2, 3, 4, 5)
    assert padded["image"].shape == (2, 3, 6, 5)
    assert padded["image"].is_shared() == (workers > 0)
    assert (padded["image"][1] == 2).all()
    assert (padded["image"][0] == 0).all()
    assert (padded["targets"]["semseg"][0, 4:] == 255).all()
    assert (padded["targets"]["semseg"][0, :4] == 0).all()
