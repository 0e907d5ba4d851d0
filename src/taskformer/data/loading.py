"""The order of training images and the randomness of each: functions of (seed, epoch, index) and of nothing else.

So an epoch is the same with any number of loader processes, is divided between any number of training processes, and
goes on in its middle where a checkpoint was written.
"""

import random
import signal
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from lightning.fabric.utilities.seed import pl_worker_init_function
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import DataLoader, Dataset, DistributedSampler, get_worker_info

from taskformer.data.datasets.base import Sample
from taskformer.memory import keep_freed_memory
from taskformer.seeds import derive


class Draw(NamedTuple):
    """An image in an epoch.

    Attributes:
        epoch: Number of the epoch, from 0.
        image: Number of the image.
    """

    epoch: int
    image: int


class TrainingOrder(DistributedSampler[Draw]):
    """Every image once per epoch in random order; each process has its share, and a remainder is left out.

    It is a ``DistributedSampler`` so that Lightning neither replaces it nor forgets to tell it the epoch.

    Args:
        dataset: The training images.
        processes: How many processes train.
        rank: Which one this is.
    """

    def __init__(self, dataset: Dataset[Sample], processes: int = 1, rank: int = 0) -> None:
        super().__init__(dataset, processes, rank, shuffle=True, drop_last=True)
        #: Images of the next iteration that were used before the checkpoint it goes on from.
        self.used = 0

    def __iter__(self) -> Iterator[Draw]:
        """Yield this process's images."""
        images = len(self.dataset)  # type: ignore[arg-type]  # all of ours have a length
        order = torch.randperm(images, generator=torch.Generator().manual_seed(derive("order", self.epoch)))
        mine = order[: images - images % self.num_replicas][self.rank :: self.num_replicas].tolist()
        used, self.used = self.used, 0
        return (Draw(self.epoch, index) for index in mine[used:])

    def __len__(self) -> int:
        """Return how many images this process has in an epoch."""
        return len(self.dataset) // self.num_replicas  # type: ignore[arg-type]


class SeededSamples(Dataset[Sample]):
    """Samples whose augmentation follows from their epoch and index.

    Args:
        dataset: Samples that draw from torch's, numpy's or Python's random streams.
    """

    def __init__(self, dataset: Dataset[Sample]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.dataset)  # type: ignore[arg-type]  # all of ours have a length

    def __getitem__(self, draw: Draw | int) -> Sample:
        """Return the sample of an epoch; a plain number, of loaders that know no epochs, means the first."""
        epoch, index = draw if isinstance(draw, Draw) else (0, draw)
        # A loader's process has no other use for these streams; in the main one dropout has.
        with nullcontext() if get_worker_info() else isolate_rng(include_cuda=False):
            seed = derive("sample", epoch, index)
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002  # the stream that users' own transforms draw from
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would restart that of a GPU too
            return self.dataset[index]


class ResumableLoader(DataLoader[Sample]):
    """A loader of a :class:`TrainingOrder` whose place in an epoch is saved and restored, by Lightning's protocol.

    Attributes:
        epoch_ended: Tells whether the batch handed out last is the epoch's last one, which the Trainer may decide.
    """

    epoch_ended: Callable[[], bool] = staticmethod(lambda: False)
    #: Batches of this epoch that were handed out.
    _handed_out = 0

    def __iter__(self) -> Iterator[Sample]:  # type: ignore[override]  # torch's own iterator is its parent's matter
        """Yield the batches that are left of the epoch."""
        order = self.sampler
        self._handed_out = order.used // (self.batch_size or 1) if isinstance(order, TrainingOrder) else 0
        for batch in super().__iter__():
            self._handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the epoch, its start if it has ended."""
        return {"batches": 0 if self.epoch_ended() else self._handed_out}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Leave out the first batches of the next iteration."""
        if isinstance(self.sampler, TrainingOrder):
            self.sampler.used = state.get("batches", 0) * (self.batch_size or 1)


def worker_init(worker_id: int) -> None:
    """Prepare a loader worker: Lightning's seeds, different for every rank, worker and epoch, and its own resources.

    It has one OpenCV thread and keeps the memory of freed arrays. Signals that reach all processes, from Ctrl-C or a
    cluster, are left to the main process, which needs its workers until it ends; a worker that is told to terminate
    has ten more seconds.
    The transforms take their random stream from the torch seed set here.
    """
    pl_worker_init_function(worker_id)
    cv2.setNumThreads(0)
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):  # not on Windows
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(10))
