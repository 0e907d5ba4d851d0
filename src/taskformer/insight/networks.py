"""The network that is looked at."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from taskformer.modules.base import MultiTaskModule
from taskformer.modules.exporting import plain_network


@contextmanager
def evaluating(module: MultiTaskModule, architecture: str | None = None) -> Iterator[nn.Module]:
    """Yield a model's network in evaluation mode; afterwards it is in the mode in which it was.

    Args:
        module: The model.
        architecture: JSON file of a supernet's sub-network; None: the largest.

    Raises:
        ConfigError: If an architecture is given for a model that has none to choose, or it does not fit.
    """
    network = plain_network(module, architecture)
    training = network.training
    network.eval()
    try:
        yield network
    finally:
        network.train(training)
