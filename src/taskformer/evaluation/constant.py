"""The best constant prediction: the floor that every model must beat."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from taskformer.modules.evaluating import Results
from taskformer.tasks import Stage, Task

#: Training images that the constants are fitted to, spread evenly over the split.
FITTED_TO = 100


class ConstantPredictor:
    """Predict the same everywhere: the majority class, the mean depth, the mean normal, the share of edges.

    >>> from taskformer.tasks import build_tasks
    >>> training = [{"image": None, "targets": {"depth": torch.full((1, 4, 4), metres)}} for metres in (2.0, 4.0)]
    >>> predictor = ConstantPredictor(build_tasks({"depth": {}}), training)
    >>> predictor.update({"depth": torch.full((1, 1, 4, 4), 3.5)})
    >>> predictor.results()["depth"]["rmse"]
    0.5

    Args:
        tasks: The tasks by name.
        dataset: Training images; some of their targets are what the constants are fitted to.
        protocol: How to score.
        stage: What to score by, see :meth:`taskformer.tasks.Task.metrics`.
        device: Where the targets will be.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        dataset: Dataset[Any],
        protocol: str = "standard",
        stage: Stage = "test",
        device: torch.device | str = "cpu",
    ) -> None:
        images: int = len(dataset)  # type: ignore[arg-type]  # torch's own class declares no length
        indices = np.linspace(0, images - 1, min(FITTED_TO, images)).round().astype(int)
        samples = [dataset[int(index)] for index in indices]
        targets = [sample["targets"] for sample in samples if "image" in sample]  # of those that can be read
        self._tasks = tasks
        self._metrics = {name: task.metrics(protocol, stage).to(device) for name, task in tasks.items()}
        self._constants: dict[str, Tensor] = {}
        for name, task in tasks.items():
            constant = task.constant([target[name] for target in targets])
            self._constants[name] = constant if task.geometry == "image" else constant.view(-1, 1, 1)

    def update(self, targets: Mapping[str, Tensor]) -> None:
        """Score the constants on a batch of targets."""
        for name in self._tasks.keys() & targets.keys():  # none of a batch without an image that could be read
            constant, target = self._constants[name], targets[name]
            size = target.shape[-2:] if constant.ndim == 3 else ()
            output = constant.to(target.device).expand(len(target), -1, *size)
            self._metrics[name].update(output, self._tasks[name].check(target, output))

    def results(self) -> Results:
        """Compute the metrics ``{task: {metric: value}}`` over all processes, which must all call this."""
        return {
            name: {metric: float(value) for metric, value in metrics.compute().items()}
            for name, metrics in self._metrics.items()
        }
