import platform
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from taskformer.data.datamodules.base import collate
from taskformer.data.memory import shared_empty

FAULTS = """
import resource, sys
import numpy as np
from taskformer.data.memory import keep_freed_memory

def sample():
    arrays = [np.ones(3_000_000, np.uint8) for _ in range(5)]

if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(3):
    sample()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    sample()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep memory")
def test_freed_memory_is_kept():
    faults = {}
    for mode in ("keep", "default"):
        result = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True)
        faults[mode] = float(result.stdout)
    assert faults["keep"] < 50
    assert faults["default"] > 1000  # else this file is not needed any more


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
