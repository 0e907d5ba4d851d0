"""How a model is evaluated and predicts: metrics, test-time augmentation, photographs."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from taskformer.metrics.images import ImageResults, update_by_image
from taskformer.modules.augmented import TTA, augmented
from taskformer.modules.balancing import FixedWeights
from taskformer.modules.checkpoints import Checkpointed
from taskformer.modules.prediction import WHOLE, View, predict_maps
from taskformer.normalisation import normalise_bytes
from taskformer.pictures import Photograph, as_rgb
from taskformer.tasks import Stage, Task
from taskformer.tasks.improvement import improvements

Batch = dict[str, Any]
#: ``{task: {metric: value}}``
Results = dict[str, dict[str, float]]


class EvaluatedModule(Checkpointed):
    """A model that is validated, tested and predicts; how it trains is a subclass's.

    Args:
        tasks: The tasks by name.

    Attributes:
        tasks: The tasks by name.
        loss_weights: The weight of each task's loss in the logged total.
        results: The metrics of the last evaluation by stage (``"val"``, ``"test"``).
        test_stage: ``"val"`` leaves out of ``test`` what takes long, the boundary benchmark of edges; set it before
            ``protocol``.
        tta: Flips and scales over which the outputs of test images and photographs are averaged.
        per_class: Each class's score in the last evaluation by stage, for the tasks that have classes.
        scores_images: Whether ``test`` also scores each image alone; set it before.
        image_scores: Then the metrics of each image of the last batch by task.
        details: What plots of the last test need beyond its scores, see :meth:`taskformer.tasks.Task.details`:
            ``{"test": {task: {name: lists}}}``.
        single_task: Headline metric of each task's single-task runs on the validation split, against which
            ``val/delta_m`` is logged; empty: it is not.
        train_losses: The losses of the last training batch.
        train_size: Height and width of the training images, kept in checkpoints: photographs are predicted at this
            scale.
    """

    loss_weights: dict[str, float]
    train_size: Tensor

    def __init__(self, tasks: dict[str, Task]) -> None:
        super().__init__()
        self.tasks = tasks
        self._protocol = "standard"
        self.test_stage: Stage = "test"
        self.tta = TTA()
        self.metrics = nn.ModuleDict({stage: self._build_metrics(stage) for stage in ("val", "test")})
        self.results: dict[str, Results] = {}
        self.per_class: dict[str, dict[str, list[float]]] = {}
        self.scores_images = False
        self.image_scores: dict[str, ImageResults] = {}
        self.details: dict[str, dict[str, dict[str, Any]]] = {}
        self.single_task: dict[str, float] = {}
        self.train_losses: dict[str, Tensor] = {}
        self.register_buffer("train_size", torch.zeros(2, dtype=torch.int64))

    @abstractmethod
    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Predict raw outputs from ``(B, 3, H, W)`` ImageNet-normalised images."""

    @property
    def protocol(self) -> str:
        """How evaluations score, one of :data:`taskformer.tasks.PROTOCOLS`; setting it starts the metrics anew."""
        return self._protocol

    @protocol.setter
    def protocol(self, name: str) -> None:
        self._protocol = name
        for stage in self.metrics:
            self.metrics[stage] = self._build_metrics(stage).to(self.device)

    def evaluated(self, image: Tensor) -> Mapping[str, Tensor]:
        """Predict raw outputs as test images and photographs get them: averaged over what ``tta`` says."""
        return augmented(self, self.tta.flip, self.tta.scales)(image)

    def compute_losses(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute each task's unweighted loss, and as ``"total"`` their sum with the configured weights."""
        losses = self.task_losses(outputs, targets)
        return losses | {"total": FixedWeights(self.loss_weights)(losses)}

    def task_losses(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute each task's unweighted loss: exactly 0 where no pixel has a label."""
        return {name: task.loss(outputs[name], targets[name]) for name, task in self.tasks.items()}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the validation metrics."""
        self._evaluate("val", batch, self)

    def test_step(self, batch: Batch, batch_idx: int) -> Mapping[str, Tensor]:
        """Update the test metrics and return the raw outputs, for callbacks that look at single images."""
        return self._evaluate("test", batch, self.evaluated)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return decoded maps; none of a batch without an image that could be read."""
        return self.decode(self(batch["image"])) if len(batch["image"]) else {}

    def decode(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Turn raw outputs into class ids, metres, unit vectors, ..."""
        return {name: task.decode(outputs[name]) for name, task in self.tasks.items()}

    @torch.no_grad()
    def predict_image(self, image: Photograph, view: View = WHOLE) -> dict[str, NDArray[Any]]:
        """Predict decoded maps of one photograph.

        Raw outputs are brought back to the photograph's own resolution before they are decoded.

        Args:
            image: A file's path, an image of Pillow, an array ``(H, W, 3)`` or a tensor ``(3, H, W)``, uint8 or floats
                in [0, 1]; grey and with transparency too, see :func:`taskformer.pictures.as_rgb`.
            view: How the network sees it; by default at the scale it was trained at, everything at once.

        Returns:
            ``{task: map}``, each ``(H, W)`` or ``(C, H, W)``.

        Raises:
            InvalidImageError: If it is something else.
            CorruptFileError: If it is a file that is not a picture.
            DatasetNotFoundError: If there is no such file.
        """
        normalised = normalise_bytes(as_rgb(image)).unsqueeze(0).to(self.device)  # (1, 3, H, W)
        training = self.training
        self.eval()
        decoded = predict_maps(self.tasks, self.evaluated, normalised, int(self.train_size.min()), view)
        self.train(training)
        return {name: values.squeeze(0).cpu().numpy() for name, values in decoded.items()}

    def on_validation_epoch_end(self) -> None:
        """Compute and log the validation metrics, and delta_m where there are single-task runs to compare with."""
        self._finish("val")
        if self.single_task and not self.trainer.sanity_checking:
            _, delta_m = improvements(self.tasks, self.results["val"], self.single_task)
            self.log("val/delta_m", delta_m, sync_dist=True)

    def on_test_epoch_end(self) -> None:
        """Compute and log the test metrics."""
        self._finish("test")

    def _build_metrics(self, stage: str) -> nn.ModuleDict:
        """Build every task's metrics; all evaluations but the test are of a training's epochs."""

        def kind(task: Task) -> Stage:
            if stage != "test":
                return "val"
            return self.test_stage if task.slow_test else "test"

        return nn.ModuleDict({name: task.metrics(self._protocol, kind(task)) for name, task in self.tasks.items()})

    def _evaluate(
        self, stage: str, batch: Batch, network: Callable[[Tensor], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        """Update the metrics of a stage, log its losses and return the raw outputs.

        A batch none of whose images could be read counts nothing, but is logged: processes must log the same names.
        """
        if not len(batch["image"]):
            nothing = torch.zeros((), device=self.device)
            self._log_losses(stage, dict.fromkeys((*self.tasks, "total"), nothing), batch_size=0)
            return {}
        outputs = network(batch["image"])
        self._log_losses(stage, self.compute_losses(outputs, batch["targets"]), len(batch["image"]))
        for name, metrics in self._stage_metrics(stage):
            output = outputs[name].float()
            target = self.tasks[name].check(batch["targets"][name], output)
            if stage == "test" and self.scores_images:
                self.image_scores[name] = update_by_image(metrics, output, target)
            else:
                metrics.update(output, target)
        return outputs

    def _finish(self, stage: str) -> None:
        """Compute, log and reset the metrics of a stage."""
        results: Results = {}
        per_class: dict[str, list[float]] = {}
        details: dict[str, dict[str, Any]] = {}
        for name, metrics in self._stage_metrics(stage):
            results[name] = {metric: float(value) for metric, value in metrics.compute().items()}
            for metric in metrics.values():
                if scores := class_scores(metric):
                    per_class[name] = scores
            if stage == "test":
                details[name] = self.tasks[name].details(metrics)
            metrics.reset()
            # The values are reduced over processes already; averaging equal numbers changes nothing.
            self.log_dict({f"{stage}/{name}/{key}": value for key, value in results[name].items()}, sync_dist=True)
        if not self.trainer.sanity_checking:
            self.results[stage] = results
            self.per_class[stage] = per_class
            if details:
                self.details[stage] = details

    def _stage_metrics(self, stage: str) -> Iterable[tuple[str, MetricCollection]]:
        """Iterate over the metrics of a stage by task."""
        metrics: Any = self.metrics[stage]
        return metrics.items()  # type: ignore[no-any-return]  # a ModuleDict does not say of what

    def _log_losses(self, stage: str, losses: Mapping[str, Tensor], batch_size: int) -> None:
        """Log the total (at every step of training) and each task's loss (means over the epoch)."""
        step = stage == "train"
        if step:
            self.train_losses = {name: loss.detach() for name, loss in losses.items()}
        self.log(
            f"{stage}/loss",
            losses["total"],
            prog_bar=not step,  # there Lightning would wait for the device at every step, see callbacks.ProgressBar
            on_step=step,
            on_epoch=not step,
            sync_dist=not step,
            batch_size=batch_size,
        )
        parts = {f"{stage}/loss/{name}": loss for name, loss in losses.items() if name != "total"}
        self.log_dict(parts, on_step=False, on_epoch=True, sync_dist=True, batch_size=batch_size)


def class_scores(metric: Metric) -> list[float]:
    """Return the score of each class over all processes, NaN where a class never occurs; empty without classes."""
    per_class: Callable[[], Tensor] | None = getattr(metric, "per_class", None)
    if per_class is None:
        return []
    with metric.sync_context():
        return per_class().tolist()
