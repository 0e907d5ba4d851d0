"""Which process evaluates which image: each exactly once."""

import pytest
from torch.utils.data import DistributedSampler, SequentialSampler

from taskformer.data.datamodules.base import EvaluationBatches
from taskformer.data.datamodules.combined import PartBatches
from taskformer.errors import ConfigError


def shares(images, processes, batches, *args):
    """The batches of every process."""
    samplers = [DistributedSampler(range(images), processes, rank, shuffle=False) for rank in range(processes)]
    return [list(batches(sampler, 2, False, *args)) for sampler in samplers]


@pytest.mark.parametrize(("images", "processes"), [(13, 1), (13, 2), (13, 4), (12, 3), (3, 3)])
def test_processes_share_the_images_without_repetition(images, processes):
    found = shares(images, processes, EvaluationBatches)
    counts = [sum(len(batch) for batch in share) for share in found]
    assert sorted(index for share in found for batch in share for index in batch) == list(range(images))
    assert max(counts) - min(counts) <= 1


def test_parts_are_shared_without_repetition_too():
    found = shares(13, 3, PartBatches, [5, 12, 13])
    assert sorted(index for share in found for batch in share for index in batch) == list(range(13))


def test_one_process_sees_the_images_in_order():
    assert list(EvaluationBatches(SequentialSampler(range(5)), 2, False)) == [[0, 1], [2, 3], [4]]


def test_more_processes_than_images_are_refused_on_all_of_them():
    for rank in range(3):
        with pytest.raises(ConfigError, match="2 images cannot be evaluated by 3 processes; set"):
            EvaluationBatches(DistributedSampler(range(2), 3, rank, shuffle=False), 1, False)
